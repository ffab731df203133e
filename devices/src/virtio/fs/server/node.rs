//! Names and attributes.

use super::{Answer, Request, Server, VALID, attr, bytes, entry};
use crate::virtio::fs::fuse::*;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, chmodat, chownat, ftruncate, linkat, mkdirat, mknodat, readlinkat,
    renameat_with, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// Bits of a mode that `chmod` sets.
const PERMISSIONS: u32 = 0o7777;

impl Server<'_> {
    pub(super) fn lookup(&mut self, mut r: Request<'_>) -> Answer {
        let (node, stat) = self.share.lookup(r.header.nodeid, r.args.name()?)?;
        Ok(bytes(entry(node, &stat)))
    }

    pub(super) fn forget(&mut self, mut r: Request<'_>) -> Answer {
        let ForgetIn { nlookup } = r.args.take()?;
        self.share.forget(r.header.nodeid, nlookup);
        Ok(Vec::new())
    }

    pub(super) fn batch_forget(&mut self, mut r: Request<'_>) -> Answer {
        let BatchForgetIn { count, .. } = r.args.take()?;
        // As many as were sent, whatever is claimed.
        for _ in 0..count {
            let ForgetOne { nodeid, nlookup } = r.args.take()?;
            self.share.forget(nodeid, nlookup);
        }
        Ok(Vec::new())
    }

    pub(super) fn getattr(&mut self, r: Request<'_>) -> Answer {
        self.attributes(r.header.nodeid)
    }

    fn attributes(&self, node: u64) -> Answer {
        let stat = statat(self.share.node(node)?, "", AtFlags::EMPTY_PATH)?;
        let attr = attr(&stat);
        Ok(bytes(AttrOut { attr_valid: VALID, attr_valid_nsec: 0, dummy: 0, attr }))
    }

    pub(super) fn setattr(&mut self, mut r: Request<'_>) -> Answer {
        let wanted: SetattrIn = r.args.take()?;
        let node = r.header.nodeid;
        let has = |bit| wanted.valid & bit != 0;
        if has(setattr::MODE) {
            self.chmod(node, wanted.mode)?;
        }
        if has(setattr::UID) || has(setattr::GID) {
            let uid = has(setattr::UID).then(|| Uid::from_raw(wanted.uid));
            let gid = has(setattr::GID).then(|| Gid::from_raw(wanted.gid));
            chownat(self.share.node(node)?, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(setattr::SIZE) {
            match has(setattr::FH) {
                true => ftruncate(self.share.handle(wanted.fh)?, wanted.size)?,
                false => ftruncate(self.share.reopen(node, OFlags::WRONLY)?, wanted.size)?,
            }
        }
        let time = |set, now, seconds: u64, nanos: u32| match (has(set), has(now)) {
            (_, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            (true, _) => Timespec { tv_sec: seconds as i64, tv_nsec: nanos.into() },
            _ => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        let times = Timestamps {
            last_access: time(setattr::ATIME, setattr::ATIME_NOW, wanted.atime, wanted.atimensec),
            last_modification: time(
                setattr::MTIME,
                setattr::MTIME_NOW,
                wanted.mtime,
                wanted.mtimensec,
            ),
        };
        if has(setattr::ATIME) || has(setattr::MTIME) {
            utimensat(self.share.node(node)?, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.attributes(node)
    }

    /// A descriptor that only names a file can't be changed by; its name can.
    fn chmod(&self, node: u64, mode: u32) -> Result<(), Errno> {
        let name = self.share.number(node)?;
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        chmodat(self.share.descriptors(), name, mode, AtFlags::empty())
    }

    pub(super) fn readlink(&mut self, r: Request<'_>) -> Answer {
        let target = readlinkat(self.share.node(r.header.nodeid)?, "", Vec::new())?;
        Ok(target.into_bytes())
    }

    pub(super) fn symlink(&mut self, mut r: Request<'_>) -> Answer {
        let (name, target) = (r.args.name()?, r.args.string()?);
        symlinkat(target, self.share.node(r.header.nodeid)?, name)?;
        self.created(&r, name, None)
    }

    pub(super) fn mknod(&mut self, mut r: Request<'_>) -> Answer {
        let MknodIn { mode, rdev, .. } = r.args.take()?;
        let name = r.args.name()?;
        let kind = FileType::from_raw_mode(mode);
        let (major, minor) = (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00);
        let dev = match kind {
            // Device nodes would be the host's devices.
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => rustix::fs::makedev(major, minor),
        };
        let permissions = Mode::from_raw_mode(mode & PERMISSIONS);
        mknodat(self.share.node(r.header.nodeid)?, name, kind, permissions, dev)?;
        self.created(&r, name, Some(mode))
    }

    pub(super) fn mkdir(&mut self, mut r: Request<'_>) -> Answer {
        let MkdirIn { mode, .. } = r.args.take()?;
        let name = r.args.name()?;
        let permissions = Mode::from_raw_mode(mode & PERMISSIONS);
        mkdirat(self.share.node(r.header.nodeid)?, name, permissions)?;
        self.created(&r, name, Some(mode))
    }

    /// What was just made, as the guest is told of it.
    fn created(&mut self, r: &Request<'_>, name: &[u8], mode: Option<u32>) -> Answer {
        let (node, _) = self.share.lookup(r.header.nodeid, name)?;
        let stat = self.settle(r, node, mode)?;
        Ok(bytes(entry(node, &stat)))
    }

    /// Gives something new the mode that was asked for (the guest has applied
    /// its own umask, and ours must not be) and, where we are root, the owner.
    pub(super) fn settle(
        &self,
        r: &Request<'_>,
        node: u64,
        mode: Option<u32>,
    ) -> Result<Stat, Errno> {
        let file = self.share.node(node)?;
        let root = rustix::process::geteuid().is_root();
        if root {
            let (uid, gid) = (Uid::from_raw(r.header.uid), Gid::from_raw(r.header.gid));
            chownat(file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        // A new owner takes set-user-ID and set-group-ID away (chown(2)).
        let lost = |mode: u32| root && mode & 0o6000 != 0;
        if let Some(mode) = mode.filter(|m| self.share.masked(m & PERMISSIONS) || lost(*m)) {
            self.chmod(node, mode)?;
        }
        statat(file, "", AtFlags::EMPTY_PATH)
    }

    pub(super) fn unlink(&mut self, mut r: Request<'_>, directory: bool) -> Answer {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(self.share.node(r.header.nodeid)?, r.args.name()?, flags)?;
        Ok(Vec::new())
    }

    pub(super) fn rename(&mut self, mut r: Request<'_>, flagged: bool) -> Answer {
        let (newdir, flags) = match flagged {
            true => r.args.take::<Rename2In>().map(|i| (i.newdir, i.flags))?,
            false => r.args.take::<RenameIn>().map(|i| (i.newdir, 0))?,
        };
        let (from, to) = (r.args.name()?, r.args.name()?);
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits(flags).filter(|f| known.contains(*f));
        let flags = flags.ok_or(Errno::INVAL)?;
        let (old, new) = (self.share.node(r.header.nodeid)?, self.share.node(newdir)?);
        renameat_with(old, from, new, to, flags)?;
        Ok(Vec::new())
    }

    pub(super) fn link(&mut self, mut r: Request<'_>) -> Answer {
        let LinkIn { oldnodeid } = r.args.take()?;
        let name = r.args.name()?;
        let from = self.share.number(oldnodeid)?;
        let to = self.share.node(r.header.nodeid)?;
        linkat(self.share.descriptors(), from, to, name, AtFlags::SYMLINK_FOLLOW)?;
        let (node, stat) = self.share.lookup(r.header.nodeid, name)?;
        Ok(bytes(entry(node, &stat)))
    }
}
