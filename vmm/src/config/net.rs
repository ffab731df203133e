//! Network cards, as their user asks for them.

use super::ConfigError;
use super::disk::is_default;
use super::fields::Fields;
use super::limit::Limit;
pub use devices::backend::segment::MAX_STATIONS;
use devices::virtio::net::{MAX_PAIRS, MTUS};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// The most forwarded ports of a card.
pub const MAX_FORWARDS: usize = 64;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// What it is connected to: `"tap": NAME` or `"user": {…}`.
    #[serde(flatten)]
    pub backend: NetBackend,
    /// The card's address; derived from the interface's name, or the card's
    /// number, by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet, of the guest and of its interface; the interface's
    /// own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Pairs of queues; see [`Net::pairs`] for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u32>,
    /// Bytes that may be received, and as many that may be sent, in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Limit>,
    /// Frames, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Limit>,
    /// Whether the host's kernel moves the frames.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vhost: Vhost,
}

/// Whether the host's kernel moves a card's frames (vhost-net).
///
/// Off by default: what a guest writes into its rings is then read by the kernel
/// itself, where a mistake is everybody's, and on one processor it saves next to
/// nothing (nothing that could be told from noise in the counting rig). Where
/// there are processors to spare, its threads are worth more: one for each pair
/// of queues, and not the event loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vhost {
    /// The monitor moves them.
    #[default]
    Off,
    /// The kernel does, or the machine does not start.
    On,
    /// The kernel does where it can and may, and there are no limits.
    Auto,
}

/// Pairs of queues where nobody says how many, at most: more would cost the
/// guest memory and bring little.
const DEFAULT_PAIRS: u32 = 8;

/// What a network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// The host's TAP interface of that name.
    Tap(String),
    /// The host's own network, as a program of the user reaches it.
    User(UserNet),
    /// An Ethernet among machines of the user's.
    Segment(Segment),
}

/// A place in an Ethernet segment (`devices::backend::segment`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// What the paths of its stations' sockets begin with.
    pub path: PathBuf,
    /// Which station this is.
    pub station: u16,
    /// How many there are.
    pub stations: u16,
}

/// A network behind the user's own sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNet {
    /// Who moves the frames.
    #[serde(default)]
    pub backend: UserBackend,
    /// Ports of the host that lead into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostfwd: Vec<Forward>,
    /// The guest reaches the host's own loopback address through its gateway.
    #[serde(default, rename = "host-loopback", skip_serializing_if = "std::ops::Not::not")]
    pub host_loopback: bool,
}

/// Who moves the frames of a user-mode network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserBackend {
    /// passt where it is installed, else the monitor.
    #[default]
    Auto,
    /// The program passt.
    Passt,
    /// The monitor.
    Internal,
}

/// A protocol whose ports can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest:
/// `tcp|udp:[ADDRESS]:PORT-:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Connections or datagrams.
    pub protocol: Protocol,
    /// Where the host listens: its loopback address where nothing is said, so
    /// that a guest is not shown to the world by accident.
    pub address: Ipv4Addr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (protocol, rest) = text.split_once(':')?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            let (host, guest) = rest.split_once("-:")?;
            let (address, host) = host.rsplit_once(':')?;
            let address = match address {
                "" => Ipv4Addr::LOCALHOST,
                text => text.parse().ok()?,
            };
            Some(Self { protocol, address, host: port(host)?, guest: port(guest)? })
        };
        read().ok_or_else(|| {
            format!("hostfwd={text}: must be tcp:[ADDRESS]:PORT-:PORT or udp:… with IPv4")
        })
    }
}

/// A port, and not the one that means any.
fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}:{}-:{}", self.address, self.host, self.guest)
    }
}

impl TryFrom<String> for Forward {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

impl Net {
    /// A card, with everything else as it is by default.
    pub fn on(backend: NetBackend) -> Self {
        let (mac, mtu, queues, rate, ops) = (None, None, None, None, None);
        Self { backend, mac, mtu, queues, rate, ops, vhost: Vhost::Off }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.backend.validate()?;
        let net = || self.backend.name().to_owned();
        if let Some(mac) = self.mac.as_ref().filter(|mac| parse_mac(mac).is_none()) {
            return Err(ConfigError::Mac { net: net(), mac: mac.clone() });
        }
        let refuse = |why| Err(ConfigError::Net { net: net(), why });
        if self.queues.is_some_and(|n| !(1..=MAX_PAIRS as u32).contains(&n)) {
            return refuse("queues= must be 1 to 16");
        }
        if self.mtu.is_some_and(|mtu| !MTUS.contains(&mtu)) {
            return refuse("mtu= must be 68 to 65521");
        }
        if self.vhost == Vhost::On && (self.rate.is_some() || self.ops.is_some()) {
            return refuse("rate= and ops= are for vhost=off: the kernel has no limits");
        }
        let plain = self.queues.is_none() && self.mtu.is_none() && self.vhost == Vhost::Off;
        let is_tap = matches!(self.backend, NetBackend::Tap(_));
        if !is_tap && !plain {
            return refuse("queues=, mtu= and vhost= are for tap=");
        }
        if self.mac.is_some() && matches!(self.backend, NetBackend::Segment(_)) {
            return refuse("mac= is not for segment=: a card's address names its station");
        }
        Ok(())
    }

