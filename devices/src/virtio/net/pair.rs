//! A pair of queues, and what stands behind it.

use super::receive::Receiver;
use super::transmit::Transmitter;
use super::{NetBackend, add};
use crate::rate::Limiter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a pair of queues has moved.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames sent.
    pub tx_frames: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// Frames that were malformed or that the backend did not take.
    pub tx_dropped: AtomicU64,
    /// Frames received.
    pub rx_frames: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Frames that fitted no buffer that the driver gives.
    pub rx_dropped: AtomicU64,
    /// Buffers that the driver got back empty because they hold no header.
    pub rx_bad_buffers: AtomicU64,
}

impl NetCounters {
    /// By name, those of the receive queue first.
    pub(super) fn all(&self) -> [(&'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("rx_frames", get(&self.rx_frames)),
            ("rx_bytes", get(&self.rx_bytes)),
            ("rx_dropped", get(&self.rx_dropped)),
            ("rx_bad_buffers", get(&self.rx_bad_buffers)),
            ("tx_frames", get(&self.tx_frames)),
            ("tx_bytes", get(&self.tx_bytes)),
            ("tx_dropped", get(&self.tx_dropped)),
        ]
    }

    /// How many of [`NetCounters::all`] are the receive queue's.
    pub(super) const RECEIVE: usize = 4;
}

/// One pair of queues.
pub(super) struct Pair {
    pub backend: Box<dyn NetBackend>,
    pub counters: Arc<NetCounters>,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
}

impl Pair {
    pub fn new(backend: Box<dyn NetBackend>) -> Self {
        let (counters, transmitter) = Default::default();
        Self { backend, counters, receiver: Receiver::new(), transmitter }
    }

    /// As at power-on, for a driver that takes frames apart or does not.
    pub fn start(&mut self, mergeable: bool) {
        self.receiver.start(mergeable);
    }
}

/// Whether a limit, if there is one, lets a frame through now.
pub(super) fn ready(limit: &mut Option<Limiter>) -> bool {
    limit.as_mut().is_none_or(Limiter::ready)
}

/// A frame of `bytes` has gone through: counts it, and against the limit.
pub(super) fn count(
    limit: &mut Option<Limiter>,
    (frames, total): (&AtomicU64, &AtomicU64),
    bytes: u64,
) {
    add(frames, 1);
    add(total, bytes);
    if let Some(limit) = limit {
        limit.take(bytes);
    }
}
