//! Where everything of a tree will be, before any of it is written.

use super::{ATTRIBUTES, BLOCK, ENTRY, INODE, SLOT, SPACES};
use crate::image::error::{Error, Result};
use crate::image::tree::{Child, Kind, NodeId, ROOT, Tree, Xattrs};
use std::collections::VecDeque;
use std::ops::Range;

/// Blocks with room that are kept in mind.
const OPEN: usize = 32;

/// An inode's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Its number, or 0 if nothing names it.
    pub number: u64,
    /// The directory that a directory is in.
    pub parent: NodeId,
    /// How many names it has.
    pub names: u32,
    /// Bytes of what it contains.
    pub size: u64,
    /// Whether the last block of that is behind the inode.
    pub inline: bool,
    /// The first block of what is in blocks of its own.
    pub block: u32,
}

impl Place {
    /// How many blocks of its own it has.
    pub fn blocks(&self) -> u64 {
        if self.inline { self.size / BLOCK } else { self.size.div_ceil(BLOCK) }
    }
}

/// Where everything of a tree will be.
#[derive(Debug)]
pub struct Layout {
    /// For each inode of the tree, where it is.
    pub places: Vec<Place>,
    /// The inodes that have names, in the order in which they were placed.
    pub order: Vec<NodeId>,
    /// Blocks of the file system.
    pub blocks: u32,
}

impl Layout {
    /// Places a tree.
    pub fn new(tree: &Tree) -> Result<Self> {
        let mut places = vec![Place::default(); tree.len()];
        let order = walk(tree, &mut places);
        let mut metadata = Metadata::new();
        for &id in &order {
            let node = tree.node(id);
            let place = &mut places[id as usize];
            place.size = size(tree, id);
            let tail = place.size % BLOCK;
            let head = INODE + attributes_size(&node.meta.xattrs) as u64;
            place.inline = tail > 0 && head + tail <= BLOCK;
            let offset = metadata.allocate(if place.inline { head + tail } else { head });
            place.number = offset / SLOT;
        }
        let mut next = 1 + metadata.end / BLOCK;
        for &id in &order {
            let place = &mut places[id as usize];
            let blocks = place.blocks();
            if blocks > 0 {
                place.block = u32::try_from(next).map_err(|_| too_large())?;
            }
            next += blocks;
        }
        let blocks = u32::try_from(next).map_err(|_| too_large())?;
        Ok(Self { places, order, blocks })
    }
}

fn too_large() -> Error {
    Error::unsupported("image", "is larger than the 16 TiB that EROFS can have")
}

/// Finds what has a name: a directory's entries follow each other, and those of
/// its directories come later. Counts names on the way.
fn walk(tree: &Tree, places: &mut [Place]) -> Vec<NodeId> {
    let mut order = vec![ROOT];
    let mut directories = VecDeque::from([ROOT]);
    places[ROOT as usize].names = 2;
    while let Some(directory) = directories.pop_front() {
        for (_, &Child { node, .. }) in tree.children(directory) {
            let place = &mut places[node as usize];
            if place.names == 0 {
                order.push(node);
            }
            place.names += 1;
            if let Kind::Directory(_) = tree.node(node).kind {
                // Its own `.`, and its `..` in the one above.
                place.names += 1;
                place.parent = directory;
                places[directory as usize].names += 1;
                directories.push_back(node);
            }
        }
    }
    order
}

/// Bytes of what an inode contains.
fn size(tree: &Tree, id: NodeId) -> u64 {
    match &tree.node(id).kind {
        Kind::File(content) => content.size(),
        Kind::Symlink(target) => target.len() as u64,
        Kind::Directory(_) => {
            let entries = entries(tree, id, ROOT);
            let blocks = directory_blocks(&entries);
            let last = blocks.last().map_or(0, |last| used(&entries[last.clone()]));
            (blocks.len().saturating_sub(1)) as u64 * BLOCK + last as u64
        }
        _ => 0,
    }
}

/// The names in a directory, `.` and `..` among them, in the order of their
/// bytes, which the kernel searches by.
pub fn entries(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut all: Vec<(&[u8], NodeId)> = vec![(b".", id), (b"..", parent)];
    all.extend(tree.children(id).map(|(name, child)| (&**name, child.node)));
    all.sort_unstable_by_key(|&(name, _)| name);
    all
}

/// Which of a directory's entries are in which of its blocks.
pub fn directory_blocks(entries: &[(&[u8], NodeId)]) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, (name, _)) in entries.iter().enumerate() {
        let more = ENTRY + name.len();
        if bytes + more > BLOCK as usize {
            blocks.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    blocks.push(start..entries.len());
    blocks
}

/// Bytes of a block that has these entries.
fn used(entries: &[(&[u8], NodeId)]) -> usize {
    entries.iter().map(|(name, _)| ENTRY + name.len()).sum()
}

/// Bytes of attributes behind an inode.
pub fn attributes_size(xattrs: &Xattrs) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entries = xattrs.iter().filter_map(|(name, value)| {
        let (prefix, _) = SPACES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
        Some((4 + name.len() - prefix.len() + value.len()).next_multiple_of(4))
    });
    ATTRIBUTES + entries.sum::<usize>()
}

/// Room for inodes. One that fits into a block doesn't cross into another, and
/// small ones fill what larger ones left.
struct Metadata {
    /// Bytes so far: whole blocks.
    end: u64,
    /// Rooms in blocks: their length, and where they are.
    open: Vec<(u64, u64)>,
}

impl Metadata {
    fn new() -> Self {
        // The first slot's number is none, and programs take small numbers for
        // special: the root directory is the second.
        Self { end: BLOCK, open: vec![(BLOCK - SLOT, SLOT)] }
    }

    /// Where so many bytes have room, from the start of the metadata.
    fn allocate(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT);
        let fits = self.open.iter().enumerate().filter(|(_, (length, _))| *length >= bytes);
        let (length, offset) = match fits.min_by_key(|(_, room)| **room).map(|(at, _)| at) {
            Some(at) => self.open.swap_remove(at),
            None => {
                let offset = self.end;
                let length = bytes.next_multiple_of(BLOCK);
                self.end += length;
                (length, offset)
            }
        };
        if length > bytes {
            self.open.push((length - bytes, offset + bytes));
        }
        if self.open.len() > OPEN
            && let Some(smallest) = (0..self.open.len()).min_by_key(|&at| self.open[at])
        {
            self.open.swap_remove(smallest);
        }
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rooms_never_overlap_and_small_ones_stay_in_a_block(
            sizes in proptest::collection::vec(1u64..9000, 1..200)
        ) {
            let mut metadata = Metadata::new();
            let mut taken: Vec<(u64, u64)> = vec![(0, SLOT)];
            for size in sizes {
                let offset = metadata.allocate(size);
                prop_assert_eq!(offset % SLOT, 0);
                prop_assert!(offset + size <= metadata.end);
                if size <= BLOCK {
                    prop_assert_eq!(offset / BLOCK, (offset + size - 1) / BLOCK);
                }
                for &(other, length) in &taken {
                    prop_assert!(offset + size <= other || other + length <= offset);
                }
                taken.push((offset, size));
            }
        }
    }
}
