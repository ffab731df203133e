//! What machine to build: one tree of plain structs.
//!
//! The command line, a JSON file and later the API are views of it. Defaults
//! and the rules for a single field stand beside the field; what can only be
//! said with the host or the files at hand is checked when the machine is built.

mod balloon;
mod console;
mod device;
mod disk;
mod fields;
mod limit;
mod metrics;
mod net;
mod size;
mod spectrum;
#[cfg(test)]
mod tests;

pub use balloon::{Balloon, Rng};
pub use console::{Console, Port, PortTo};
pub use device::{Share, Vsock};
pub use disk::{Disk, Format};
pub use limit::Limit;
pub use metrics::{MetricsConfig, MetricsFormat, MetricsTarget};
pub use net::{
    Forward, MAX_STATIONS, Net, NetBackend, Protocol, Segment, UserBackend, UserNet, Vhost,
};
pub use size::Size;
pub use spectrum::{BoardKind, Choices, DiskBus, Intr, Mode, NetModel, PvFeatures};

use devices::backend::vsock::MAX_PATH as MAX_UDS;
use devices::virtio::vsock::CIDS;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// The least guest memory that Linux is given: 32 MiB.
pub const MIN_MEMORY: u64 = 32 << 20;
/// The most guest memory: 1 TiB, well inside the 46 physical address bits that
/// every host with nested paging has.
pub const MAX_MEMORY: u64 = 1 << 40;
/// The most vCPUs of a machine.
pub const MAX_CPUS: u32 = 32;
/// The longest path of a Unix socket.
const MAX_SOCKET: usize = 107;
/// The most devices that may be asked for: one interrupt line each.
pub const MAX_DEVICES: usize = 16;

/// A machine, as its user asks for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The guest kernel: a bzImage or an uncompressed ELF vmlinux.
    pub kernel: PathBuf,
    /// The image that becomes the root device: `/dev/vda`, or `/dev/sda` on IDE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Disk>,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel command line; completed for the root device and the console.
    #[serde(default)]
    pub cmdline: String,
    /// vCPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Guest memory.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// Further disks, in the order `/dev/vdb`, `/dev/vdc`, … (from `/dev/vda`
    /// on without a rootfs).
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network cards, in the order `eth0`, `eth1`, ….
    #[serde(default)]
    pub nets: Vec<Net>,
    /// Sockets between programs of the guest and of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// Directories of the host that the guest can mount.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Memory that the guest gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// Limits of the entropy device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<Rng>,
    /// The terminal of the virtio console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    /// Named ports of the virtio console.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// How the guest reaches its virtio devices; see [`Config::transport`] for
    /// the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Where on the spectrum of virtualization the machine is.
    #[serde(default)]
    pub mode: Mode,
    /// What disks are attached to; the mode's choice by default, as for the next
    /// three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<DiskBus>,
    /// What network cards are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_model: Option<NetModel>,
    /// The image that a BIOS boots from; Debian's SeaBIOS by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// The motherboard, and how the guest is entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<BoardKind>,
    /// Who provides interrupts and timers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intr: Option<Intr>,
    /// Which of KVM's paravirtual features the guest may use.
    #[serde(default, skip_serializing_if = "disk::is_default")]
    pub pv_features: PvFeatures,
    /// The disc image in an IDE CD-ROM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<PathBuf>,
    /// Where the serial console goes; see [`Config::serial`] for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Where counters are reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// The Unix socket over which the machine is changed while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Start even where a probe says that this host's KVM can't run Linux: for
    /// guests that need less, such as tests of one's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_probe: bool,
}

fn default_cpus() -> u32 {
    1
}

fn default_memory() -> Size {
    Size(256 << 20)
}

