//! A file or a block device of the host, byte for byte.

use super::direct::{self, Bounce};
use super::{Backing, Disk, DiskError, Geometry, SECTOR, lock};
use crate::virtio::queue::IoVecs;
use requests::{BLKDISCARD, BLKGETSIZE64, BLKIOOPT, BLKPBSZGET, BLKSSZGET, BLKZEROOUT};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use zerocopy::FromZeros;

/// As many entries as one `preadv2` takes.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// Requests of the block layer, from `linux/fs.h`.
mod requests {
    #![allow(missing_docs)] // The macros make functions that take none.
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr};

    ioctl_io_nr!(BLKSSZGET, 0x12, 104);
    ioctl_io_nr!(BLKDISCARD, 0x12, 119);
    ioctl_io_nr!(BLKIOOPT, 0x12, 121);
    ioctl_io_nr!(BLKPBSZGET, 0x12, 123);
    ioctl_io_nr!(BLKZEROOUT, 0x12, 127);
    ioctl_ior_nr!(BLKGETSIZE64, 0x12, 114, libc::size_t);
}

/// How an image is to be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Writes fail.
    pub read_only: bool,
    /// The host keeps no copy in memory (`O_DIRECT`).
    pub direct: bool,
    /// Where the disk begins in the image, in bytes.
    pub offset: u64,
    /// Its length; all the rest of the image by default.
    pub len: Option<u64>,
}

/// A file or a block device of the host, used as it is, or a range of it.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    offset: u64,
    len: u64,
    /// Whether [`RawOptions::len`] was given: then the disk does not grow.
    fixed: bool,
    read_only: bool,
    block_device: bool,
    geometry: Geometry,
    /// What direct I/O wants of buffers; 1 without it.
    align: usize,
}

