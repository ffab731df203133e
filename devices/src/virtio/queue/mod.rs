//! The split virtqueue (virtio 1.2, 2.7), checked.
//!
//! ```text
//!   driver: descriptors + avail ring ─► Vq::pop ─► Chain { readable, writable }
//!   driver ◄─ used ring ◄─ Vq::push_used ◄─ device
//! ```
//!
//! Everything in the rings is written by the guest, at any time, also while it
//! is read here. So each field is read once, checked, and only the copy is
//! used; and no answer of the guest can make one call do more work than the
//! queue is long. How a device serves a queue:
//!
//! ```text
//!   vq.suppress_notifications(mem)?;
//!   for _ in 0..vq.size() {                    // never more per event
//!       if !vq.pop(mem, &mut chain)? { break }
//!       …; vq.push_used(mem, chain.head, written)?;
//!   }
//!   if vq.enable_notifications(mem)? { vq.call_again() }
//!   if vq.needs_interrupt(mem)? { interrupt.queue(index) }
//! ```

mod chain;
mod iovec;
mod place;
#[cfg(test)]
mod rust_vmm_test;
#[cfg(test)]
mod tests;

pub use chain::{Buffer, Chain, MAX_INDIRECT};
pub use iovec::{IoVecStore, IoVecs};

use super::Ram;
use place::Place;
use serde::{Deserialize, Serialize};
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

/// The largest queue that the specification allows.
pub const MAX_SIZE: u16 = 32768;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver polls.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device polls.
const USED_F_NO_NOTIFY: u16 = 1;

/// Size of a descriptor.
const DESCRIPTOR_LEN: u64 = 16;
/// `flags` and `idx`, before the entries of either ring.
const RING_HEADER_LEN: u64 = 4;
/// Offset of `idx` in either ring.
const RING_IDX: u64 = 2;
/// Size of an entry of the available ring.
const AVAIL_ENTRY_LEN: u64 = 2;
/// Size of an entry of the used ring.
const USED_ENTRY_LEN: u64 = 8;
/// `used_event` or `avail_event`, after the entries of either ring.
const RING_EVENT_LEN: u64 = 2;

/// What is wrong with a queue. Each of them is the driver's fault.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// Not a power of two, or more than the device offers.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// What was asked for.
        size: u16,
        /// The most that is possible.
        max: u16,
    },
    /// The specification wants the address aligned.
    #[error("{what} at {addr:#x} is not aligned")]
    Misaligned {
        /// Which part of the queue.
        what: &'static str,
        /// Where the driver put it.
        addr: u64,
    },
    /// Not, or not all of it, in RAM.
    #[error("{what} at {addr:#x}, {len} bytes, is outside of RAM")]
    OutsideRam {
        /// What should be there.
        what: &'static str,
        /// Where the driver put it.
        addr: u64,
        /// Its size.
        len: u64,
    },
    /// The queue is not enabled.
    #[error("the queue is not ready")]
    NotReady,
    /// More buffers are available than the queue has room for.
    #[error("available index jumped from {from} to {to} in a queue of {size}")]
    AvailIndex {
        /// What the device has handled.
        from: u16,
        /// What the driver claims.
        to: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A descriptor index past the end of its table.
    #[error("descriptor {index} in a table of {len}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        len: u32,
    },
    /// More descriptors than there may be: a loop, or a chain too long.
    #[error("descriptor chain loops or is longer than {0}")]
    ChainTooLong(u32),
    /// A buffer for reading after one for writing.
    #[error("readable descriptor after a writable one")]
    Order,
    /// An indirect table of no or a broken length.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// Indirect inside indirect, or indirect with a next.
    #[error("indirect descriptor where none may be")]
    Indirect,
    /// The chain has 4 GiB or more.
    #[error("descriptor chain of 4 GiB or more")]
    ChainTooBig,
    /// The request needs more bytes than the chain has.
    #[error("{wanted} bytes at offset {offset} of {len}")]
    Short {
        /// Where.
        offset: u64,
        /// How many.
        wanted: u64,
        /// How many there are.
        len: u64,
    },
    /// A saved state that this build can't have written.
    #[error("saved queue: {0}")]
    State(&'static str),
}

