//! What a job's root file system comes from, once its image is opened.

use crate::Error;
use crate::image::{FileSystem, Kind, Reference, probe};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The host's own root.
    Host,
    /// A directory.
    Directory(PathBuf),
    /// A file system in a file or on a block device.
    Disk {
        /// The file.
        path: PathBuf,
        /// Where in it the file system begins.
        offset: u64,
        /// How large it is, if not up to the end.
        size: Option<u64>,
        /// What it is.
        kind: FileSystem,
    },
}

/// What an image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunConfig {
    /// What arguments are added to.
    pub entrypoint: Vec<String>,
    /// What they take the place of.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// The working directory.
    pub directory: Option<PathBuf>,
}

impl Source {
    /// Opens what the user has named.
    pub fn open(image: &OsStr) -> Result<(Self, RunConfig), Error> {
        let unrunnable = |reason| Error::Unrunnable { image: image.display().to_string(), reason };
        let path = match Reference::parse(image)? {
            Reference::Host => return Ok((Self::Host, RunConfig::default())),
            Reference::Path(path) => path,
            _ => return Err(unrunnable("an archive: make an image of it with microvm build")),
        };
        let source = match probe(&path)?.kind {
            Kind::Directory => Self::Directory(path),
            Kind::FileSystem(kind, _) => Self::Disk { path, offset: 0, size: None, kind },
            _ => return Err(unrunnable("an archive: make an image of it with microvm build")),
        };
        Ok((source, RunConfig::default()))
    }

    /// Whether this directory is the root itself.
    pub fn is_root(&self, directory: &Path) -> bool {
        match self {
            Self::Directory(root) => {
                let real = |path: &Path| path.canonicalize().ok();
                real(root).is_some() && real(root) == real(directory)
            }
            _ => false,
        }
    }
}
