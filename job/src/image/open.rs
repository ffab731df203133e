//! From a reference to what a machine can start from.

use super::built;
use super::cache::Cache;
use super::config::Description;
use super::error::{Error, Result};
use super::probe::{FileSystem, Kind, probe};
use super::progress::Progress;
use super::reference::Reference;
use super::sif;
use super::source::find;
use std::path::{Path, PathBuf};

/// Where a root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The host's own root.
    Host,
    /// A directory of the host's, for virtio-fs.
    Directory(PathBuf),
    /// A disk: a range of a file, to be attached read-only.
    Disk {
        /// The file.
        path: PathBuf,
        /// Its first byte there.
        offset: u64,
        /// Its length in bytes.
        size: u64,
        /// What it is.
        file_system: FileSystem,
    },
}

/// An image that a job can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Its root file system.
    pub root: Root,
    /// What is known of it: of images that we built, and of OCI's.
    pub description: Option<Description>,
}

/// Makes an image ready: an OCI or Docker one is put together in the cache.
pub fn prepare(reference: &Reference, cache: &Cache, progress: &mut dyn Progress) -> Result<Ready> {
    match reference {
        Reference::Host => Ok(Ready { root: Root::Host, description: None }),
        Reference::Path(path) => prepare_path(path),
        _ => prepare_path(&cache.prepare(find(reference)?, progress)?),
    }
}

fn prepare_path(path: &Path) -> Result<Ready> {
    let probed = probe(path)?;
    let path = path.to_owned();
    match probed.kind {
        Kind::Directory => Ok(Ready { root: Root::Directory(path), description: None }),
        Kind::FileSystem(file_system, _) => {
            let description = built::read(&probed.file, &path)?;
            let root = Root::Disk { path, offset: 0, size: probed.size, file_system };
            Ok(Ready { root, description })
        }
        Kind::Sif => {
            let found = sif::primary_partition(&probed.file, probed.size, &path)?;
            let sif::Partition { offset, size, file_system } = found;
            let root = Root::Disk { path, offset, size, file_system };
            Ok(Ready { root, description: None })
        }
        Kind::Tar | Kind::Gzip | Kind::Zstd => {
            let reason = "is an archive: make an image of it with microvm build, or write \
                          oci-archive: or docker-archive: before its name";
            Err(Error::unsupported(path.display(), reason))
        }
    }
}