/// A queue's saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the specification's.
pub struct QueueState {
    pub version: u32,
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
    pub event_idx: bool,
    pub next_avail: u16,
    pub next_used: u16,
    /// Entries put into the used ring since the driver was last considered for
    /// an interrupt.
    pub unsignalled: u32,
}

impl QueueState {
    /// The present layout.
    pub const VERSION: u32 = 1;
}

/// A virtqueue: first the registers behind which a transport builds it, then,
/// cloned into the device at activation, the device's side of it. Because the
/// device has its own copy, no later register write reaches a running queue.
#[derive(Debug, Clone)]
pub struct Vq {
    max_size: u16,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    event_idx: bool,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    unsignalled: u32,
    /// The available index as last read and checked; never behind `next_avail`.
    seen_avail: Wrapping<u16>,
    doorbell: Option<Arc<EventFd>>,
}

impl Vq {
    /// A queue of at most `max_size` entries, a power of two.
    pub fn new(max_size: u16) -> Result<Self, QueueError> {
        if !max_size.is_power_of_two() || max_size > MAX_SIZE {
            return Err(QueueError::Size { size: max_size, max: MAX_SIZE });
        }
        Ok(Self {
            max_size,
            size: max_size,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            event_idx: false,
            next_avail: Wrapping(0),
            next_used: Wrapping(0),
            unsignalled: 0,
            seen_avail: Wrapping(0),
            doorbell: None,
        })
    }

    // The transport's side.

    /// `QueueNumMax`.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// `QueueNum`.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// `QueueNum`, as the driver wrote it; [`Vq::validate`] judges it.
    pub fn set_size(&mut self, size: u16) {
        self.size = size;
    }

    /// `QueueReady`.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// `QueueReady`.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// Guest physical address of the descriptor table.
    pub fn desc_table(&self) -> u64 {
        self.desc_table
    }

    /// Guest physical address of the available ring.
    pub fn avail_ring(&self) -> u64 {
        self.avail_ring
    }

