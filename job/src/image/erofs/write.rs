//! A tree as an EROFS image.

use super::layout::{Layout, Place, attributes_size, directory_blocks, entries};
use super::{
    ATTRIBUTES, BLOCK, COMPATIBLE, ENTRY, INLINE, INODE, MAGIC, PLAIN, SLOT, SPACES, SUPER, crc32c,
};
use crate::image::content::{Contents, Opened};
use crate::image::error::{Error, Result};
use crate::image::progress::Progress;
use crate::image::tree::{Kind, Node, NodeId, ROOT, Tree, Xattrs};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are copied at once: whole blocks.
const CHUNK: usize = 256 << 10;

/// What a written file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file system.
    pub size: u64,
    /// Files, directories, links and devices.
    pub inodes: u64,
}

/// Where a file system is written to: an empty file.
pub struct Output<'f> {
    /// The file.
    pub file: &'f File,
    /// Its name in errors.
    pub path: &'f Path,
    /// What identifies the file system.
    pub uuid: [u8; 16],
    /// No file is said to have been changed after this.
    pub latest: Option<i64>,
}

/// Writes a tree; the first [`SUPER`] bytes are left alone.
pub fn write(
    tree: &Tree,
    contents: &Contents,
    output: &Output,
    progress: &mut dyn Progress,
) -> Result<Written> {
    let layout = Layout::new(tree)?;
    let size = u64::from(layout.blocks) * BLOCK;
    output.file.set_len(size).map_err(Error::host(output.path))?;
    progress.begin("writing", size);
    let writer = Writer { tree, contents, output, layout: &layout };
    for &id in &layout.order {
        let written = writer.inode(id, progress)?;
        progress.advance(written);
    }
    let inodes = layout.order.len() as u64;
    writer.superblock(inodes)?;
    Ok(Written { size, inodes })
}

struct Writer<'w> {
    tree: &'w Tree,
    contents: &'w Contents,
    output: &'w Output<'w>,
    layout: &'w Layout,
}

