//! The initial RAM disk: bytes that the kernel finds in memory.

use crate::Ram;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

/// Why an initrd can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file can't be opened or read.
    #[error("initrd {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Not a file with something in it.
    #[error("initrd {path}: {what}: give a cpio archive")]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

/// An open initial RAM disk.
#[derive(Debug)]
pub struct Initrd {
    pub(crate) path: PathBuf,
    file: File,
    /// Its size in bytes.
    pub size: u64,
}

impl Initrd {
    /// Opens `path` and checks that it is a file with content.
    pub fn open(path: &Path) -> Result<Self, InitrdError> {
        let io = |source| InitrdError::Io { path: path.to_owned(), source };
        let kind = |what| InitrdError::Kind { path: path.to_owned(), what };
        let file = crate::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if meta.is_dir() {
            return Err(kind("is a directory"));
        }
        if !meta.is_file() {
            return Err(kind("is a device or pipe, not a file"));
        }
        if meta.len() == 0 {
            return Err(kind("the file is empty"));
        }
        Ok(Self { path: path.to_owned(), file, size: meta.len() })
    }

    /// Reads it to `address`.
    pub(crate) fn load(&self, mem: &Ram, address: u64) -> Result<(), vm_memory::GuestMemoryError> {
        mem.read_exact_volatile_from(GuestAddress(address), &mut &self.file, self.size as usize)
    }
}
