//! Open files.

use super::{Answer, Failure, IN, MAX_TRANSFER, Moved, OUT, Request, Server, bytes, entry};
use crate::virtio::fs::fuse::*;
use crate::virtio::queue::{Chain, IoVecs};
use rustix::fs::{
    FallocateFlags, Mode, OFlags, ResolveFlags, SeekFrom, copy_file_range, fallocate, fdatasync,
    fstatfs, fsync, openat, openat2, seek, syncfs,
};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// What of a guest's `open` flags means something to us.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE.union(OFlags::APPEND).union(OFlags::TRUNC);
/// `FUSE_FSYNC_FDATASYNC`.
const FDATASYNC: u32 = 1;

impl Server<'_> {
    pub(super) fn open(&mut self, mut r: Request<'_>) -> Answer {
        let OpenIn { flags, .. } = r.args.take()?;
        let flags = self.open_flags(flags)?;
        let file = self.share.reopen(r.header.nodeid, flags)?;
        let fh = self.share.keep(file)?;
        Ok(bytes(OpenOut { fh, ..OpenOut::default() }))
    }

    fn open_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let changes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        match self.share.read_only && changes {
            true => Err(Errno::ROFS),
            false => Ok(flags),
        }
    }

    /// Makes a file and opens it; one that is there already is opened as
    /// [`Server::open`] would, unless it must not be there.
    pub(super) fn create(&mut self, mut r: Request<'_>) -> Answer {
        let CreateIn { flags, mode, .. } = r.args.take()?;
        let name = r.args.name()?;
        let open = self.open_flags(flags)?;
        let parent = self.share.node(r.header.nodeid)?;
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let permissions = Mode::from_raw_mode(mode & 0o7777);
        let (node, stat, file) = match openat2(parent, name, open | new, permissions, resolve) {
            Ok(file) => {
                let named = self.name(&file)?;
                let (node, _) = self.share.hold(named)?;
                (node, self.settle(&r, node, Some(mode)), Ok(file))
            }
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() == 0 => {
                let (node, stat) = self.share.lookup(r.header.nodeid, name)?;
                (node, Ok(stat), self.share.reopen(node, open))
            }
            Err(e) => return Err(e),
        };
        let kept = stat.and_then(|stat| Ok((stat, self.share.keep(file?)?)));
        let (stat, fh) = kept.inspect_err(|_| self.share.forget(node, 1))?;
        let mut answer = bytes(entry(node, &stat));
        answer.extend(bytes(OpenOut { fh, ..OpenOut::default() }));
        Ok(answer)
    }

    /// A descriptor that names an open file.
    fn name(&self, file: &OwnedFd) -> Result<OwnedFd, Errno> {
        let link = file.as_raw_fd().to_string();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        openat(self.share.descriptors(), link, flags, Mode::empty())
    }

    pub(super) fn release(&mut self, mut r: Request<'_>) -> Answer {
        let ReleaseIn { fh, .. } = r.args.take()?;
        self.share.release(fh);
        Ok(Vec::new())
    }

    pub(super) fn read(&mut self, chain: &Chain, room: u64) -> Result<Moved, Failure> {
        let mut raw = [0; size_of::<ReadIn>()];
        chain.read_at(self.mem, IN, &mut raw)?;
        let r = ReadIn::read_from_bytes(&raw).map_err(|_| Errno::INVAL)?;
        let len = u64::from(r.size).min(room).min(MAX_TRANSFER.into());
        let file = self.share.handle(r.fh)?;
        let mut to = chain.writable_iovecs(self.mem, self.iovecs, OUT, len)?;
        let done = transfer(&mut to, r.offset, |vecs, count, offset| {
            // SAFETY: the entries describe guest memory that may be written and
            // lives as long as the borrow of it; the descriptor is open.
            unsafe { libc::preadv(file.as_raw_fd(), vecs, count, offset) }
        })?;
        self.metrics.reads.fetch_add(1, Ordering::Relaxed);
        self.metrics.bytes_read.fetch_add(done.into(), Ordering::Relaxed);
        Ok(Moved::Filled(done))
    }

    pub(super) fn write(&mut self, chain: &Chain) -> Result<Moved, Failure> {
        let mut raw = [0; size_of::<WriteIn>()];
        chain.read_at(self.mem, IN, &mut raw)?;
        let w = WriteIn::read_from_bytes(&raw).map_err(|_| Errno::INVAL)?;
        if w.size > MAX_TRANSFER {
            return Err(Errno::INVAL.into());
        }
        // A file can only have been opened for writing where that is allowed.
        let file = self.share.handle(w.fh)?;
        let at = IN + size_of::<WriteIn>() as u64;
        let mut from = chain.readable_iovecs(self.mem, self.iovecs, at, w.size.into())?;
        let done = transfer(&mut from, w.offset, |vecs, count, offset| {
            // SAFETY: as in `read`; the kernel only reads the memory.
            unsafe { libc::pwritev(file.as_raw_fd(), vecs, count, offset) }
        })?;
        self.metrics.writes.fetch_add(1, Ordering::Relaxed);
        self.metrics.bytes_written.fetch_add(done.into(), Ordering::Relaxed);
        Ok(Moved::Written(done))
    }

    pub(super) fn fsync(&mut self, mut r: Request<'_>) -> Answer {
        let FsyncIn { fh, fsync_flags, .. } = r.args.take()?;
        let file = self.share.handle(fh)?;
        match fsync_flags & FDATASYNC {
            0 => fsync(file)?,
            _ => fdatasync(file)?,
        }
        Ok(Vec::new())
    }

    pub(super) fn fallocate(&mut self, mut r: Request<'_>) -> Answer {
        let FallocateIn { fh, offset, length, mode, .. } = r.args.take()?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        fallocate(self.share.handle(fh)?, mode, offset, length)?;
        Ok(Vec::new())
    }

    pub(super) fn lseek(&mut self, mut r: Request<'_>) -> Answer {
        let LseekIn { fh, offset, whence, .. } = r.args.take()?;
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            // The guest knows the rest by itself.
            _ => return Err(Errno::INVAL),
        };
        let offset = seek(self.share.handle(fh)?, to)?;
        Ok(bytes(LseekOut { offset }))
    }

    pub(super) fn copy_file_range(&mut self, mut r: Request<'_>) -> Answer {
        let c: CopyFileRangeIn = r.args.take()?;
        if c.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.share.handle(c.fh_in)?, self.share.handle(c.fh_out)?);
        let (mut off_in, mut off_out) = (c.off_in, c.off_out);
        // Other devices want their turn: the guest asks again for the rest.
        let len = c.len.min(u64::from(MAX_TRANSFER) * 16) as usize;
        let done = copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), len)?;
        Ok(bytes(WriteOut { size: done as u32, padding: 0 }))
    }

    pub(super) fn statfs(&mut self, r: Request<'_>) -> Answer {
        let found = fstatfs(self.share.node(r.header.nodeid)?)?;
        Ok(bytes(StatfsOut {
            blocks: found.f_blocks,
            bfree: found.f_bfree,
            bavail: found.f_bavail,
            files: found.f_files,
            ffree: found.f_ffree,
            bsize: found.f_bsize as u32,
            namelen: found.f_namelen as u32,
            frsize: found.f_frsize as u32,
            ..StatfsOut::default()
        }))
    }

    pub(super) fn syncfs(&mut self, r: Request<'_>) -> Answer {
        let directory = self.share.reopen(r.header.nodeid, OFlags::RDONLY)?;
        syncfs(directory)?;
        Ok(Vec::new())
    }
}

/// Moves as much of `data` as one file has, by as many calls as it takes.
fn transfer(
    data: &mut IoVecs<'_>,
    mut offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off64_t) -> libc::ssize_t,
) -> Result<u32, Errno> {
    let mut all = 0u64;
    while !data.is_empty() {
        let vecs = data.as_slice();
        let count = vecs.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
        let at = libc::off64_t::try_from(offset).map_err(|_| Errno::FBIG)?;
        match u64::try_from(call(vecs.as_ptr(), count, at)) {
            Ok(0) => break,
            Ok(done) => {
                data.advance(done);
                offset = offset.saturating_add(done);
                all += done;
            }
            Err(_) => {
                let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                match code {
                    libc::EINTR => {}
                    // What was moved before counts.
                    _ if all > 0 => break,
                    code => return Err(Errno::from_raw_os_error(code)),
                }
            }
        }
    }
    Ok(all as u32)
}
