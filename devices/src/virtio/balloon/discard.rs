//! Giving pages of guest memory back to the host.

use crate::virtio::Ram;
use std::io;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

/// Bytes of a page, to a balloon's driver and to the host alike.
pub const PAGE: u64 = 4096;

/// What became of a range.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Bytes that the host has back.
    pub bytes: u64,
    /// Bytes that are no RAM.
    pub outside: u64,
    /// Bytes that the host did not take.
    pub refused: u64,
}

impl Given {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.outside += other.outside;
        self.refused += other.refused;
    }
}

/// Gives back all whole pages of a range of guest memory. The guest finds zeroes
/// there when it looks again.
pub fn discard(mem: &Ram, addr: u64, len: u64) -> Given {
    let mut given = Given::default();
    let end = addr.saturating_add(len) / PAGE * PAGE;
    let mut at = addr.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
    while at < end {
        let Some(region) = mem.find_region(GuestAddress(at)) else {
            given.outside += end - at;
            break;
        };
        let offset = at - region.start_addr().0;
        let step = (end - at).min(region.len() - offset);
        match advise(region, offset, step) {
            Ok(()) => given.bytes += step,
            // Memory that is locked, for example: it stays, and nothing is wrong.
            Err(_) => given.refused += step,
        }
        at += step;
    }
    given
}

fn advise(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<()> {
    let outside = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let start = region.get_host_address(MemoryRegionAddress(offset)).map_err(outside)?;
    // Shared memory is the file's and stays unless a hole is made there.
    let advice = match region.flags() & libc::MAP_SHARED {
        0 => libc::MADV_DONTNEED,
        _ => libc::MADV_REMOVE,
    };
    // SAFETY: `start` is `offset` bytes into a region that has `len` more, and
    // it stays mapped while `region` lives. The contents become zero behind the
    // backs of all users, as if the guest had written it: no Rust reference to
    // guest memory exists, and reads of it are volatile.
    match unsafe { libc::madvise(start.cast(), len as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
