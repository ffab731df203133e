//! A directory of the host that is shared with a guest: what a node or a handle
//! of the guest's is here, and that nothing leads out of the directory.
//!
//! A node is a descriptor that names a file without opening it (`O_PATH`). One
//! below another is found by one name at a time, never through a symbolic link
//! (`openat2(2)` with `RESOLVE_IN_ROOT`, `RESOLVE_NO_SYMLINKS` and
//! `RESOLVE_NO_MAGICLINKS`), so there is no path that a guest or another process
//! could redirect. Only regular files and directories are ever opened: a device
//! or a pipe has its meaning in the guest.

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat, fstatfs, openat,
    openat2, statat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Descriptors that are kept for the rest of the monitor.
const RESERVED: u64 = 256;
/// Nodes and handles of a share, at most, whatever the host allows.
const MAX_OPEN: u64 = 1 << 20;
/// File systems of a share that are remembered.
const MAX_SYSTEMS: usize = 256;
/// The number of the top directory of `proc(5)`.
const PROC_ROOT_INO: u64 = 1;
/// What is said of a node that the guest does not hold.
const STALE: Errno = Errno::STALE;

/// Why a directory can't be shared.
#[derive(Debug, thiserror::Error)]
#[error("share {tag}: {}: {source}", path.display())]
pub struct ShareError {
    /// The share's name.
    tag: String,
    /// The directory.
    path: PathBuf,
    /// What the host said.
    source: std::io::Error,
}

/// A file that the guest knows by a number.
#[derive(Debug)]
struct Node {
    file: OwnedFd,
    key: Key,
    kind: FileType,
    /// How often the guest was told of it, less what it has forgotten.
    lookups: u64,
}

/// What makes two descriptors the same file.
type Key = (u64, u64);

/// A file or directory that the guest has opened.
#[derive(Debug)]
pub struct Handle {
    /// The open file.
    pub file: OwnedFd,
}

/// A shared directory.
#[derive(Debug)]
pub struct Share {
    /// Whether every change is refused.
    pub read_only: bool,
    root: OwnedFd,
    /// `/proc/self/fd`: the way from a node to an open file.
    descriptors: OwnedFd,
    nodes: BTreeMap<u64, Node>,
    numbers: BTreeMap<Key, u64>,
    handles: BTreeMap<u64, Handle>,
    next: u64,
    max_open: u64,
    /// The mode bits that this process takes from what it creates.
    umask: u32,
    /// File systems that were looked at, and whether the guest may see them.
    systems: BTreeMap<u64, bool>,
}

impl Share {
    /// Opens the directory at `path`.
    pub fn open(tag: &str, path: &Path, read_only: bool) -> Result<Self, ShareError> {
        let error =
            |e: Errno| ShareError { tag: tag.to_owned(), path: path.to_owned(), source: e.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(error)?;
        let descriptors = openat(CWD, "/proc/self/fd", flags, Mode::empty()).map_err(error)?;
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        Ok(Self {
            read_only,
            root,
            descriptors,
            nodes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            handles: BTreeMap::new(),
            next: ROOT + 1,
            max_open: raise_limit(),
            umask: umask.bits(),
            systems: BTreeMap::new(),
        })
    }

    /// Forgets all nodes and handles: the guest has gone.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.numbers.clear();
        self.handles.clear();
    }

