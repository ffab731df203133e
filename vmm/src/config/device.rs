//! Sockets and shared directories, as their user asks for them.

use super::ConfigError;
use super::fields::Fields;
use devices::backend::vsock::MAX_PATH as MAX_UDS;
use devices::virtio::fs::TAG_LEN;
use devices::virtio::vsock::CIDS;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// Sockets between programs of the guest and of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The host's Unix socket, made at the start. The guest's connections to
    /// port P of the host go to the socket whose path is this one and `_P`.
    pub uds: PathBuf,
    /// The guest's context ID.
    #[serde(default = "default_cid")]
    pub cid: u32,
}

fn default_cid() -> u32 {
    *CIDS.start()
}

impl Vsock {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let path = self.uds.as_os_str().as_bytes();
        if !(1..=MAX_UDS).contains(&path.len()) || path.contains(&0) {
            return Err(ConfigError::Uds(self.uds.clone()));
        }
        if !CIDS.contains(&self.cid) {
            return Err(ConfigError::Cid(self.cid));
        }
        Ok(())
    }
}

/// `[uds=]PATH[,cid=N]`; a comma in a path is written twice.
impl FromStr for Vsock {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("vsock", text, "uds");
        let uds = fields.required("uds")?.into();
        let cid = match fields.take("cid") {
            None => default_cid(),
            Some(text) => text
                .parse()
                .map_err(|_| fields.error(format!("cid= must be a number, not {text:?}")))?,
        };
        fields.end()?;
        let vsock = Self { uds, cid };
        vsock.validate()?;
        Ok(vsock)
    }
}

/// A directory of the host that the guest can mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// By what name the guest mounts it.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// Refuse every change.
    #[serde(default)]
    pub readonly: bool,
}

impl Share {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let ok = (1..=TAG_LEN).contains(&self.tag.len())
            && self.tag.bytes().all(|b| b.is_ascii_graphic());
        match ok && !self.path.as_os_str().is_empty() {
            true => Ok(()),
            false => Err(ConfigError::Share(self.tag.clone())),
        }
    }
}

/// `tag=NAME,path=DIRECTORY[,readonly=on|off]`; a comma in a path is written
/// twice.
impl FromStr for Share {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("share", text, "tag");
        let share = Self {
            tag: fields.required("tag")?,
            path: fields.required("path")?.into(),
            readonly: fields.switch("readonly")?.unwrap_or(false),
        };
        fields.end()?;
        share.validate()?;
        Ok(share)
    }
}
