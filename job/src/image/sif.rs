//! SIF, the file that Singularity and Apptainer build: a table of parts, one of
//! which is the root file system. That one is mounted where it is, as a range
//! of the file; nothing is unpacked.
//!
//! ```text
//!  0     header: 32 "SIF_MAGIC\0" │ 45 processor │ 88 how many descriptors
//!                │ 96 where they are
//!  4096… descriptors of 585 bytes: kind, used, …, where the part is, and for a
//!        file system: its kind, its role, its processor
//! ```

use super::error::{Error, Result};
use super::probe::{FileSystem, Kind, read_up_to, recognise};
use serde::Serialize;
use std::fs::File;
use std::path::Path;

const HEADER: usize = 128;
const DESCRIPTOR: usize = 585;
/// Far more parts than any SIF has: the format's own table has 48.
const MOST: i64 = 4096;

/// `DataPartition`.
const PARTITION: i32 = 0x4004;
/// `FsEncryptedSquashfs` and the one of gocryptfs.
const ENCRYPTED: [i32; 2] = [5, 6];
/// `PartPrimSys`.
const PRIMARY: i32 = 2;

/// A range of a file that is a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its first byte in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// What it is.
    pub file_system: FileSystem,
}

/// Finds the root file system of a SIF.
pub fn primary_partition(file: &File, size: u64, path: &Path) -> Result<Partition> {
    let mut header = [0; HEADER];
    let filled = read_up_to(file, &mut header, 0).map_err(Error::host(path))?;
    let object = || path.display();
    let (count, table) = parse_header(&header[..filled]).map_err(|why| why.about(path))?;
    let length = count * DESCRIPTOR;
    if table.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(Error::malformed(object(), "its table is beyond its end: it was cut short"));
    }
    let mut descriptors = vec![0; length];
    let filled = read_up_to(file, &mut descriptors, table).map_err(Error::host(path))?;
    let (offset, length) = parse_table(&descriptors[..filled]).map_err(|why| why.about(path))?;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(Error::malformed(
            object(),
            "its file system is beyond its end: it was cut short",
        ));
    }
    if offset % 512 != 0 {
        return Err(Error::unsupported(object(), "its file system begins between two sectors"));
    }
    let mut head = [0; 2048];
    let most = head.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    let filled = read_up_to(file, &mut head[..most], offset).map_err(Error::host(path))?;
    match recognise(&head[..filled]) {
        Some(Kind::FileSystem(file_system, wanted)) if wanted <= length => {
            // A disk has whole sectors; squashfs ends where it likes, and the
            // padding behind it is the SIF's.
            let size = length.next_multiple_of(512).min((size - offset) / 512 * 512);
            let size = if size >= wanted { size } else { length };
            Ok(Partition { offset, size, file_system })
        }
        Some(Kind::FileSystem(..)) => {
            Err(Error::malformed(object(), "its file system is larger than its place"))
        }
        _ => Err(Error::unsupported(object(), "its root is neither squashfs nor ext")),
    }
}

/// What is wrong with a table.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Malformed(&'static str),
    Unsupported(&'static str),
}

impl Refusal {
    fn about(self, path: &Path) -> Error {
        match self {
            Self::Malformed(reason) => Error::malformed(path.display(), reason),
            Self::Unsupported(reason) => Error::unsupported(path.display(), reason),
        }
    }
}

/// How many descriptors there are, and where.
fn parse_header(header: &[u8]) -> std::result::Result<(usize, u64), Refusal> {
    let cut = || Refusal::Malformed("a SIF that ends within its header");
    if header.get(32..42) != Some(b"SIF_MAGIC\0") {
        return Err(Refusal::Malformed("is no SIF"));
    }
    if header.get(42..45) != Some(b"01\0") {
        return Err(Refusal::Unsupported("a SIF of another version than 01"));
    }
    processor(header.get(45..48).ok_or_else(cut)?)?;
    let count = i64_at(header, 88).ok_or_else(cut)?;
    let table = i64_at(header, 96).ok_or_else(cut)?;
    if !(0..=MOST).contains(&count) {
        return Err(Refusal::Malformed("a SIF with an impossible number of parts"));
    }
    let table = u64::try_from(table).map_err(|_| Refusal::Malformed("a SIF without a table"))?;
    Ok((count as usize, table))
}

/// `HdrArchAMD64` is 2; 0 is not known.
fn processor(field: &[u8]) -> std::result::Result<(), Refusal> {
    match field {
        b"02\0" | b"00\0" => Ok(()),
        b"04\0" => Err(Refusal::Unsupported("is for arm64: this host is amd64")),
        _ => Err(Refusal::Unsupported("is for another processor: this host is amd64")),
    }
}

