//! Writes the `newc` cpio archives the kernel unpacks as its initramfs.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// An archive being written. Parents of an entry appear by themselves.
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: u64,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 1, written: 0, directories: BTreeSet::new() }
    }

    /// Adds a regular file.
    pub fn file(&mut self, name: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.entry(name, libc::S_IFREG | (mode & 0o7777), (0, 0), content)
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, name: &Path) -> Result<()> {
        self.parents(&name.join("x"))
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &Path, target: &Path) -> Result<()> {
        self.parents(name)?;
        let target = target.as_os_str().as_bytes();
        self.entry(name, libc::S_IFLNK | 0o777, (0, 0), target)
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &Path, major: u32, minor: u32) -> Result<()> {
        self.parents(name)?;
        self.entry(name, libc::S_IFCHR | 0o600, (major, minor), b"")
    }

    /// Adds the host's file, link or directory tree at `source` as `name`.
    pub fn copy(&mut self, source: &Path, name: &Path) -> Result<()> {
        let about = || format!("packing {}", source.display());
        let metadata = fs::symlink_metadata(source).with_context(about)?;
        if metadata.is_symlink() {
            self.link(name, &fs::read_link(source).with_context(about)?)
        } else if metadata.is_dir() {
            self.directory(name)?;
            let mut children = fs::read_dir(source)
                .with_context(about)?
                .collect::<Result<Vec<_>, _>>()
                .with_context(about)?;
            // Same tree, same archive: a counting run must repeat.
            children.sort_by_key(|child| child.file_name());
            for child in children {
                self.copy(&child.path(), &name.join(child.file_name()))?;
            }
            Ok(())
        } else if metadata.is_file() {
            let content = fs::read(source).with_context(about)?;
            self.file(name, metadata.permissions().mode(), &content)
        } else {
            let device = metadata.rdev();
            self.device(name, libc::major(device), libc::minor(device))
        }
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), b"")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &Path) -> Result<()> {
        let mut path = PathBuf::new();
        let Some(parent) = relative(name).parent().map(Path::to_owned) else {
            return Ok(());
        };
        for component in parent.components() {
            path.push(component);
            if self.directories.insert(path.clone()) {
                self.entry(&path, libc::S_IFDIR | 0o755, (0, 0), b"")?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = relative(name);
        let name = name.as_os_str().as_bytes();
        let size = u32::try_from(content.len()).context("a packed file is 4 GiB or more")?;
        let header = format!(
            "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0
        );
        self.inode += 1;
        self.put(header.as_bytes())?;
        self.put(name)?;
        self.put(b"\0")?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.put(&[0; 3][..missing as usize])
    }
}

/// Entry names carry no leading slash.
fn relative(name: &Path) -> PathBuf {
    name.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/c"), 0o644, b"hello").expect("file");
        archive.file(Path::new("a/b/d"), 0o755, b"").expect("file");
        let bytes = archive.finish().expect("archive");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let positions: Vec<_> = ["a\0", "a/b\0", "a/b/c\0", "hello", "a/b/d\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).expect("entry"))
            .collect();
        assert!(positions.is_sorted(), "{positions:?}");
        assert_eq!(text.matches("070701").count(), 5);
    }
}
