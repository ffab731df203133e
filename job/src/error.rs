//! Why there is no job, and the exit status that says so.

use std::io;
use std::path::PathBuf;

/// Exit statuses of the runner beside the job's own, as other runners have them.
pub mod status {
    /// The runner or the guest failed.
    pub const FAILED: u8 = 125;
    /// The program can't be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such program.
    pub const NOT_FOUND: u8 = 127;
}

/// Why there is no job. Each message names the thing and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// No kernel is where one is looked for.
    #[error(
        "no guest kernel: give one with --kernel or ${variable}, or put one at {first}",
        variable = crate::kernel::VARIABLE,
        first = places.first().map(|p| p.display().to_string()).unwrap_or_default()
    )]
    NoKernel {
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// What the kernel's modules are.
    #[error("kernel {kernel}: {reason}", kernel = kernel.display())]
    Modules {
        /// The kernel.
        kernel: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A directory that can't be shared.
    #[error("bind {path}: {reason}", path = path.display())]
    Bind {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Too many of them.
    #[error("{0} directories: at most {most} fit: bind one that holds several", most = crate::shares::MOST)]
    Binds(usize),
    /// Not a variable.
    #[error("env {0:?}: must be NAME=VALUE, or the NAME of a variable that is set")]
    Env(String),
    /// The image names none.
    #[error(
        "user image: the image names no user: only those of OCI and Docker do, and \
         what microvm build makes"
    )]
    User,
    /// The working directory is not an absolute path.
    #[error("pwd {path}: must be an absolute path", path = .0.display())]
    Pwd(PathBuf),
    /// The overlay's image.
    #[error("overlay {path}: {reason}", path = path.display())]
    Overlay {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Something about a job's name.
    #[error("{name}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Where names are kept.
    #[error("{path}, where names of jobs are kept: {reason}", path = path.display())]
    Names {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rank of a parallel program.
    #[error("ranks {0}")]
    Ranks(String),
    /// No program is named, by the user or the image.
    #[error("no program: name one behind the image")]
    NoProgram,
    /// The machine.
    #[error(transparent)]
    Machine(#[from] vmm::machine::Error),
    /// What the guest says is why there is no job.
    #[error("{text}")]
    Refused {
        /// The exit status.
        status: u8,
        /// The guest's words.
        text: String,
    },
    /// The guest ended, and its job did not.
    #[error("{how} before the job did: --kernel-log FILE keeps what its kernel says")]
    GuestGone {
        /// How the machine ended.
        how: String,
    },
    /// The guest does not keep to the protocol.
    #[error("the guest's init: {0}")]
    Protocol(String),
    /// Output of the job was lost.
    #[error("standard {stream}: {source}")]
    Output {
        /// `output` or `error`.
        stream: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// Something that no host in order refuses.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// The exit status for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Refused { status, .. } => *status,
            _ => status::FAILED,
        }
    }
}
