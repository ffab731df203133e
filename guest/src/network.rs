//! The loopback interface, and the network cards if there are any (`netdevice(7)`).

use crate::protocol::Network;
use crate::system::{About, Fault, check};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Brings up what there is.
pub fn bring_up(cards: &[Network]) -> Result<(), Fault> {
    // SAFETY: socket takes numbers; the descriptor is nobody else's.
    let socket = unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let fd = check(libc::socket(libc::AF_INET, kind, 0)).about("network")?;
        OwnedFd::from_raw_fd(fd)
    };
    up(&socket, "lo").about("lo")?;
    cards.iter().enumerate().try_for_each(|(number, card)| {
        let name = format!("eth{number}");
        configure(&socket, &name, card).about(name)
    })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than there is room for: the name ends with NUL.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request lives across the call, which only reads it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

fn address(bytes: [u8; 4]) -> libc::sockaddr {
    // SAFETY: a sockaddr is plain data for which zero is a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_INET as libc::sa_family_t;
    // Behind the port's two bytes.
    for (to, from) in address.sa_data[2..].iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    address
}

fn configure(socket: &OwnedFd, name: &str, card: &Network) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32u32.saturating_sub(card.prefix.into())).unwrap_or(0);
    for (call, value) in
        [(libc::SIOCSIFADDR, card.address), (libc::SIOCSIFNETMASK, mask.to_be_bytes())]
    {
        let mut request = request(name);
        request.ifr_ifru.ifru_addr = address(value);
        // SAFETY: as above.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), call, &request) })?;
    }
    up(socket, name)?;
    let Some(gateway) = card.gateway else { return Ok(()) };
    // SAFETY: an rtentry is plain data for which zero is a value; it lives across
    // the call, which only reads it.
    check(unsafe {
        let mut route: libc::rtentry = std::mem::zeroed();
        route.rt_dst = address([0; 4]);
        route.rt_genmask = address([0; 4]);
        route.rt_gateway = address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &route)
    })
    .map(drop)
}
