//! Why an image can't be used: one line that names it, what is wrong with it
//! and, where there is something, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// What a function of this module returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused to open, read or write something.
    #[error("{path}: {text}", path = path.display(), text = vmm::plain(source))]
    Host {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A reference that names no image.
    #[error("image {text}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A file, or a part of it, that is not what it should be.
    #[error("{object}: {reason}")]
    Malformed {
        /// The file, or the part.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An image that is in order, but not for us.
    #[error("{object}: {reason}")]
    Unsupported {
        /// The file, or the part.
        object: String,
        /// What is not supported, and what to do.
        reason: String,
    },
    /// A registry that can't be reached, or refuses.
    #[error("{object}: {reason}")]
    Registry {
        /// What was wanted.
        object: String,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: what the host said about this file.
    pub fn host(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Host { path, source }
    }

    /// What is wrong, without what it is about.
    pub fn reason(&self) -> String {
        match self {
            Self::Host { source, .. } => vmm::plain(source),
            Self::Reference { reason, .. }
            | Self::Malformed { reason, .. }
            | Self::Unsupported { reason, .. }
            | Self::Registry { reason, .. } => reason.clone(),
        }
    }

    /// Not what it should be.
    pub fn malformed(object: impl ToString, reason: impl ToString) -> Self {
        Self::Malformed { object: object.to_string(), reason: reason.to_string() }
    }

    /// In order, but not for us.
    pub fn unsupported(object: impl ToString, reason: impl ToString) -> Self {
        Self::Unsupported { object: object.to_string(), reason: reason.to_string() }
    }
}
