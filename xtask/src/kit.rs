//! What guests are made of: kernel and root file systems.

use crate::workspace::{resource, target_directory};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// A guest kernel and a root file system.
pub struct Kit {
    /// The kernel as ELF, with the PVH entry.
    pub kernel: PathBuf,
    /// A small ext4 image; the caller's own, to be written to.
    pub root: PathBuf,
}

impl Kit {
    /// Makes both, or finds them in the cache. The image is new every time.
    pub fn prepare() -> Result<Self> {
        let directory = target_directory().join("kit");
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let image = directory.join("root.ext4");
        let kernel = resource::<&str>("kernel/build.sh", &[])?.join("vmlinux");
        let root = resource("rootfs/build.sh", &["tiny".as_ref(), image.as_os_str()])?;
        Ok(Self { kernel, root })
    }
}

/// `cargo xtask kit`: prints the paths, for use in scripts.
pub fn run() -> Result<u8> {
    let kit = Kit::prepare()?;
    println!("kernel={}", kit.kernel.display());
    println!("rootfs={}", kit.root.display());
    Ok(0)
}
