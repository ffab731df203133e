//! A network without root: the guest's gateway, inside the monitor.
//!
//! ```text
//!            ┌ ARP, DHCP, echoes of the gateway: answered here
//!  guest ◄─► │ TCP ◄─► smoltcp ◄─► a socket of the host's for each connection
//!            │ UDP, other echoes ◄─► a socket for each pair of ends
//!            └ forwarded ports ◄─► listening sockets
//! ```
//!
//! The network is 10.0.2.0/24: the guest has .15, its gateway .2, its name
//! server .3. What the guest sends leaves the host as the user's own, with no
//! rights but the user's. The host itself is reached by its own addresses on its
//! networks, as the user reaches it, and by the gateway's where that was asked
//! for; never by 127.0.0.1 or 0.0.0.0.
//!
//! All sockets are behind one epoll descriptor, which the event loop watches, and
//! so is the timer of what can't wait for them. Nothing here waits, and what a
//! guest can make it hold is bounded: [`MAX_CONNECTIONS`], [`MAX_FLOWS`], their
//! buffers and the frames on their way, about 100 MiB together.

mod dhcp;
mod flows;
mod forward;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
pub(super) mod route;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

pub use forward::{Forward, Protocol};
pub use route::{GATEWAY, GUEST, NAMES, resolvers};
pub use wire::MTU;

use crate::virtio::net::{NetBackend, features};
use crate::virtio::queue::IoVecs;
use flows::Flows;
use forward::Forwards;
use route::{HOSTS, Routes};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpProtocol, UdpPacket};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, RawFd};
use tcp::Connections;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;
use wire::{Content, Frame, Outbox};

/// The most connections at a time, both ways together.
pub const MAX_CONNECTIONS: usize = 1024;
/// The most pairs of ends that exchange datagrams or echoes; another takes the
/// place of the one that was silent the longest.
pub const MAX_FLOWS: usize = 256;

/// News taken at once, and turns given at once.
const NEWS: usize = 64;
/// Silence is looked for this often.
const SWEEP: Duration = Duration::from_secs(10);

/// What news are of: the upper byte of a token.
const TIMER: u64 = 0;
const TCP: u64 = 1;
const FLOW: u64 = 2;
const FORWARD: u64 = 3;

fn token(kind: u64, id: u64) -> u64 {
    kind << 56 | id
}

/// Why there is no such network; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// A forwarded port is not to be had.
    #[error("net user: hostfwd {host}: {source}: choose another port or address of this host")]
    Listen {
        /// Where to listen.
        host: SocketAddrV4,
        /// What the host said.
        source: io::Error,
    },
    /// Anything else.
    #[error("net user: {what}: {source}")]
    Io {
        /// The step.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// What is wanted of the network.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The guest reaches the host's loopback address through its gateway.
    pub host_loopback: bool,
    /// Who knows names.
    pub resolvers: Vec<SocketAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    tcp: u64,
    refused: u64,
    flows: u64,
    /// Frames that were malformed or are of no use here.
    ignored: u64,
}

/// What everything here needs of the host.
struct Host {
    epoll: Epoll,
    routes: Routes,
    counts: Counts,
}

impl Host {
    /// Edge-triggered: what stays ready is no news.
    fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, token))
    }
}

/// The gateway of one guest.
pub struct UserNet {
    host: Host,
    outbox: Outbox,
    connections: Connections,
    flows: Flows,
    forwards: Forwards,
    started: std::time::Instant,
    timer: TimerFd,
    /// When the timer will go off.
    armed: Option<Instant>,
    /// When to look for silence again.
    sweep: Instant,
    /// The driver knows the link's MTU.
    mtu: bool,
    /// A frame of the guest in one piece.
    frame: Vec<u8>,
}

