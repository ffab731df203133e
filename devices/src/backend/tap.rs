//! A TAP interface (Linux `Documentation/networking/tuntap.rst`): frames go in
//! and out with a virtio header in front, so that checksums and segmentation
//! can be left to whoever does them best.

use super::link::LinkWatch;
use crate::virtio::net::{NetBackend, features};
use crate::virtio::queue::IoVecs;
use libc::{c_int, c_uint, c_ulong, iovec};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const TUN_DEVICE: &str = "/dev/net/tun";
/// `linux/if_tun.h`.
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNGETIFF: c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUNSETQUEUE: c_ulong = 0x4004_54d9;
const IFF_ATTACH_QUEUE: c_int = 0x0200;
const IFF_DETACH_QUEUE: c_int = 0x0400;
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;
/// `linux/sockios.h`.
const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCGIFMTU: c_ulong = 0x8921;
const SIOCSIFMTU: c_ulong = 0x8922;
const SIOCETHTOOL: c_ulong = 0x8946;
/// `linux/ethtool.h`.
const ETHTOOL_GLINK: u32 = 0x0a;

/// Size of the virtio header in front of each frame.
const HEADER: c_int = 12;

/// Pieces of a frame up to which receiving it allocates nothing.
const FEW_IOVECS: usize = 64;

/// Why a TAP can't be used; each names the interface and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have such a name.
    #[error("net {tap}: not an interface's name: it has 1 to 15 bytes, and no space, /, : or %")]
    Name {
        /// What was asked for.
        tap: String,
    },
    /// The tun driver can't be reached.
    #[error(
        "net {tap}: {TUN_DEVICE}: {source}: load the tun module (modprobe tun) or ask for access"
    )]
    Driver {
        /// The interface.
        tap: String,
        /// What the host said.
        source: io::Error,
    },
    /// There is no such interface, and the caller may not make one.
    #[error("net {tap}: no such interface: {}", create(tap))]
    Missing {
        /// The interface.
        tap: String,
    },
    /// The interface is another user's.
    #[error("net {tap}: no permission: it is another user's; {}", create(tap))]
    Permission {
        /// The interface.
        tap: String,
    },
    /// Another program has it.
    #[error("net {tap}: in use by another program")]
    Busy {
        /// The interface.
        tap: String,
    },
    /// Several queues were asked for, and it was made for one.
    #[error(
        "net {tap}: made for one queue: make it with: ip tuntap add {tap} mode tap multi_queue user $USER; or give queues=1"
    )]
    OneQueue {
        /// The interface.
        tap: String,
    },
    /// The interface has another MTU, which the caller may not change.
    #[error("net {tap}: its MTU is {has}, not {wanted}: ip link set {tap} mtu {wanted}")]
    Mtu {
        /// The interface.
        tap: String,
        /// Its MTU.
        has: u16,
        /// The one asked for.
        wanted: u16,
    },
    /// There is an interface of that name, and it is no TAP.
    #[error("net {tap}: not a TAP interface; {}", create(tap))]
    Kind {
        /// The interface.
        tap: String,
    },
    /// Anything else.
    #[error("net {tap}: {what}: {source}")]
    Io {
        /// The interface.
        tap: String,
        /// The step.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// How to get an interface that can be used.
fn create(tap: &str) -> String {
    format!(
        "create one for your user with: \
         ip tuntap add {tap} mode tap user $USER && ip link set {tap} up"
    )
}

/// How many queues of a TAP are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// So many, or else it is an error.
    Exactly(usize),
    /// So many if it has been made for several, else one.
    UpTo(usize),
}

/// A queue of an open TAP.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
    segments_udp: bool,
    /// Frames come to this queue.
    attached: bool,
    /// Follows the interface; the first queue's, of one that we have opened
    /// ourselves: another's may be in another network namespace.
    link: Option<LinkWatch>,
    /// The interface's MTU, where it could be read.
    pub mtu: Option<u16>,
}

impl Tap {
    /// Opens the interface `tap`, or makes it where the caller may, with one
    /// queue.
    pub fn open(tap: &str) -> Result<Self, TapError> {
        let name = || tap.to_owned();
        let found = Self::open_queues(tap, Queues::Exactly(1))?.pop();
        let source = io::Error::other("no queue");
        found.ok_or_else(|| TapError::Io { tap: name(), what: "TUNSETIFF", source })
    }

