//! A directory of the host's as a tree. Nothing but directories is opened here,
//! and no symbolic link is followed.

use super::content::Content;
use super::error::{Error, Result};
use super::layer::{attributes, shown};
use super::tree::{Child, Kind, Meta, Name, Node, NodeId, ROOT, Tree, Xattrs};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, lgetxattr, llistxattr, major, minor,
    openat2, readlinkat, statat,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A file's identity on the host.
pub type HostId = (u64, u64);

/// Reads what is in a directory, all but the file `skipped`.
pub fn read(path: &Path, directory: &File, skipped: Option<HostId>) -> Result<Tree> {
    let mut walk = Walk { base: path, directory, skipped, known: HashMap::new() };
    let mut tree = Tree::default();
    let stat = rustix::fs::fstat(directory).map_err(|error| Error::host(path)(error.into()))?;
    let own = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let xattrs = walk.xattrs(Path::new(&own).join(".").as_path(), path)?;
    tree.node_mut(ROOT).meta = meta(&stat, xattrs);
    // Directories to be read, and their paths from the first.
    let mut pending: Vec<(NodeId, Vec<u8>)> = vec![(ROOT, b".".to_vec())];
    while let Some((id, path)) = pending.pop() {
        walk.directory(&mut tree, id, &path, &mut pending)?;
    }
    Ok(tree)
}

struct Walk<'w> {
    base: &'w Path,
    directory: &'w File,
    skipped: Option<HostId>,
    /// Files with more than one name.
    known: HashMap<HostId, NodeId>,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        tree: &mut Tree,
        id: NodeId,
        path: &[u8],
        pending: &mut Vec<(NodeId, Vec<u8>)>,
    ) -> Result<()> {
        let full = self.base.join(OsStr::from_bytes(path));
        let host = |error: Errno| Error::host(&full)(error.into());
        let directory = self.open(path).map_err(host)?;
        let mut names: Vec<Name> = Vec::new();
        for entry in Dir::read_from(&directory).map_err(host)? {
            let entry = entry.map_err(host)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.into());
            }
        }
        // The host's order is nobody's; builds are equal.
        names.sort_unstable();
        for name in names {
            let child = [path, b"/", &name].concat();
            let stat = statat(&directory, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| self.failed(&child, error))?;
            let identity = (stat.st_dev, stat.st_ino);
            if self.skipped == Some(identity) {
                continue;
            }
            let made = match self.known.get(&identity) {
                Some(&known) => known,
                None => {
                    let node = self.node(&directory, &name, &child, &stat)?;
                    let is_directory = matches!(node.kind, Kind::Directory(_));
                    let refused = |why| Error::unsupported(self.base.display(), why);
                    let made = tree.add(node).map_err(refused)?;
                    if is_directory {
                        pending.push((made, child));
                    } else if stat.st_nlink > 1 {
                        self.known.insert(identity, made);
                    }
                    made
                }
            };
            let refused = |why| Error::unsupported(full.display(), why);
            tree.link(id, &name, Child { node: made, layer: 0 }).map_err(refused)?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(self.directory, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
    }

    fn failed(&self, path: &[u8], error: Errno) -> Error {
        Error::host(self.base.join(OsStr::from_bytes(path)))(error.into())
    }

    fn node(&self, directory: &OwnedFd, name: &[u8], path: &[u8], stat: &Stat) -> Result<Node> {
        let name = OsStr::from_bytes(name);
        let device = || (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory(BTreeMap::new()),
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                Kind::File(Content::Host { path: path.into(), size })
            }
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new());
                let target = target.map_err(|error| self.failed(path, error))?;
                Kind::Symlink(target.into_bytes().into())
            }
            FileType::CharacterDevice => Kind::Character(device().0, device().1),
            FileType::BlockDevice => Kind::Block(device().0, device().1),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => {
                let reason = format!("{} is of a kind that is not known", shown(path));
                return Err(Error::unsupported(self.base.display(), reason));
            }
        };
        // Attributes of the file itself, also of a symbolic link.
        let mut own = OsString::from(format!("/proc/self/fd/{}/", directory.as_raw_fd()));
        own.push(name);
        let xattrs = self.xattrs(Path::new(&own), &self.base.join(OsStr::from_bytes(path)))?;
        Ok(Node { meta: meta(stat, xattrs), kind })
    }

    fn xattrs(&self, path: &Path, told: &Path) -> Result<Xattrs> {
        let host = |error: Errno| Error::host(told)(error.into());
        let mut list = Vec::with_capacity(64 << 10);
        match llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
            Ok(_) => {}
            Err(error) => return Err(host(error)),
        }
        let mut found = Vec::new();
        for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            // This host's policy, not the image's.
            if name == b"security.selinux" {
                continue;
            }
            let mut value = Vec::with_capacity(64 << 10);
            let buffer = rustix::buffer::spare_capacity(&mut value);
            lgetxattr(path, OsStr::from_bytes(name), buffer).map_err(host)?;
            value.shrink_to_fit();
            found.push((name.to_vec(), value));
        }
        attributes(found).map_err(|why| Error::unsupported(told.display(), why))
    }
}

fn meta(stat: &Stat, xattrs: Xattrs) -> Meta {
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        xattrs,
    }
}
