//! Guest memory as the kernel's scatter-gather lists, without a copy.

use super::place::Place;
use super::{Buffer, QueueError};
use crate::virtio::Ram;
use libc::iovec;
use std::marker::PhantomData;
use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

/// Storage for [`IoVecs`], kept by a device so that a request allocates nothing.
#[derive(Debug, Default)]
pub struct IoVecStore(Vec<iovec>);

// SAFETY: the pointers in it are leftovers that nobody reads: they are reachable
// only through the `IoVecs` that `fill` returns, and `fill` clears them first.
unsafe impl Send for IoVecStore {}

impl IoVecStore {
    /// Empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn fill<'m>(
        &'m mut self,
        mem: &'m Ram,
        buffers: impl Iterator<Item = Buffer>,
    ) -> Result<IoVecs<'m>, QueueError> {
        self.0.clear();
        let mut len = 0;
        for b in buffers {
            // The kernel writes behind vm-memory's back: say so before.
            if let Some(place) = Place::of(mem, b.addr.0, b.len.into()) {
                place.mark_dirty();
                self.0.push(iovec { iov_base: place.host().cast(), iov_len: place.len() });
                len += place.len() as u64;
                continue;
            }
            for slice in GuestMemoryBackend::get_slices(mem, b.addr, b.len as usize) {
                let slice = slice.map_err(|_| QueueError::OutsideRam {
                    what: "buffer",
                    addr: b.addr.0,
                    len: b.len.into(),
                })?;
                slice.bitmap().mark_dirty(0, slice.len());
                self.0.push(iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
                len += slice.len() as u64;
            }
        }
        Ok(IoVecs { vecs: &mut self.0, first: 0, len, _memory: PhantomData })
    }
}

/// A scatter-gather list of memory that lives for `'m`: guest memory, or a
/// buffer of ours. The memory may be read and written through it.
///
/// It may have more entries than one system call takes (`IOV_MAX`); a stream is
/// then moved in several calls with [`IoVecs::advance`] in between, a packet is
/// refused.
#[derive(Debug)]
pub struct IoVecs<'m> {
    vecs: &'m mut Vec<iovec>,
    /// Entries before this one are done with.
    first: usize,
    len: u64,
    _memory: PhantomData<&'m mut [u8]>,
}

impl<'m> IoVecs<'m> {
    /// A list of one buffer of ours.
    pub fn from_slice(store: &'m mut IoVecStore, data: &'m mut [u8]) -> Self {
        store.0.clear();
        store.0.push(iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() });
        IoVecs { vecs: &mut store.0, first: 0, len: data.len() as u64, _memory: PhantomData }
    }

    /// The list, for a system call. Nothing else may be done with the pointers:
    /// guest memory changes under our hands.
    pub fn as_slice(&self) -> &[iovec] {
        self.vecs.get(self.first..).unwrap_or_default()
    }

    /// Bytes in all entries.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `done` bytes, which a system call has dealt with.
    pub fn advance(&mut self, done: u64) {
        let mut done = done.min(self.len);
        self.len -= done;
        while let Some(v) = self.vecs.get_mut(self.first) {
            let step = done.min(v.iov_len as u64) as usize;
            v.iov_base = v.iov_base.wrapping_byte_add(step);
            v.iov_len -= step;
            done -= step as u64;
            if v.iov_len > 0 {
                return;
            }
            self.first += 1;
        }
    }

    /// Copies `data` to the front, as much as fits, and returns how much that is:
    /// for a backend that has its data in memory.
    pub fn copy_in(&mut self, data: &[u8]) -> usize {
        let mut rest = data;
        for v in self.as_slice() {
            let (head, tail) = rest.split_at(rest.len().min(v.iov_len));
            // SAFETY: the entry points to `iov_len` bytes that live for 'm and
            // may be written, by construction. Guest memory has no Rust reference
            // to it, so it does not overlap `data`, and a racing guest changes
            // bytes, not our safety.
            unsafe { head.as_ptr().copy_to_nonoverlapping(v.iov_base.cast(), head.len()) };
            rest = tail;
        }
        let done = data.len() - rest.len();
        self.advance(done as u64);
        done
    }

    /// Copies the front to `data`, as much as fits, and returns how much that is.
    pub fn copy_out(&mut self, data: &mut [u8]) -> usize {
        let all = data.len();
        let mut rest = data;
        for v in self.as_slice() {
            let (head, tail) = rest.split_at_mut(rest.len().min(v.iov_len));
            // SAFETY: as in `copy_in`, the other way around.
            unsafe { head.as_mut_ptr().copy_from_nonoverlapping(v.iov_base.cast(), head.len()) };
            rest = tail;
        }
        let done = all - rest.len();
        self.advance(done as u64);
        done
    }
}
