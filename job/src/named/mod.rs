//! Jobs that have a name: how others of the same user find them.
//!
//! ```text
//!  $XDG_RUNTIME_DIR/microvm/NAME     a socket, on which the job's runner listens
//!  /tmp/microvm-UID/NAME             where there is no such directory
//! ```
//!
//! There is nothing else, and no daemon: a name whose socket nobody listens on is
//! one of a runner that was killed, and whoever sees it removes it.

pub mod ask;
pub mod desk;

use crate::Error;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest name.
const LONGEST: usize = 64;

/// A job's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        match first && text.len() <= LONGEST && text.chars().all(fits) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "must be 1 to {LONGEST} letters, digits, dots, dashes or underscores, \
                 a letter or digit first"
            )),
        }
    }
}

impl Name {
    /// Of a machine that ranks with this number share.
    pub fn of_ranks(number: u64) -> Self {
        Self(format!("ranks-{number:016x}"))
    }

    /// Where new ones are, once their directory is made.
    pub fn path(&self) -> Result<PathBuf, Error> {
        let place = places().swap_remove(0);
        Ok(Directory::make(&place)?.path.join(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where names may be: the first is where new ones are made.
fn places() -> Vec<PathBuf> {
    // SAFETY: has no preconditions.
    let user = unsafe { libc::geteuid() };
    of_user(std::env::var_os("XDG_RUNTIME_DIR"), user)
}

fn of_user(runtime: Option<OsString>, user: u32) -> Vec<PathBuf> {
    let runtime = runtime.map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir());
    let runtime = runtime.map(|path| path.join("microvm"));
    runtime.into_iter().chain([format!("/tmp/microvm-{user}").into()]).collect()
}

/// A directory of names, which nobody else may change, locked.
struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// `None`: it is not there.
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        let error = |reason: String| Error::Names { path: path.to_owned(), reason };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(error(vmm::plain(&e.into()))),
        };
        let meta = fs::File::from(fd.try_clone().map_err(|e| error(vmm::plain(&e)))?).metadata();
        let meta = meta.map_err(|e| error(vmm::plain(&e)))?;
        // SAFETY: has no preconditions.
        if meta.uid() != unsafe { libc::geteuid() } || meta.mode() & 0o022 != 0 {
            return Err(error("belongs to somebody else, or others may write to it".to_owned()));
        }
        flock(&fd, FlockOperation::LockExclusive).map_err(|e| error(vmm::plain(&e.into())))?;
        Ok(Some(Self { path: path.to_owned(), fd }))
    }

    fn make(path: &Path) -> Result<Self, Error> {
        let error = |e: &io::Error| Error::Names { path: path.to_owned(), reason: vmm::plain(e) };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(error(&e)),
            _ => {}
        }
        Self::open(path)?.ok_or_else(|| error(&ErrorKind::NotFound.into()))
    }

    /// A path to one of its files that fits into a socket's address, however long
    /// its own is.
    fn short(&self, name: &Name) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()).into()
    }

    /// Connects to whoever listens; a name that nobody does is removed, and so is a
    /// station of a segment that has gone.
    fn connect(&self, name: &Name) -> io::Result<Option<UnixStream>> {
        let path = self.short(name);
        let found = match UnixStream::connect(&path) {
            Err(e) if e.raw_os_error() == Some(libc::EPROTOTYPE) => {
                UnixDatagram::unbound()?.connect(&path).and(Err(e))
            }
            other => other,
        };
        match found {
            Ok(stream) => Ok(Some(stream)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                if fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
                    fs::remove_file(&path)?;
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// A job of this process that others can find.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
    listener: UnixListener,
}

impl Entry {
    /// Takes a name, which no other job may have.
    pub fn new(name: &Name) -> Result<Self, Error> {
        let taken = || "a job with this name runs".to_owned();
        Self::take(name)?.ok_or_else(|| Error::Name { name: name.to_string(), reason: taken() })
    }

    /// The same; `None`: a job has it.
    pub fn take(name: &Name) -> Result<Option<Self>, Error> {
        let error = |e: io::Error| Error::Name { name: name.to_string(), reason: vmm::plain(&e) };
        for place in places().iter().skip(1) {
            if let Some(directory) = Directory::open(place)?
                && !free(&directory, name)?
            {
                return Ok(None);
            }
        }
        let place = places().swap_remove(0);
        let directory = Directory::make(&place)?;
        if !free(&directory, name)? {
            return Ok(None);
        }
        let listener = UnixListener::bind(directory.short(name)).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok(Some(Self { path: directory.path.join(name.to_string()), listener }))
    }

    /// Gives the name back. The file is this job's: others look first whether
    /// somebody listens, and somebody does.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether nobody has the name.
fn free(directory: &Directory, name: &Name) -> Result<bool, Error> {
    let found = directory.connect(name);
    let error = |e: io::Error| Error::Name { name: name.to_string(), reason: vmm::plain(&e) };
    found.map(|found| found.is_none()).map_err(error)
}

/// Connects to a job.
fn connect(name: &Name) -> Result<UnixStream, Error> {
    for place in places() {
        if let Some(directory) = Directory::open(&place)? {
            let error =
                |e: io::Error| Error::Name { name: name.to_string(), reason: vmm::plain(&e) };
            if let Some(stream) = directory.connect(name).map_err(error)? {
                return Ok(stream);
            }
        }
    }
    let reason = "no such job of yours runs: see microvm ps".to_owned();
    Err(Error::Name { name: name.to_string(), reason })
}

/// All jobs that have names, by name.
fn all() -> Result<Vec<(Name, UnixStream)>, Error> {
    let mut all = Vec::new();
    for place in places() {
        let Some(directory) = Directory::open(&place)? else { continue };
        let error = |e: io::Error| Error::Names { path: place.clone(), reason: vmm::plain(&e) };
        for file in fs::read_dir(&place).map_err(error)?.flatten() {
            let Some(name) = file.file_name().to_str().and_then(|n| n.parse::<Name>().ok()) else {
                continue;
            };
            if let Ok(Some(stream)) = directory.connect(&name) {
                all.push((name, stream));
            }
        }
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_files_may_be_called() {
        for good in ["a", "job-1", "A.b_c", "1"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "\u{fc}", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_runtime_directory_counts_where_it_is_there() {
        let own = PathBuf::from("/tmp/microvm-7");
        assert_eq!(of_user(None, 7), vec![own.clone()]);
        assert_eq!(of_user(Some("/nowhere/at/all".into()), 7), vec![own.clone()]);
        assert_eq!(of_user(Some("relative".into()), 7), vec![own.clone()]);
        assert_eq!(of_user(Some("/tmp".into()), 7), [PathBuf::from("/tmp/microvm"), own]);
    }

    #[test]
    fn a_name_of_the_dead_is_removed_and_one_of_the_living_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("microvm");
        assert!(Directory::open(&path).unwrap().is_none());
        let directory = Directory::make(&path).unwrap();
        let name: Name = "job".parse().unwrap();
        let listener = UnixListener::bind(directory.short(&name)).unwrap();
        assert!(!free(&directory, &name).unwrap());
        assert!(path.join("job").exists());
        drop(listener);
        assert!(path.join("job").exists());
        assert!(free(&directory, &name).unwrap());
        assert!(!path.join("job").exists());
    }

    #[test]
    fn a_directory_that_others_may_change_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Directory::open(place.path()).is_err());
    }
}
