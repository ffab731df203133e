//! `microvm build`: from a source to one file, whole or not at all.
//!
//! ```text
//!  source ─► tree ─► EROFS ─► description ─► fsync ─► the name that was asked for
//!                    └ a file that has no name yet ┘
//! ```
//!
//! Until the end the file has no name: whoever interrupts a build, with a
//! `SIGKILL` too, leaves nothing behind. Where the host's file system can't do
//! that (NFS), it is `.NAME.partial` beside the final one; what an interrupted
//! build left there, the next one takes over.

use super::built;
use super::config::Description;
use super::digest::Digest;
use super::directory::HostId;
use super::erofs::write::{Output, Written, write};
use super::error::{Error, Result};
use super::progress::Progress;
use super::reference::Reference;
use super::source::{Unpacked, unpack};
use super::tree::NodeId;
use indicatif::HumanBytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a build may be told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// All files are root's, whoever has them now.
    pub all_root: bool,
    /// No file is said to have been changed after this (`SOURCE_DATE_EPOCH`).
    pub latest: Option<i64>,
}

impl Options {
    /// With `SOURCE_DATE_EPOCH` as the caller has it:
    /// <https://reproducible-builds.org/specs/source-date-epoch/>
    pub fn of_environment(all_root: bool) -> Result<Self> {
        const NAME: &str = "SOURCE_DATE_EPOCH";
        let Some(text) = std::env::var_os(NAME) else { return Ok(Self { all_root, latest: None }) };
        let seconds = text.to_str().and_then(|text| text.parse().ok());
        let reason = "is no number of seconds since 1970";
        let seconds = seconds.ok_or_else(|| Error::malformed(NAME, reason))?;
        Ok(Self { all_root, latest: Some(seconds) })
    }
}

/// What was built.
#[derive(Debug)]
pub struct Summary {
    /// Bytes of the file.
    pub size: u64,
    /// Files, directories, links and devices in it.
    pub inodes: u64,
    /// What is known of it.
    pub description: Description,
}

impl Summary {
    /// What was built, for who asked for it.
    pub fn line(&self, path: &Path) -> String {
        format!("{}: {}, {} files", path.display(), HumanBytes(self.size), self.inodes)
    }
}

/// Builds an image.
pub fn build(
    source: &Reference,
    output: &Path,
    options: Options,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let directory = parent(output);
    // A build of a directory that holds an earlier one doesn't take that in.
    let earlier = fs::metadata(output).ok();
    if earlier.as_ref().is_some_and(|found| !found.is_file()) {
        return Err(Error::unsupported(output.display(), "is there and is no file: name another"));
    }
    let skipped: Option<HostId> = earlier.map(|found| (found.dev(), found.ino()));
    let unpacked = unpack(source, directory, skipped, progress)?;
    build_unpacked(unpacked, output, options, progress)
}

/// Builds an image from a tree.
pub fn build_unpacked(
    mut unpacked: Unpacked,
    output: &Path,
    options: Options,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    if options.all_root {
        for id in 0..unpacked.tree.len() as NodeId {
            let meta = &mut unpacked.tree.node_mut(id).meta;
            (meta.uid, meta.gid) = (0, 0);
        }
    }
    let Unpacked { tree, contents, description } = unpacked;
    let made = Made::create(output)?;
    let written = {
        let output = Output {
            file: &made.file,
            path: output,
            uuid: uuid(&description),
            latest: options.latest,
        };
        write(&tree, &contents, &output, progress)?
    };
    let Written { size, inodes } = written;
    built::write(&made.file, output, size, &description)?;
    let size = made.file.metadata().map_err(Error::host(output))?.len();
    made.finish(output)?;
    Ok(Summary { size, inodes, description })
}

/// Names the file system by what it was made from: equal builds are equal.
fn uuid(description: &Description) -> [u8; 16] {
    let text = serde_json::to_vec(description).unwrap_or_default();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&Digest::of(&text).0[..16]);
    // RFC 9562: version 8, which is anyone's.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The directory that a file is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A file that does not have its name yet.
struct Made {
    file: File,
    /// The name that it has until then, where it has to have one.
    hidden: Option<PathBuf>,
}

impl Made {
    /// A file that can be run, for whoever the umask lets.
    const MODE: u32 = 0o777;

    fn create(output: &Path) -> Result<Self> {
        let directory = parent(output);
        let mut options = File::options();
        options.read(true).write(true).mode(Self::MODE);
        match options.custom_flags(libc::O_TMPFILE).open(directory) {
            Ok(file) => return Ok(Self { file, hidden: None }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            }
            Err(error) => return Err(Error::host(directory)(error)),
        }
        Self::create_hidden(output, &mut options)
    }

    fn create_hidden(output: &Path, options: &mut OpenOptions) -> Result<Self> {
        let hidden = hidden_name(output, "partial");
        let host = |error: io::Error| Error::host(&hidden)(error);
        let file = options.custom_flags(libc::O_NOFOLLOW).create(true).open(&hidden);
        let file = file.map_err(host)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => Error::unsupported(output.display(), "is being built by another"),
            error => host(error.into()),
        })?;
        file.set_len(0).map_err(host)?;
        Ok(Self { file, hidden: Some(hidden) })
    }

    /// Gives it its name, in place of what has it.
    fn finish(mut self, output: &Path) -> Result<()> {
        let host = |error: io::Error| Error::host(output)(error);
        self.file.sync_all().map_err(host)?;
        let hidden = match self.hidden.take() {
            Some(hidden) => hidden,
            None => {
                let hidden = hidden_name(output, &std::process::id().to_string());
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let (here, follow) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
                rustix::fs::linkat(here, &*own, here, &hidden, follow)
                    .map_err(|error| host(error.into()))?;
                hidden
            }
        };
        fs::rename(&hidden, output).map_err(|error| {
            drop(fs::remove_file(&hidden));
            host(error)
        })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            drop(fs::remove_file(hidden));
        }
    }
}

/// `.app.img.END`, beside the file.
fn hidden_name(output: &Path, end: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(output.file_name().unwrap_or_default());
    name.push(format!(".{end}"));
    output.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(output: &Path) -> Result<Made> {
        Made::create_hidden(output, File::options().read(true).write(true))
    }

    #[test]
    fn a_hidden_name_is_for_one_build_at_a_time_and_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("app.img");
        let partial = directory.path().join(".app.img.partial");
        fs::write(&partial, "what was left").unwrap();
        let made = hidden(&output).unwrap();
        assert_eq!(fs::metadata(&partial).unwrap().len(), 0);
        let said = hidden(&output).map(|_| ()).unwrap_err().to_string();
        assert!(said.ends_with("app.img: is being built by another"), "{said}");
        made.finish(&output).unwrap();
        assert!(output.exists() && !partial.exists());
        drop(hidden(&output).unwrap());
        assert!(!partial.exists(), "one that failed leaves nothing");
    }
}