    /// Guest physical address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.used_ring
    }

    /// `QueueDescLow` and `QueueDescHigh`, either of them or both.
    pub fn set_desc_table_address(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.desc_table, low, high);
    }

    /// `QueueDriverLow` and `QueueDriverHigh`, either of them or both.
    pub fn set_avail_ring_address(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.avail_ring, low, high);
    }

    /// `QueueDeviceLow` and `QueueDeviceHigh`, either of them or both.
    pub fn set_used_ring_address(&mut self, low: Option<u32>, high: Option<u32>) {
        set_halves(&mut self.used_ring, low, high);
    }

    /// Whether `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    /// The eventfd that makes the device's worker look at this queue.
    pub fn set_doorbell(&mut self, doorbell: Arc<EventFd>) {
        self.doorbell = Some(doorbell);
    }

    /// That eventfd.
    pub fn doorbell(&self) -> Option<&Arc<EventFd>> {
        self.doorbell.as_ref()
    }

    /// Whether the driver may use the queue as it is set up.
    pub fn validate(&self, mem: &Ram) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > self.max_size {
            return Err(QueueError::Size { size: self.size, max: self.max_size });
        }
        let size = u64::from(self.size);
        let rings = RING_HEADER_LEN + RING_EVENT_LEN;
        for (what, addr, align, len) in [
            ("descriptor table", self.desc_table, 16, DESCRIPTOR_LEN * size),
            ("available ring", self.avail_ring, 2, rings + AVAIL_ENTRY_LEN * size),
            ("used ring", self.used_ring, 4, rings + USED_ENTRY_LEN * size),
        ] {
            if !addr.is_multiple_of(align) {
                return Err(QueueError::Misaligned { what, addr });
            }
            if !in_ram(mem, addr, len) {
                return Err(QueueError::OutsideRam { what, addr, len });
            }
        }
        Ok(())
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        let doorbell = self.doorbell.take();
        // `max_size` passed the checks of `new` already.
        if let Ok(new) = Self::new(self.max_size) {
            *self = Self { doorbell, ..new };
        }
    }

    // The device's side.

    /// Takes the next chain from the available ring into `chain`, whose vectors
    /// are reused. `false`: there is none.
    pub fn pop(&mut self, mem: &Ram, chain: &mut Chain) -> Result<bool, QueueError> {
        if !self.ready {
            return Err(QueueError::NotReady);
        }
        if self.seen_avail == self.next_avail {
            // Acquire: what the driver wrote before it moved the index is seen
            // after the index is.
            let idx = Wrapping(load_u16(mem, self.avail_ring, RING_IDX, Ordering::Acquire)?);
            if (idx - self.next_avail).0 > self.size {
                let (from, to) = (self.next_avail.0, idx.0);
                return Err(QueueError::AvailIndex { from, to, size: self.size });
            }
            if idx == self.next_avail {
                return Ok(false);
            }
            self.seen_avail = idx;
        }
        let entry = RING_HEADER_LEN + AVAIL_ENTRY_LEN * self.slot(self.next_avail);
        let head = load_u16(mem, self.avail_ring, entry, Ordering::Relaxed)?;
        chain.walk(mem, self.desc_table, self.size, head)?;
        self.next_avail += 1;
        Ok(true)
    }

    /// Gives back the chain of the last [`Vq::pop`]: the next one takes it again.
    pub fn undo_pop(&mut self) {
        self.next_avail -= 1;
    }

    /// Hands a chain back to the driver, `written` bytes of it filled.
    pub fn push_used(&mut self, mem: &Ram, head: u16, written: u32) -> Result<(), QueueError> {
        if head >= self.size {
            return Err(QueueError::DescriptorIndex { index: head, len: self.size.into() });
        }
        let element = u64::from(head) | u64::from(written) << 32;
        let entry = RING_HEADER_LEN + USED_ENTRY_LEN * self.slot(self.next_used);
        store_u64(mem, self.used_ring, entry, element)?;
        self.next_used += 1;
        self.unsignalled = self.unsignalled.saturating_add(1);
        // Release: the driver sees the index only after the element and the data.
        store_u16(mem, self.used_ring, RING_IDX, self.next_used.0, Ordering::Release)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last
    /// call.
    pub fn needs_interrupt(&mut self, mem: &Ram) -> Result<bool, QueueError> {
        let pushed = std::mem::take(&mut self.unsignalled);
        if pushed == 0 {
            return Ok(false);
        }
        // The driver publishes its wish and then looks at the used index; so
        // the used index must be visible before its wish is read.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = load_u16(mem, self.avail_ring, 0, Ordering::Relaxed)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        let at = RING_HEADER_LEN + AVAIL_ENTRY_LEN * u64::from(self.size);
        let used_event = Wrapping(load_u16(mem, self.avail_ring, at, Ordering::Relaxed)?);
        // Whether the entry `used_event` is among the last `pushed` ones.
        Ok(u32::from((self.next_used - used_event - Wrapping(1)).0) < pushed)
    }

    /// Tells the driver that the device looks by itself for now.
    pub fn suppress_notifications(&mut self, mem: &Ram) -> Result<(), QueueError> {
        // With event indices there is nothing to do: the driver stays silent
        // until the next index is published.
        if self.event_idx {
            return Ok(());
        }
        store_u16(mem, self.used_ring, 0, USED_F_NO_NOTIFY, Ordering::Relaxed)
    }

    /// Asks the driver to ring for the next chain. `true`: there is one already,
    /// and no doorbell will announce it; see [`Vq::call_again`].
    pub fn enable_notifications(&mut self, mem: &Ram) -> Result<bool, QueueError> {
        if self.event_idx {
            let at = RING_HEADER_LEN + USED_ENTRY_LEN * u64::from(self.size);
            store_u16(mem, self.used_ring, at, self.next_avail.0, Ordering::Relaxed)?;
        } else {
            store_u16(mem, self.used_ring, 0, 0, Ordering::Relaxed)?;
        }
        // The wish must be visible before the index is read, or both sides
        // could wait for each other.
        fence(Ordering::SeqCst);
        let idx = load_u16(mem, self.avail_ring, RING_IDX, Ordering::Relaxed)?;
        Ok(Wrapping(idx) != self.next_avail)
    }

    /// Asks the worker for another `queue_event` of this queue, after the other
    /// devices had their turn. This is how a device that has done its share
    /// leaves the rest for later.
    pub fn call_again(&self) {
        if let Some(doorbell) = &self.doorbell {
            // It can fail only when the counter is full, and then it is rung.
            let _ = doorbell.write(1);
        }
    }

    /// Goes on where another has stopped: behind `position` of the available
    /// ring, and where the used ring ends. The driver has had its interrupts.
    pub fn move_to(&mut self, mem: &Ram, position: u16) -> Result<(), QueueError> {
        self.next_used = Wrapping(load_u16(mem, self.used_ring, RING_IDX, Ordering::Acquire)?);
        self.next_avail = Wrapping(position);
        self.seen_avail = self.next_avail;
        self.unsignalled = 0;
        Ok(())
    }

    // State.

    /// The queue as it is.
    pub fn save(&self) -> QueueState {
        QueueState {
            version: QueueState::VERSION,
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            event_idx: self.event_idx,
            next_avail: self.next_avail.0,
            next_used: self.next_used.0,
            unsignalled: self.unsignalled,
        }
    }

    /// Takes over a saved state. A queue that is ready must be validated before
    /// it is used, as one that a driver has set up.
    pub fn restore(&mut self, state: &QueueState) -> Result<(), QueueError> {
        if state.version != QueueState::VERSION {
            return Err(QueueError::State("unknown version"));
        }
        if state.max_size != self.max_size {
            return Err(QueueError::State("the device offers another queue size"));
        }
        let next_avail = Wrapping(state.next_avail);
        *self = Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            event_idx: state.event_idx,
            next_avail,
            next_used: Wrapping(state.next_used),
            unsignalled: state.unsignalled,
            seen_avail: next_avail,
            doorbell: self.doorbell.take(),
        };
        Ok(())
    }

    /// The slot of a ring in which a running index falls. The size is a power
    /// of two in every queue that was validated.
    fn slot(&self, index: Wrapping<u16>) -> u64 {
        u64::from(index.0 & self.size.wrapping_sub(1))
    }
}

