//! Direct I/O (`open(2)`, `O_DIRECT`): data that the host does not keep. It wants
//! offsets, lengths and addresses aligned; a driver that sends other buffers is
//! served through one of ours.

use super::raw::check;
use crate::virtio::queue::IoVecs;
use libc::iovec;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::slice;

/// The most that is moved at once through our buffer.
const STEP: usize = 256 << 10;
/// Where the host does not say: what every file system can do.
const SAFE: u32 = 4096;

/// Whether every buffer is as direct I/O wants it.
pub fn fits(vecs: &[iovec], align: usize) -> bool {
    align == 1
        || vecs
            .iter()
            .all(|v| (v.iov_base as usize).is_multiple_of(align) && v.iov_len.is_multiple_of(align))
}

/// What the file system wants: of offsets and lengths, and of addresses
/// (`statx(2)`, `STATX_DIOALIGN`, since Linux 6.1).
pub(super) fn alignment(file: &File) -> io::Result<(u32, u32)> {
    // SAFETY: a statx is plain data.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // The C library's own is not in every static one that we are linked with.
    // SAFETY: an empty path and AT_EMPTY_PATH name the descriptor, which is
    // open; the kernel writes one struct, which `found` is.
    check(|| unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut found as *mut libc::statx,
        ) as isize
    })?;
    Ok(match (found.stx_dio_offset_align, found.stx_dio_mem_align) {
        (0, _) | (_, 0) => (SAFE, SAFE),
        known => known,
    })
}

/// A buffer that direct I/O takes.
pub(super) struct Bounce {
    start: *mut u8,
    layout: Layout,
}

impl Bounce {
    fn new(align: usize, len: u64) -> io::Result<Self> {
        let len = len.min(STEP as u64) as usize;
        let layout = Layout::from_size_align(len.next_multiple_of(align).max(align), align)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Ok(Self { start, layout })
    }

    fn bytes(&mut self, len: u64) -> &mut [u8] {
        let len = (len as usize).min(self.layout.size());
        // SAFETY: `start` has at least `len` initialized bytes that are ours.
        unsafe { slice::from_raw_parts_mut(self.start, len) }
    }

    /// Fills all of `to`.
    pub fn read(file: &File, align: usize, to: &mut IoVecs<'_>, mut at: u64) -> io::Result<()> {
        let mut buffer = Self::new(align, to.len())?;
        while !to.is_empty() {
            let part = buffer.bytes(to.len());
            file.read_exact_at(part, at)?;
            at += to.copy_in(part) as u64;
        }
        Ok(())
    }

    /// Writes all of `from`.
    pub fn write(file: &File, align: usize, from: &mut IoVecs<'_>, mut at: u64) -> io::Result<()> {
        let mut buffer = Self::new(align, from.len())?;
        while !from.is_empty() {
            let part = buffer.bytes(from.len());
            let len = from.copy_out(part);
            file.write_all_at(part.get(..len).unwrap_or_default(), at)?;
            at += len as u64;
        }
        Ok(())
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
