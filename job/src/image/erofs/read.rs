//! Reads EROFS back, for tests: only what [`super::write`] makes, and strictly.

use super::{ATTRIBUTES, BLOCK, COMPATIBLE, ENTRY, INLINE, INODE, MAGIC, SLOT, SPACES, SUPER};
use super::{PLAIN, crc32c};
use std::collections::BTreeMap;

/// An inode, and what it contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// Kind and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// How many names it has.
    pub names: u32,
    /// A device's number, or the first block.
    pub union: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it contains.
    pub data: Vec<u8>,
}

/// An image in memory.
pub struct Image<'i>(pub &'i [u8]);

impl Image<'_> {
    fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let offset = usize::try_from(offset).ok()?;
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn slice(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        self.0.get(offset..offset.checked_add(length)?)
    }

    /// The root directory's number.
    pub fn root(&self) -> Option<u64> {
        let mut block = self.slice(SUPER, BLOCK - SUPER)?.to_vec();
        let checksum = u32::from_le_bytes(self.bytes(SUPER + 4)?);
        block[4..8].fill(0);
        let right = u32::from_le_bytes(self.bytes(SUPER)?) == MAGIC
            && crc32c(&block) == checksum
            && u32::from_le_bytes(self.bytes(SUPER + 8)?) == COMPATIBLE
            && u32::from_le_bytes(self.bytes(SUPER + 40)?) == 1;
        right.then_some(u64::from(u16::from_le_bytes(self.bytes(SUPER + 14)?)))
    }

    /// An inode.
    pub fn inode(&self, number: u64) -> Option<Inode> {
        let at = BLOCK.checked_add(number.checked_mul(SLOT)?)?;
        let layout = u16::from_le_bytes(self.bytes(at)?);
        let words = u64::from(u16::from_le_bytes(self.bytes(at + 2)?));
        let size = u64::from_le_bytes(self.bytes(at + 8)?);
        let union = u32::from_le_bytes(self.bytes(at + 16)?);
        let mode = u16::from_le_bytes(self.bytes(at + 4)?);
        let behind = at + INODE;
        let attributes = if words == 0 { 0 } else { ATTRIBUTES as u64 + 4 * (words - 1) };
        let inline = match (layout & 1, layout >> 1) {
            (1, PLAIN) => false,
            (1, INLINE) => true,
            _ => return None,
        };
        let whole = if inline { size - size % BLOCK } else { size };
        let mut data = self.slice(u64::from(union) * BLOCK, whole).unwrap_or_default().to_vec();
        if data.len() as u64 != whole {
            return None;
        }
        if inline {
            let (start, length) = (behind + attributes, size % BLOCK);
            // Neither may the kernel find it across two blocks.
            if start / BLOCK != (start + length - 1) / BLOCK {
                return None;
            }
            data.extend(self.slice(start, length)?);
        }
        Some(Inode {
            number,
            mode,
            uid: u32::from_le_bytes(self.bytes(at + 24)?),
            gid: u32::from_le_bytes(self.bytes(at + 28)?),
            mtime: (
                i64::from_le_bytes(self.bytes(at + 32)?),
                u32::from_le_bytes(self.bytes(at + 40)?),
            ),
            names: u32::from_le_bytes(self.bytes(at + 44)?),
            union,
            xattrs: self.xattrs(self.slice(behind, attributes)?)?,
            data,
        })
    }

    fn xattrs(&self, bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut rest = bytes.get(ATTRIBUTES..).unwrap_or_default();
        while let [length, index, low, high, more @ ..] = rest {
            let (length, size) = (*length as usize, u16::from_le_bytes([*low, *high]) as usize);
            let (prefix, _) = SPACES.iter().find(|(_, known)| known == index)?;
            let name = [prefix, more.get(..length)?].concat();
            found.insert(name, more.get(length..length + size)?.to_vec());
            rest = rest.get((4 + length + size).next_multiple_of(4)..)?;
        }
        Some(found)
    }

    /// The entries of a directory, all but `.` and `..`, whose order is checked.
    pub fn entries(&self, directory: &Inode) -> Option<Vec<(Vec<u8>, u64)>> {
        let mut all: Vec<(Vec<u8>, u64)> = Vec::new();
        for block in directory.data.chunks(BLOCK as usize) {
            let start = |at: usize| -> Option<usize> {
                Some(
                    u16::from_le_bytes(block.get(at * ENTRY + 8..)?.get(..2)?.try_into().ok()?)
                        .into(),
                )
            };
            let count = start(0)? / ENTRY;
            for at in 0..count {
                let end = if at + 1 < count { start(at + 1)? } else { block.len() };
                let name = block.get(start(at)?..end)?;
                let name = name.split(|&byte| byte == 0).next()?.to_vec();
                let number =
                    u64::from_le_bytes(block.get(at * ENTRY..)?.get(..8)?.try_into().ok()?);
                if all.last().is_some_and(|(before, _)| *before >= name) {
                    return None;
                }
                all.push((name, number));
            }
        }
        let before = all.len();
        all.retain(|(name, _)| !matches!(&name[..], b"." | b".."));
        (all.len() + 2 == before).then_some(all)
    }

    /// All paths and what is there.
    pub fn files(&self) -> Option<BTreeMap<Vec<u8>, Inode>> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(Vec::new(), self.root()?)];
        while let Some((path, number)) = pending.pop() {
            let inode = self.inode(number)?;
            if inode.mode & 0o170000 == 0o040000 {
                for (name, number) in self.entries(&inode)? {
                    pending.push(([&path[..], b"/", &name].concat(), number));
                }
            }
            found.insert(path, inode);
        }
        Some(found)
    }
}