fn set_halves(addr: &mut u64, low: Option<u32>, high: Option<u32>) {
    let low = low.map_or(*addr & 0xffff_ffff, u64::from);
    let high = high.map_or(*addr >> 32, u64::from);
    *addr = high << 32 | low;
}

/// Whether all of `addr .. addr + len` is RAM.
fn in_ram(mem: &Ram, addr: u64, len: u64) -> bool {
    // Nearly always it is in one region, and that is the cheaper question.
    Place::of(mem, addr, len).is_some()
        || usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(mem, GuestAddress(addr), len))
}

// Ring accesses. The sums wrap because only a queue that was never validated
// could overflow them, and then the access is refused as outside of RAM or
// ends in the guest's own memory.

fn outside(what: &'static str, addr: u64, len: u64) -> QueueError {
    QueueError::OutsideRam { what, addr, len }
}

fn load_u16(mem: &Ram, ring: u64, at: u64, order: Ordering) -> Result<u16, QueueError> {
    let addr = ring.wrapping_add(at);
    let place = Place::of(mem, addr, 2);
    place.and_then(|place| place.load(order)).ok_or(outside("ring", addr, 2))
}

fn store_u16(mem: &Ram, ring: u64, at: u64, value: u16, order: Ordering) -> Result<(), QueueError> {
    let addr = ring.wrapping_add(at);
    let place = Place::of(mem, addr, 2);
    place.and_then(|place| place.store(value, order)).ok_or(outside("ring", addr, 2))
}

/// Stores an element of the used ring, which is aligned to 4 only, so that it
/// may even lie across two regions.
fn store_u64(mem: &Ram, ring: u64, at: u64, value: u64) -> Result<(), QueueError> {
    let addr = ring.wrapping_add(at);
    if Place::of(mem, addr, 8).and_then(|place| place.store_u64(value)).is_some() {
        return Ok(());
    }
    let bytes = value.to_le_bytes();
    mem.write_slice(&bytes, GuestAddress(addr)).map_err(|_| outside("ring", addr, 8))
}
