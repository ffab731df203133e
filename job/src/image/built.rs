//! The file that `microvm build` makes: an EROFS that a guest mounts as it is,
//! with what is known of the image around it.
//!
//! | where | what |
//! | --- | --- |
//! | 0 | `#!/usr/bin/env -S microvm run` and a line feed: the file can be run |
//! | 64 | `microvm image\0\0\0` |
//! | 80 | version: 1, four bytes as all numbers here little-endian |
//! | 84 | length of the description, four bytes |
//! | 88 | where it is, eight bytes |
//! | 96 | its SHA-256 |
//! | 1024 | the superblock of EROFS, and all of it |
//! | where it ends | the description: JSON, [`Description`] |
//!
//! EROFS leaves the first 1024 bytes alone, and its end is what its superblock
//! says. The file is filled up with zeros to whole blocks.

use super::config::Description;
use super::digest::Digest;
use super::error::{Error, Result};
use super::limits;
use super::probe::read_up_to;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const LAUNCH: &[u8] = b"#!/usr/bin/env -S microvm run\n";
const MAGIC: &[u8; 16] = b"microvm image\0\0\0";
const VERSION: u32 = 1;
/// Where our header is, and how long.
const START: usize = 64;
const END: usize = 128;
const BLOCK: u64 = 4096;

/// Writes both parts around a file system of so many bytes.
pub fn write(file: &File, path: &Path, size: u64, description: &Description) -> Result<()> {
    let text = serde_json::to_vec_pretty(description)
        .map_err(|error| Error::malformed("description", error))?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if u64::from(length) > limits::DOCUMENT {
        return Err(Error::unsupported(path.display(), "its labels and such are more than 4 MiB"));
    }
    let mut header = LAUNCH.to_vec();
    header.resize(START, 0);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(length.to_le_bytes());
    header.extend(size.to_le_bytes());
    header.extend(Digest::of(&text).0);
    let whole = (size + u64::from(length)).next_multiple_of(BLOCK);
    file.write_all_at(&header, 0)
        .and_then(|()| file.write_all_at(&text, size))
        .and_then(|()| file.set_len(whole))
        .map_err(Error::host(path))
}

/// The description in a file, if it is one of ours.
pub fn read(file: &File, path: &Path) -> Result<Option<Description>> {
    let mut header = [0; END];
    let filled = read_up_to(file, &mut header, 0).map_err(Error::host(path))?;
    let Some(header) = Header::parse(&header[..filled]) else { return Ok(None) };
    let object = || path.display();
    if header.version != VERSION {
        let reason = format!("is of version {}: this program knows {VERSION}", header.version);
        return Err(Error::unsupported(object(), reason));
    }
    if u64::from(header.length) > limits::DOCUMENT {
        return Err(Error::malformed(object(), "its description is larger than 4 MiB"));
    }
    let mut text = vec![0; header.length as usize];
    let filled = read_up_to(file, &mut text, header.offset).map_err(Error::host(path))?;
    if Digest::of(&text[..filled]) != header.digest {
        return Err(Error::malformed(object(), "its description is damaged, or was cut off"));
    }
    let description = serde_json::from_slice(&text)
        .map_err(|error| Error::malformed(object(), format!("its description: {error}")))?;
    Ok(Some(description))
}

struct Header {
    version: u32,
    length: u32,
    offset: u64,
    digest: Digest,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(START..END)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        Some(Self {
            version: u32::from_le_bytes(header[16..20].try_into().ok()?),
            length: u32::from_le_bytes(header[20..24].try_into().ok()?),
            offset: u64::from_le_bytes(header[24..32].try_into().ok()?),
            digest: Digest(header[32..64].try_into().ok()?),
        })
    }
}
