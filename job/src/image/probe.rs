//! What a file is, by the first blocks of its content; nothing is written.
//!
//! | what | where | magic |
//! | --- | --- | --- |
//! | squashfs | 0 | `hsqs` |
//! | gzip, zstd | 0 | `1f 8b`, `28 b5 2f fd` |
//! | SIF | 32 | `SIF_MAGIC\0` |
//! | tar (POSIX, GNU) | 257 | `ustar` |
//! | erofs | 1024 | `e2 e1 f5 e0` |
//! | ext2, ext3, ext4 | 1024 + 56 | `53 ef` |
//!
//! A file system's superblock also says how large it is: a file that ends
//! before that is refused here, not by the guest's kernel.

use super::error::{Error, Result};
use serde::Serialize;
use std::fs::{File, FileType};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Bytes from the start that tell all kinds apart.
const HEAD: usize = 2048;

/// A file system that a guest mounts from a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext2, ext3 or ext4, all of which the guest's ext4 driver mounts.
    Ext4,
    /// squashfs 4.
    Squashfs,
    /// EROFS.
    Erofs,
}

impl FileSystem {
    /// What the guest's `mount -t` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// What there is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file system, and its size in bytes by its own account.
    FileSystem(FileSystem, u64),
    /// A Singularity image file.
    Sif,
    /// A tar archive.
    Tar,
    /// Something compressed with gzip: a tar archive, if anything.
    Gzip,
    /// Something compressed with zstd: a tar archive, if anything.
    Zstd,
}

/// What there is, opened for reading.
#[derive(Debug)]
pub struct Probed {
    /// The file or directory.
    pub file: File,
    /// Bytes of a file or block device; 0 for a directory.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// Opens what there is at `path` and looks at it.
pub fn probe(path: &Path) -> Result<Probed> {
    let file = open(path)?;
    let host = || Error::host(path);
    let kind = file.metadata().map_err(host())?.file_type();
    if kind.is_dir() {
        return Ok(Probed { file, size: 0, kind: Kind::Directory });
    }
    if !kind.is_file() && !kind.is_block_device() {
        let what = describe(kind);
        let reason = format!("is {what}: give a directory, a file or a block device");
        return Err(Error::unsupported(path.display(), reason));
    }
    // The size of a block device is where its end is.
    let size = (&file).seek(SeekFrom::End(0)).map_err(host())?;
    (&file).rewind().map_err(host())?;
    let mut head = [0; HEAD];
    let filled = read_up_to(&file, &mut head, 0).map_err(host())?;
    let kind = recognise(&head[..filled]).ok_or_else(|| unknown(path))?;
    if let Kind::FileSystem(file_system, wanted) = kind
        && wanted > size
    {
        let name = file_system.name();
        let reason = format!("{name} of {wanted} bytes in a file of {size}: it was cut short");
        return Err(Error::malformed(path.display(), reason));
    }
    Ok(Probed { file, size, kind })
}

/// Opens a file for reading. A pipe must not make us wait for its writer: it is
/// refused a moment later.
pub fn open(path: &Path) -> Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = File::options();
    options.read(true).custom_flags(flags).open(path).map_err(Error::host(path))
}

/// What content that starts like this is.
pub fn recognise(head: &[u8]) -> Option<Kind> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    // The magic of ext is two bytes: it comes last.
    if at(0, b"hsqs") {
        squashfs_size(head).map(|size| Kind::FileSystem(FileSystem::Squashfs, size))
    } else if at(32, b"SIF_MAGIC\0") {
        Some(Kind::Sif)
    } else if at(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
        erofs_size(head).map(|size| Kind::FileSystem(FileSystem::Erofs, size))
    } else if at(257, b"ustar") {
        Some(Kind::Tar)
    } else if at(0, &[0x1f, 0x8b]) {
        Some(Kind::Gzip)
    } else if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
        Some(Kind::Zstd)
    } else if at(1024 + 56, &[0x53, 0xef]) {
        ext_size(head).map(|size| Kind::FileSystem(FileSystem::Ext4, size))
    } else {
        None
    }
}

