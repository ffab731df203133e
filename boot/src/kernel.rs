//! Which kernel image a file is, checked before a machine exists.

use crate::{bzimage::BzImage, elf::Elf};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// No kernel command line on x86 is longer (`COMMAND_LINE_SIZE` less its NUL).
pub const CMDLINE_LIMIT: usize = 2047;

/// Why a file can't be booted: each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file can't be opened or read.
    #[error("kernel {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Something that is no regular file.
    #[error("kernel {path}: is {what}, not a file: give a bzImage or an uncompressed vmlinux")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file's content can't be booted.
    #[error("kernel {path}: {reason}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: ImageError,
    },
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// The headers promise more than there is.
    #[error("truncated: {what} ends at byte {need}, the file has {have}: copy it again")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
        /// Bytes that the file should have at least.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// Built for another machine.
    #[error("built for {0}: this monitor runs x86-64 guests")]
    Architecture(String),
    /// A compressed file.
    #[error("a {0} file: unpack it first, or give the bzImage")]
    Compressed(&'static str),
    /// None of the formats.
    #[error("neither a bzImage nor an ELF vmlinux")]
    Unknown,
    /// A header that makes no sense.
    #[error("{0}")]
    Header(&'static str),
}

/// How an image is laid out.
#[derive(Debug)]
pub(crate) enum Format {
    Elf(Elf),
    BzImage(BzImage),
}

/// An open kernel image whose headers have been checked.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) format: Format,
}

impl Kernel {
    /// Opens `path` and checks everything that can be said of the image alone.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let io = |source| KernelError::Io { path: path.to_owned(), source };
        let file = crate::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "a directory" } else { "a device or pipe" };
            return Err(KernelError::NotAFile { path: path.to_owned(), what });
        }
        match identify(&file, meta.len()) {
            Ok(format) => Ok(Self { path: path.to_owned(), file, format }),
            Err(Inspect::Io(source)) => Err(io(source)),
            Err(Inspect::Image(reason)) => {
                Err(KernelError::Image { path: path.to_owned(), reason })
            }
        }
    }

    /// The longest command line that this kernel takes, without its NUL.
    pub fn cmdline_limit(&self) -> usize {
        match &self.format {
            Format::Elf(_) => CMDLINE_LIMIT,
            Format::BzImage(image) => image.cmdline_limit(),
        }
    }

    /// Where the kernel itself ends in memory when it runs: the least RAM that
    /// it can be loaded into.
    pub fn end(&self) -> u64 {
        match &self.format {
            Format::Elf(elf) => elf.end(),
            Format::BzImage(image) => image.end(),
        }
    }

    /// The boot protocol that will be used, for the log.
    pub fn protocol(&self) -> &'static str {
        match &self.format {
            Format::Elf(elf) if elf.pvh_entry.is_some() => "PVH",
            _ => "64-bit boot protocol",
        }
    }
}

/// An image is bad, or could not be read.
#[derive(Debug)]
pub(crate) enum Inspect {
    Io(io::Error),
    Image(ImageError),
}

impl From<io::Error> for Inspect {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<ImageError> for Inspect {
    fn from(e: ImageError) -> Self {
        Self::Image(e)
    }
}

/// The first bytes of the formats that people try.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ", "xz"),
    (b"\x02\x21\x4c\x18", "LZ4"),
];

fn identify(file: &File, len: u64) -> Result<Format, Inspect> {
    if len == 0 {
        return Err(ImageError::Empty.into());
    }
    // The setup header ends before 0x268; ELF's header is shorter.
    let mut head = [0; 0x268];
    let have = read_up_to(file, &mut head)?;
    let head = &head[..have];
    if head.starts_with(b"\x7fELF") {
        return Elf::parse(file, head, len).map(Format::Elf);
    }
    if let Some((_, name)) = COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(ImageError::Compressed(name).into());
    }
    // Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst.
    for (offset, magic, name) in [(0x38, b"ARM\x64", "AArch64"), (0x38, b"RSC\x05", "RISC-V")] {
        if head.get(offset..offset + 4) == Some(magic) {
            return Err(ImageError::Architecture(name.to_owned()).into());
        }
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Format::BzImage(BzImage::parse(head, len)?));
    }
    if have < 0x206 && head.get(..2) == Some(b"MZ") {
        return Err(
            ImageError::Truncated { what: "the setup header", need: 0x268, have: len }.into()
        );
    }
    Err(ImageError::Unknown.into())
}

/// Reads as much of `buf` as the file has.
pub(crate) fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// A little-endian field of a header; zero past its end, where no checked
/// caller looks.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    if let Some(part) = bytes.get(at..at + N) {
        value[..N].copy_from_slice(part);
    }
    u64::from_le_bytes(value)
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
