//! From the backend to the driver.
//!
//! A frame is read into the next buffer of the driver, and what does not fit
//! there into a buffer of ours. Mostly all of it fits. Where it does not, it is
//! put together in our buffer and laid into as many mergeable buffers as it
//! takes (5.1.6.4); if there are not enough of them it waits there.

use super::pair::{count, ready};
use super::{HEADER, MAX_FRAME, MAX_IOVECS, NetBackend, NetCounters, SHARE, add};
use crate::rate::Limiter;
use crate::virtio::queue::{Chain, IoVecStore, QueueError, Vq};
use crate::virtio::{DeviceError, Ram};
use vm_memory::{Bytes, GuestAddress};

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: u64 = 10;

/// What receiving needs to keep between frames.
pub(super) struct Receiver {
    /// `VIRTIO_NET_F_MRG_RXBUF` was negotiated.
    mergeable: bool,
    chain: Chain,
    /// The first chain of a frame in several.
    first: Chain,
    /// All chains of it, and how much is in each.
    taken: Vec<(u16, u32)>,
    iovecs: IoVecStore,
    frame: Vec<u8>,
    /// `frame` holds one, and how long it is.
    waiting: Option<usize>,
    /// The backend has failed, and that was said.
    failed: bool,
}

/// What became of a try.
enum Outcome {
    /// The driver has a frame of that length.
    Delivered(usize),
    /// It is in `frame` as a whole.
    Gathered(usize),
    /// It fits nothing that this driver gives.
    Dropped,
    /// The driver gave a buffer without room for a header, and has it back.
    BadBuffer,
    /// The backend has no frame.
    NoFrame,
    /// The driver has no buffers; it will ring when it has.
    NoBuffers,
}

impl Receiver {
    /// One that has received nothing.
    pub fn new() -> Self {
        Self {
            mergeable: false,
            chain: Chain::new(),
            first: Chain::new(),
            taken: Vec::new(),
            iovecs: IoVecStore::new(),
            frame: vec![0; MAX_FRAME],
            waiting: None,
            failed: false,
        }
    }

    /// Begins anew, with the same memory: this may be on a vCPU's thread.
    pub fn start(&mut self, mergeable: bool) {
        self.mergeable = mergeable;
        self.forget();
    }

    /// Forgets a frame that waits: its queue is no longer used.
    pub fn forget(&mut self) {
        self.waiting = None;
    }

