//! Where the contents of a tree's files are: in the archive that they came
//! in, if it isn't compressed; else in a temporary file that has no name; or in
//! a directory of the host's. They are never all in memory.

use super::error::{Error, Result};
use super::probe::open;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A range of one of [`Contents`]'s files.
    Range {
        /// Which file.
        file: u32,
        /// Its first byte there.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// A file below [`Contents`]'s directory.
    Host {
        /// Its path from there.
        path: Box<[u8]>,
        /// Its length in bytes.
        size: u64,
    },
}

impl Content {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Range { size, .. } | Self::Host { size, .. } => *size,
        }
    }
}

/// All that contents are read from.
#[derive(Debug, Default)]
pub struct Contents {
    files: Vec<(PathBuf, File)>,
    /// Which of them is the temporary one, and how much is in it.
    spool: Option<(u32, u64)>,
    directory: Option<(PathBuf, File)>,
}

/// A content that can be read.
pub struct Opened<'c> {
    path: Cow<'c, Path>,
    file: Handle<'c>,
    offset: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// A file of one's own, or not.
enum Handle<'c> {
    Borrowed(&'c File),
    Owned(File),
}

impl Contents {
    /// For contents in a directory of the host's.
    pub fn of_directory(path: &Path) -> Result<Self> {
        let directory = Some((path.to_owned(), open(path)?));
        Ok(Self { directory, ..Self::default() })
    }

    /// Another file that contents are ranges of.
    pub fn add_file(&mut self, path: &Path, file: File) -> u32 {
        self.files.push((path.to_owned(), file));
        (self.files.len() - 1) as u32
    }

    /// Keeps what can only be read once: so many bytes, in a file without a
    /// name in `directory`, which the host removes when we end, however we do.
    pub fn keep(&mut self, input: &mut impl Read, size: u64, directory: &Path) -> Kept {
        let (file, offset) = match self.spool {
            Some(spool) => spool,
            None => {
                let made = spool(directory).map_err(Error::host(directory)).map_err(Failed::Us)?;
                (self.add_file(directory, made), 0)
            }
        };
        let Some((path, spool)) = self.files.get(file as usize) else {
            return Err(Failed::Us(Error::malformed("spool", "is lost")));
        };
        let host = |error| Failed::Us(Error::host(path)(error));
        let mut out = spool;
        out.seek(SeekFrom::Start(offset)).map_err(host)?;
        let mut buffer = vec![0; size.min(128 << 10) as usize];
        let mut left = size;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match input.read(&mut buffer[..most]) {
                Ok(0) => return Err(Failed::Input(ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failed::Input(error)),
            };
            out.write_all(&buffer[..read]).map_err(host)?;
            left -= read as u64;
        }
        self.spool = Some((file, offset + size));
        Ok(Content::Range { file, offset, size })
    }

    /// Opens a content to be read.
    pub fn open(&self, content: &Content) -> Result<Opened<'_>> {
        match content {
            Content::Range { file, offset, size } => {
                let (path, file) = self.files.get(*file as usize).ok_or_else(lost)?;
                let (path, file) = (Cow::Borrowed(&**path), Handle::Borrowed(file));
                Ok(Opened { path, file, offset: *offset, size: *size })
            }
            Content::Host { path, size } => {
                let (base, directory) = self.directory.as_ref().ok_or_else(lost)?;
                let path = OsStr::from_bytes(path);
                let full = base.join(path);
                // Nothing on the way may have become a link since it was seen.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let file = openat2(directory, path, flags, Mode::empty(), resolve)
                    .map_err(|error| Error::host(&full)(error.into()))?;
                let file = Handle::Owned(file.into());
                Ok(Opened { path: Cow::Owned(full), file, offset: 0, size: *size })
            }
        }
    }

    /// A small content, whole.
    pub fn read(&self, content: &Content, most: u64) -> Result<Vec<u8>> {
        let opened = self.open(content)?;
        if opened.size > most {
            return Err(Error::malformed(opened.path.display(), "is too large to be that"));
        }
        let mut bytes = vec![0; opened.size as usize];
        opened.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// How [`Contents::keep`] ends.
pub type Kept = std::result::Result<Content, Failed>;

/// Why something could not be kept.
pub enum Failed {
    /// What it was read from.
    Input(io::Error),
    /// Where it was to be put.
    Us(Error),
}

impl Opened<'_> {
    /// Reads a part of it.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let file = match &self.file {
            Handle::Borrowed(file) => file,
            Handle::Owned(file) => file,
        };
        file.read_exact_at(buffer, self.offset + offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                Error::malformed(self.path.display(), "became shorter while it was read")
            }
            _ => Error::host(&self.path)(error),
        })
    }
}

fn lost() -> Error {
    Error::malformed("contents", "are lost")
}

/// A file without a name.
fn spool(directory: &Path) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    tempfile::tempfile_in(directory)
}
