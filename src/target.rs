//! A file that a report goes to, when there is one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Opened before anything is measured: whoever may not write there hears of it before
/// an hour is spent.
pub struct Target {
    path: PathBuf,
    file: File,
}

/// Where, and what the host said.
pub type Refusal = (PathBuf, io::Error);

impl Target {
    /// What is in it stays until there is something better.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let path = path.to_owned();
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err((path, error)),
        }
    }

    /// Instead of what was there.
    pub fn write(mut self, text: &str) -> Result<(), Refusal> {
        // A pipe or a terminal has no length.
        let is_file = self.file.metadata().is_ok_and(|about| about.is_file());
        let cut = if is_file { self.file.set_len(0) } else { Ok(()) };
        let written = cut.and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(|error| (self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_there_stays_until_there_is_something_better() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("page");
        fs::write(&path, "a longer one from before").unwrap();
        drop(Target::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a longer one from before");
        Target::open(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let (refused, _) = Target::open(scratch.path()).err().unwrap();
        assert_eq!(refused, scratch.path());
    }
}
