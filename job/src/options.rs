//! What a user asks for when running a job: plain data.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use vmm::config;

/// A job, as its user asks for it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The image ([`crate::image::Reference`]).
    pub image: OsString,
    /// What follows it.
    pub arguments: Vec<OsString>,
    /// Those are a program, even if the image has its own.
    pub exec: bool,
    /// The guest kernel; else it is looked for.
    pub kernel: Option<PathBuf>,
    /// vCPUs; else as many as the caller may use.
    pub cpus: Option<u32>,
    /// Guest memory in bytes; else by the caller's limits.
    pub memory: Option<u64>,
    /// `NAME=value`, or `NAME` for what the caller has.
    pub env: Vec<String>,
    /// Take nothing else of the caller's environment.
    pub clean_env: bool,
    /// The working directory.
    pub pwd: Option<PathBuf>,
    /// Who runs it.
    pub user: User,
    /// More directories of the host.
    pub binds: Vec<Bind>,
    /// Do not share the home directory.
    pub no_home: bool,
    /// Share nothing but `binds`.
    pub contain: bool,
    /// Let the job change the root file system, in memory.
    pub writable_tmpfs: bool,
    /// Let the job change the root file system, in this image.
    pub overlay: Option<PathBuf>,
    /// Whether there is a terminal; else as the caller's streams are.
    pub terminal: Option<bool>,
    /// The network card; `None` is none.
    pub network: Option<Card>,
    /// What if the host does not offer all that isolates.
    pub isolation: crate::Isolation,
    /// Where the ranks of a parallel program run.
    pub join: Join,
    /// What others find the job by.
    pub name: Option<crate::named::Name>,
    /// Where the kernel's messages go.
    pub kernel_log: Option<PathBuf>,
    /// Where counters of the machine are told.
    pub metrics: Option<config::MetricsConfig>,
}

/// A job's network card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// The card.
    pub net: config::Net,
    /// Where it is on a TAP; else it is where the user's own network has it.
    pub place: Option<CardPlace>,
}

/// An address, as whoever made the TAP has meant it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardPlace {
    /// The address.
    pub address: Ipv4Addr,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// The way to everywhere else.
    pub gateway: Option<Ipv4Addr>,
}

/// `user[,…]` or `tap=NAME,address=ADDRESS/PREFIX[,gateway=ADDRESS][,…]`.
impl FromStr for Card {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut address, mut gateway, mut rest) = (None, None, Vec::new());
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("address", value)) => address = Some(value),
                Some(("gateway", value)) => gateway = Some(value),
                _ => rest.push(field),
            }
        }
        let mut net: config::Net =
            rest.join(",").parse().map_err(|error: config::ConfigError| error.to_string())?;
        match &mut net.backend {
            config::NetBackend::User(_) if address.or(gateway).is_some() => {
                Err("address= and gateway= are for tap=".to_owned())
            }
            config::NetBackend::User(user) => {
                // One process, which leaves nothing behind.
                if user.backend == config::UserBackend::Auto {
                    user.backend = config::UserBackend::Internal;
                }
                Ok(Self { net, place: None })
            }
            config::NetBackend::Tap(_) => {
                let place = CardPlace::read(address, gateway)?;
                Ok(Self { net, place: Some(place) })
            }
            config::NetBackend::Segment(_) => Err("must be none, user or tap=NAME".to_owned()),
        }
    }
}

impl CardPlace {
    fn read(address: Option<&str>, gateway: Option<&str>) -> Result<Self, String> {
        let wrong = || "tap= needs address=ADDRESS/PREFIX, like 10.0.0.2/24".to_owned();
        let (address, prefix) = address.and_then(|text| text.split_once('/')).ok_or_else(wrong)?;
        let gateway = gateway.map(|text| {
            text.parse().map_err(|_| format!("gateway={text}: must be an IPv4 address"))
        });
        Ok(Self {
            address: address.parse().map_err(|_| wrong())?,
            prefix: prefix.parse().ok().filter(|n| *n <= 32).ok_or_else(wrong)?,
            gateway: gateway.transpose()?,
        })
    }
}

/// Who a job is in its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum User {
    /// Who runs microvm.
    #[default]
    Caller,
    /// Whom the image names.
    Image,
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "caller" => Ok(Self::Caller),
            "image" => Ok(Self::Image),
            _ => Err("must be caller or image"),
        }
    }
}

/// In which machines the ranks of a parallel program run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Join {
    /// All of a host in one.
    #[default]
    Auto,
    /// Each in its own.
    Never,
}

impl FromStr for Join {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err("must be auto or never"),
        }
    }
}

/// A directory of the host that the job sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the guest.
    pub target: PathBuf,
    /// Whether it can't be changed there.
    pub readonly: bool,
}

/// `SOURCE[:TARGET[:ro|rw]]`.
impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let source = parts.next().filter(|part| !part.is_empty()).ok_or("no directory")?;
        let target = parts.next().filter(|part| !part.is_empty()).unwrap_or(source);
        let readonly = match parts.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("{other:?} must be ro or rw")),
        };
        if parts.next().is_some() {
            return Err("must be SOURCE[:TARGET[:ro]]".to_owned());
        }
        Ok(Self { source: source.into(), target: target.into(), readonly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_on_a_tap_has_a_place() {
        let card: Card = "tap=t0,address=10.1.2.3/24,gateway=10.1.2.1,mtu=9000".parse().unwrap();
        let place = card.place.unwrap();
        assert_eq!((place.address.octets(), place.prefix), ([10, 1, 2, 3], 24));
        assert_eq!(place.gateway, Some([10, 1, 2, 1].into()));
        assert_eq!((card.net.backend.name(), card.net.mtu), ("t0", Some(9000)));
        assert_eq!("user".parse::<Card>().unwrap().place, None);
        for wrong in [
            "tap=t0",
            "tap=t0,address=10.1.2.3",
            "tap=t0,address=10.1.2.3/33",
            "tap=t0,address=x/8",
            "tap=t0,address=10.1.2.3/8,gateway=x",
            "user,address=10.1.2.3/8",
            "segment=/x,stations=2",
        ] {
            assert!(wrong.parse::<Card>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn binds_are_read_as_singularity_reads_them() {
        let bind = |source: &str, target: &str, readonly| Bind {
            source: source.into(),
            target: target.into(),
            readonly,
        };
        assert_eq!("/a".parse(), Ok(bind("/a", "/a", false)));
        assert_eq!("/a:/b".parse(), Ok(bind("/a", "/b", false)));
        assert_eq!("a:/b:ro".parse(), Ok(bind("a", "/b", true)));
        assert_eq!("/a::rw".parse(), Ok(bind("/a", "/a", false)));
        for wrong in ["", ":/b", "/a:/b:rx", "/a:/b:ro:x"] {
            assert!(wrong.parse::<Bind>().is_err(), "{wrong}");
        }
    }
}