    /// The same with several queues. Only the first one takes part at once.
    pub fn open_queues(tap: &str, wanted: Queues) -> Result<Vec<Self>, TapError> {
        if !is_name(tap) {
            return Err(TapError::Name { tap: tap.to_owned() });
        }
        let taken = has_carrier(tap);
        let (Queues::Exactly(count) | Queues::UpTo(count)) = wanted;
        let mut first = match (count, wanted) {
            (0 | 1, _) => Self::attach(tap, false).or_else(|e| match e {
                TapError::Kind { .. } => Self::attach(tap, true),
                e => Err(e),
            })?,
            (_, Queues::UpTo(_)) => match Self::attach(tap, true) {
                Err(TapError::Kind { .. }) => {
                    let mut one = Self::attach(tap, false)?;
                    one.follow();
                    return Ok(vec![one]);
                }
                other => other?,
            },
            (_, Queues::Exactly(_)) => Self::attach(tap, true).map_err(|e| match e {
                TapError::Kind { tap } if Self::attach(&tap, false).is_ok() => {
                    TapError::OneQueue { tap }
                }
                e => e,
            })?,
        };
        // Several programs can share the queues of one interface, and each
        // would miss what the others get.
        if taken {
            return Err(TapError::Busy { tap: tap.to_owned() });
        }
        first.follow();
        let mut queues = vec![first];
        for _ in 1..count {
            let mut more = Self::attach(tap, true)?;
            let error = |source| TapError::Io { tap: tap.to_owned(), what: "TUNSETQUEUE", source };
            more.enable(false).map_err(error)?;
            queues.push(more);
        }
        Ok(queues)
    }

    /// The card's link will be as the interface is.
    fn follow(&mut self) {
        match LinkWatch::new(&self.name, || is_up(&self.name)) {
            Ok(link) => {
                if !link.up() {
                    let tap = &self.name;
                    log::warn!("net {tap}: the interface is down: ip link set {tap} up");
                }
                self.link = Some(link);
            }
            Err(e) => log::info!("net {}: not followed when it goes down: {e}", self.name),
        }
    }

    /// Opens one queue of an interface that has one, or several.
    fn attach(tap: &str, several: bool) -> Result<Self, TapError> {
        let name = || tap.to_owned();
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).write(true).custom_flags(flags).open(TUN_DEVICE);
        let file = file.map_err(|source| TapError::Driver { tap: name(), source })?;
        let existed = exists(tap);
        attach(&file, tap, several).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if !existed => TapError::Missing { tap: name() },
            Some(libc::EPERM | libc::EACCES) => TapError::Permission { tap: name() },
            Some(libc::EBUSY) => TapError::Busy { tap: name() },
            Some(libc::EINVAL) => TapError::Kind { tap: name() },
            _ => TapError::Io { tap: name(), what: "TUNSETIFF", source },
        })?;
        Self::prepare(tap, file, true, mtu(tap))
    }

    /// Takes a queue of an interface that somebody else has opened, and its MTU:
    /// both can only be had with rights that the caller may lack. `tap` is for
    /// messages.
    pub fn adopt(tap: &str, file: File, mtu: Option<u16>) -> Result<Self, TapError> {
        let io = |what| move |source| TapError::Io { tap: tap.to_owned(), what, source };
        let flags = flags_of(&file).map_err(|_| TapError::Kind { tap: tap.to_owned() })?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::Kind { tap: tap.to_owned() });
        }
        let nonblocking = libc::O_NONBLOCK;
        // SAFETY: F_SETFL takes its argument by value.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, nonblocking) })
            .map_err(io("O_NONBLOCK"))?;
        Self::prepare(tap, file, flags & IFF_DETACH_QUEUE == 0, mtu)
    }

    /// The header in front of frames, and no offloads until a driver wants them.
    fn prepare(tap: &str, file: File, attached: bool, mtu: Option<u16>) -> Result<Self, TapError> {
        let io = |what| move |source| TapError::Io { tap: tap.to_owned(), what, source };
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &HEADER) })
            .map_err(io("TUNSETVNETHDRSZ"))?;
        let (name, segments_udp) = (tap.to_owned(), false);
        let mut opened = Self { name, file, segments_udp, attached, link: None, mtu };
        // USO came with Linux 6.2; asking is the only way to know.
        opened.segments_udp = opened.offload(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        opened.offload(0).map_err(io("TUNSETOFFLOAD"))?;
        Ok(opened)
    }

    /// Makes sure that the interface has this MTU: sets it, where the caller may.
    pub fn require_mtu(&mut self, wanted: u16) -> Result<(), TapError> {
        if self.mtu == Some(wanted) {
            return Ok(());
        }
        let mut request = interface_request(&self.name);
        request.ifr_ifru.ifru_mtu = wanted.into();
        if let Err(source) = ask(&mut request, SIOCSIFMTU) {
            let tap = self.name.clone();
            return Err(match (source.raw_os_error(), self.mtu) {
                (Some(libc::EPERM), Some(has)) => TapError::Mtu { tap, has, wanted },
                _ => TapError::Io { tap, what: "setting its MTU", source },
            });
        }
        self.mtu = Some(wanted);
        Ok(())
    }

    fn offload(&self, bits: c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(bits)) })
    }
}

/// Whether the kernel would take `name` as it is (`dev_valid_name`; `%` makes a
/// pattern of it).
fn is_name(name: &str) -> bool {
    let bad = |b: u8| !b.is_ascii_graphic() || matches!(b, b'/' | b':' | b'%');
    (1..libc::IFNAMSIZ).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(bad)
}

