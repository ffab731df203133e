//! What machine to build: one tree of plain structs.
//!
//! The command line, a JSON file and later the API are views of it. Defaults
//! and the rules for a single field stand beside the field; what can only be
//! said with the host or the files at hand is checked when the machine is built.

use devices::backend::vsock::MAX_PATH as MAX_UDS;
use devices::virtio::vsock::CIDS;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// The least guest memory that Linux is given: 32 MiB.
pub const MIN_MEMORY: u64 = 32 << 20;
/// The most guest memory: 1 TiB, well inside the 46 physical address bits that
/// every host with nested paging has.
pub const MAX_MEMORY: u64 = 1 << 40;
/// The most vCPUs of a machine.
pub const MAX_CPUS: u32 = 32;
/// The most disks, network cards and vsock together: one interrupt line each.
pub const MAX_DEVICES: usize = 16;

/// A machine, as its user asks for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The guest kernel: a bzImage or an uncompressed ELF vmlinux.
    pub kernel: PathBuf,
    /// The image that becomes the root device, `/dev/vda`.
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
    /// How the guest reaches its virtio devices.
    #[serde(default)]
    pub transport: Transport,
    /// Where the serial console goes.
    #[serde(default)]
    pub serial: Serial,
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
            transport: Transport::default(),
            serial: Serial::default(),
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
        let devices = self.all_disks().count() + self.nets.len() + self.vsock.iter().count();
        if devices > MAX_DEVICES {
            return Err(ConfigError::Devices(devices));
        }
        self.all_disks().try_for_each(Disk::validate)?;
        self.nets.iter().try_for_each(Net::validate)?;
        self.vsock.iter().try_for_each(Vsock::validate)?;
        if self.cmdline.bytes().any(|b| b == 0 || b == b'\n') {
            return Err(ConfigError::Cmdline);
        }
        Ok(())
    }

    /// The root disk, if any, and then all others: the order of `/dev/vd*`.
    pub fn all_disks(&self) -> impl Iterator<Item = &Disk> {
        self.rootfs.iter().chain(&self.disks)
    }
}

/// What carries virtio devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// virtio-mmio, a line of the IOAPIC each.
    #[default]
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
    #[error("{0} disks, network cards and vsock: at most {MAX_DEVICES} fit")]
    Devices(usize),
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
    /// A name that no network interface can have.
    #[error("net: tap name {0:?}: must be 1 to 15 characters without '/' or white space")]
    TapName(String),
    /// Not a unicast MAC address.
    #[error("net {tap}: mac {mac:?}: must be six hex bytes like 02:00:00:00:00:01, not multicast")]
    Mac {
        /// The interface.
        tap: String,
        /// The address.
        mac: String,
    },
    /// A path that no socket's address can hold.
    #[error("vsock: uds {0:?}: must be a path of 1 to {MAX_UDS} bytes")]
    Uds(PathBuf),
    /// Not a guest's context ID.
    #[error("vsock: cid {0}: must be {min} to {max}", min = CIDS.start(), max = CIDS.end())]
    Cid(u32),
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

/// A disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The raw image, a file or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest sees as `/sys/block/vd*/serial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