/// Where the root file system is.
fn parse_table(table: &[u8]) -> std::result::Result<(u64, u64), Refusal> {
    for descriptor in table.chunks_exact(DESCRIPTOR) {
        let field = |at| i32_at(descriptor, at).unwrap_or_default();
        // `Extra` begins at 201: kind, role and processor of a partition.
        let (used, role) = (descriptor[4], field(205));
        if field(0) != PARTITION || used == 0 || role != PRIMARY {
            continue;
        }
        if ENCRYPTED.contains(&field(201)) {
            return Err(Refusal::Unsupported("is encrypted: build one without --encrypt"));
        }
        processor(&descriptor[209..212])?;
        let place = |at| u64::try_from(i64_at(descriptor, at).unwrap_or(-1)).ok();
        let (offset, size) = (place(17), place(25));
        return offset.zip(size).ok_or(Refusal::Malformed("a SIF whose root is nowhere"));
    }
    Err(Refusal::Unsupported("a SIF without a root file system"))
}

fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    Some(i64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// Parses what may be anything, for a fuzzer.
#[cfg(any(test, feature = "testing"))]
pub fn hostile(bytes: &[u8]) {
    let _ = parse_header(bytes);
    let _ = parse_table(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A SIF with a definition file and a root of `fs` at 8192, for `arch`.
    fn sif(kind: i32, arch: &[u8; 3], length: i64) -> Vec<u8> {
        let mut bytes = vec![0; 8192 + 4096];
        bytes[32..48].copy_from_slice(b"SIF_MAGIC\x0001\x0002\0");
        bytes[88..96].copy_from_slice(&2i64.to_le_bytes());
        bytes[96..104].copy_from_slice(&4096i64.to_le_bytes());
        bytes[4096..4101].copy_from_slice(&[1, 0x40, 0, 0, 1]);
        let descriptor = &mut bytes[4096 + DESCRIPTOR..][..DESCRIPTOR];
        descriptor[..5].copy_from_slice(&[4, 0x40, 0, 0, 1]);
        descriptor[17..25].copy_from_slice(&8192i64.to_le_bytes());
        descriptor[25..33].copy_from_slice(&length.to_le_bytes());
        descriptor[201..205].copy_from_slice(&kind.to_le_bytes());
        descriptor[205..209].copy_from_slice(&2i32.to_le_bytes());
        descriptor[209..212].copy_from_slice(arch);
        bytes[8192..8196].copy_from_slice(b"hsqs");
        bytes[8192 + 28] = 4;
        bytes[8192 + 40..8192 + 48].copy_from_slice(&3000u64.to_le_bytes());
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Partition> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        primary_partition(&file, bytes.len() as u64, Path::new("a.sif"))
    }

    #[test]
    fn the_root_is_a_range_of_the_file() {
        let file_system = FileSystem::Squashfs;
        let wanted = Partition { offset: 8192, size: 3072, file_system };
        assert_eq!(open(&sif(1, b"02\0", 3000)).unwrap(), wanted);
    }

    #[test]
    fn what_can_not_be_mounted_is_refused() {
        let mut beyond = sif(1, b"02\0", 3000);
        beyond[96..104].copy_from_slice(&i64::MAX.to_le_bytes());
        let mut parts = sif(1, b"02\0", 3000);
        parts[88..96].copy_from_slice(&(-1i64).to_le_bytes());
        for (bytes, part) in [
            (sif(5, b"02\0", 3000), "encrypted"),
            (sif(1, b"04\0", 3000), "arm64"),
            (sif(1, b"02\0", 5000), "cut short"),
            (sif(1, b"02\0", -1), "nowhere"),
            (sif(1, b"02\0", 2000), "larger than its place"),
            (beyond, "cut short"),
            (parts, "number of parts"),
            (sif(1, b"02\0", 3000)[..100].to_vec(), "ends within its header"),
        ] {
            let said = open(&bytes).unwrap_err().to_string();
            assert!(said.starts_with("a.sif: ") && said.contains(part), "{said}");
        }
    }

    proptest! {
        #[test]
        fn any_change_to_a_sif_is_survived(
            changes in proptest::collection::vec((0usize..6000, any::<u8>()), 1..20)
        ) {
            let mut bytes = sif(1, b"02\0", 3000);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Ok(found) = open(&bytes) {
                prop_assert!(found.offset + found.size <= bytes.len() as u64);
            }
        }
    }
}