    /// Whether the guest holds anything.
    pub fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.handles.is_empty()
    }

    /// How many nodes and handles the guest holds.
    pub fn held(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len())
    }

    /// What this process's umask takes away from a mode.
    pub fn masked(&self, mode: u32) -> bool {
        mode & self.umask != 0
    }

    /// The file that `node` is.
    pub fn node(&self, node: u64) -> Result<BorrowedFd<'_>, Errno> {
        match node {
            ROOT => Ok(self.root.as_fd()),
            node => self.nodes.get(&node).map(|n| n.file.as_fd()).ok_or(STALE),
        }
    }

    fn kind(&self, node: u64) -> Result<FileType, Errno> {
        match node {
            ROOT => Ok(FileType::Directory),
            node => self.nodes.get(&node).map(|n| n.kind).ok_or(STALE),
        }
    }

    /// The file in `parent` that is called `name`, as a node; the guest then
    /// holds it once more.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<(u64, Stat), Errno> {
        let file = self.find(parent, name)?;
        self.hold(file)
    }

    /// The file in `parent` that is called `name`.
    fn find(&self, parent: u64, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Of the name's own: with NOFOLLOW and PATH it is the link itself.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(self.node(parent)?, name, flags, Mode::empty(), resolve)
    }

    /// Gives the guest a node for `file`.
    pub fn hold(&mut self, file: OwnedFd) -> Result<(u64, Stat), Errno> {
        let stat = statat(&file, "", AtFlags::EMPTY_PATH)?;
        // A place to mount on remains.
        if !self.may_see(stat.st_dev, &file)? && stat.st_ino != PROC_ROOT_INO {
            return Err(Errno::ACCESS);
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(number) = self.numbers.get(&key)
            && let Some(node) = self.nodes.get_mut(number)
        {
            node.lookups += 1;
            return Ok((*number, stat));
        }
        self.room()?;
        let number = self.next;
        self.next += 1;
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.nodes.insert(number, Node { file, key, kind, lookups: 1 });
        self.numbers.insert(key, number);
        Ok((number, stat))
    }

    /// Whether the guest may see what is on this device: not the processes of the
    /// host, of which the monitor is one, with its memory.
    fn may_see(&mut self, device: u64, file: &OwnedFd) -> Result<bool, Errno> {
        if let Some(seen) = self.systems.get(&device) {
            return Ok(*seen);
        }
        let may = fstatfs(file)?.f_type != PROC_SUPER_MAGIC;
        // As many as there are mounts; what is not kept is asked again.
        if self.systems.len() < MAX_SYSTEMS {
            self.systems.insert(device, may);
        }
        Ok(may)
    }

    fn room(&self) -> Result<(), Errno> {
        match (self.nodes.len() + self.handles.len()) as u64 >= self.max_open {
            true => Err(Errno::NFILE),
            false => Ok(()),
        }
    }

    /// The guest no longer holds `node` so many times.
    pub fn forget(&mut self, node: u64, lookups: u64) {
        let Some(held) = self.nodes.get_mut(&node) else { return };
        held.lookups = held.lookups.saturating_sub(lookups);
        if held.lookups == 0
            && let Some(node) = self.nodes.remove(&node)
        {
            self.numbers.remove(&node.key);
        }
    }

    /// Opens a regular file or a directory.
    pub fn reopen(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.kind(node)? {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        openat(&self.descriptors, self.number(node)?, flags, Mode::empty())
    }

    /// The name of a node's descriptor below [`Share::descriptors`].
    pub fn number(&self, node: u64) -> Result<String, Errno> {
        use std::os::fd::AsRawFd;
        Ok(self.node(node)?.as_raw_fd().to_string())
    }

    /// The directory where [`Share::number`] is a name.
    pub fn descriptors(&self) -> BorrowedFd<'_> {
        self.descriptors.as_fd()
    }

    /// Keeps an open file for the guest.
    pub fn keep(&mut self, file: OwnedFd) -> Result<u64, Errno> {
        self.room()?;
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, Handle { file });
        Ok(number)
    }

    /// An open file of the guest's.
    pub fn handle(&self, number: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.handles.get(&number).map(|h| h.file.as_fd()).ok_or(Errno::BADF)
    }

    /// The guest closes a file.
    pub fn release(&mut self, number: u64) {
        self.handles.remove(&number);
    }
}

/// The node of the shared directory.
pub const ROOT: u64 = 1;

/// As many descriptors as this process may have at all; returns how many of them
/// a share may use.
fn raise_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    now.unwrap_or(u64::MAX).saturating_sub(RESERVED).clamp(16, MAX_OPEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_processes_are_not_shared() {
        let mut share = Share::open("root", Path::new("/"), true).unwrap();
        let (proc, _) = share.lookup(ROOT, b"proc").unwrap();
        for name in [&b"self"[..], b"1", b"sys", b"version"] {
            assert_eq!(share.lookup(proc, name).unwrap_err(), Errno::ACCESS);
        }
        assert!(share.lookup(ROOT, b"tmp").is_ok());
    }
}