impl RawDisk {
    /// Opens and locks an image. A size that is not a whole number of sectors is
    /// rounded down: the guest does not see the rest, and nothing touches it.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, DiskError> {
        let (file, block_device) = open_image(path, options.read_only, options.direct)?;
        Self::lock(path, file, block_device, options)
    }

    /// Locks an image that somebody else has opened; `path` is for messages.
    pub fn adopt(path: &Path, file: File, options: RawOptions) -> Result<Self, DiskError> {
        let block_device = check_opened(path, &file, options.read_only, options.direct)?;
        Self::lock(path, file, block_device, options)
    }

    fn lock(
        path: &Path,
        file: File,
        block_device: bool,
        options: RawOptions,
    ) -> Result<Self, DiskError> {
        let RawOptions { read_only, direct, offset, len } = options;
        let host = |what| move |source| DiskError::Host { path: path.to_owned(), what, source };
        if offset.checked_add(len.unwrap_or(0)).is_none_or(|end| end > i64::MAX as u64) {
            let (len, why) = (len.unwrap_or(0), "no image is that large");
            return Err(DiskError::Range { path: path.to_owned(), offset, len, why });
        }
        lock::lock(&file, read_only, offset, len.unwrap_or(0))
            .map_err(|source| DiskError::Locked { path: path.to_owned(), source })?;
        // After the lock: whoever had it before may have changed the size.
        let bytes = size(&file, block_device).map_err(host("size"))?;
        let (geometry, align) = geometry(&file, block_device, direct).map_err(host("geometry"))?;
        let unit = u64::from(geometry.logical);
        let wanted = len.unwrap_or_else(|| bytes.saturating_sub(offset));
        let range = |why| DiskError::Range { path: path.to_owned(), offset, len: wanted, why };
        if !offset.is_multiple_of(unit) || len.is_some_and(|len| !len.is_multiple_of(unit)) {
            return Err(range("offset and size must be whole sectors"));
        }
        if offset.checked_add(wanted).is_none_or(|end| end > bytes) {
            return Err(range("they are not all in the image"));
        }
        let rest = wanted % unit;
        if wanted < unit {
            return Err(DiskError::TooSmall { path: path.to_owned(), len: wanted });
        }
        if rest != 0 {
            let path = path.display();
            log::warn!("disk {path}: its last {rest} bytes are less than a sector and not used");
        }
        let (len, fixed) = (wanted - rest, len.is_some());
        Ok(Self { file, offset, len, fixed, read_only, block_device, geometry, align })
    }

    /// A disk of `len` bytes in whatever `file` is.
    #[cfg(test)]
    pub(super) fn of(file: File, len: u64) -> Self {
        let geometry = Geometry::default();
        let (offset, fixed, read_only, block_device, align) = (0, true, false, false, 1);
        Self { file, offset, len, fixed, read_only, block_device, geometry, align }
    }

    /// `fallocate`; `false` if the file system can't.
    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<bool> {
        let range = (
            libc::off64_t::try_from(offset.saturating_add(self.offset)),
            libc::off64_t::try_from(len),
        );
        let (Ok(offset), Ok(len)) = range else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        // SAFETY: a plain system call on a descriptor that `self` keeps open.
        match check(|| unsafe {
            libc::fallocate64(self.file.as_raw_fd(), mode, offset, len) as isize
        }) {
            Ok(_) => Ok(true),
            Err(e) if unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A request of the block layer that takes a range; `false` if it can't.
    fn range_ioctl(&self, request: libc::c_ulong, offset: u64, len: u64) -> io::Result<bool> {
        let range = [offset.saturating_add(self.offset), len];
        // SAFETY: both requests read two 64-bit numbers, which `range` is.
        match check(|| unsafe { ioctl_with_ref(&self.file, request, &range) as isize }) {
            Ok(_) => Ok(true),
            Err(e) if unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Zeroes as data, where the host has nothing better.
    pub(super) fn write_zeroes_plainly(&self, offset: u64, len: u64) -> io::Result<()> {
        // Not a constant: the program would be so much larger.
        let page = Page::new_box_zeroed().map_err(|_| io::ErrorKind::OutOfMemory)?;
        let Page(zeroes) = &*page;
        let mut offset = offset.saturating_add(self.offset);
        let mut left = len;
        while left > 0 {
            let step = left.min(zeroes.len() as u64);
            let data = zeroes.get(..step as usize).unwrap_or_default();
            self.file.write_all_at(data, offset)?;
            offset += step;
            left -= step;
        }
        Ok(())
    }
}

/// Aligned for direct I/O.
#[derive(FromZeros)]
#[repr(C, align(4096))]
struct Page([u8; 64 << 10]);

/// The file, for whoever hands it on to another process.
impl From<RawDisk> for File {
    fn from(disk: RawDisk) -> Self {
        disk.file
    }
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn backing(&self) -> Option<Backing> {
        Some(Backing { file: self.file.as_raw_fd(), offset: self.offset, align: self.align })
    }

    fn unlock(&self) {
        let len = if self.fixed { self.len } else { 0 };
        if let Err(e) = lock::unlock(&self.file, self.offset, len) {
            log::warn!("disk: unlock: {e}");
        }
    }

    fn resize(&mut self, len: Option<u64>) -> io::Result<()> {
        if self.fixed {
            let why = "a disk with a size of its own in a larger image can't change it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if let Some(len) = len {
            let unit = u64::from(self.geometry.logical);
            if self.read_only || self.block_device || len < unit || !len.is_multiple_of(unit) {
                let why = "only a writable file can change its size, to whole sectors";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            self.file.set_len(self.offset.saturating_add(len))?;
        }
        let bytes = size(&self.file, self.block_device)?.saturating_sub(self.offset);
        self.len = bytes - bytes % u64::from(self.geometry.logical);
        Ok(())
    }

    fn read_at(&self, to: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
        let offset = offset.saturating_add(self.offset);
        if !direct::fits(to.as_slice(), self.align) {
            return Bounce::read(&self.file, self.align, to, offset);
        }
        transfer(to, offset, io::ErrorKind::UnexpectedEof, |vecs, count, offset| {
            // SAFETY: the entries of an `IoVecs` describe memory that may be
            // written and lives at least as long as the borrow of it.
            unsafe { libc::preadv2(self.file.as_raw_fd(), vecs, count, offset, 0) }
        })
    }

    fn write_at(&self, from: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
        let offset = offset.saturating_add(self.offset);
        if !direct::fits(from.as_slice(), self.align) {
            return Bounce::write(&self.file, self.align, from, offset);
        }
        transfer(from, offset, io::ErrorKind::WriteZero, |vecs, count, offset| {
            // SAFETY: as in `read_at`; the kernel only reads the memory.
            unsafe { libc::pwritev2(self.file.as_raw_fd(), vecs, count, offset, 0) }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // A discard is advice: where the host can't, nothing happens.
        match self.block_device {
            true => self.range_ioctl(BLKDISCARD(), offset, len),
            false => {
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.fallocate(punch, offset, len)
            }
        }
        .map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let done = match self.block_device {
            true => self.range_ioctl(BLKZEROOUT(), offset, len)?,
            false => {
                (unmap && self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | keep, offset, len)?)
                    || self.fallocate(libc::FALLOC_FL_ZERO_RANGE | keep, offset, len)?
            }
        };
        if done { Ok(()) } else { self.write_zeroes_plainly(offset, len) }
    }
}

/// Moves all of `data` by as many calls as it takes. A call that moves nothing
/// is the end, reported as `nothing`: the image has become shorter.
fn transfer(
    data: &mut IoVecs<'_>,
    mut offset: u64,
    nothing: io::ErrorKind,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off64_t) -> libc::ssize_t,
) -> io::Result<()> {
    while !data.is_empty() {
        let vecs = data.as_slice();
        let count = vecs.len().min(IOV_MAX) as libc::c_int;
        let at = libc::off64_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let done = check(|| call(vecs.as_ptr(), count, at))?;
        if done == 0 {
            return Err(nothing.into());
        }
        data.advance(done);
        offset = offset.saturating_add(done);
    }
    Ok(())
}

/// Runs a system call until it is not interrupted.
pub(super) fn check(mut call: impl FnMut() -> isize) -> io::Result<u64> {
    loop {
        match u64::try_from(call()) {
            Ok(done) => return Ok(done),
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

fn unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}

/// Opens a regular file or a block device; says which it is.
pub(super) fn open_image(
    path: &Path,
    read_only: bool,
    direct: bool,
) -> Result<(File, bool), DiskError> {
    let host = |what| move |source| DiskError::Host { path: path.to_owned(), what, source };
    let direct_flag = if direct { libc::O_DIRECT } else { 0 };
    let opened = OpenOptions::new()
        .read(true)
        .write(!read_only)
        // Opening a pipe or a tape must not wait for anything; disks don't care.
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | direct_flag)
        .open(path);
    let file = opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if direct => {
            host("direct I/O, which its file system can't do; use direct=off")(source)
        }
        _ => host(if read_only { "open" } else { "open for writing" })(source),
    })?;
    let block_device = is_block_device(path, &file)?;
    Ok((file, block_device))
}

/// Whether a file is a block device; anything but that and a regular file is
/// refused.
fn is_block_device(path: &Path, file: &File) -> Result<bool, DiskError> {
    let host = |source| DiskError::Host { path: path.to_owned(), what: "stat", source };
    let kind = file.metadata().map_err(host)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    }
    let kind = match kind {
        k if k.is_dir() => "a directory",
        k if k.is_char_device() => "a character device",
        k if k.is_fifo() => "a pipe",
        _ => "something else",
    };
    Err(DiskError::Kind { path: path.to_owned(), kind })
}

/// Makes sure that a file which somebody else has opened can be used as an image;
/// says whether it is a block device.
pub(super) fn check_opened(
    path: &Path,
    file: &File,
    read_only: bool,
    direct: bool,
) -> Result<bool, DiskError> {
    let block_device = is_block_device(path, file)?;
    opened_as(file, read_only, direct).map_err(|source| DiskError::Host {
        path: path.to_owned(),
        what: "open",
        source,
    })?;
    Ok(block_device)
}

/// Whether an open file is what [`open_image`] would have opened. One opened for
/// appending would write everything to its end.
fn opened_as(file: &File, read_only: bool, direct: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and touches no memory.
    let flags = check(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) as isize })?;
    let flags = flags as libc::c_int;
    let readable = flags & libc::O_PATH == 0
        && match flags & libc::O_ACCMODE {
            libc::O_RDWR => true,
            access => access == libc::O_RDONLY && read_only,
        };
    let wrong = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !readable || flags & libc::O_APPEND != 0 {
        return wrong("it was not opened for reading, and for writing unless read-only");
    }
    if direct != (flags & libc::O_DIRECT != 0) {
        return wrong("it was opened with O_DIRECT and direct=off, or the other way round");
    }
    Ok(())
}