impl Config {
    /// A machine with defaults for everything but the kernel.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            rootfs: None,
            initrd: None,
            cmdline: String::new(),
            cpus: default_cpus(),
            memory: default_memory(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            shares: Vec::new(),
            balloon: None,
            rng: None,
            console: None,
            ports: Vec::new(),
            transport: None,
            mode: Mode::default(),
            disk_bus: None,
            net_model: None,
            firmware: None,
            board: None,
            intr: None,
            pv_features: PvFeatures::default(),
            cdrom: None,
            serial: None,
            metrics: None,
            control: None,
            skip_probe: false,
        }
    }

    /// Checks all that can be said without looking at the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory.0)
            || !self.memory.0.is_multiple_of(4096)
        {
            return Err(ConfigError::Memory(self.memory));
        }
        let devices = self.all_disks().count()
            + self.nets.len()
            + self.vsock.iter().count()
            + self.shares.len()
            + self.balloon.iter().count()
            + usize::from(self.has_console());
        if devices > MAX_DEVICES {
            return Err(ConfigError::Devices(devices));
        }
        self.all_disks().try_for_each(Disk::validate)?;
        self.nets.iter().try_for_each(Net::validate)?;
        self.vsock.iter().try_for_each(Vsock::validate)?;
        self.shares.iter().try_for_each(Share::validate)?;
        for (i, share) in self.shares.iter().enumerate() {
            if self.shares.iter().skip(i + 1).any(|other| other.tag == share.tag) {
                return Err(ConfigError::SameTag(share.tag.clone()));
            }
        }
        self.balloon.iter().try_for_each(|balloon| balloon.validate(self.memory))?;
        self.rng.iter().try_for_each(Rng::validate)?;
        self.console.iter().try_for_each(Console::validate)?;
        Port::validate_all(&self.ports)?;
        if self.console == Some(Console::Stdio) && self.serial() == Serial::Stdio {
            return Err(ConfigError::BothStdio);
        }
        self.validate_choices()?;
        if let Some(path) = &self.control
            && !(1..=MAX_SOCKET).contains(&path.as_os_str().len())
        {
            return Err(ConfigError::Control(path.clone()));
        }
        if self.cmdline.bytes().any(|b| b == 0 || b == b'\n') {
            return Err(ConfigError::Cmdline);
        }
        Ok(())
    }

    /// Where the serial console goes: to standard input and output, unless that
    /// is said otherwise or the virtio console is there.
    pub fn serial(&self) -> Serial {
        match (&self.serial, &self.console) {
            (Some(serial), _) => serial.clone(),
            (None, Some(Console::Stdio)) => Serial::Off,
            (None, _) => Serial::default(),
        }
    }

    /// Whether the guest has standard input, by whichever console.
    pub fn uses_stdio(&self) -> bool {
        self.console == Some(Console::Stdio) || self.serial() == Serial::Stdio
    }

    /// Whether the virtio console has a terminal.
    pub fn has_terminal(&self) -> bool {
        !matches!(self.console, None | Some(Console::Off))
    }

    /// Whether there is a virtio console at all.
    pub fn has_console(&self) -> bool {
        self.has_terminal() || !self.ports.is_empty()
    }

    /// Whether a device accepts clients of Unix sockets.
    pub fn has_sockets(&self) -> bool {
        self.vsock.is_some()
            || matches!(self.console, Some(Console::Socket(_)))
            || self.ports.iter().any(|port| matches!(port.to, PortTo::Socket(_)))
    }

    /// The root disk, if any, and then all others: the order of `/dev/vd*`.
    pub fn all_disks(&self) -> impl Iterator<Item = &Disk> {
        self.rootfs.iter().chain(&self.disks)
    }
}

/// What carries virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// virtio-mmio, a line of the IOAPIC each.
    Mmio,
    /// virtio-pci, with MSI-X.
    Pci,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mmio" => Ok(Self::Mmio),
            "pci" => Ok(Self::Pci),
            _ => Err("must be mmio or pci".to_owned()),
        }
    }
}

