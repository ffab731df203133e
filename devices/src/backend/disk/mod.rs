//! Disk images: what a block device reads and writes.
//!
//! [`Disk`] is what a block device sees; [`RawDisk`] is a file or a block device
//! of the host, byte for byte, or a range of one; [`Qcow2Disk`] is an image in
//! QEMU's format. An image is opened once and locked ([`lock`](mod@lock)) for as
//! long as it is open. [`ring`] moves the data of raw disks without waiting.

mod direct;
pub mod lock;
mod qcow2;
mod raw;
pub mod ring;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use direct::fits;
pub use qcow2::Qcow2Disk;
pub use raw::{RawDisk, RawOptions};

use crate::virtio::queue::IoVecs;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Bytes in a sector: the unit of a disk's size.
pub const SECTOR: u64 = 512;

/// What the guest should know of a disk's shape, in bytes. All but `optimal` are
/// powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The unit of every request.
    pub logical: u32,
    /// The unit that the host writes at once.
    pub physical: u32,
    /// A size for requests that the host likes best; 0: it does not say.
    pub optimal: u32,
}

impl Default for Geometry {
    /// Sectors in pages of 4 KiB, as files are kept.
    fn default() -> Self {
        Self { logical: SECTOR as u32, physical: 4096, optimal: 0 }
    }
}

/// What [`ring`] needs to know of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Backing {
    /// The file; stays open as long as the disk does.
    pub file: RawFd,
    /// Where the disk begins in it.
    pub offset: u64,
    /// What the address and the length of each buffer must be a multiple of; 1
    /// for all but direct I/O.
    pub align: usize,
}

/// What stands behind a block device. Offsets and lengths are bytes. Callers
/// stay inside of [`Disk::len`]; an implementation may rely on it for sense, but
/// not for safety.
pub trait Disk: Send {
    /// The size, a multiple of [`SECTOR`]; only [`Disk::resize`] changes it.
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
    /// Its shape.
    fn geometry(&self) -> Geometry {
        Geometry::default()
    }
    /// The file whose bytes the disk's are, if it is so simple.
    fn backing(&self) -> Option<Backing> {
        None
    }
    /// Lets others have the image, although it may stay open for a moment: the
    /// kernel takes a ring apart when it finds time.
    fn unlock(&self) {}
    /// Makes the disk `len` bytes long, or as long as its file has become.
    fn resize(&mut self, _len: Option<u64>) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
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
    /// A range that does not lie in the image, or not on sectors.
    #[error("disk {}: {len} bytes from {offset} on: {why}", path.display())]
    Range {
        /// The image.
        path: PathBuf,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Not an image of the format that was asked for.
    #[error("disk {}: not usable as qcow2: {source}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What its reader said.
        source: io::Error,
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
