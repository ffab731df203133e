//! Ports of the host that lead into the guest.

use super::route::{GATEWAY, GUEST};
use super::tcp::Connections;
use super::wire::{MAX_PACKET, Outbox};
use super::{FORWARD, Host, UserNetError, token};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::UdpPacket;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host, and the guest's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Connections or datagrams.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest: u16,
}

/// Clients or datagrams that a port takes before others have their turn.
const TURN: usize = 32;
/// Clients of datagrams of all ports together; more, and the one that was
/// silent the longest is forgotten.
const MAX_CLIENTS: usize = 256;
const SILENCE: Duration = Duration::from_secs(120);
/// The gateway's ports that stand for them.
const PORTS: std::ops::RangeInclusive<u16> = 16384..=32767;

enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

struct Port {
    listener: Listener,
    guest: u16,
    /// There may be something to take.
    ready: bool,
}

/// Who sends datagrams to a port.
struct Client {
    port: usize,
    address: SocketAddr,
    used: Instant,
}

/// All forwarded ports.
pub struct Forwards {
    ports: Vec<Port>,
    /// By the gateway's port that stands for each.
    clients: HashMap<u16, Client>,
    by_address: HashMap<(usize, SocketAddr), u16>,
    next: u16,
    buffer: Vec<u8>,
}

impl Forwards {
    /// Listens on all of them.
    pub fn listen(wanted: &[Forward], host: &Host) -> Result<Self, UserNetError> {
        let mut ports = Vec::with_capacity(wanted.len());
        for (number, forward) in wanted.iter().enumerate() {
            let error = |source| UserNetError::Listen { host: forward.host, source };
            let (listener, fd) = match forward.protocol {
                Protocol::Tcp => {
                    let listener = TcpListener::bind(forward.host).map_err(error)?;
                    listener.set_nonblocking(true).map_err(error)?;
                    let fd = listener.as_raw_fd();
                    (Listener::Tcp(listener), fd)
                }
                Protocol::Udp => {
                    let socket = UdpSocket::bind(forward.host).map_err(error)?;
                    socket.set_nonblocking(true).map_err(error)?;
                    let fd = socket.as_raw_fd();
                    (Listener::Udp(socket), fd)
                }
            };
            host.watch(fd, token(FORWARD, number as u64)).map_err(error)?;
            ports.push(Port { listener, guest: forward.guest, ready: false });
        }
        Ok(Self {
            ports,
            clients: HashMap::new(),
            by_address: HashMap::new(),
            next: *PORTS.start(),
            buffer: vec![0; MAX_PACKET],
        })
    }

    pub fn is_busy(&self) -> bool {
        self.ports.iter().any(|port| port.ready)
    }

    /// Forgets all clients.
    pub fn clear(&mut self) {
        self.clients.clear();
        self.by_address.clear();
    }

    /// News of a port.
    pub fn event(&mut self, number: u64) {
        let number = usize::try_from(number).ok();
        if let Some(port) = number.and_then(|number| self.ports.get_mut(number)) {
            port.ready = true;
        }
    }

    /// Takes what is there.
    pub fn run(
        &mut self,
        now: Instant,
        connections: &mut Connections,
        outbox: &mut Outbox,
        host: &mut Host,
    ) {
        for number in 0..self.ports.len() {
            for _ in 0..TURN {
                let Some(port) = self.ports.get_mut(number).filter(|port| port.ready) else {
                    break;
                };
                if outbox.is_full() {
                    break;
                }
                let guest = port.guest;
                let failed = match &port.listener {
                    Listener::Tcp(listener) => match listener.accept() {
                        Ok((stream, _)) => {
                            let taken = stream.set_nonblocking(true);
                            let taken =
                                taken.and_then(|()| connections.forward(stream, guest, host));
                            if let Err(e) = taken {
                                log::debug!("net user: a client was refused: {e}");
                                host.counts.refused += 1;
                            }
                            continue;
                        }
                        Err(e) => e,
                    },
                    Listener::Udp(socket) => match socket.recv_from(&mut self.buffer) {
                        Ok((n, address)) => {
                            let from =
                                SocketAddrV4::new(GATEWAY, self.client(number, address, now));
                            let data = self.buffer.get(..n).unwrap_or_default();
                            outbox.datagram(from, SocketAddrV4::new(GUEST, guest), data);
                            continue;
                        }
                        Err(e) => e,
                    },
                };
                // Another client may be behind one that has gone, or that there
                // are no descriptors for: its edge comes with the next one.
                port.ready =
                    matches!(failed.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted);
            }
        }
    }

    /// The gateway's port that stands for the client at `address`.
    fn client(&mut self, port: usize, address: SocketAddr, now: Instant) -> u16 {
        if let Some(at) = self.by_address.get(&(port, address))
            && let Some(client) = self.clients.get_mut(at)
        {
            client.used = now;
            return *at;
        }
        if self.clients.len() >= MAX_CLIENTS {
            let oldest = self.clients.iter().min_by_key(|(_, client)| client.used);
            oldest.map(|(at, _)| *at).into_iter().for_each(|at| self.forget(at));
        }
        // There are far more ports than clients.
        while self.clients.contains_key(&self.next) {
            self.step();
        }
        let at = self.next;
        self.step();
        self.clients.insert(at, Client { port, address, used: now });
        self.by_address.insert((port, address), at);
        at
    }

    fn step(&mut self) {
        self.next = if self.next == *PORTS.end() { *PORTS.start() } else { self.next + 1 };
    }

    fn forget(&mut self, at: u16) {
        if let Some(client) = self.clients.remove(&at) {
            self.by_address.remove(&(client.port, client.address));
        }
    }

    pub fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Forgets clients that are silent.
    pub fn expire(&mut self, now: Instant) {
        let old = self.clients.iter().filter(|(_, client)| client.used + SILENCE <= now);
        for at in old.map(|(at, _)| *at).collect::<Vec<_>>() {
            self.forget(at);
        }
    }

    /// A datagram of the guest to the gateway; whether it was an answer to a
    /// client of one of the ports.
    pub fn answer(&mut self, datagram: &[u8], now: Instant) -> bool {
        let Ok(udp) = UdpPacket::new_checked(datagram) else { return false };
        let Some(client) = self.clients.get_mut(&udp.dst_port()) else { return false };
        let Some(Port { listener: Listener::Udp(socket), guest, .. }) = self.ports.get(client.port)
        else {
            return false;
        };
        if *guest != udp.src_port() {
            return false;
        }
        client.used = now;
        let _ = socket.send_to(udp.payload(), client.address);
        true
    }
}
