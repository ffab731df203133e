//! From the driver to the backend.

use super::pair::{count, ready};
use super::{HEADER, MAX_FRAME, MAX_IOVECS, NetBackend, NetCounters, SHARE, add};
use crate::rate::Limiter;
use crate::virtio::queue::{Chain, IoVecStore, IoVecs, QueueError, Vq};
use crate::virtio::{DeviceError, Ram};

/// What sending needs to keep between frames.
#[derive(Default)]
pub(super) struct Transmitter {
    chain: Chain,
    iovecs: IoVecStore,
    /// For a frame in more pieces than one system call takes.
    copy: Vec<u8>,
}

impl Transmitter {
    /// Sends what the driver has queued, a [`SHARE`] of it at most.
    pub fn run(
        &mut self,
        mem: &Ram,
        queue: &mut Vq,
        backend: &mut dyn NetBackend,
        counters: &NetCounters,
        limit: &mut Option<Limiter>,
    ) -> Result<(), DeviceError> {
        queue.suppress_notifications(mem)?;
        for _ in 0..SHARE {
            // The limit's timer brings us back.
            if !ready(limit) {
                return Ok(());
            }
            if !queue.pop(mem, &mut self.chain)? {
                break;
            }
            let len = self.chain.readable_len();
            match self.send(mem, len, backend)? {
                true => {
                    let counters = (&counters.tx_frames, &counters.tx_bytes);
                    count(limit, counters, len.saturating_sub(HEADER as u64));
                }
                false => add(&counters.tx_dropped, 1),
            }
            queue.push_used(mem, self.chain.head, 0)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        Ok(())
    }

    /// Sends the chain; `false`: it was malformed, or the backend refused it.
    fn send(
        &mut self,
        mem: &Ram,
        len: u64,
        backend: &mut dyn NetBackend,
    ) -> Result<bool, QueueError> {
        if !(HEADER as u64 + 1..=MAX_FRAME as u64).contains(&len) {
            return Ok(false);
        }
        let mut frame = self.chain.readable_iovecs(mem, &mut self.iovecs, 0, len)?;
        if frame.as_slice().len() > MAX_IOVECS {
            self.copy.resize(len as usize, 0);
            frame.copy_out(&mut self.copy);
            frame = IoVecs::from_slice(&mut self.iovecs, &mut self.copy);
        }
        Ok(backend.send(&mut frame).is_ok())
    }
}
