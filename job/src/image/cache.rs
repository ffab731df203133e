//! Images that were put together once, for the next time: files named by the
//! digest of what they came from.
//!
//! ```text
//!  $XDG_CACHE_HOME/microvm/images/
//!    0123….img    as microvm build makes it
//!    0123….lock   held by who builds it; others wait
//!    blobs/       what microvm pull fetched
//! ```
//!
//! A file is used for as long as it is open: one that is removed meanwhile does
//! no harm. The least recently used go when all are more than they may be.

use super::build::{Options, build_unpacked};
use super::digest::Digest;
use super::error::{Error, Result};
use super::oci::Image;
use super::progress::Progress;
use super::source::unpack_image;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes that a user's cache may have.
pub const SIZE: u64 = 32 << 30;
/// Changes with what we make of an image.
const GENERATION: &str = "1";

/// The cache of one user.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    size: u64,
}

/// A file in it.
#[derive(Debug, Clone, Serialize)]
pub struct Cached {
    /// The digest of what it came from.
    pub digest: String,
    /// The file.
    pub path: PathBuf,
    /// Bytes that it takes on the host's disk.
    pub size: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
}

impl Cache {
    /// The cache in a directory, which is made when it is needed.
    pub fn new(directory: PathBuf, size: u64) -> Self {
        Self { directory, size }
    }

    /// Where the XDG specification puts it.
    pub fn of_user() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
        let absolute = |path: &PathBuf| path.is_absolute();
        let base = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute).or_else(home);
        let base = base.ok_or_else(|| {
            Error::unsupported("cache", "has no place: set HOME or XDG_CACHE_HOME")
        })?;
        Ok(Self::new(base.join("microvm/images"), SIZE))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where blobs are, as in an OCI layout.
    pub fn blobs(&self) -> PathBuf {
        self.directory.join("blobs")
    }

    fn file(&self, digest: Digest) -> PathBuf {
        self.directory.join(format!("{}-{GENERATION}.img", digest.hex()))
    }

    /// The file for an image, if it is there.
    pub fn find(&self, digest: Digest) -> Option<PathBuf> {
        let path = self.file(digest);
        let file = File::open(&path).ok()?;
        // For who looks for the least recently used; it may be anyone's disk.
        let _ = file.set_modified(SystemTime::now());
        Some(path)
    }

    /// The file for an image, which is put together if it isn't there yet. Of
    /// many who ask at the same time one does it.
    pub fn prepare(&self, image: Image, progress: &mut dyn Progress) -> Result<PathBuf> {
        let digest = image.digest;
        if let Some(found) = self.find(digest) {
            return Ok(found);
        }
        let path = self.file(digest);
        let lock = self.lock(&path.with_extension("lock"))?;
        // Another may have done it while we waited.
        let made = match self.find(digest) {
            Some(_) => Ok(()),
            None => unpack_image(image, &self.directory, progress).and_then(|unpacked| {
                build_unpacked(unpacked, &path, Options::default(), progress)?;
                self.prune_to_size(Some(&path))
            }),
        };
        drop(fs::remove_file(path.with_extension("lock")));
        drop(lock);
        made.map(|()| path)
    }

    /// Makes the directory and waits for a lock in it.
    pub fn lock(&self, path: &Path) -> Result<File> {
        self.create(&self.directory)?;
        loop {
            let file = File::options().create(true).append(true).open(path);
            let file = file.map_err(Error::host(path))?;
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| Error::host(path)(error.into()))?;
            // Who had it before may have removed it.
            let host = |error| Error::host(path)(error);
            let held = file.metadata().map_err(host)?.ino();
            match fs::metadata(path) {
                Ok(named) if named.ino() == held => return Ok(file),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(host(error)),
            }
        }
    }

    /// A directory that is the user's alone.
    pub fn create(&self, directory: &Path) -> Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).map_err(Error::host(directory))
    }

    /// What is there: images and blobs, the least recently used first.
    pub fn list(&self) -> Result<Vec<Cached>> {
        let mut found = self.scan(&self.directory, |name| {
            name.strip_suffix(&format!("-{GENERATION}.img")).map(str::to_owned)
        })?;
        found.extend(self.scan(&self.blobs().join("sha256"), |name| {
            // Those that are there in part, too.
            Some(name.strip_suffix(".partial").unwrap_or(name).to_owned())
        })?);
        found.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(found)
    }

    fn scan(&self, directory: &Path, hex: impl Fn(&str) -> Option<String>) -> Result<Vec<Cached>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::host(directory)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::host(directory))?;
            let name = entry.file_name();
            let Some(hex) = name.to_str().and_then(&hex) else { continue };
            let digest = format!("sha256:{hex}");
            // It may have gone meanwhile.
            let (Ok(_), Ok(metadata)) = (Digest::parse(&digest), entry.metadata()) else {
                continue;
            };
            let used = u64::try_from(metadata.mtime()).unwrap_or(0);
            let size = metadata.blocks() * 512;
            found.push(Cached { digest, path: entry.path(), size, used });
        }
        Ok(found)
    }

    /// Removes the least recently used when it is larger than it may be.
    pub fn prune_to_size(&self, kept: Option<&Path>) -> Result<()> {
        self.prune(self.size, kept).map(drop)
    }

    /// Removes the least recently used until the rest is no more than `size`
    /// bytes; returns what it removed. `kept` stays.
    pub fn prune(&self, size: u64, kept: Option<&Path>) -> Result<Vec<Cached>> {
        let all = self.list()?;
        let mut total: u64 = all.iter().map(|cached| cached.size).sum();
        let mut removed = Vec::new();
        for cached in all {
            if total <= size {
                break;
            }
            if kept == Some(&*cached.path) {
                continue;
            }
            match fs::remove_file(&cached.path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::host(&cached.path)(error)),
            }
            total -= cached.size;
            removed.push(cached);
        }
        Ok(removed)
    }
}