impl UserNet {
    /// A network for the card with the address `mac`.
    pub fn new(mac: [u8; 6], options: Options) -> Result<Self, UserNetError> {
        let error = |what| move |source| UserNetError::Io { what, source };
        let Options { host_loopback, resolvers, forwards } = options;
        let epoll = Epoll::new().map_err(error("epoll"))?;
        let routes = Routes::new(host_loopback, resolvers);
        let host = Host { epoll, routes, counts: Counts::default() };
        let timer = TimerFd::new().map_err(|e| error("timerfd")(e.into()))?;
        host.watch(timer.as_raw_fd(), token(TIMER, 0)).map_err(error("epoll"))?;
        let mut outbox = Outbox::new(EthernetAddress(mac));
        let seed = seed().map_err(error("getrandom"))?;
        Ok(Self {
            connections: Connections::new(seed, Instant::ZERO, &mut outbox),
            flows: Flows::new(),
            forwards: Forwards::listen(&forwards, &host)?,
            host,
            outbox,
            started: std::time::Instant::now(),
            timer,
            armed: None,
            sweep: Instant::ZERO,
            mtu: false,
            frame: Vec::new(),
        })
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros() as i64)
    }

    /// A frame of the guest, with its virtio header.
    fn input(&mut self, bytes: &[u8]) {
        let Some(frame) = Frame::parse(bytes) else {
            self.host.counts.ignored += 1;
            return;
        };
        self.outbox.guest = frame.from;
        match frame.content {
            Content::Arp(packet) => self.outbox.answer_arp(packet, &HOSTS),
            Content::Ipv4 { from, to, protocol, packet, payload } => {
                self.packet((from, to), protocol, packet, payload);
            }
        }
    }

    fn packet(
        &mut self,
        ends: (Ipv4Addr, Ipv4Addr),
        protocol: IpProtocol,
        packet: &[u8],
        payload: &[u8],
    ) {
        let now = self.now();
        if protocol == IpProtocol::Udp && self.local_datagram(ends.1, payload, now) {
            return;
        }
        let Self { host, outbox, connections, flows, .. } = self;
        match protocol {
            _ if !route::is_guest(ends.0) => host.counts.ignored += 1,
            IpProtocol::Tcp => connections.input(ends, packet, payload, now, outbox, host),
            IpProtocol::Udp => flows.datagram(ends, payload, now, host),
            IpProtocol::Icmp => flows.icmp(ends, payload, now, outbox, host),
            _ => host.counts.ignored += 1,
        }
    }

    /// A datagram for the network's own servers, or for a client of a forwarded
    /// port; `false`: for someone else.
    fn local_datagram(&mut self, to: Ipv4Addr, datagram: &[u8], now: Instant) -> bool {
        let Ok(udp) = UdpPacket::new_checked(datagram) else { return true };
        if to != GATEWAY && to != Ipv4Addr::BROADCAST {
            return false;
        }
        if udp.dst_port() == dhcp::SERVER_PORT {
            if let Some(dhcp::Answer { to, message }) = dhcp::answer(udp.payload(), self.mtu) {
                let from = SocketAddrV4::new(GATEWAY, dhcp::SERVER_PORT);
                self.outbox.datagram(from, to, &message);
            }
            return true;
        }
        self.forwards.answer(datagram, now)
    }

    /// Takes news of sockets, and does what there is to do: a bounded part of it.
    fn poll(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); NEWS];
        let count = match self.host.epoll.wait(0, &mut events) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => NEWS,
            other => other?,
        };
        for event in events.iter().take(count) {
            let set = event.event_set();
            let over = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            let readable = over || set.intersects(EventSet::IN | EventSet::READ_HANG_UP);
            let writable = over || set.contains(EventSet::OUT);
            let id = event.data() & (u64::MAX >> 8);
            match event.data() >> 56 {
                TCP => self.connections.event(id, readable, writable),
                FLOW if readable => self.flows.event(id),
                FORWARD if readable => self.forwards.event(id),
                TIMER => self.armed = None,
                _ => {}
            }
        }
        self.run();
        if self.outbox.is_empty() {
            self.arm(count == NEWS);
        }
        Ok(())
    }

    /// Gives everyone who has something to do a turn.
    fn run(&mut self) {
        let now = self.now();
        let Self { host, outbox, connections, flows, forwards, .. } = self;
        if now >= self.sweep {
            self.sweep = now + SWEEP;
            flows.expire(now);
            forwards.expire(now);
        }
        forwards.run(now, connections, outbox, host);
        flows.run(now, NEWS, outbox);
        connections.run(now, NEWS, outbox);
    }

    /// Sets the timer for what will have to be done; at once, if there is more
    /// now and others on the event loop should have their turn first.
    fn arm(&mut self, more: bool) {
        let now = self.now();
        let busy =
            more || self.connections.is_busy() || self.flows.is_busy() || self.forwards.is_busy();
        let silent = (!self.flows.is_empty() || self.forwards.has_clients()).then_some(self.sweep);
        let next = match busy {
            true => Some(now),
            false => [self.connections.deadline(), silent].into_iter().flatten().min(),
        };
        let Some(next) = next.filter(|next| self.armed.is_none_or(|armed| *next < armed)) else {
            return;
        };
        let wait = std::time::Duration::from_micros(
            next.total_micros().saturating_sub(now.total_micros()).max(1) as u64,
        );
        match self.timer.reset(wait, None) {
            Ok(()) => self.armed = Some(next),
            Err(e) => log::error!("net user: timer: {e}"),
        }
    }
}

impl NetBackend for UserNet {
    /// The checksums of the guest's packets are of no interest, and neither is in
    /// how many segments it would have sent its bytes.
    fn features(&self) -> u64 {
        features::CSUM | features::GUEST_CSUM | features::HOST_TSO4
    }

    fn restart(&mut self) {
        self.outbox.clear();
        self.connections.clear();
        self.flows.clear();
        self.forwards.clear();
    }

    fn set_features(&mut self, negotiated: u64) -> io::Result<()> {
        self.outbox.guest_sums = negotiated & features::GUEST_CSUM != 0;
        self.mtu = negotiated & features::MTU != 0;
        Ok(())
    }

    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.frame);
        bytes.resize(usize::try_from(frame.len()).unwrap_or(0), 0);
        frame.copy_out(&mut bytes);
        self.input(&bytes);
        self.frame = bytes;
        Ok(())
    }

    fn flush(&mut self) -> bool {
        self.run();
        if self.outbox.is_empty() {
            self.arm(false);
        }
        !self.outbox.is_empty()
    }

    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>> {
        if self.outbox.is_empty() {
            self.poll()?;
        }
        let Some(bytes) = self.outbox.pop() else { return Ok(None) };
        let fits = frame.copy_in(&bytes);
        let over = bytes.get(fits..).unwrap_or_default();
        let len = over.len().min(rest.len());
        rest[..len].copy_from_slice(&over[..len]);
        self.outbox.recycle(bytes);
        Ok(Some(fits + len))
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.host.epoll.as_raw_fd())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counts { tcp, refused, flows, ignored } = self.host.counts;
        vec![
            ("user_connections", tcp),
            ("user_refused", refused),
            ("user_flows", flows),
            ("user_ignored", ignored),
        ]
    }
}

/// Where sequence numbers start must be nobody's guess.
fn seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: getrandom writes at most the 8 bytes that are there.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match n {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(io::Error::last_os_error()),
    }
}
