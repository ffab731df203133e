//! A layer on a tree: an archive's entries put where they belong, and what it
//! whites out removed (image-spec, *layer.md*).
//!
//! | in the archive | in the tree |
//! | --- | --- |
//! | `dir/.wh.name` | `dir/name` of layers below is gone |
//! | `dir/.wh..wh..opq` | all of `dir` from layers below is gone |
//! | `dir/.wh..wh.*` | nothing: another file system's bookkeeping |
//! | the same path twice | the last one counts, as tar and podman have it |
//! | `/path` | `path`: the image's root is the only one there is |
//! | `link/name`, where `link` leads to a directory of the image | below that |
//!
//! A path or hard link with `..`, or through a link that leads out of the image
//! or to nothing, ends it: the whole image is refused.

use super::content::{Content, Contents, Failed};
use super::error::{Error, Result};
use super::limits;
use super::stream::Stream;
use super::tar::{Entry, EntryKind, Input, Reader};
use super::tree::{Kind, Meta, Node, Tree, TreeError, Xattrs};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Where a layer comes from and where it goes.
pub struct Layer<'a> {
    /// What it is called in errors.
    pub object: &'a str,
    /// Its number, from 0.
    pub number: u32,
    /// Whether `.wh.` names are whiteouts, as in a layer, or names like others.
    pub whiteouts: bool,
    /// The file of [`Contents`] that the archive is in, if it isn't compressed.
    pub file: Option<u32>,
    /// Where contents go that can be read only once.
    pub spool: &'a Path,
}

impl Layer<'_> {
    /// Puts an archive on the tree; what follows the archive is left unread.
    pub fn apply<I: Input>(
        &self,
        reader: &mut Reader<I>,
        tree: &mut Tree,
        contents: &mut Contents,
        watch: &mut dyn FnMut(),
    ) -> Result<()> {
        let damaged = |error| self.damaged(error);
        while let Some(entry) = reader.next_entry().map_err(damaged)? {
            watch();
            if self.whiteouts && self.white_out(&entry, tree)? {
                continue;
            }
            self.put(entry, reader, tree, contents)?;
        }
        Ok(())
    }

    /// What an error of reading is about.
    pub fn damaged(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(_) => Error::host(self.object)(error),
            None => Error::malformed(self.object, error),
        }
    }

    fn refuse(&self, path: &[u8], reason: impl std::fmt::Display) -> Error {
        Error::malformed(self.object, format!("{} {reason}", shown(path)))
    }

    /// Whether this entry was a whiteout.
    fn white_out(&self, entry: &Entry, tree: &mut Tree) -> Result<bool> {
        let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let slash = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(slash);
        let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(false) };
        // In the root a parent is no path by itself.
        let parent = [parent, b"."].concat();
        let removed = match hidden {
            b".wh..opq" => tree.white_out_all(&parent, self.number),
            _ if hidden.starts_with(b".wh.") => Ok(()),
            b"" | b"." | b".." => Err(TreeError::NoName),
            _ => tree.white_out(&[&parent, &b"/"[..], hidden].concat(), self.number),
        };
        removed.map(|()| true).map_err(|error| self.refuse(&entry.path, error))
    }

    fn put<I: Input>(
        &self,
        entry: Entry,
        reader: &mut Reader<I>,
        tree: &mut Tree,
        contents: &mut Contents,
    ) -> Result<()> {
        let kind = match entry.kind {
            EntryKind::HardLink => {
                return tree
                    .put_link(&entry.path, &entry.link, self.number)
                    .map_err(|error| self.refuse(&entry.path, error));
            }
            EntryKind::File => Kind::File(self.content(&entry, reader, contents)?),
            EntryKind::Symlink => Kind::Symlink(self.target(&entry)?),
            EntryKind::Character(major, minor) => Kind::Character(major, minor),
            EntryKind::Block(major, minor) => Kind::Block(major, minor),
            EntryKind::Directory => Kind::Directory(BTreeMap::new()),
            EntryKind::Fifo => Kind::Fifo,
        };
        if let Kind::Character(major, minor) | Kind::Block(major, minor) = kind
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(self.refuse(&entry.path, "has device numbers that Linux doesn't have"));
        }
        let xattrs = attributes(entry.xattrs).map_err(|why| self.refuse(&entry.path, why))?;
        let Entry { mode, uid, gid, mtime, path, .. } = entry;
        let node = Node { meta: Meta { mode, uid, gid, mtime, xattrs }, kind };
        tree.put(&path, node, self.number).map_err(|error| self.refuse(&path, error))?;
        Ok(())
    }

    fn target(&self, entry: &Entry) -> Result<Box<[u8]>> {
        let length = entry.link.len();
        if length == 0 || length >= limits::PATH || entry.link.contains(&0) {
            return Err(self.refuse(&entry.path, "is a symbolic link to what is no path"));
        }
        Ok(entry.link.clone().into())
    }

    fn content<I: Input>(
        &self,
        entry: &Entry,
        reader: &mut Reader<I>,
        contents: &mut Contents,
    ) -> Result<Content> {
        if let (Some(file), Some(offset)) = (self.file, reader.offset()) {
            return Ok(Content::Range { file, offset, size: entry.size });
        }
        contents.keep(reader, entry.size, self.spool).map_err(|failed| match failed {
            Failed::Input(error) => self.damaged(error),
            Failed::Us(error) => error,
        })
    }
}

/// Reads the rest of a layer; what it all should sum up to is compared.
pub fn finish(reader: Reader<Stream>, wanted: Option<[u8; 32]>, object: &str) -> Result<()> {
    let sum = reader.into_input().finish().map_err(|error| match error.raw_os_error() {
        Some(_) => Error::host(object)(error),
        None => Error::malformed(object, error),
    })?;
    match (sum, wanted) {
        (Some(sum), Some(wanted)) if sum != wanted => {
            Err(Error::malformed(object, "its content is not what the image's diff_ids say"))
        }
        _ => Ok(()),
    }
}

/// Those of a file's extended attributes that an image can have. overlayfs
/// keeps its own books in some; those of other systems mean nothing to Linux.
pub fn attributes(
    given: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
) -> std::result::Result<Xattrs, &'static str> {
    const SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
    let mut kept = BTreeMap::new();
    let mut bytes = 0;
    for (name, value) in given {
        let space = SPACES.iter().find(|space| name.starts_with(space) && name.len() > space.len());
        let ours = OVERLAY.iter().any(|overlay| name.starts_with(overlay));
        if (space.is_none() && !LISTS.contains(&&*name)) || ours {
            continue;
        }
        bytes += name.len() + value.len() + 8;
        if name.len() > limits::NAME || name.contains(&0) || bytes > limits::ATTRIBUTES {
            return Err("has extended attributes that are larger than Linux's");
        }
        kept.insert(name.into(), value.into());
    }
    Ok(kept)
}

/// A path for an error, without what would disturb a terminal, and not endless.
pub fn shown(path: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(&path[..path.len().min(MOST)]).escape_debug().to_string();
    if path.len() > MOST { text + "…" } else { text }
}
