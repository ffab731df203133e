//! The directory that all subjects work in; nothing is made anywhere else, and it
//! is gone afterwards.
//!
//! ```text
//!  rootfs/            the root of namespaces, containers and jobs
//!    agent              what runs there
//!    scratch/           where its disk is measured
//!  disk.img           the disk of machines
//!  initramfs          what machines boot: the agent
//!  bundle/, state/    of OCI runtimes
//!  witness            a file to be found
//! ```

use job::init;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// As much as the agent's disk measurements use, and some more.
const DISK: u64 = 16 << 20;

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