impl Writer<'_> {
    fn place(&self, id: NodeId) -> &Place {
        &self.layout.places[id as usize]
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.output.file.write_all_at(bytes, offset).map_err(Error::host(self.output.path))
    }

    /// Writes an inode, its attributes and its contents; returns how much.
    fn inode(&self, id: NodeId, progress: &mut dyn Progress) -> Result<u64> {
        let (node, place) = (self.tree.node(id), self.place(id));
        let mut bytes = self.header(id, node, place);
        attributes(&mut bytes, &node.meta.xattrs);
        let tail = match &node.kind {
            Kind::File(content) => self.copy(&self.contents.open(content)?, place, progress)?,
            Kind::Symlink(target) => self.blocks(target, place)?,
            Kind::Directory(_) => self.blocks(&self.directory(id, place.parent), place)?,
            _ => Vec::new(),
        };
        bytes.extend(tail);
        self.put(&bytes, BLOCK + place.number * SLOT)?;
        Ok(bytes.len() as u64)
    }

    /// `struct erofs_inode_extended`.
    fn header(&self, id: NodeId, node: &Node, place: &Place) -> Vec<u8> {
        let meta = &node.meta;
        let layout = if place.inline { INLINE } else { PLAIN };
        let words = match attributes_size(&meta.xattrs) {
            0 => 0,
            // The header counts as one.
            size => ((size - ATTRIBUTES) / 4 + 1) as u16,
        };
        let (seconds, nanoseconds) = match self.output.latest {
            Some(latest) if meta.mtime.0 >= latest => (latest, 0),
            _ => meta.mtime,
        };
        let union = match node.kind {
            Kind::Character(major, minor) | Kind::Block(major, minor) => device(major, minor),
            _ => place.block,
        };
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        // Bit 0 says that it is the extended form.
        bytes.extend((layout << 1 | 1).to_le_bytes());
        bytes.extend(words.to_le_bytes());
        bytes.extend((meta.mode & 0o7777 | format(&node.kind)).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(place.size.to_le_bytes());
        bytes.extend(union.to_le_bytes());
        // What programs with 32-bit inode numbers see.
        bytes.extend((id + 1).to_le_bytes());
        bytes.extend(meta.uid.to_le_bytes());
        bytes.extend(meta.gid.to_le_bytes());
        bytes.extend(seconds.to_le_bytes());
        bytes.extend(nanoseconds.to_le_bytes());
        bytes.extend(place.names.to_le_bytes());
        bytes.resize(INODE as usize, 0);
        bytes
    }

    /// Writes the whole blocks of what is in memory; returns the rest.
    fn blocks(&self, data: &[u8], place: &Place) -> Result<Vec<u8>> {
        let whole =
            if place.inline { data.len() - data.len() % BLOCK as usize } else { data.len() };
        let (blocks, tail) = data.split_at(whole);
        if !blocks.is_empty() {
            self.put(blocks, u64::from(place.block) * BLOCK)?;
        }
        Ok(tail.to_vec())
    }

    /// Writes the whole blocks of a file; returns the rest.
    fn copy(&self, file: &Opened, place: &Place, progress: &mut dyn Progress) -> Result<Vec<u8>> {
        let tail = if place.inline { place.size % BLOCK } else { 0 };
        let whole = place.size - tail;
        let mut buffer = vec![0; CHUNK.min(whole.max(tail) as usize)];
        let mut done = 0;
        while done < whole {
            let most = buffer.len().min((whole - done) as usize);
            let chunk = &mut buffer[..most];
            file.read_exact_at(chunk, done)?;
            // Zeros are there already.
            if chunk.iter().any(|&byte| byte != 0) {
                self.put(chunk, u64::from(place.block) * BLOCK + done)?;
            }
            done += most as u64;
            progress.advance(most as u64);
        }
        buffer.truncate(tail as usize);
        file.read_exact_at(&mut buffer, whole)?;
        Ok(buffer)
    }

    /// What a directory contains: in each block its entries, then their names.
    fn directory(&self, id: NodeId, parent: NodeId) -> Vec<u8> {
        let entries = entries(self.tree, id, parent);
        let mut bytes = Vec::new();
        for range in directory_blocks(&entries) {
            // The block before is full, or nearly.
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            let block = &entries[range];
            let mut offset = block.len() * ENTRY;
            for (name, node) in block {
                bytes.extend(self.place(*node).number.to_le_bytes());
                bytes.extend((offset as u16).to_le_bytes());
                bytes.extend([file_type(&self.tree.node(*node).kind), 0]);
                offset += name.len();
            }
            block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
        }
        bytes
    }

    /// `struct erofs_super_block`, and its checksum over the rest of its block.
    fn superblock(&self, inodes: u64) -> Result<()> {
        const BITS: u8 = BLOCK.trailing_zeros() as u8;
        let mut bytes = Vec::with_capacity((BLOCK - SUPER) as usize);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(COMPATIBLE.to_le_bytes());
        bytes.extend([BITS, 0]);
        bytes.extend((self.place(ROOT).number as u16).to_le_bytes());
        bytes.extend(inodes.to_le_bytes());
        // When it was built is nobody's business: builds are equal.
        bytes.extend([0; 12]);
        bytes.extend(self.layout.blocks.to_le_bytes());
        // The metadata begins in block 1.
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.output.uuid);
        bytes.resize((BLOCK - SUPER) as usize, 0);
        let checksum = crc32c(&bytes);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.put(&bytes, SUPER)
    }
}

/// The attributes behind an inode: a header, and entries of four bytes, the
/// name without its space, and the value.
fn attributes(bytes: &mut Vec<u8>, xattrs: &Xattrs) {
    if xattrs.is_empty() {
        return;
    }
    bytes.extend([0; ATTRIBUTES]);
    for (name, value) in xattrs {
        let found = SPACES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let Some((prefix, index)) = found else { continue };
        let name = &name[prefix.len()..];
        bytes.extend([name.len() as u8, *index]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// `S_IFMT` of a mode.
fn format(kind: &Kind) -> u16 {
    (match kind {
        Kind::Directory(_) => libc::S_IFDIR,
        Kind::File(_) => libc::S_IFREG,
        Kind::Symlink(_) => libc::S_IFLNK,
        Kind::Character(..) => libc::S_IFCHR,
        Kind::Block(..) => libc::S_IFBLK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
    }) as u16
}

/// `FT_*`, which directories have beside a number.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::Character(..) => 3,
        Kind::Block(..) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// A device number as the kernel's `new_encode_dev` has it.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}
