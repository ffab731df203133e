//! What a job's root file system comes from, once its image is opened.

use crate::Error;
use crate::image::cache::Cache;
use crate::image::config::Description;
use crate::image::open::{Root, prepare};
use crate::image::progress::Progress;
use crate::image::{FileSystem, Reference};
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

impl Source {
    /// Opens what the user has named; an image of layers is put together in the
    /// cache, if it is not there yet. How it is run, and by whom, is known of some.
    pub fn open(
        image: &OsStr,
        progress: &mut dyn Progress,
    ) -> Result<(Self, Option<Description>), Error> {
        let reference = Reference::parse(image)?;
        let ready = prepare(&reference, &Cache::of_user()?, progress)?;
        let source = match ready.root {
            Root::Host => Self::Host,
            Root::Directory(path) => Self::Directory(path),
            Root::Disk { path, offset, size, file_system } => {
                // A disk ends where its file does, unless it begins inside.
                let size = (offset > 0).then_some(size);
                Self::Disk { path, offset, size, kind: file_system }
            }
        };
        Ok((source, ready.description))
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