/// A configuration that can't be built anywhere.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Too few or too many vCPUs.
    #[error("cpus: {0}: must be 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Too little or too much memory.
    #[error("memory: {0}: must be {min} to {max}, in whole pages of 4 KiB", min = Size(MIN_MEMORY), max = Size(MAX_MEMORY))]
    Memory(Size),
    /// Too many devices.
    #[error("{0} virtio devices: at most {MAX_DEVICES} fit, beside the entropy device")]
    Devices(usize),
    /// Switches that don't go together.
    #[error("{what} {value}: {why}")]
    Choice {
        /// The switch.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// More drives than two channels have.
    #[error("{0} IDE drives: at most 4 fit: use --disk-bus virtio")]
    Drives(usize),
    /// A disk without a file.
    #[error("disk: an empty path: give path=FILE")]
    DiskPath,
    /// A serial number that doesn't fit virtio-blk's 20 bytes.
    #[error("disk {path}: serial {serial:?}: at most 20 printable ASCII characters")]
    DiskSerial {
        /// The image.
        path: String,
        /// The serial number.
        serial: String,
    },
    /// Fields of a disk that don't go together.
    #[error("disk {path}: {why}")]
    Disk {
        /// The image.
        path: String,
        /// What to do.
        why: &'static str,
    },
    /// A name that no network interface can have.
    #[error("net: tap name {0:?}: must be 1 to 15 characters without '/' or white space")]
    TapName(String),
    /// A network card that can't be so.
    #[error("net {net}: {why}")]
    Net {
        /// The card.
        net: String,
        /// What to do.
        why: &'static str,
    },
    /// Not a unicast MAC address.
    #[error("net {net}: mac {mac:?}: must be six hex bytes like 02:00:00:00:00:01, not multicast")]
    Mac {
        /// The interface, or `user`.
        net: String,
        /// The address.
        mac: String,
    },
    /// Too many forwarded ports.
    #[error("net user: {0} ports forwarded: at most {max} can be", max = net::MAX_FORWARDS)]
    Forwards(usize),
    /// No such station in a segment.
    #[error("net segment: stations must be 1 to {most}, station less than that", most = net::MAX_STATIONS)]
    Stations,
    /// A path that no socket's address can hold.
    #[error("vsock: uds {0:?}: must be a path of 1 to {MAX_UDS} bytes")]
    Uds(PathBuf),
    /// Not a guest's context ID.
    #[error("vsock: cid {0}: must be {min} to {max}", min = CIDS.start(), max = CIDS.end())]
    Cid(u32),
    /// A share without a usable name or a path.
    #[error("share {0:?}: tag must be 1 to 36 printable ASCII characters, and path a directory")]
    Share(String),
    /// Two shares that a guest can't tell apart.
    #[error("share {0:?}: there are two of that tag")]
    SameTag(String),
    /// More than the guest has.
    #[error("balloon: size {size}: must be at most the guest's memory, {memory}")]
    BalloonSize {
        /// What was asked for.
        size: Size,
        /// The guest's memory.
        memory: Size,
    },
    /// Nobody waits that long.
    #[error("balloon: stats {0}: must be 0 to 86400 seconds")]
    BalloonStats(u32),
    /// Nothing would ever come, or there is no limit.
    #[error("rng: rate {rate}, burst {burst}: each must be 1 to 1T")]
    RngRate {
        /// Bytes in a second.
        rate: Size,
        /// Bytes at once.
        burst: Size,
    },
    /// One terminal for two consoles.
    #[error("console and serial: both stdio: give --serial off or --serial file=PATH")]
    BothStdio,
    /// A path that no socket's address can hold.
    #[error("port: socket {0:?}: must be a path of 1 to 107 bytes")]
    PortSocket(PathBuf),
    /// A path that no socket's address can hold.
    #[error("control {0:?}: must be a path of 1 to {MAX_SOCKET} bytes")]
    Control(PathBuf),
    /// A name that a guest can't show.
    #[error("port: name {0:?}: must be 1 to 64 printable ASCII characters without '/'")]
    PortName(String),
    /// One name for two ports.
    #[error("port: name {0:?}: given twice")]
    PortTwice(String),
    /// Too many ports.
    #[error("{0} ports: at most {max} fit", max = devices::virtio::console::MAX_PORTS)]
    Ports(usize),
    /// The command line holds a character that would end it.
    #[error("cmdline: must be one line without NUL")]
    Cmdline,
    /// A shorthand that can't be read.
    #[error("{what} {text:?}: {why}")]
    Parse {
        /// What was being read.
        what: &'static str,
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Where the serial console goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Serial {
    /// The monitor's own standard input and output.
    #[default]
    Stdio,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// The port is there and leads nowhere.
    Off,
}

/// `stdio`, `off` or `file=PATH`.
impl FromStr for Serial {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "off" => Ok(Self::Off),
            _ => match text.strip_prefix("file=") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err(ConfigError::Parse {
                    what: "serial",
                    text: text.to_owned(),
                    why: "must be stdio, off or file=PATH".to_owned(),
                }),
            },
        }
    }
}
