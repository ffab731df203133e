//! Disk images: what a block device reads and writes.
//!
//! [`Disk`] is what a block device sees; [`RawDisk`] is a file or a block device
//! of the host, byte for byte. An image is opened once, locked
//! ([`lock`](mod@lock)) for as long as it is open, and its size is fixed then.

pub mod lock;
#[cfg(test)]
mod tests;

use crate::virtio::queue::IoVecs;
use requests::{BLKDISCARD, BLKGETSIZE64, BLKZEROOUT};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

/// Bytes in a sector: the unit of a disk's size.
pub const SECTOR: u64 = 512;

/// As many entries as one `preadv2` takes.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// Requests of the block layer, from `linux/fs.h`.
mod requests {
    #![allow(missing_docs)] // The macros make functions that take none.
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr};

    ioctl_io_nr!(BLKDISCARD, 0x12, 119);
    ioctl_io_nr!(BLKZEROOUT, 0x12, 127);
    ioctl_ior_nr!(BLKGETSIZE64, 0x12, 114, libc::size_t);
}

/// What stands behind a block device. Offsets and lengths are bytes. Callers
/// stay inside of [`Disk::len`]; an implementation may rely on it for sense, but
/// not for safety.
pub trait Disk: Send {
    /// The size, a multiple of [`SECTOR`], fixed while the disk is open.
    fn len(&self) -> u64;
    /// Whether there is nothing; never so for a disk that was opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether every write fails.
    fn read_only(&self) -> bool;
    /// Fills all of `to`.
    fn read_at(&self, to: &mut IoVecs<'_>, offset: u64) -> io::Result<()>;
    /// Writes all of `from`. It is durable after the next [`Disk::flush`].
    fn write_at(&self, from: &mut IoVecs<'_>, offset: u64) -> io::Result<()>;
    /// Makes all earlier writes durable.
    fn flush(&self) -> io::Result<()>;
    /// Says that the contents of a range no longer matter.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes, giving back its space if `unmap`.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("disk {}: {what}: {source}", path.display())]
    Host {
        /// The image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// A directory, a pipe, a terminal, …
    #[error("disk {}: is {kind}, neither a regular file nor a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Less than a sector.
    #[error("disk {}: {len} bytes are less than one sector of {SECTOR}", path.display())]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Its size.
        len: u64,
    },
    /// Somebody else has it.
    #[error("disk {}: {source}", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
        /// Who, and how to get on.
        source: lock::LockError,
    },
}

/// A file or a block device of the host, used as it is.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    len: u64,
    read_only: bool,
    block_device: bool,
}

impl RawDisk {
    /// Opens and locks an image. A size that is not a whole number of sectors is
    /// rounded down: the guest does not see the rest, and nothing touches it.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let host = |what| move |source| DiskError::Host { path: path.to_owned(), what, source };
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // Opening a pipe or a tape must not wait for anything; disks don't care.
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(host(if read_only { "open" } else { "open for writing" }))?;
        let meta = file.metadata().map_err(host("stat"))?;
        let kind = meta.file_type();
        let block_device = kind.is_block_device();
        if !kind.is_file() && !block_device {
            let kind = match kind {
                k if k.is_dir() => "a directory",
                k if k.is_char_device() => "a character device",
                k if k.is_fifo() => "a pipe",
                _ => "something else",
            };
            return Err(DiskError::Kind { path: path.to_owned(), kind });
        }
        lock::lock(&file, read_only)
            .map_err(|source| DiskError::Locked { path: path.to_owned(), source })?;
        // After the lock: whoever had it before may have changed the size.
        let bytes = match block_device {
            true => block_device_size(&file).map_err(host("BLKGETSIZE64"))?,
            false => file.metadata().map_err(host("stat"))?.len(),
        };
        let rest = bytes % SECTOR;
        if bytes < SECTOR {
            return Err(DiskError::TooSmall { path: path.to_owned(), len: bytes });
        }
        if rest != 0 {
            let path = path.display();
            log::warn!("disk {path}: its last {rest} bytes are less than a sector and not used");
        }
        Ok(Self { file, len: bytes - rest, read_only, block_device })
    }

    /// The file, for whoever has to name it in a filter or an io_uring.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// `fallocate`; `false` if the file system can't.
    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<bool> {
        let range = (libc::off64_t::try_from(offset), libc::off64_t::try_from(len));
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
        let range = [offset, len];
        // SAFETY: both requests read two 64-bit numbers, which `range` is.
        match check(|| unsafe { ioctl_with_ref(&self.file, request, &range) as isize }) {
            Ok(_) => Ok(true),
            Err(e) if unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Zeroes as data, where the host has nothing better.
    fn write_zeroes_plainly(&self, mut offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut left = len;
        while left > 0 {
            let step = left.min(ZEROES.len() as u64);
            let data = ZEROES.get(..step as usize).unwrap_or_default();
            self.file.write_all_at(data, offset)?;
            offset += step;
            left -= step;
        }
        Ok(())
    }
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, to: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
        transfer(to, offset, io::ErrorKind::UnexpectedEof, |vecs, count, offset| {
            // SAFETY: the entries of an `IoVecs` describe memory that may be
            // written and lives at least as long as the borrow of it.
            unsafe { libc::preadv2(self.file.as_raw_fd(), vecs, count, offset, 0) }
        })
    }

    fn write_at(&self, from: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
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
fn check(mut call: impl FnMut() -> isize) -> io::Result<u64> {
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

fn block_device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the request writes one 64-bit number, which `size` has room for.
    check(|| unsafe { ioctl_with_mut_ref(file, BLKGETSIZE64(), &mut size) as isize })?;
    Ok(size)
}
