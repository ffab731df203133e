//! Firmware that boots the guest from its disks: an image that ends at 4 GiB,
//! where the processor starts, and a copy of it that ends at 1 MiB.
//!
//! ```text
//!  0x000c_0000 – 0x0010_0000   a copy in RAM
//!  0xfffc_0000 – 4 GiB         read-only; reset vector 16 bytes before the end
//! ```
//!
//! The i440FX's attributes (PAM) tell that there is RAM already, so SeaBIOS does
//! not copy itself, and all of it has to be there.

use crate::Ram;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Where Debian's package `seabios` has its image for PCs with PCI.
pub const STANDARD: &str = "/usr/share/seabios/bios-256k.bin";
/// The largest image: below it are KVM's own pages on VT-x.
pub const MAX_SIZE: usize = 256 << 10;
const MIN_SIZE: usize = 128 << 10;
const END: u64 = 1 << 32;
const REAL_MODE_END: u64 = 1 << 20;

/// Why it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The file can't be read.
    #[error("firmware {path}: {source}: install seabios, or give another with --firmware PATH")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is no image of a BIOS.
    #[error(
        "firmware {path}: {size} bytes: must be 128 or 256 KiB, as SeaBIOS's bios.bin and \
         bios-256k.bin are"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// What it has.
        size: usize,
    },
    /// It does not fit into the guest's memory.
    #[error("firmware: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// A firmware image.
#[derive(Debug)]
pub struct Firmware {
    image: Vec<u8>,
}

impl Firmware {
    /// Reads `path`.
    pub fn open(path: &Path) -> Result<Self, FirmwareError> {
        let failed = |source| FirmwareError::Io { path: path.to_owned(), source };
        let mut image = Vec::new();
        let file = crate::open(path).map_err(failed)?;
        file.take(MAX_SIZE as u64 + 1).read_to_end(&mut image).map_err(failed)?;
        match image.len() {
            MIN_SIZE | MAX_SIZE => Ok(Self { image }),
            size => Err(FirmwareError::Size { path: path.to_owned(), size }),
        }
    }

    /// The image, and where it begins.
    pub fn rom(&self) -> (u64, &[u8]) {
        (END - self.image.len() as u64, &self.image)
    }

    /// Puts the copy where real mode finds it.
    pub fn shadow(&self, mem: &Ram) -> Result<(), FirmwareError> {
        let base = REAL_MODE_END - self.image.len() as u64;
        Ok(mem.write_slice(&self.image, GuestAddress(base))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let image: Vec<u8> = (0..size).map(|i| (i >> 10) as u8).collect();
        file.write_all(&image).unwrap();
        file
    }

    #[test]
    fn it_ends_at_4_gib_and_at_1_mib() {
        let mem = Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        for (size, last) in [(MIN_SIZE, 127u8), (MAX_SIZE, 255)] {
            let firmware = Firmware::open(file(size).path()).unwrap();
            let (base, image) = firmware.rom();
            assert_eq!(base + image.len() as u64, 1 << 32);
            firmware.shadow(&mem).unwrap();
            let byte = |at| mem.read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!((byte(REAL_MODE_END - size as u64), byte(REAL_MODE_END - 1)), (0, last));
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        for size in [0, 1000, MAX_SIZE + 1, 2 * MAX_SIZE] {
            let error = Firmware::open(file(size).path()).unwrap_err().to_string();
            assert!(error.contains("must be 128 or 256 KiB"), "{error}");
        }
        let error = Firmware::open(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("install seabios"), "{error}");
    }
}
