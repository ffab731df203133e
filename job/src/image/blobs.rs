//! Where an OCI image's documents and layers are: files of a directory, or of
//! a tar archive, which is not unpacked.

use super::digest::Digest;
use super::error::{Error, Result};
use super::limits;
use super::probe::{Kind, open, probe, read_up_to};
use super::stream::{Compression, Section, Stream};
use super::tar::{EntryKind, Reader};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A range of a file.
#[derive(Debug)]
pub struct Blob {
    /// The file's name, for errors.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// Its first byte there.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Blob {
    /// To be read from its start.
    pub fn section(&self) -> Result<Section> {
        let file = self.file.try_clone().map_err(Error::host(&self.path))?;
        Ok(Section::new(file, self.offset, self.size))
    }

    /// A small one, whole.
    pub fn read(&self) -> Result<Vec<u8>> {
        if self.size > limits::DOCUMENT {
            let object = self.path.display();
            return Err(Error::malformed(object, "has a document of more than 4 MiB"));
        }
        let mut bytes = vec![0; self.size as usize];
        let read =
            read_up_to(&self.file, &mut bytes, self.offset).map_err(Error::host(&self.path))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// How it is compressed.
    pub fn compression(&self) -> Result<Compression> {
        let mut head = [0; 4];
        let size = self.size.min(4) as usize;
        let read = read_up_to(&self.file, &mut head[..size], self.offset);
        Ok(Compression::of(&head[..read.map_err(Error::host(&self.path))?]))
    }

    /// Reads all of it to see whether it is what its digest says.
    pub fn verify(&self, wanted: Digest, watch: &mut dyn FnMut(u64)) -> Result<()> {
        let sum = Digest::of_all(&mut self.section()?, watch).map_err(Error::host(&self.path))?;
        if sum != wanted {
            let reason = format!("a blob that should be {wanted} is {sum}: the image is damaged");
            return Err(Error::malformed(self.path.display(), reason));
        }
        Ok(())
    }
}

/// A directory, or an archive.
#[derive(Debug)]
pub enum Blobs {
    /// An OCI image layout.
    Directory(PathBuf),
    /// A tar archive.
    Archive {
        /// Its name.
        path: PathBuf,
        /// The archive.
        file: File,
        /// Where its files are: offset and size.
        files: HashMap<Vec<u8>, (u64, u64)>,
        /// Links in it, which old programs use for layers that repeat.
        links: HashMap<Vec<u8>, Vec<u8>>,
    },
}

impl Blobs {
    /// A directory.
    pub fn directory(path: &Path) -> Result<Self> {
        match probe(path)?.kind {
            Kind::Directory => Ok(Self::Directory(path.to_owned())),
            _ => Err(Error::unsupported(path.display(), "is no directory: give an OCI layout")),
        }
    }

    /// A tar archive, whose headers are read.
    pub fn archive(path: &Path) -> Result<Self> {
        let probed = probe(path)?;
        let object = || path.display();
        match probed.kind {
            Kind::Tar => {}
            Kind::Gzip | Kind::Zstd => {
                let reason =
                    "is compressed as a whole: decompress it first, with gzip -d or zstd -d";
                return Err(Error::unsupported(object(), reason));
            }
            _ => return Err(Error::unsupported(object(), "is no tar archive")),
        }
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let file = probed.file.try_clone().map_err(Error::host(path))?;
        let section = Section::new(file, 0, probed.size);
        let damaged = |error: std::io::Error| match error.raw_os_error() {
            Some(_) => Error::host(path)(error),
            None => Error::malformed(path.display(), error),
        };
        let stream = Stream::new(section, Compression::None, false).map_err(damaged)?;
        let mut reader = Reader::new(stream);
        while let Some(entry) = reader.next_entry().map_err(damaged)? {
            if files.len() + links.len() >= 100_000 {
                return Err(Error::malformed(object(), "has more than 100000 files"));
            }
            if entry.path.len() > limits::PATH || entry.link.len() > limits::PATH {
                return Err(Error::malformed(object(), "has a name of more than 4096 bytes"));
            }
            let name = normal(&entry.path);
            match entry.kind {
                EntryKind::File => {
                    let offset = reader.offset().unwrap_or_default();
                    files.insert(name, (offset, entry.size));
                }
                EntryKind::Symlink => {
                    let parent = name.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                    let target = [&name[..parent], b"/", &entry.link].concat();
                    links.insert(name, normal(&target));
                }
                EntryKind::HardLink => drop(links.insert(name, normal(&entry.link))),
                _ => {}
            }
        }
        Ok(Self::Archive { path: path.to_owned(), file: probed.file, files, links })
    }

    /// What it is called in errors.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    /// A file, if it is there.
    pub fn find(&self, name: &str) -> Result<Option<Blob>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let file = match open(&path) {
                    Ok(file) => file,
                    Err(Error::Host { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                };
                let metadata = file.metadata().map_err(Error::host(&path))?;
                if !metadata.is_file() {
                    return Err(Error::malformed(path.display(), "is no file"));
                }
                Ok(Some(Blob { path, file, offset: 0, size: metadata.len() }))
            }
            Self::Archive { path, file, files, links } => {
                let name = normal(name.as_bytes());
                let found = files.get(&name).or_else(|| files.get(links.get(&name)?));
                let Some(&(offset, size)) = found else { return Ok(None) };
                let file = file.try_clone().map_err(Error::host(path))?;
                Ok(Some(Blob { path: path.clone(), file, offset, size }))
            }
        }
    }

    /// A file that has to be there.
    pub fn get(&self, name: &str) -> Result<Blob> {
        self.find(name)?.ok_or_else(|| {
            let name = super::layer::shown(name.as_bytes());
            Error::malformed(self.path().display(), format!("{name} is missing"))
        })
    }
}

/// A path in an archive without `.`, `..` and needless slashes.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    names.join(&b'/')
}
