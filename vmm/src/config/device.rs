//! Network cards, sockets and shared directories, as their user asks for them.

use super::ConfigError;
use super::fields::Fields;
use devices::backend::vsock::MAX_PATH as MAX_UDS;
use devices::virtio::fs::TAG_LEN;
use devices::virtio::vsock::CIDS;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// The host's TAP interface.
    pub tap: String,
    /// The card's address; derived from the interface's name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Net {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let ok = (1..=15).contains(&self.tap.len())
            && self.tap.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !ok {
            return Err(ConfigError::TapName(self.tap.clone()));
        }
        match &self.mac {
            Some(mac) if parse_mac(mac).is_none() => {
                Err(ConfigError::Mac { tap: self.tap.clone(), mac: mac.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The address as bytes, if one was given and is valid.
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        self.mac.as_deref().and_then(parse_mac)
    }
}

/// Six hex bytes, a unicast address.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// `tap=NAME[,mac=xx:xx:xx:xx:xx:xx]`.
impl FromStr for Net {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("net", text, "tap");
        let net = Self { tap: fields.required("tap")?, mac: fields.take("mac") };
        fields.end()?;
        net.validate()?;
        Ok(net)
    }
}

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