    /// Delivers what the backend has, a [`SHARE`] of it at most.
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
            let outcome = match self.waiting.take() {
                Some(len) => self.lay(mem, queue, len)?,
                None => self.read(mem, queue, backend)?,
            };
            match outcome {
                Outcome::Delivered(len) => {
                    let counters = (&counters.rx_frames, &counters.rx_bytes);
                    count(limit, counters, len.saturating_sub(HEADER) as u64);
                }
                Outcome::Gathered(len) => self.waiting = Some(len),
                Outcome::Dropped => add(&counters.rx_dropped, 1),
                Outcome::BadBuffer => add(&counters.rx_bad_buffers, 1),
                Outcome::NoFrame | Outcome::NoBuffers => return Ok(()),
            }
        }
        queue.call_again();
        Ok(())
    }

    /// One frame from the backend into the next buffer.
    fn read(
        &mut self,
        mem: &Ram,
        queue: &mut Vq,
        backend: &mut dyn NetBackend,
    ) -> Result<Outcome, QueueError> {
        if !pop(mem, queue, &mut self.chain)? {
            return Ok(Outcome::NoBuffers);
        }
        let all = self.chain.writable_len();
        if all < HEADER as u64 {
            queue.push_used(mem, self.chain.head, 0)?;
            return Ok(Outcome::BadBuffer);
        }
        let mut room = all.min(MAX_FRAME as u64) as usize;
        let mut buffer = self.chain.writable_iovecs(mem, &mut self.iovecs, 0, room as u64)?;
        if buffer.as_slice().len() > MAX_IOVECS {
            room = 0;
            buffer = self.chain.writable_iovecs(mem, &mut self.iovecs, 0, 0)?;
        }
        let (start, rest) = self.frame.split_at_mut(room);
        let len = match backend.receive(&mut buffer, rest) {
            Ok(Some(len)) => len,
            Ok(None) => {
                queue.undo_pop();
                return Ok(Outcome::NoFrame);
            }
            Err(e) => {
                queue.undo_pop();
                if !std::mem::replace(&mut self.failed, true) {
                    log::warn!("net: receiving: {e}");
                }
                return Ok(Outcome::NoFrame);
            }
        };
        if len <= HEADER {
            queue.undo_pop();
            return Ok(Outcome::Dropped);
        }
        if len > room {
            // Our buffer already holds what comes after `room`.
            let mut front = self.chain.writable_iovecs(mem, &mut self.iovecs, 0, room as u64)?;
            front.copy_out(start);
            queue.undo_pop();
            return Ok(Outcome::Gathered(len));
        }
        self.chain.write_at(mem, NUM_BUFFERS, &1u16.to_le_bytes())?;
        queue.push_used(mem, self.chain.head, len as u32)?;
        Ok(Outcome::Delivered(len))
    }

    /// The frame of `len` bytes in `frame` into as many buffers as it takes.
    fn lay(&mut self, mem: &Ram, queue: &mut Vq, len: usize) -> Result<Outcome, QueueError> {
        let Self { mergeable, chain, first, taken, frame, .. } = self;
        let frame = frame.get(..len).unwrap_or_default();
        taken.clear();
        let mut rest = frame;
        while !rest.is_empty() {
            let more = taken.len() < usize::from(queue.size()) && pop(mem, queue, chain)?;
            if !more {
                taken.iter().for_each(|_| queue.undo_pop());
                if taken.len() >= usize::from(queue.size()) {
                    // More than all the buffers that there can ever be.
                    return Ok(Outcome::Dropped);
                }
                self.waiting = Some(len);
                return Ok(Outcome::NoBuffers);
            }
            let room = chain.writable_len().min(rest.len() as u64) as usize;
            if taken.is_empty() {
                if room < HEADER {
                    queue.push_used(mem, chain.head, 0)?;
                    self.waiting = Some(len);
                    return Ok(Outcome::BadBuffer);
                }
                if !*mergeable && room < rest.len() {
                    // The driver must give buffers that are large enough for the
                    // features that it has chosen (5.1.6.3.1).
                    queue.undo_pop();
                    return Ok(Outcome::Dropped);
                }
            }
            let (now, later) = rest.split_at(room);
            chain.write_at(mem, 0, now)?;
            taken.push((chain.head, room as u32));
            rest = later;
            if taken.len() == 1 {
                std::mem::swap(first, chain);
            }
        }
        first.write_at(mem, NUM_BUFFERS, &(taken.len() as u16).to_le_bytes())?;
        push_used_together(mem, queue, taken)?;
        Ok(Outcome::Delivered(len))
    }
}

/// Takes the next chain. If there is none, asks for a doorbell and looks once
/// more, because one may have come in between.
fn pop(mem: &Ram, queue: &mut Vq, chain: &mut Chain) -> Result<bool, QueueError> {
    if queue.pop(mem, chain)? {
        return Ok(true);
    }
    if !queue.enable_notifications(mem)? {
        return Ok(false);
    }
    queue.suppress_notifications(mem)?;
    queue.pop(mem, chain)
}

/// Hands all chains of a frame back in one step: a driver that polls must never
/// find fewer than the header's `num_buffers` (5.1.6.4.1).
///
/// The entries of all but the last are written behind the used index, which
/// then moves over all of them at once.
fn push_used_together(mem: &Ram, queue: &mut Vq, taken: &[(u16, u32)]) -> Result<(), QueueError> {
    const RING_HEADER_LEN: u64 = 4;
    const ENTRY_LEN: u64 = 8;
    let Some(((last, written), others)) = taken.split_last() else { return Ok(()) };
    if !others.is_empty() {
        let mut state = queue.save();
        for (head, written) in others {
            let slot = u64::from(state.next_used & state.size.wrapping_sub(1));
            let addr = state.used_ring.wrapping_add(RING_HEADER_LEN + ENTRY_LEN * slot);
            let entry = u64::from(*head) | u64::from(*written) << 32;
            mem.write_slice(&entry.to_le_bytes(), GuestAddress(addr))
                .map_err(|_| QueueError::OutsideRam { what: "used ring", addr, len: ENTRY_LEN })?;
            state.next_used = state.next_used.wrapping_add(1);
            state.unsignalled = state.unsignalled.saturating_add(1);
        }
        queue.restore(&state)?;
    }
    queue.push_used(mem, *last, *written)
}
