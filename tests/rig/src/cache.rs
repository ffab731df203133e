//! The directory in which everything fetched or built is kept.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The project's cache: `$MICROVM_CACHE`, or `microvm` in the user's cache.
pub fn root() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MICROVM_CACHE").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("XDG_CACHE_HOME").filter(|p| !p.is_empty()) {
        return Ok(Path::new(&path).join("microvm"));
    }
    let home = std::env::var_os("HOME").context("neither MICROVM_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/microvm"))
}

/// The rig's part of it, made if missing.
pub fn directory() -> Result<PathBuf> {
    let path = root()?.join("rig");
    fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

/// Held while something is put into the cache: tests start rigs in parallel.
pub struct Lock(#[allow(dead_code, reason = "held for its lock")] File);

/// Waits for the cache to be ours.
pub fn lock() -> Result<Lock> {
    let path = directory()?.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    // SAFETY: a valid descriptor; the lock goes when the file is closed.
    while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("locking the cache");
        }
    }
    Ok(Lock(file))
}

/// Makes `path` by way of a neighbour and a rename, so that it is whole or absent.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(name);
    fs::write(&partial, content).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming to {}", path.display()))
}

/// A directory for one run, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one where files go that don't last.
    pub fn new() -> Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// Makes one in some directory.
    pub fn below(parent: &Path) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_abandoned(parent);
        let path = parent.join(format!(
            "{SCRATCH_PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SCRATCH_PREFIX: &str = "microvm-rig-";

/// Removes what runs that were killed outright have left.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(SCRATCH_PREFIX)?.split('-').next());
        let is_dead =
            |owner: &str| owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists();
        if owner.is_some_and(is_dead) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A short name for some bytes: 64-bit FNV-1a, enough to tell versions apart.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for &byte in part.iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_tells_where_parts_end() {
        let one = fingerprint([b"ab".as_slice(), b"c"]);
        let other = fingerprint([b"a".as_slice(), b"bc"]);
        assert_ne!(one, other);
    }
}
