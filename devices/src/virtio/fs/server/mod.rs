//! Requests of the file system: one comes in, one answer goes out.

mod dir;
mod file;
mod node;
mod xattr;

use super::FsMetrics;
use super::fuse::{self, *};
use crate::backend::share::Share;
use crate::virtio::queue::{Chain, IoVecStore, QueueError};
use crate::virtio::{DeviceError, Ram};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// What a write carries at most, and a read brings: 1 MiB.
pub(super) const MAX_TRANSFER: u32 = 1 << 20;
/// Everything but the data of a write: names, values of attributes (64 KiB at
/// most), lists of forgotten nodes.
const MAX_ARGUMENTS: u64 = 128 << 10;
/// How long the guest may believe what it was told, in seconds: others use the
/// directory, too.
const VALID: u64 = 1;

const IN: u64 = size_of::<InHeader>() as u64;
const OUT: u64 = size_of::<OutHeader>() as u64;

/// An answer, or why there is none.
type Answer = Result<Vec<u8>, Errno>;

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Self {
        Errno::INVAL
    }
}

/// What it takes to serve requests, for the time of one event.
pub(super) struct Server<'a> {
    pub share: &'a mut Share,
    pub metrics: &'a FsMetrics,
    pub mem: &'a Ram,
    pub iovecs: &'a mut IoVecStore,
}

/// Who asks, and of what.
#[derive(Debug, Clone, Copy)]
struct Request<'a> {
    header: InHeader,
    args: Args<'a>,
    /// Room for the answer after its header.
    room: usize,
}

impl Server<'_> {
    /// Serves the request in `chain`; returns how much of the chain was written.
    pub fn serve(&mut self, chain: &Chain) -> Result<u32, DeviceError> {
        let mut raw = [0; IN as usize];
        chain.read_at(self.mem, 0, &mut raw)?;
        let Ok(header) = InHeader::read_from_bytes(&raw) else { return Ok(0) };
        self.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let silent = matches!(header.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT);
        let room = chain.writable_len().saturating_sub(OUT);
        if !silent && chain.writable_len() < OUT {
            return Err(DeviceError::Request("file system request without room for an answer"));
        }
        // Data goes straight between file and guest.
        let moved = match header.opcode {
            op::READ => Some(self.read(chain, room)),
            op::WRITE => Some(self.write(chain)),
            _ => None,
        };
        if let Some(moved) = moved {
            return match moved {
                Ok(Moved::Filled(len)) => self.head(chain, &header, 0, len),
                Ok(Moved::Written(size)) => {
                    let answer = WriteOut { size, padding: 0 };
                    self.reply(chain, &header, Ok(answer.as_bytes().to_vec()))
                }
                Err(Failure::Queue(e)) => Err(e.into()),
                Err(Failure::Host(e)) => self.reply(chain, &header, Err(e)),
            };
        }
        let len = chain.readable_len().saturating_sub(IN).min(MAX_ARGUMENTS) as usize;
        let mut args = vec![0; len];
        chain.read_at(self.mem, IN, &mut args)?;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let request = Request { header, args: Args(&args), room };
        let answer = self.dispatch(request);
        match silent {
            true => Ok(0),
            false => self.reply(chain, &header, answer),
        }
    }

    fn dispatch(&mut self, r: Request<'_>) -> Answer {
        if self.share.read_only && changes(r.header.opcode) {
            return Err(Errno::ROFS);
        }
        match r.header.opcode {
            op::INIT => self.init(r),
            op::DESTROY => {
                self.share.clear();
                Ok(Vec::new())
            }
            op::LOOKUP => self.lookup(r),
            op::FORGET => self.forget(r),
            op::BATCH_FORGET => self.batch_forget(r),
            op::GETATTR => self.getattr(r),
            op::SETATTR => self.setattr(r),
            op::READLINK => self.readlink(r),
            op::SYMLINK => self.symlink(r),
            op::MKNOD => self.mknod(r),
            op::MKDIR => self.mkdir(r),
            op::UNLINK => self.unlink(r, false),
            op::RMDIR => self.unlink(r, true),
            op::RENAME => self.rename(r, false),
            op::RENAME2 => self.rename(r, true),
            op::LINK => self.link(r),
            op::OPEN => self.open(r),
            op::CREATE => self.create(r),
            op::RELEASE | op::RELEASEDIR => self.release(r),
            op::FSYNC | op::FSYNCDIR => self.fsync(r),
            op::FALLOCATE => self.fallocate(r),
            op::LSEEK => self.lseek(r),
            op::COPY_FILE_RANGE => self.copy_file_range(r),
            op::STATFS => self.statfs(r),
            op::SYNCFS => self.syncfs(r),
            op::OPENDIR => self.opendir(r),
            op::READDIR => self.readdir(r, false),
            op::READDIRPLUS => self.readdir(r, true),
            op::SETXATTR => self.setxattr(r),
            op::GETXATTR => self.getxattr(r),
            op::LISTXATTR => self.listxattr(r),
            op::REMOVEXATTR => self.removexattr(r),
            op::INTERRUPT => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, mut r: Request<'_>) -> Answer {
        let asked: InitIn = r.args.take()?;
        if asked.major != fuse::MAJOR {
            // It asks again, or gives up.
            let answer = InitOut { major: fuse::MAJOR, ..InitOut::new_zeroed() };
            return Ok(answer.as_bytes().to_vec());
        }
        // A guest that comes anew holds nothing.
        self.share.clear();
        let offered = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES;
        let answer = InitOut {
            major: fuse::MAJOR,
            minor: fuse::MINOR,
            max_readahead: asked.max_readahead,
            flags: offered & asked.flags,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MAX_TRANSFER,
            time_gran: 1,
            max_pages: (MAX_TRANSFER / 4096) as u16,
            ..InitOut::new_zeroed()
        };
        Ok(answer.as_bytes().to_vec())
    }

    /// Writes an answer; one that does not fit is an error of the guest's.
    fn reply(
        &mut self,
        chain: &Chain,
        header: &InHeader,
        answer: Answer,
    ) -> Result<u32, DeviceError> {
        let room = chain.writable_len().saturating_sub(OUT);
        match answer {
            Ok(bytes) if bytes.len() as u64 <= room => {
                chain.write_at(self.mem, OUT, &bytes)?;
                self.head(chain, header, 0, bytes.len() as u32)
            }
            Ok(_) => self.head(chain, header, -Errno::INVAL.raw_os_error(), 0),
            Err(e) => {
                self.metrics.errors.fetch_add(1, Ordering::Relaxed);
                self.head(chain, header, -e.raw_os_error(), 0)
            }
        }
    }

    /// Writes the header of an answer of `len` more bytes.
    fn head(
        &self,
        chain: &Chain,
        header: &InHeader,
        error: i32,
        len: u32,
    ) -> Result<u32, DeviceError> {
        let len = len.saturating_add(OUT as u32);
        let head = OutHeader { len, error, unique: header.unique };
        chain.write_at(self.mem, 0, head.as_bytes())?;
        Ok(len)
    }
}

