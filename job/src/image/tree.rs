//! A root file system in memory: what its files are called and what they are,
//! but not what is in them, which stays where it was ([`super::content`]).
//!
//! Paths are looked up in the tree itself, never in the host's: a `..` or a
//! link that would lead out of it is an error. What a layer puts here carries
//! the layer's number, because what it removes is only what was there before.

use super::content::Content;
use super::limits;
use std::collections::BTreeMap;

/// An inode, by its place in [`Tree::nodes`].
pub type NodeId = u32;
/// A name in a directory.
pub type Name = Box<[u8]>;

/// Extended attributes, by name.
pub type Xattrs = BTreeMap<Name, Box<[u8]>>;

/// The root directory.
pub const ROOT: NodeId = 0;

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions, with set-user-ID and the like.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds, and nanoseconds after them.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A directory.
    Directory(BTreeMap<Name, Child>),
    /// A file.
    File(Content),
    /// A symbolic link.
    Symlink(Name),
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A directory's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// What has this name.
    pub node: NodeId,
    /// The layer that put it here.
    pub layer: u32,
}

/// An inode.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What every inode has.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
}

/// A root file system.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Bytes of names, links and attributes that were ever put here.
    bytes: u64,
}

/// Why something has no place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// `..`, or a link through it.
    #[error("leads out of the image")]
    Outside,
    /// An empty path, or `.` or `..` as what is to be made.
    #[error("is no name for a file")]
    NoName,
    /// Longer than Linux has it.
    #[error("is longer than Linux's 255 bytes for a name and 4096 for a path")]
    TooLong,
    /// Deeper than any image.
    #[error("is more than 512 directories deep")]
    TooDeep,
    /// A path holds a zero byte.
    #[error("has a zero byte in its name")]
    ZeroByte,
    /// There is a file on the way.
    #[error("is below something that is no directory")]
    NotDirectory,
    /// A link on the way leads nowhere or in circles.
    #[error("is below a symbolic link that leads to no directory of the image")]
    Dangling,
    /// What a hard link is to is not there, or is a directory.
    #[error("is a hard link to no file of the image")]
    NoTarget,
    /// More than an image may have.
    #[error("is one of more than 2000000 files")]
    TooMany,
    /// More than may be in memory.
    #[error("brings names and attributes to more than 512 MiB")]
    TooMuch,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![directory()], bytes: 0 }
    }
}