    /// How many pairs of queues there are to be, and whether fewer will do: one
    /// for each vCPU by default, where the interface allows that.
    pub fn pairs(&self, cpus: u32) -> (usize, bool) {
        match self.queues {
            Some(asked) => (asked as usize, false),
            None => (cpus.clamp(1, DEFAULT_PAIRS) as usize, true),
        }
    }

    /// The address as bytes, if one was given and is valid.
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        self.mac.as_deref().and_then(parse_mac)
    }

    /// Its part of the network of the user's own sockets, if it is there.
    pub fn user(&self) -> Option<&UserNet> {
        match &self.backend {
            NetBackend::Tap(_) | NetBackend::Segment(_) => None,
            NetBackend::User(user) => Some(user),
        }
    }
}

impl NetBackend {
    /// What a message calls the card.
    pub fn name(&self) -> &str {
        match self {
            Self::Tap(tap) => tap,
            Self::User(_) => "user",
            Self::Segment(_) => "segment",
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Tap(tap) => {
                let ok = (1..=15).contains(&tap.len())
                    && tap.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
                if ok { Ok(()) } else { Err(ConfigError::TapName(tap.clone())) }
            }
            Self::User(user) if user.hostfwd.len() > MAX_FORWARDS => {
                Err(ConfigError::Forwards(user.hostfwd.len()))
            }
            Self::User(_) => Ok(()),
            Self::Segment(segment) => {
                let some = (1..=MAX_STATIONS).contains(&segment.stations);
                let ok = some && segment.station < segment.stations;
                if ok { Ok(()) } else { Err(ConfigError::Stations) }
            }
        }
    }

    fn take(fields: &mut Fields, kind: &str) -> Result<Self, ConfigError> {
        match kind {
            "user" => {}
            "segment" => return Segment::take(fields).map(Self::Segment),
            _ => return Ok(Self::Tap(fields.required("tap")?)),
        }
        let words = [
            ("auto", UserBackend::Auto),
            ("passt", UserBackend::Passt),
            ("internal", UserBackend::Internal),
        ];
        let backend = fields.word("backend", &words)?;
        let mut hostfwd = Vec::new();
        while let Some(text) = fields.take("hostfwd") {
            hostfwd.push(text.parse().map_err(|why| fields.error(why))?);
        }
        let host_loopback = fields.switch("host-loopback")?.unwrap_or(false);
        Ok(Self::User(UserNet { backend, hostfwd, host_loopback }))
    }
}

impl Segment {
    fn take(fields: &mut Fields) -> Result<Self, ConfigError> {
        let number = |number: Option<u32>| u16::try_from(number.unwrap_or(0)).unwrap_or(u16::MAX);
        let path = PathBuf::from(fields.required("segment")?);
        let station = number(fields.number("station")?);
        Ok(Self { path, station, stations: number(fields.number("stations")?) })
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

/// A number that [`Net::validate`] judges; one that is too large for it is as
/// wrong as the largest.
fn mtu(fields: &mut Fields) -> Result<Option<u16>, ConfigError> {
    Ok(fields.number("mtu")?.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX)))
}

/// `tap=NAME`, `user` or `segment=PATH`, and then more fields.
impl FromStr for Net {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let first = text.split(',').next().unwrap_or_default();
        let kind = match first.split_once('=').map_or(first, |(name, _)| name) {
            "user" if first == "user" => "user",
            "segment" if first != "segment" => "segment",
            _ => "tap",
        };
        let mut fields = Fields::new("net", text, kind);
        if kind == "user" {
            fields.take("user");
        }
        let vhost = [("off", Vhost::Off), ("on", Vhost::On), ("auto", Vhost::Auto)];
        let net = Self {
            backend: NetBackend::take(&mut fields, kind)?,
            mac: fields.take("mac"),
            mtu: mtu(&mut fields)?,
            queues: fields.number("queues")?,
            rate: fields.parse("rate")?,
            ops: fields.parse("ops")?,
            vhost: fields.word("vhost", &vhost)?,
        };
        fields.end()?;
        net.validate()?;
        Ok(net)
    }
}
