//! The virtio console and its ports, as their user asks for them.

use super::ConfigError;
use super::fields::Fields;
use devices::virtio::console::MAX_PORTS;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path of a socket.
const MAX_SOCKET: usize = 107;
/// The longest name: a message holds it with room to spare.
const MAX_NAME: usize = 64;

/// Where the terminal of the virtio console (`hvc0`) leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// The monitor's own standard input and output.
    Stdio,
    /// A new pseudo-terminal, whose name is told at the start.
    Pty,
    /// A Unix socket, made at the start; one client at a time.
    Socket(PathBuf),
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// There is none.
    Off,
}

impl Console {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Socket(path) => socket(path),
            _ => Ok(()),
        }
    }
}

/// `stdio`, `pty`, `off`, `socket=PATH` or `file=PATH`.
impl FromStr for Console {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let console = match text.split_once('=') {
            None if text == "stdio" => Self::Stdio,
            None if text == "pty" => Self::Pty,
            None if text == "off" => Self::Off,
            Some(("socket", path)) if !path.is_empty() => Self::Socket(path.into()),
            Some(("file", path)) if !path.is_empty() => Self::File(path.into()),
            _ => {
                return Err(ConfigError::Parse {
                    what: "console",
                    text: text.to_owned(),
                    why: "must be stdio, pty, off, socket=PATH or file=PATH".to_owned(),
                });
            }
        };
        console.validate()?;
        Ok(console)
    }
}

fn socket(path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_bytes();
    match (1..=MAX_SOCKET).contains(&bytes.len()) && !bytes.contains(&0) {
        true => Ok(()),
        false => Err(ConfigError::PortSocket(path.to_owned())),
    }
}

/// A named port, `/dev/vport*` in the guest, with its name in sysfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// What the guest finds it by.
    pub name: String,
    /// Where it leads.
    #[serde(flatten)]
    pub to: PortTo,
}

/// Where a named port leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortTo {
    /// A Unix socket, made at the start; one client at a time.
    Socket(PathBuf),
    /// Output is appended to a file; there is no input.
    File(PathBuf),
}

impl Port {
    fn validate(&self) -> Result<(), ConfigError> {
        let named = (1..=MAX_NAME).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !named {
            return Err(ConfigError::PortName(self.name.clone()));
        }
        match &self.to {
            PortTo::Socket(path) => socket(path),
            PortTo::File(_) => Ok(()),
        }
    }

    /// Checks all of them together.
    pub(super) fn validate_all(ports: &[Self]) -> Result<(), ConfigError> {
        if ports.len() > MAX_PORTS {
            return Err(ConfigError::Ports(ports.len()));
        }
        for (i, port) in ports.iter().enumerate() {
            port.validate()?;
            if ports.iter().take(i).any(|other| other.name == port.name) {
                return Err(ConfigError::PortTwice(port.name.clone()));
            }
        }
        Ok(())
    }
}

/// `name=NAME,socket=PATH` or `name=NAME,file=PATH`; a comma in a path is written
/// twice.
impl FromStr for Port {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("port", text, "name");
        let name = fields.required("name")?;
        let (socket, file) = (fields.take("socket"), fields.take("file"));
        let given = |path: Option<String>| path.filter(|path| !path.is_empty()).map(PathBuf::from);
        let to = match (given(socket), given(file)) {
            (Some(path), None) => PortTo::Socket(path),
            (None, Some(path)) => PortTo::File(path),
            _ => return Err(fields.error("give either socket=PATH or file=PATH".to_owned())),
        };
        fields.end()?;
        let port = Self { name, to };
        port.validate()?;
        Ok(port)
    }
}
