//! Programs that come with this one, for what is no monitor's business: they keep
//! its size and what a guest could attack small.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub enum Companion {
    /// Fetches images from registries.
    Pull,
    /// Measures machines beside containers.
    Compare,
}

/// Why it did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is nowhere.
    #[error("{0}: is not installed: it is built with microvm and belongs beside it")]
    Missing(&'static str),
    /// The host refuses to run it.
    #[error("{program}: {}", vmm::plain(.source))]
    Refused {
        /// Its name.
        program: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl Companion {
    fn name(self) -> &'static str {
        match self {
            Self::Pull => "microvm-pull",
            Self::Compare => "microvm-compare",
        }
    }

    /// Becomes the program, which is beside this one or wherever programs are;
    /// returns why it could not.
    pub fn become_it(self, words: impl IntoIterator<Item = OsString>) -> Error {
        let name = self.name();
        let own = std::env::current_exe().ok();
        let beside = own.as_ref().map(|path| path.with_file_name(name));
        let program = beside.filter(|path| path.exists()).unwrap_or_else(|| name.into());
        let mut command = Command::new(program);
        if let (Self::Compare, Some(own)) = (self, own) {
            // What it is to start machines and jobs with.
            command.arg(own);
        }
        match command.args(words).exec() {
            error if error.kind() == io::ErrorKind::NotFound => Error::Missing(name),
            source => Error::Refused { program: name, source },
        }
    }
}
