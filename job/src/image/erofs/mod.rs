//! EROFS, uncompressed: the file system of the images that we build. Linux
//! mounts it since 5.4; its format is in the kernel's `fs/erofs/erofs_fs.h`.
//!
//! ```text
//!  block 0          block 1 …                          …
//!  ours │ super-    inodes: 64 bytes each, their        contents: whole blocks
//!  1024 │ block     attributes, and the last, partial   of files, directories
//!       │ 128       block of what they contain          and symbolic links
//! ```
//!
//! An inode's number is its place in the metadata, in units of 32 bytes. All of
//! the layout follows from the tree alone, so that equal trees are equal images.

pub mod layout;
#[cfg(any(test, feature = "testing"))]
pub mod read;
#[cfg(test)]
mod test;
pub mod write;

pub use write::write;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Where the superblock is.
pub const SUPER: u64 = 1024;

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM` and `_MTIME`.
const COMPATIBLE: u32 = 0x1 | 0x2;
/// Bytes of an extended inode.
const INODE: u64 = 64;
/// What inode numbers count.
const SLOT: u64 = 32;
/// Bytes of a directory's entry, without its name.
const ENTRY: usize = 12;
/// Bytes of the header before an inode's attributes.
const ATTRIBUTES: usize = 12;

/// `EROFS_INODE_FLAT_PLAIN`: all contents are in blocks.
const PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`: the last block is behind the inode.
const INLINE: u16 = 2;

/// Name spaces of attributes, and what is written in their place.
const SPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// CRC-32C, as the superblock has it: started with ones and not inverted.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 }
        })
    })
}