fn size(file: &File, block_device: bool) -> io::Result<u64> {
    match block_device {
        true => block_device_number(file, BLKGETSIZE64()),
        false => Ok(file.metadata()?.len()),
    }
}

/// The shape of a disk, and what direct I/O wants of buffers.
fn geometry(file: &File, block_device: bool, direct: bool) -> io::Result<(Geometry, usize)> {
    let mut geometry = Geometry::default();
    let mut align = 1;
    if block_device {
        let number = |request| block_device_number(file, request).map(|n| n as u32);
        geometry.logical = number(BLKSSZGET())?.max(SECTOR as u32);
        geometry.physical = number(BLKPBSZGET())?.max(geometry.logical);
        geometry.optimal = number(BLKIOOPT())?;
        align = if direct { geometry.logical as usize } else { 1 };
    } else if direct {
        let (unit, buffers) = direct::alignment(file)?;
        geometry.logical = unit.max(SECTOR as u32);
        geometry.physical = geometry.physical.max(geometry.logical);
        align = buffers.max(unit) as usize;
    }
    let sane = |n: u32| n.is_power_of_two() && n <= 1 << 20;
    if !sane(geometry.logical) || !sane(geometry.physical) {
        return Err(io::Error::other(format!("{geometry:?} makes no sense")));
    }
    Ok((geometry, align))
}

/// A number of the block layer's, of 32 or 64 bits: the host is little-endian,
/// and what it does not write is zero.
fn block_device_number(file: &File, request: libc::c_ulong) -> io::Result<u64> {
    let mut number = 0u64;
    // SAFETY: these requests write one number of at most 64 bits, which
    // `number` has room for.
    check(|| unsafe { ioctl_with_mut_ref(file, request, &mut number) as isize })?;
    Ok(number)
}
