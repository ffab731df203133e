//! Disks, as their user asks for them.

use super::fields::Fields;
use super::limit::Limit;
use super::{ConfigError, MAX_CPUS, Size};
use devices::backend::disk::RawOptions;
use devices::virtio::block::Engine;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// A disk image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest sees as `/sys/block/vd*/serial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What is in the image. Never guessed: a guest could make a raw disk look
    /// like something else.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: Format,
    /// How data gets to the image and back.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Engine,
    /// Past the host's page cache (`O_DIRECT`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub direct: bool,
    /// Where the disk begins in the image.
    #[serde(default, skip_serializing_if = "is_default")]
    pub offset: Size,
    /// How long it is; all the rest of the image by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Queues; one for each vCPU by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u32>,
    /// Bytes that may be read and written in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Limit>,
    /// Requests in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Limit>,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What an image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk, byte for byte.
    #[default]
    Raw,
    /// QEMU's format, with its backing files.
    Qcow2,
}

impl Disk {
    /// The raw image at `path`, writable.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// How its image is to be used, if it is raw.
    pub fn raw_options(&self) -> RawOptions {
        let (offset, len) = (self.offset.0, self.size.map(|size| size.0));
        RawOptions { read_only: self.readonly, direct: self.direct, offset, len }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::DiskPath);
        }
        let path = || self.path.display().to_string();
        if let Some(serial) = &self.serial
            && (serial.len() > 20 || !serial.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(ConfigError::DiskSerial { path: path(), serial: serial.clone() });
        }
        let refuse = |why| Err(ConfigError::Disk { path: path(), why });
        if self.queues.is_some_and(|q| !(1..=MAX_CPUS).contains(&q)) {
            return refuse("queues= must be 1 to 32");
        }
        let plain = !self.direct && self.offset.0 == 0 && self.size.is_none();
        if self.format == Format::Qcow2 && (!plain || self.engine == Engine::Uring) {
            return refuse("direct=, offset=, size= and engine=uring are for format=raw");
        }
        Ok(())
    }
}

/// `[path=]FILE` and then any of the fields of [`Disk`], `key=value` each; a
/// comma in a path is written twice.
impl FromStr for Disk {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("disk", text, "path");
        let disk = Self {
            path: fields.required("path")?.into(),
            readonly: fields.switch("readonly")?.unwrap_or(false),
            serial: fields.take("serial"),
            format: fields.word("format", &[("raw", Format::Raw), ("qcow2", Format::Qcow2)])?,
            engine: fields.word(
                "engine",
                &[("auto", Engine::Auto), ("sync", Engine::Sync), ("uring", Engine::Uring)],
            )?,
            direct: fields.switch("direct")?.unwrap_or(false),
            offset: fields.parse("offset")?.unwrap_or_default(),
            size: fields.parse("size")?,
            queues: fields.number("queues")?,
            rate: fields.parse("rate")?,
            ops: fields.parse("ops")?,
        };
        fields.end()?;
        disk.validate()?;
        Ok(disk)
    }
}