impl Disk {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::DiskPath);
        }
        match &self.serial {
            Some(s) if s.len() > 20 || !s.bytes().all(|b| b.is_ascii_graphic()) => {
                Err(ConfigError::DiskSerial {
                    path: self.path.display().to_string(),
                    serial: s.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// `[path=]FILE[,readonly=on|off][,serial=TEXT]`; a comma in a path is written twice.
impl FromStr for Disk {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("disk", text, "path");
        let disk = Self {
            path: fields.required("path")?.into(),
            readonly: fields.switch("readonly")?.unwrap_or(false),
            serial: fields.take("serial"),
        };
        fields.end()?;
        disk.validate()?;
        Ok(disk)
    }
}

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
    fn validate(&self) -> Result<(), ConfigError> {
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
    fn validate(&self) -> Result<(), ConfigError> {
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

/// A number of bytes, written with a binary suffix: `512M`, `2G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SUFFIXES: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for Size {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError::Parse {
            what: "size",
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let unit = text.strip_suffix("iB").or(text.strip_suffix('B')).unwrap_or(text);
        let last = unit.chars().last().map(|c| c.to_ascii_uppercase());
        let (digits, shift) = match SUFFIXES.iter().find(|(c, _)| Some(*c) == last) {
            Some((_, shift)) => (&unit[..unit.len() - 1], *shift),
            None => (unit, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("must be a whole number with K, M, G or T, like 512M"));
        }
        let n: u64 = digits.parse().map_err(|_| bad("too large"))?;
        n.checked_mul(1 << shift).map(Self).ok_or_else(|| bad("too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match SUFFIXES.iter().rev().find(|(_, shift)| fits(*shift)) {
            Some((c, shift)) => write!(f, "{}{c}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Bytes(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Bytes(n) => Ok(Self(n)),
            Raw::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The fields of a `key=value,key=value` shorthand.
struct Fields<'a> {
    what: &'static str,
    text: &'a str,
    fields: Vec<(String, String)>,
}

impl<'a> Fields<'a> {
    /// Splits `text` at single commas. The first field may leave out its key,
    /// which is then `first`.
    fn new(what: &'static str, text: &'a str, first: &str) -> Self {
        // A doubled comma stands for one in the value.
        let protected = text.replace(",,", "\0");
        let fields = protected
            .split(',')
            .enumerate()
            .map(|(i, field)| {
                let field = field.replace('\0', ",");
                match field.split_once('=') {
                    Some((k, v)) if i > 0 || is_key(k) => (k.to_owned(), v.to_owned()),
                    _ if i == 0 => (first.to_owned(), field),
                    _ => (field, String::new()),
                }
            })
            .collect();
        Self { what, text, fields }
    }

    fn error(&self, why: String) -> ConfigError {
        ConfigError::Parse { what: self.what, text: self.text.to_owned(), why }
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.fields.iter().position(|(k, _)| k == key)?;
        Some(self.fields.remove(at).1)
    }

    fn required(&mut self, key: &str) -> Result<String, ConfigError> {
        match self.take(key) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.error(format!("{key}= is missing"))),
        }
    }

    fn switch(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(_) => Err(self.error(format!("{key}= must be on or off"))),
        }
    }

    /// Whatever nobody asked for is a mistake.
    fn end(self) -> Result<(), ConfigError> {
        match self.fields.first() {
            Some((key, _)) => Err(self.error(format!("unknown or repeated field {key:?}"))),
            None => Ok(()),
        }
    }
}

/// Whether the text before a `=` in the first field can be a key, so that a
/// plain path with a `=` in it still works.
fn is_key(text: &str) -> bool {
    matches!(text, "path" | "readonly" | "serial" | "tap" | "mac" | "uds" | "cid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("4096", 4096),
            ("64k", 65536),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes);
        }
        for text in ["", "M", "1.5G", "-1", "1X", "99999999999999999999", "99999999T", "١G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(Size(1536 << 20).to_string(), "1536M");
    }

    #[test]
    fn disks_are_read_from_their_shorthand() {
        let disk: Disk = "path=/a,,b=c.img,readonly=on,serial=S1".parse().unwrap();
        assert_eq!(
            disk,
            Disk { path: "/a,b=c.img".into(), readonly: true, serial: Some("S1".into()) }
        );
        let plain: Disk = "odd=name.img".parse().unwrap();
        assert_eq!(plain.path, PathBuf::from("odd=name.img"));
        for text in [
            "",
            "path=",
            "a,readonly=yes",
            "a,colour=red",
            "a,readonly=on,readonly=off",
            "a,readonly",
        ] {
            assert!(text.parse::<Disk>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_read_from_their_shorthand() {
        let net: Net = "tap=vmtap0,mac=02:00:00:00:00:0a".parse().unwrap();
        assert_eq!(net.mac_bytes(), Some([2, 0, 0, 0, 0, 10]));
        for text in [
            "tap=",
            "tap=a/b",
            "tap=sixteen-letters-",
            "tap=x,mac=01:00:00:00:00:00",
            "tap=x,mac=02:00",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_vsock_is_read_from_its_shorthand() {
        let vsock: Vsock = "uds=/run/v,,s,cid=42".parse().unwrap();
        assert_eq!(vsock, Vsock { uds: "/run/v,s".into(), cid: 42 });
        assert_eq!("v".parse::<Vsock>().unwrap().cid, 3);
        let long = format!("uds={}", "x".repeat(MAX_UDS + 1));
        for text in [
            "uds=",
            "cid=3",
            "v,cid=2",
            "v,cid=4294967295",
            "v,cid=4294967296",
            "v,cid=x",
            "v,cid=",
            "v,colour=red",
            &long,
        ] {
            assert!(text.parse::<Vsock>().is_err(), "{text}");
        }
        assert_eq!("v,cid=4294967294".parse::<Vsock>().unwrap().cid, u32::MAX - 1);
    }

    #[test]
    fn a_file_says_no_more_and_no_less_than_the_command_line() {
        let mut config = Config::new("/k");
        config.rootfs = Some("/r,readonly=on".parse().unwrap());
        config.nets.push("tap=t0".parse().unwrap());
        config.vsock = Some("uds=/v,cid=7".parse().unwrap());
        config.serial = Serial::File("/log".into());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<Config>(r#"{"kernel":"/k"}"#).unwrap(),
            Config::new("/k")
        );
        assert!(serde_json::from_str::<Config>(r#"{"kernel":"/k","colour":1}"#).is_err());
    }

    #[test]
    fn limits_are_checked() {
        let with = |f: fn(&mut Config)| {
            let mut c = Config::new("/k");
            f(&mut c);
            c.validate()
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|c| c.cpus = 0).is_err());
        assert!(with(|c| c.cpus = 33).is_err());
        assert!(with(|c| c.memory = Size(MIN_MEMORY - 4096)).is_err());
        assert!(with(|c| c.memory = Size(MIN_MEMORY + 1)).is_err());
        assert!(with(|c| c.cmdline = "a\nb".into()).is_err());
        assert!(with(|c| c.disks = vec!["/d".parse().unwrap(); 17]).is_err());
        assert!(with(|c| c.vsock = Some("v".parse().unwrap())).is_ok());
        let cid = with(|c| c.vsock = Some(Vsock { uds: "v".into(), cid: 2 }));
        assert_eq!(cid, Err(ConfigError::Cid(2)));
        assert!(with(|c| c.vsock = Some(Vsock { uds: "".into(), cid: 3 })).is_err());
        let full = |c: &mut Config| {
            c.disks = vec!["/d".parse().unwrap(); 16];
            c.vsock = Some("v".parse().unwrap());
        };
        assert_eq!(with(full), Err(ConfigError::Devices(17)));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_shorthands_panic(text in ".{0,60}") {
            let _ = (text.parse::<Disk>(), text.parse::<Net>(), text.parse::<Vsock>(), text.parse::<Size>(), text.parse::<Serial>());
        }

        #[test]
        fn a_size_survives_being_written(n in any::<u64>()) {
            prop_assert_eq!(Size(n).to_string().parse::<Size>().unwrap(), Size(n));
        }
    }
}
