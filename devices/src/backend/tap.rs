//! A TAP interface (Linux `Documentation/networking/tuntap.rst`): frames go in
//! and out with a virtio header in front, so that checksums and segmentation
//! can be left to whoever does them best.

use crate::virtio::net::{NetBackend, features};
use libc::{c_int, c_uint, c_ulong, iovec};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const TUN_DEVICE: &str = "/dev/net/tun";
/// `linux/if_tun.h`.
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;
const SIOCGIFMTU: c_ulong = 0x8921;

/// Size of the virtio header in front of each frame.
const HEADER: c_int = 12;

/// Why a TAP can't be used; each names the interface and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The tun driver can't be reached.
    #[error("net {tap}: {TUN_DEVICE}: {source}: load the tun module (modprobe tun) or ask for access")]
    Driver {
        /// The interface.
        tap: String,
        /// What the host said.
        source: io::Error,
    },
    /// The interface is not ours to use.
    #[error("net {tap}: no permission: create it for your user with: ip tuntap add {tap} mode tap user $USER vnet_hdr; ip link set {tap} up")]
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
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).write(true).custom_flags(flags).open(TUN_DEVICE);
        let file = file.map_err(|source| TapError::Driver { tap: name(), source })?;
        let mut request = interface_request(tap);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) }).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::Permission { tap: name() },
                Some(libc::EBUSY) => TapError::Busy { tap: name() },
                _ => TapError::Io { tap: name(), what: "TUNSETIFF", source },
            }
        })?;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &HEADER) })
            .map_err(|source| TapError::Io { tap: name(), what: "TUNSETVNETHDRSZ", source })?;
        let mut opened = Self { file, segments_udp: false, mtu: mtu(tap) };
        // USO came with Linux 6.2; asking is the only way to know.
        opened.segments_udp = opened.offload(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        opened.offload(0).map_err(|source| TapError::Io { tap: name(), what: "TUNSETOFFLOAD", source })?;
        Ok(opened)
    }

    fn offload(&self, bits: c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(bits)) })
    }
}

/// An ifreq for the interface `name`, which the configuration has checked to
/// be at most 15 bytes long; a longer one is cut.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

/// The MTU of the interface `name`.
fn mtu(name: &str) -> Option<u16> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").ok()?;
    let mut request = interface_request(name);
    // SAFETY: SIOCGIFMTU reads and writes one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFMTU, &mut request) }).ok()?;
    // SAFETY: the call above has filled in the MTU.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl NetBackend for Tap {
    fn features(&self) -> u64 {
        use features::*;
        let uso = if self.segments_udp { GUEST_USO4 | GUEST_USO6 | HOST_USO } else { 0 };
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN | uso
    }

    fn set_features(&mut self, negotiated: u64) -> io::Result<()> {
        use features::*;
        let pairs = [
            (GUEST_CSUM, TUN_F_CSUM),
            (GUEST_TSO4, TUN_F_TSO4),
            (GUEST_TSO6, TUN_F_TSO6),
            (GUEST_ECN, TUN_F_TSO_ECN),
            (GUEST_USO4, TUN_F_USO4),
            (GUEST_USO6, TUN_F_USO6),
        ];
        let set = pairs.iter().filter(|(feature, _)| negotiated & feature != 0);
        self.offload(set.fold(0, |bits, (_, bit)| bits | bit))
    }

    fn send(&mut self, frame: &[iovec]) -> io::Result<()> {
        // SAFETY: the caller's iovecs point to memory that outlives the call;
        // it is only read.
        let n = unsafe { libc::writev(self.file.as_raw_fd(), frame.as_ptr(), frame.len() as c_int) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, frame: &[iovec]) -> io::Result<Option<usize>> {
        // SAFETY: the caller's iovecs point to memory that may be written and
        // outlives the call.
        let n = unsafe { libc::readv(self.file.as_raw_fd(), frame.as_ptr(), frame.len() as c_int) };
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
mod tests {
    use super::*;

    /// Runs where the caller may make interfaces; elsewhere only the refusal
    /// can be checked.
    #[test]
    fn a_tap_is_opened_or_refused_by_name() {
        match Tap::open("mvtest0") {
            Ok(tap) => {
                assert!(tap.mtu.is_some());
                assert!(matches!(Tap::open("mvtest0"), Err(TapError::Busy { .. })));
                assert_ne!(tap.features() & features::HOST_TSO4, 0);
            }
            Err(e) => {
                assert!(e.to_string().starts_with("net mvtest0: "), "{e}");
                println!("skipped: {e}");
            }
        }
    }
}