/// What a read or a write has done.
enum Moved {
    Filled(u32),
    Written(u32),
}

/// Why data was not moved.
enum Failure {
    /// The chain is at fault.
    Queue(QueueError),
    Host(Errno),
}

impl From<QueueError> for Failure {
    fn from(e: QueueError) -> Self {
        match e {
            QueueError::Short { .. } => Self::Host(Errno::INVAL),
            e => Self::Queue(e),
        }
    }
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Self {
        Self::Host(e)
    }
}

/// Whether an operation changes the directory. Opening is looked at by itself.
fn changes(opcode: u32) -> bool {
    matches!(
        opcode,
        op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::CREATE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::SETXATTR
            | op::REMOVEXATTR
    )
}

fn bytes(answer: impl IntoBytes + Immutable) -> Vec<u8> {
    answer.as_bytes().to_vec()
}

/// A file's attributes.
fn attr(stat: &Stat) -> Attr {
    Attr {
        ino: stat.st_ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: stat.st_atime as u64,
        mtime: stat.st_mtime as u64,
        ctime: stat.st_ctime as u64,
        atimensec: stat.st_atime_nsec as u32,
        mtimensec: stat.st_mtime_nsec as u32,
        ctimensec: stat.st_ctime_nsec as u32,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: device(stat.st_rdev),
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// `new_encode_dev` of the kernel: a device number in 32 bits.
fn device(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

fn entry(nodeid: u64, stat: &Stat) -> EntryOut {
    EntryOut {
        nodeid,
        generation: 0,
        entry_valid: VALID,
        attr_valid: VALID,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr(stat),
    }
}
