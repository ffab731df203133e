//! Descriptor chains: walked once, checked, then plain data.

use super::place::Place;
use super::{DESCRIPTOR_LEN, IoVecStore, IoVecs, QueueError, in_ram};
use crate::virtio::Ram;
use vm_memory::{Bytes, GuestAddress};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// The most descriptors that a chain with an indirect table may have. A direct
/// chain is limited by its queue, but drivers (Linux among them) put longer ones
/// than the queue is into indirect tables.
pub const MAX_INDIRECT: u32 = 1024;

/// A piece of guest memory, all of it in RAM, though maybe in two regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where.
    pub addr: GuestAddress,
    /// How much; never zero.
    pub len: u32,
}

/// A request: what the device may read, then what it may write. Both together
/// have less than 4 GiB.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The descriptor by which the driver knows the chain.
    pub head: u16,
    /// Buffers to read from, in order.
    pub readable: Vec<Buffer>,
    /// Buffers to write to, in order.
    pub writable: Vec<Buffer>,
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Chain {
    /// An empty chain, to be filled by [`super::Vq::pop`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes to read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes to write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from the readable buffers, at `offset` of all of them together.
    pub fn read_at(&self, mem: &Ram, offset: u64, data: &mut [u8]) -> Result<(), QueueError> {
        let mut rest = data;
        for piece in pieces(&self.readable, offset, rest.len() as u64)? {
            let (head, tail) = rest.split_at_mut(rest.len().min(piece.len as usize));
            match Place::of(mem, piece.addr.0, head.len() as u64) {
                Some(place) => place.read(head),
                None => mem.read_slice(head, piece.addr).map_err(|_| outside(piece))?,
            }
            rest = tail;
        }
        Ok(())
    }

    /// Copies to the writable buffers, at `offset` of all of them together.
    pub fn write_at(&self, mem: &Ram, offset: u64, data: &[u8]) -> Result<(), QueueError> {
        let mut rest = data;
        for piece in pieces(&self.writable, offset, rest.len() as u64)? {
            let (head, tail) = rest.split_at(rest.len().min(piece.len as usize));
            match Place::of(mem, piece.addr.0, head.len() as u64) {
                Some(place) => place.write(head),
                None => mem.write_slice(head, piece.addr).map_err(|_| outside(piece))?,
            }
            rest = tail;
        }
        Ok(())
    }

    /// Where the byte at `offset` of the writable buffers is.
    pub fn writable_address(&self, offset: u64) -> Option<GuestAddress> {
        pieces(&self.writable, offset, 1).ok()?.next().map(|piece| piece.addr)
    }

    /// `len` bytes at `offset` of the readable buffers, for `writev`.
    pub fn readable_iovecs<'m>(
        &self,
        mem: &'m Ram,
        store: &'m mut IoVecStore,
        offset: u64,
        len: u64,
    ) -> Result<IoVecs<'m>, QueueError> {
        store.fill(mem, pieces(&self.readable, offset, len)?)
    }

    /// `len` bytes at `offset` of the writable buffers, for `readv`.
    pub fn writable_iovecs<'m>(
        &self,
        mem: &'m Ram,
        store: &'m mut IoVecStore,
        offset: u64,
        len: u64,
    ) -> Result<IoVecs<'m>, QueueError> {
        store.fill(mem, pieces(&self.writable, offset, len)?)
    }

    /// Follows the chain that starts at `head` of the queue's table.
    pub(super) fn walk(
        &mut self,
        mem: &Ram,
        table: u64,
        size: u16,
        head: u16,
    ) -> Result<(), QueueError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut len) = (table, u32::from(size));
        let (mut index, mut left, mut limit) = (head, len, len);
        let mut indirect = false;
        let mut bytes = 0u32;
        loop {
            if u32::from(index) >= len {
                return Err(QueueError::DescriptorIndex { index, len });
            }
            left = left.checked_sub(1).ok_or(QueueError::ChainTooLong(limit))?;
            let d = descriptor(mem, table, index)?;
            if d.flags & F_INDIRECT != 0 {
                if indirect || d.flags & F_NEXT != 0 {
                    return Err(QueueError::Indirect);
                }
                if d.len == 0 || !u64::from(d.len).is_multiple_of(DESCRIPTOR_LEN) {
                    return Err(QueueError::IndirectLength(d.len));
                }
                indirect = true;
                (table, len) = (d.addr, d.len / DESCRIPTOR_LEN as u32);
                limit = MAX_INDIRECT.min(len);
                (index, left) = (0, limit);
                continue;
            }
            self.add(mem, &d)?;
            bytes = bytes.checked_add(d.len).ok_or(QueueError::ChainTooBig)?;
            if d.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = d.next;
        }
    }

    fn add(&mut self, mem: &Ram, d: &Descriptor) -> Result<(), QueueError> {
        let writable = d.flags & F_WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(QueueError::Order);
        }
        // Not forbidden, and it carries nothing.
        if d.len == 0 {
            return Ok(());
        }
        let buffer = Buffer { addr: GuestAddress(d.addr), len: d.len };
        if !in_ram(mem, d.addr, d.len.into()) {
            return Err(outside(buffer));
        }
        if writable {
            self.writable.push(buffer)
        } else {
            self.readable.push(buffer)
        }
        Ok(())
    }
}

/// Reads a descriptor, once: the guest may be changing it.
fn descriptor(mem: &Ram, table: u64, index: u16) -> Result<Descriptor, QueueError> {
    let len = DESCRIPTOR_LEN;
    let addr = table.wrapping_add(u64::from(index) * len);
    let (addr, rest) = match Place::of(mem, addr, len).and_then(|place| place.descriptor()) {
        Some(raw) => raw,
        // An indirect table needs no alignment, so a descriptor may lie across
        // two regions.
        None => {
            let mut bytes = [0; DESCRIPTOR_LEN as usize];
            let outside = |_| QueueError::OutsideRam { what: "descriptor", addr, len };
            mem.read_slice(&mut bytes, GuestAddress(addr)).map_err(outside)?;
            let raw = u128::from_le_bytes(bytes);
            (raw as u64, (raw >> 64) as u64)
        }
    };
    let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
    Ok(Descriptor { addr, len, flags, next })
}

fn outside(b: Buffer) -> QueueError {
    QueueError::OutsideRam { what: "buffer", addr: b.addr.0, len: b.len.into() }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|b| u64::from(b.len)).sum()
}

/// The parts of `buffers` that make up `len` bytes at `offset`.
fn pieces(
    buffers: &[Buffer],
    offset: u64,
    len: u64,
) -> Result<impl Iterator<Item = Buffer>, QueueError> {
    let all = total(buffers);
    if offset.checked_add(len).is_none_or(|end| end > all) {
        return Err(QueueError::Short { offset, wanted: len, len: all });
    }
    let (mut skip, mut left) = (offset, len);
    Ok(buffers.iter().filter_map(move |b| {
        let start = skip.min(b.len.into());
        skip -= start;
        let take = left.min(u64::from(b.len) - start);
        left -= take;
        // Both are at most `b.len`, and the buffer ends in RAM.
        let addr = GuestAddress(b.addr.0.wrapping_add(start));
        (take > 0).then_some(Buffer { addr, len: take as u32 })
    }))
}