impl Tree {
    /// How many inodes there are, those without a name among them.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// An inode.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// An inode, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// The entries of a directory; of anything else, none.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&Name, &Child)> {
        match &self.node(id).kind {
            Kind::Directory(children) => Some(children.iter()),
            _ => None,
        }
        .into_iter()
        .flatten()
    }

    fn child(&self, id: NodeId, name: &[u8]) -> Option<Child> {
        match &self.node(id).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Name, Child>> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Adds an inode that has no name yet.
    pub fn add(&mut self, node: Node) -> Result<NodeId, TreeError> {
        if self.nodes.len() as u64 >= limits::ENTRIES {
            return Err(TreeError::TooMany);
        }
        self.count(size(&node))?;
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as NodeId)
    }

    /// Counts what takes memory, so that an image can't take all.
    fn count(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.bytes += bytes as u64;
        if self.bytes > limits::METADATA { Err(TreeError::TooMuch) } else { Ok(()) }
    }

    /// Gives an inode a name in a directory, in place of what had it.
    pub fn link(&mut self, parent: NodeId, name: &[u8], child: Child) -> Result<(), TreeError> {
        self.count(name.len())?;
        let children = self.children_mut(parent).ok_or(TreeError::NotDirectory)?;
        children.insert(name.into(), child);
        Ok(())
    }

    /// Puts an inode at a path, in place of what is there; a directory takes
    /// the place of a directory without changing what is in it. Directories on
    /// the way that are missing are made.
    pub fn put(&mut self, path: &[u8], node: Node, layer: u32) -> Result<NodeId, TreeError> {
        let (parents, name) = split(path)?;
        let Some(name) = name else {
            // The root itself: it has to stay a directory.
            return match node.kind {
                Kind::Directory(_) => {
                    self.count(size(&node))?;
                    self.node_mut(ROOT).meta = node.meta;
                    Ok(ROOT)
                }
                _ => Err(TreeError::NoName),
            };
        };
        let parent = self.make_parents(&parents, layer)?;
        if let Kind::Directory(_) = node.kind
            && let Some(old) = self.child(parent, name)
            && let Kind::Directory(_) = self.node(old.node).kind
        {
            self.count(size(&node))?;
            self.node_mut(old.node).meta = node.meta;
            self.link(parent, name, Child { layer, ..old })?;
            return Ok(old.node);
        }
        let id = self.add(node)?;
        self.link(parent, name, Child { node: id, layer })?;
        Ok(id)
    }

    /// Gives the file at `target` another name.
    pub fn put_link(&mut self, path: &[u8], target: &[u8], layer: u32) -> Result<(), TreeError> {
        let node = match self.find(target) {
            Ok(Some(node)) => node,
            Ok(None) | Err(TreeError::NoName) => return Err(TreeError::NoTarget),
            Err(error) => return Err(error),
        };
        if let Kind::Directory(_) = self.node(node).kind {
            return Err(TreeError::NoTarget);
        }
        let (parents, name) = split(path)?;
        let parent = self.make_parents(&parents, layer)?;
        self.link(parent, name.ok_or(TreeError::NoName)?, Child { node, layer })
    }

    /// What is at a path; links on the way are followed, one at its end isn't.
    pub fn find(&self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let (parents, name) = split(path)?;
        let Some(name) = name else { return Ok(Some(ROOT)) };
        match self.directory_at(&parents) {
            Ok(Found { node, missing: [], .. }) => Ok(self.child(node, name).map(|c| c.node)),
            Ok(_) | Err(TreeError::NotDirectory | TreeError::Dangling) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file at a path, with a link at its end followed, too.
    pub fn find_file(&self, path: &[u8]) -> Option<NodeId> {
        let (mut parents, name) = split(path).ok()?;
        parents.push(name?);
        let found = self.walk(&parents).ok()?;
        found.missing.is_empty().then_some(found.node)
    }

    /// Removes what layers before this one put at a path.
    pub fn white_out(&mut self, path: &[u8], layer: u32) -> Result<(), TreeError> {
        let (parents, name) = split(path)?;
        let name = name.ok_or(TreeError::NoName)?;
        if let Some(parent) = self.existing(&parents)?
            && let Some(child) = self.child(parent, name)
            && self.purge_child(child, layer)
            && let Some(children) = self.children_mut(parent)
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Removes what layers before this one put into the directory at a path.
    pub fn white_out_all(&mut self, path: &[u8], layer: u32) -> Result<(), TreeError> {
        let (mut parents, name) = split(path)?;
        parents.extend(name);
        if let Some(directory) = self.existing(&parents)? {
            self.purge(directory, layer);
        }
        Ok(())
    }

    /// Keeps of a directory only what this layer put there.
    fn purge(&mut self, directory: NodeId, layer: u32) {
        let Some(children) = self.children_mut(directory) else { return };
        let mut kept = std::mem::take(children);
        kept.retain(|_, child| !self.purge_child(*child, layer));
        if let Some(children) = self.children_mut(directory) {
            *children = kept;
        }
    }

    /// Whether nothing of an entry is this layer's, so that it has to go.
    fn purge_child(&mut self, child: Child, layer: u32) -> bool {
        self.purge(child.node, layer);
        child.layer != layer && self.children(child.node).next().is_none()
    }

    /// The directory of this path, if there is one.
    fn existing(&self, path: &[&[u8]]) -> Result<Option<NodeId>, TreeError> {
        match self.directory_at(path) {
            Ok(found) => Ok(found.missing.is_empty().then_some(found.node)),
            Err(TreeError::NotDirectory | TreeError::Dangling) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make_parents(&mut self, parents: &[&[u8]], layer: u32) -> Result<NodeId, TreeError> {
        let Found { mut node, depth, missing } = self.directory_at(parents)?;
        // Links could make it deeper than any path is long.
        if depth + missing.len() > limits::DEPTH {
            return Err(TreeError::TooDeep);
        }
        for name in missing {
            let made = self.add(directory())?;
            self.link(node, name, Child { node: made, layer })?;
            node = made;
        }
        Ok(node)
    }

    /// The deepest directory on a path, and the names that are missing.
    fn directory_at<'p>(&self, path: &'p [&'p [u8]]) -> Result<Found<'p>, TreeError> {
        let found = self.walk(path)?;
        match self.node(found.node).kind {
            Kind::Directory(_) => Ok(found),
            _ => Err(TreeError::NotDirectory),
        }
    }

    /// Follows a path, and the links on it, as far as it is there. A link that
    /// leads to what is not there is an error.
    fn walk<'p>(&self, path: &'p [&'p [u8]]) -> Result<Found<'p>, TreeError> {
        // From the root to where we are, for `..` in links.
        let mut trail = vec![ROOT];
        let mut links = 0;
        for (at, name) in path.iter().enumerate() {
            // Names still to be looked up for this one, the next one last.
            let mut pending: Vec<&[u8]> = vec![name];
            let mut in_link = false;
            while let Some(name) = pending.pop() {
                match name {
                    b"" | b"." => continue,
                    b".." if trail.len() == 1 => return Err(TreeError::Outside),
                    b".." => {
                        trail.pop();
                        continue;
                    }
                    _ => {}
                }
                let here = trail.last().copied().unwrap_or(ROOT);
                let Kind::Directory(children) = &self.node(here).kind else {
                    return Err(TreeError::NotDirectory);
                };
                let Some(child) = children.get(name) else {
                    let missing = &path[at..];
                    let found = Found { node: here, depth: trail.len(), missing };
                    return if in_link { Err(TreeError::Dangling) } else { Ok(found) };
                };
                let Kind::Symlink(target) = &self.node(child.node).kind else {
                    trail.push(child.node);
                    continue;
                };
                links += 1;
                in_link = true;
                if links > limits::LINKS {
                    return Err(TreeError::Dangling);
                }
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                pending.extend(target.split(|&byte| byte == b'/').rev());
            }
        }
        let node = trail.last().copied().unwrap_or(ROOT);
        Ok(Found { node, depth: trail.len(), missing: &[] })
    }
}

/// How far a path is there.
struct Found<'p> {
    /// The last inode that is.
    node: NodeId,
    /// How deep it is; the root is 1.
    depth: usize,
    /// The names after it.
    missing: &'p [&'p [u8]],
}

/// A directory that nobody described.
pub fn directory() -> Node {
    let meta = Meta { mode: 0o755, ..Meta::default() };
    Node { meta, kind: Kind::Directory(BTreeMap::new()) }
}

/// Bytes of an inode that are not of the same number for all.
fn size(node: &Node) -> usize {
    let link = if let Kind::Symlink(target) = &node.kind { target.len() } else { 0 };
    let xattrs = node.meta.xattrs.iter().map(|(name, value)| name.len() + value.len());
    link + xattrs.sum::<usize>()
}

/// The names of a path, and the last one apart; the root has none.
type Split<'p> = (Vec<&'p [u8]>, Option<&'p [u8]>);

/// The names of a path, the last one apart. A leading `/` is the image's root,
/// as `.` is; `..` is refused.
fn split(path: &[u8]) -> Result<Split<'_>, TreeError> {
    if path.len() > limits::PATH {
        return Err(TreeError::TooLong);
    }
    if path.is_empty() {
        return Err(TreeError::NoName);
    }
    if path.contains(&0) {
        return Err(TreeError::ZeroByte);
    }
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return Err(TreeError::Outside),
            _ if name.len() > limits::NAME => return Err(TreeError::TooLong),
            _ => names.push(name),
        }
    }
    if names.len() > limits::DEPTH {
        return Err(TreeError::TooDeep);
    }
    let last = names.pop();
    Ok((names, last))
}