/// `s_major` is 4, `bytes_used` at 40.
fn squashfs_size(head: &[u8]) -> Option<u64> {
    (u16_at(head, 28)? == 4).then_some(u64_at(head, 40)?)
}

/// `blkszbits` at 12 and `blocks` at 36 of the superblock.
fn erofs_size(head: &[u8]) -> Option<u64> {
    let bits = *head.get(1024 + 12)?;
    (9..=16).contains(&bits).then_some(u64::from(u32_at(head, 1024 + 36)?) << bits)
}

/// `s_blocks_count_lo` at 4, `s_log_block_size` at 24, and `_hi` at 0x150 where
/// `s_feature_incompat`, at 0x60, has `64BIT`.
fn ext_size(head: &[u8]) -> Option<u64> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let mut blocks = u64::from(u32_at(head, 1024 + 4)?);
    if u32_at(head, 1024 + 0x60)? & INCOMPAT_64BIT != 0 {
        blocks |= u64::from(u32_at(head, 1024 + 0x150)?) << 32;
    }
    let shift = u32_at(head, 1024 + 24)?;
    if shift > 6 {
        return None;
    }
    blocks.checked_mul(1024 << shift)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// Reads until the buffer is full or the file ends.
pub fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn unknown(path: &Path) -> Error {
    let reason = "no image that we know: give a directory, ext4, squashfs, erofs, a SIF \
                  or, with microvm build, a tar archive";
    Error::unsupported(path.display(), reason)
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "no file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn erofs(blocks: u32) -> Vec<u8> {
        let magic = [0xe2, 0xe1, 0xf5, 0xe0];
        head(&[(1024, &magic), (1036, &[12]), (1060, &blocks.to_le_bytes())])
    }

    #[test]
    fn content_tells_what_a_file_is() {
        let ext = [(1028, &9u32.to_le_bytes()[..]), (1048, &[2]), (1080, &[0x53, 0xef])];
        let large = [&ext[..], &[(1024 + 0x60, &[0x80]), (1024 + 0x150, &[1])]].concat();
        let squashfs = head(&[(0, b"hsqs"), (28, &[4]), (40, &77u64.to_le_bytes())]);
        for (head, wanted) in [
            (squashfs, Kind::FileSystem(FileSystem::Squashfs, 77)),
            (erofs(3), Kind::FileSystem(FileSystem::Erofs, 3 << 12)),
            (head(&ext), Kind::FileSystem(FileSystem::Ext4, 9 << 12)),
            (head(&large), Kind::FileSystem(FileSystem::Ext4, (9 << 12) + (1 << 44))),
            (head(&[(32, b"SIF_MAGIC\0")]), Kind::Sif),
            (head(&[(257, b"ustar\0")]), Kind::Tar),
            (head(&[(0, &[0x1f, 0x8b])]), Kind::Gzip),
            (head(&[(0, &[0x28, 0xb5, 0x2f, 0xfd])]), Kind::Zstd),
        ] {
            assert_eq!(recognise(&head), Some(wanted));
        }
        assert_eq!(recognise(&head(&[])), None);
        assert_eq!(recognise(&head(&[(0, b"hsqs"), (28, &[3])])), None, "squashfs 3");
    }

    #[test]
    fn what_is_no_image_is_named_and_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "hello").unwrap();
        let cut = directory.path().join("cut");
        File::create(&cut).unwrap().write_all(&erofs(3)).unwrap();
        for (path, part) in [
            (Path::new("/dev/null"), "a character device"),
            (Path::new("/nonexistent/image"), "No such file"),
            (&file, "no image that we know"),
            (&cut, "cut short"),
        ] {
            let said = probe(path).unwrap_err().to_string();
            assert!(said.contains(part) && said.starts_with(path.to_str().unwrap()), "{said}");
        }
        assert_eq!(probe(directory.path()).unwrap().kind, Kind::Directory);
    }

    proptest! {
        #[test]
        fn any_content_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..HEAD)) {
            recognise(&bytes);
        }
    }
}