fn exists(name: &str) -> bool {
    // SAFETY: the name is a C string that outlives the call.
    CString::new(name).is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

/// Ties `file` to the interface `tap`, made for one queue or for several.
fn attach(file: &File, tap: &str, several: bool) -> io::Result<()> {
    let one = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = if several { one | libc::IFF_MULTI_QUEUE } else { one };
    set_flags(file, tap, TUNSETIFF, flags)
}

fn set_flags(file: &File, tap: &str, what: c_ulong, flags: c_int) -> io::Result<()> {
    let mut request = interface_request(tap);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF and TUNSETQUEUE read, and may write, one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), what, &mut request) })
}

/// What kind of interface an open file is tied to.
fn flags_of(file: &File) -> io::Result<c_int> {
    let mut request = interface_request("");
    // SAFETY: TUNGETIFF writes one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF has filled in the flags.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// The file, for whoever hands it on to another process.
impl From<Tap> for File {
    fn from(tap: Tap) -> Self {
        tap.file
    }
}

/// An ifreq for the interface `name`, which [`is_name`] has accepted.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

/// Asks the network stack about the interface `name`.
fn query(name: &str, what: c_ulong) -> io::Result<libc::ifreq> {
    let mut request = interface_request(name);
    ask(&mut request, what)?;
    Ok(request)
}

fn ask(request: &mut libc::ifreq, what: c_ulong) -> io::Result<()> {
    // SAFETY: socket takes numbers, and the descriptor is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the requests read and write one ifreq and, if it has a pointer,
    // what that points at.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) })
}

/// Whether some program has the interface `name`, which is up: a TAP has a
/// carrier as long as it has a queue.
fn has_carrier(name: &str) -> bool {
    // `struct ethtool_value`.
    let mut value = [ETHTOOL_GLINK, 0];
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    exists(name) && ask(&mut request, SIOCETHTOOL).is_ok() && value[1] != 0
}

/// The MTU of the interface `name`.
fn mtu(name: &str) -> Option<u16> {
    let request = query(name, SIOCGIFMTU).ok()?;
    // SAFETY: SIOCGIFMTU has filled in the MTU.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

fn is_up(name: &str) -> io::Result<bool> {
    let request = query(name, SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS has filled in the flags.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl NetBackend for Tap {
    fn features(&self) -> u64 {
        use features::*;
        let uso = if self.segments_udp { GUEST_USO4 | GUEST_USO6 | HOST_USO } else { 0 };
        let guest = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
        let host = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
        guest | host | uso
    }

    /// Only what the driver is ready to receive matters to a TAP; what the
    /// driver sends is taken as its header says. Combinations that make no
    /// sense (5.1.3.1), which the kernel would refuse, are cut down.
    fn set_features(&mut self, negotiated: u64) -> io::Result<()> {
        use features::*;
        let has = |feature| negotiated & feature == feature;
        let mut bits = 0;
        if has(GUEST_CSUM) {
            bits |= TUN_F_CSUM;
            bits |= if has(GUEST_TSO4) { TUN_F_TSO4 } else { 0 };
            bits |= if has(GUEST_TSO6) { TUN_F_TSO6 } else { 0 };
            if bits != TUN_F_CSUM && has(GUEST_ECN) {
                bits |= TUN_F_TSO_ECN;
            }
            if self.segments_udp && has(GUEST_USO4 | GUEST_USO6) {
                bits |= TUN_F_USO4 | TUN_F_USO6;
            }
        }
        self.offload(bits)
    }

    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let list = frame.as_slice();
        // SAFETY: the entries point to memory that outlives the call; it is
        // only read.
        let n = unsafe { libc::writev(self.file.as_raw_fd(), list.as_ptr(), list.len() as c_int) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>> {
        let rest = iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let list = frame.as_slice();
        let mut few = [rest; FEW_IOVECS];
        let mut many = Vec::new();
        let all = match few.get_mut(..list.len() + 1) {
            Some(few) => {
                few[..list.len()].copy_from_slice(list);
                few
            }
            None => {
                many.extend(list.iter().copied().chain([rest]));
                many.as_mut_slice()
            }
        };
        // SAFETY: the entries point to memory that may be written and outlives
        // the call: the caller's list and `rest`.
        let n = unsafe { libc::readv(self.file.as_raw_fd(), all.as_ptr(), all.len() as c_int) };
        if n >= 0 {
            return Ok(Some(n as usize));
        }
        match io::Error::last_os_error() {
            e if e.kind() == ErrorKind::WouldBlock => Ok(None),
            e => Err(e),
        }
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn link(&self) -> bool {
        self.link.as_ref().is_none_or(LinkWatch::up)
    }

    fn link_source(&self) -> Option<RawFd> {
        self.link.as_ref().map(LinkWatch::source)
    }

    fn link_event(&mut self) {
        if let Some(link) = &mut self.link {
            link.look();
        }
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        if on != self.attached {
            let flag = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
            set_flags(&self.file, &self.name, TUNSETQUEUE, flag)?;
            self.attached = on;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tap_test.rs"]
pub(crate) mod tests;
