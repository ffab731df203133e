//! The file system device (virtio 1.2, 5.11): a directory of the host in the
//! guest, spoken in FUSE.
//!
//! ```text
//!  hiprio, request queue ─► FUSE request ─► server ─► Share: nodes, handles
//!                             data ◄── preadv, pwritev, no copy ──► files of the host
//! ```
//!
//! Everything is done with the rights of whoever runs the monitor. What the
//! guest creates is that user's, whoever asked in the guest, unless the monitor
//! runs as root. Locks are the guest's own affair: they hold among its programs
//! and not against the host's.

pub mod fuse;
mod server;
#[cfg(test)]
mod tests;

use super::queue::{Chain, IoVecStore, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::backend::share::Share;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use server::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const KIND: &str = "virtio-fs";
const VERSION: u32 = 1;
const QUEUE_SIZES: [u16; 2] = [128, 128];
/// Bytes of a tag.
pub const TAG_LEN: usize = 36;
/// Requests of a queue before other devices have their turn.
const REQUESTS_PER_EVENT: usize = 32;

/// What a share has done.
#[derive(Debug, Default)]
pub(crate) struct FsMetrics {
    requests: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    errors: AtomicU64,
}

/// A shared directory as a device.
pub struct Fs {
    tag: String,
    share: Share,
    metrics: FsMetrics,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    iovecs: IoVecStore,
}

#[derive(Serialize, Deserialize)]
struct State {
    tag: String,
    read_only: bool,
}

impl Fs {
    /// A device that the guest mounts by `tag`, of which the first [`TAG_LEN`]
    /// bytes count.
    pub fn new(tag: &str, share: Share) -> Self {
        Self { tag: tag.to_owned(), share, metrics: FsMetrics::default(), active: None }
    }

    fn serve(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(()) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        let mut server = Server {
            share: &mut self.share,
            metrics: &self.metrics,
            mem,
            iovecs: &mut active.iovecs,
        };
        queue.suppress_notifications(mem)?;
        for _ in 0..REQUESTS_PER_EVENT {
            if !queue.pop(mem, chain)? {
                break;
            }
            let written = server.serve(chain)?;
            queue.push_used(mem, chain.head, written)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        if queue.needs_interrupt(mem)? {
            active.interrupt.queue(index);
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> DeviceId {
        DeviceId::Fs
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    /// `struct virtio_fs_config`: the tag and the number of request queues.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; TAG_LEN + 4];
        for (to, from) in config[..TAG_LEN].iter_mut().zip(self.tag.bytes()) {
            *to = from;
        }
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        data.fill(0);
        let from = usize::try_from(offset).ok().and_then(|o| config.get(o..));
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, interrupt, .. } = activation;
        for queue in 0..QUEUE_SIZES.len() {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.share.clear();
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.serve(queue)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (nodes, handles) = self.share.held();
        vec![
            ("requests", get(&self.metrics.requests)),
            ("reads", get(&self.metrics.reads)),
            ("writes", get(&self.metrics.writes)),
            ("bytes_read", get(&self.metrics.bytes_read)),
            ("bytes_written", get(&self.metrics.bytes_written)),
            ("errors", get(&self.metrics.errors)),
            ("nodes_now", nodes as u64),
            ("open_files_now", handles as u64),
        ]
    }

    /// What a guest has mounted can't be saved: its nodes are open files of this
    /// process.
    fn save(&self) -> Result<Saved, StateError> {
        if !self.share.is_idle() {
            let reason = "unmount it first: its open files can't be saved".to_owned();
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        let state = State { tag: self.tag.clone(), read_only: self.share.read_only };
        Saved::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { tag, read_only } = saved.open(KIND, VERSION)?;
        if (tag.as_str(), read_only) != (self.tag.as_str(), self.share.read_only) {
            let reason = format!("saved as {tag}, read-only {read_only}");
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        Ok(())
    }
}
