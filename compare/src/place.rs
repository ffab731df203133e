//! The directory that all subjects work in; nothing is made anywhere else, and it
//! is gone afterwards.
//!
//! ```text
//!  rootfs/            the root of namespaces, containers and jobs
//!    agent              what runs there
//!    scratch/           where its disk is measured
//!  host/              the root of containers that see the host's files: its directories
//!                     are mounted there
//!  disk.img           the disk of machines
//!  initramfs          what machines boot: the agent
//!  bundle/, state/    of OCI runtimes
//!  witness            a file to be found
//! ```

use job::init;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// As much as the agent's disk measurements use, and some more.
const DISK: u64 = 16 << 20;

/// Directories that a container has of its own.
const OWN: [&str; 4] = ["dev", "proc", "run", "sys"];
/// Those of programs, and what belongs to them: nobody changes them.
const FIXED: [&str; 7] = ["bin", "boot", "etc", "lib", "opt", "sbin", "usr"];

/// A directory of the host's that is mounted in a container, at the same place.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its path.
    pub path: String,
    /// Whether it can be changed.
    pub writable: bool,
}

/// The directory, as long as this lives.
pub struct Place {
    directory: TempDir,
}

impl Place {
    /// In `TMPDIR`.
    pub fn new() -> io::Result<Self> {
        let place =
            Self { directory: tempfile::Builder::new().prefix("microvm-compare-").tempdir()? };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        mode(place.path(), 0o755)?;
        for name in ["dev", "etc", "proc", "run", "scratch", "sys", "tmp", "usr"] {
            DirBuilder::new().recursive(true).mode(0o755).create(place.rootfs().join(name))?;
        }
        fs::create_dir(place.mount())?;
        for name in ["tmp", "scratch"] {
            mode(&place.rootfs().join(name), 0o1777)?;
        }
        // Places to mount devices on.
        for name in ["null", "zero"] {
            File::create(place.rootfs().join("dev").join(name))?;
        }
        let program = guest_programs::agent()?;
        fs::write(place.agent(), &program)?;
        mode(&place.agent(), 0o755)?;
        fs::write(place.initramfs(), init::archive("agent", &program, &[]))?;
        // All of it on the host's disk already: what is measured is not its growth.
        fs::write(place.disk(), vec![0; DISK as usize])?;
        Ok(place)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The root of those that have one of their own.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// A root with the names of all that the host's has, and the directories to mount
    /// there: all but those that a container has of its own, and this one.
    pub fn host(&self) -> io::Result<(PathBuf, Vec<Shown>)> {
        let root = self.path().join("host");
        let mut shown = Vec::new();
        for entry in fs::read_dir("/")? {
            let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|t| (entry, t)))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let place = root.join(&name);
            if kind.is_dir() {
                DirBuilder::new().recursive(true).mode(0o755).create(&place)?;
                if !OWN.contains(&name.as_str()) {
                    let fixed = FIXED.iter().any(|fixed| name.starts_with(fixed));
                    shown.push(Shown { path: format!("/{name}"), writable: !fixed });
                }
            } else if kind.is_symlink() && fs::symlink_metadata(&place).is_err() {
                symlink(fs::read_link(entry.path())?, &place)?;
            }
        }
        shown.sort_by(|a, b| a.path.cmp(&b.path));
        shown.push(Shown { path: self.path().to_string_lossy().into_owned(), writable: true });
        Ok((root, shown))
    }

    /// An empty directory for a root that is mounted.
    pub fn mount(&self) -> PathBuf {
        self.path().join("mount")
    }

    /// The program, as the host sees it.
    pub fn agent(&self) -> PathBuf {
        self.rootfs().join("agent")
    }

    /// Where a subject's disk is measured, as the host sees it.
    pub fn scratch(&self) -> PathBuf {
        self.rootfs().join("scratch")
    }

    /// What machines boot.
    pub fn initramfs(&self) -> PathBuf {
        self.path().join("initramfs")
    }

    /// The disk of machines.
    pub fn disk(&self) -> PathBuf {
        self.path().join("disk.img")
    }
}

impl Drop for Place {
    /// Podman leaves its directory mounted when it fails, and so it could not be removed.
    fn drop(&mut self) {
        let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return };
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let below = points.filter(|point| Path::new(point).starts_with(self.path()));
        // The last one may be on top of others.
        for point in below.collect::<Vec<_>>().into_iter().rev() {
            if let Ok(point) = CString::new(point.replace("\\040", " ")) {
                // SAFETY: a string that ends with NUL and outlives the call.
                unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_names_are_there_and_its_programs_are_not_to_be_changed() {
        let place = Place::new().unwrap();
        // Once more, for the next container.
        place.host().unwrap();
        let (root, shown) = place.host().unwrap();
        for name in ["usr", "etc", "tmp", "bin"] {
            let (there, here) = (root.join(name), Path::new("/").join(name));
            assert_eq!(there.is_symlink(), here.is_symlink(), "{name}");
        }
        let of = |path: &str| shown.iter().find(|shown| shown.path == path);
        assert_eq!(of("/usr").map(|shown| shown.writable), Some(false));
        assert_eq!(of("/tmp").map(|shown| shown.writable), Some(true));
        assert_eq!(of("/proc"), None);
        assert_eq!(of(&place.path().to_string_lossy()).map(|shown| shown.writable), Some(true));
    }
}
