//! What an image says of the job that it is for, and where it comes from.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Description`].
pub const FORMAT: u32 = 1;

/// How to run it: the `config` of an OCI image, in our names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The start of the command; arguments come after it.
    pub entrypoint: Vec<String>,
    /// The arguments where none are given.
    pub cmd: Vec<String>,
    /// Variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// `NAME|UID[:GROUP|GID]`; empty is root.
    pub user: String,
    /// Where it starts; empty is `/`.
    pub working_directory: String,
    /// The signal that stops it, by name or number; empty is `SIGTERM`.
    pub stop_signal: String,
    /// What its maker said of it.
    pub labels: BTreeMap<String, String>,
}

/// Who the image's user is, by its own `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, if it is known.
    pub home: Option<String>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDescription {
    /// Its digest.
    pub digest: String,
    /// Bytes, compressed as it is.
    pub size: u64,
    /// What it is.
    pub media_type: String,
}

/// What is known of an image, and kept in the files that we build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// [`FORMAT`].
    pub format: u32,
    /// What it was made from: `directory`, `tar`, `oci`, `docker`.
    pub source: String,
    /// The digest of the manifest, or for a Docker archive of the configuration.
    pub digest: Option<String>,
    /// The processor that it is for, in OCI's names; `None` is not known.
    pub architecture: Option<String>,
    /// How to run it.
    pub config: Config,
    /// Who the user is; `None` before an image is unpacked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// What it was put together from.
    pub layers: Vec<LayerDescription>,
}
