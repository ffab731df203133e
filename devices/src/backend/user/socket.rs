//! The host's sockets, none of which ever waits.

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

fn family(address: &SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Starts to connect to `to`.
pub fn connect_stream(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = rustix::net::socket_with(family(&to), SocketType::STREAM, FLAGS, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(e) => Err(e.into()),
    }
}

/// A socket for datagrams to and from `to` alone.
pub fn connect_datagrams(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = rustix::net::socket_with(family(&to), SocketType::DGRAM, FLAGS, None)?;
    connected(socket, to)
}

/// A socket for echoes of `to` alone (icmp(7)), where the host lets its users
/// have one (`net.ipv4.ping_group_range`).
pub fn connect_echoes(to: Ipv4Addr) -> io::Result<UdpSocket> {
    let icmp = Some(ipproto::ICMP);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, icmp)?;
    connected(socket, SocketAddr::new(to.into(), 0))
}

fn connected(socket: OwnedFd, to: SocketAddr) -> io::Result<UdpSocket> {
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}
