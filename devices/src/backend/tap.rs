//! A TAP interface (Linux `Documentation/networking/tuntap.rst`): frames go in
//! and out with a virtio header in front, so that checksums and segmentation
//! can be left to whoever does them best.

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
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;
/// `linux/sockios.h`.
const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCGIFMTU: c_ulong = 0x8921;

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

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    file: File,
    segments_udp: bool,
    /// The interface's MTU, where it could be read.
    pub mtu: Option<u16>,
}

impl Tap {
    /// Opens the interface `tap`, or makes it where the caller may.
    pub fn open(tap: &str) -> Result<Self, TapError> {
        let name = || tap.to_owned();
        if !is_name(tap) {
            return Err(TapError::Name { tap: name() });
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).write(true).custom_flags(flags).open(TUN_DEVICE);
        let file = file.map_err(|source| TapError::Driver { tap: name(), source })?;
        let existed = exists(tap);
        attach(&file, tap).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if !existed => TapError::Missing { tap: name() },
            Some(libc::EPERM | libc::EACCES) => TapError::Permission { tap: name() },
            Some(libc::EBUSY) => TapError::Busy { tap: name() },
            Some(libc::EINVAL) => TapError::Kind { tap: name() },
            _ => TapError::Io { tap: name(), what: "TUNSETIFF", source },
        })?;
        let opened = Self::prepare(tap, file, mtu(tap))?;
        if !is_up(tap).unwrap_or(true) {
            log::warn!("net {tap}: the interface is down: ip link set {tap} up");
        }
        Ok(opened)
    }

    /// Takes an interface that somebody else has opened, and its MTU: both can
    /// only be had with rights that the caller may lack. `tap` is for messages.
    pub fn adopt(tap: &str, file: File, mtu: Option<u16>) -> Result<Self, TapError> {
        let io = |what| move |source| TapError::Io { tap: tap.to_owned(), what, source };
        let flags = attached(&file).map_err(|_| TapError::Kind { tap: tap.to_owned() })?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::Kind { tap: tap.to_owned() });
        }
        let nonblocking = libc::O_NONBLOCK;
        // SAFETY: F_SETFL takes its argument by value.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, nonblocking) })
            .map_err(io("O_NONBLOCK"))?;
        Self::prepare(tap, file, mtu)
    }

    /// The header in front of frames, and no offloads until a driver wants them.
    fn prepare(tap: &str, file: File, mtu: Option<u16>) -> Result<Self, TapError> {
        let io = |what| move |source| TapError::Io { tap: tap.to_owned(), what, source };
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &HEADER) })
            .map_err(io("TUNSETVNETHDRSZ"))?;
        let mut opened = Self { file, segments_udp: false, mtu };
        // USO came with Linux 6.2; asking is the only way to know.
        opened.segments_udp = opened.offload(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        opened.offload(0).map_err(io("TUNSETOFFLOAD"))?;
        Ok(opened)
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
fn attach(file: &File, tap: &str) -> io::Result<()> {
    let one = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let set = |flags: c_int| {
        let mut request = interface_request(tap);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) })
    };
    match set(one) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => set(one | libc::IFF_MULTI_QUEUE),
        other => other,
    }
}

/// What kind of interface an open file is tied to.
fn attached(file: &File) -> io::Result<c_int> {
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
    // SAFETY: socket takes numbers, and the descriptor is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    let mut request = interface_request(name);
    // SAFETY: the SIOCGIF requests read and write one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &mut request) })?;
    Ok(request)
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
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
