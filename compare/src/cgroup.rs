//! Control groups with limits, where this user may make any: version 2 by
//! `CLONE_INTO_CGROUP`, version 1 by `cgroup.procs` of each hierarchy.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// What an instance gets.
const LIMITS: [(&str, &str); 3] =
    [("memory.max", "268435456"), ("memory.limit_in_bytes", "268435456"), ("pids.max", "512")];

/// A group for one process and its children, which is gone with this.
pub struct Group {
    directories: Vec<PathBuf>,
    unified: Option<File>,
    /// `cgroup.procs` of version 1's.
    files: Vec<File>,
    limits: usize,
}

impl Group {
    /// A group below this process's own ones.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut group =
            Self { directories: Vec::new(), unified: None, files: Vec::new(), limits: 0 };
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for (controllers, path) in lines(&own) {
            if !(controllers.is_empty()
                || controllers.split(',').any(|c| ["memory", "pids"].contains(&c)))
            {
                continue;
            }
            if let Err(error) = group.add(controllers, path, name) {
                last = error;
            }
        }
        if group.limits == 0 { Err(last) } else { Ok(group) }
    }

    fn add(&mut self, controllers: &str, path: &str, name: &str) -> io::Result<()> {
        let unified = controllers.is_empty();
        let directory = place(controllers, path).join(name);
        fs::create_dir(&directory)?;
        self.directories.push(directory.clone());
        let mut limits = 0;
        for (file, value) in LIMITS {
            let path = directory.join(file);
            if path.exists() {
                fs::write(path, value)?;
                limits += 1;
            }
        }
        if limits == 0 {
            return Err(io::Error::other("no controller is delegated"));
        }
        self.limits += limits;
        match unified {
            true => self.unified = Some(File::open(directory)?),
            false => {
                self.files.push(File::options().write(true).open(directory.join("cgroup.procs"))?)
            }
        }
        Ok(())
    }

    /// The directory to be made into.
    pub fn unified(&self) -> Option<RawFd> {
        self.unified.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Puts the calling process into version 1's. System calls only.
    pub fn join(&self) -> bool {
        // SAFETY: one byte that outlives the call.
        self.files
            .iter()
            .all(|file| unsafe { libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1 })
    }
}

/// Controllers and path of each line of `/proc/PID/cgroup` (`cgroups(7)`).
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// Where this group of this hierarchy is.
fn place(controllers: &str, path: &str) -> PathBuf {
    let mount = match controllers {
        "" if Path::new(MOUNT).join("cgroup.controllers").exists() => PathBuf::from(MOUNT),
        "" => Path::new(MOUNT).join("unified"),
        _ => Path::new(MOUNT).join(controllers.trim_start_matches("name=")),
    };
    mount.join(path.trim_start_matches('/'))
}

/// Takes away the groups with this prefix that runtimes have made below this
/// process's own ones, in whatever hierarchy: one that is killed while it makes
/// them does not know of all of them.
pub fn sweep(prefix: &str) {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for (controllers, path) in lines(&own) {
        let Ok(groups) = fs::read_dir(place(controllers, path)) else { continue };
        for group in groups.flatten() {
            if group.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                remove(&group.path());
            }
        }
    }
}

/// Whoever was in it has ended, and may take a moment to be gone.
fn remove(directory: &Path) {
    for _ in 0..200 {
        if fs::remove_dir(directory).is_ok() || !directory.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.directories.iter().for_each(|directory| remove(directory));
    }
}
