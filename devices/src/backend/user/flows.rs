//! Datagrams and echoes: a socket of the host's for each pair of ends that the
//! guest has, kept until both are silent for a while.

use super::route::{GATEWAY, HOSTS, NAMES};
use super::socket;
use super::wire::{Outbox, sums};
use super::{FLOW, Host, MAX_FLOWS, token};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket};
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

/// How long a pair may be silent (RFC 4787, REQ-5, asks for two minutes).
const SILENCE: Duration = Duration::from_secs(120);
/// How long a name server has for its answer before another is asked.
const WAIT_FOR_ANSWER: Duration = Duration::from_secs(1);
/// Datagrams that a pair receives before others have their turn.
const TURN: usize = 32;

/// What runs between two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Udp,
    /// Ports are identifiers here, and the far one is 0.
    Echo,
}

type Key = (Kind, SocketAddrV4, SocketAddrV4);

struct Flow {
    key: Key,
    socket: UdpSocket,
    used: Instant,
    /// When the first question without an answer was asked.
    asked: Option<Instant>,
    /// Name servers that have not answered.
    silent: usize,
    /// It is in the list of those with something to receive.
    listed: bool,
}

/// All of them.
pub struct Flows {
    all: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    next: u64,
    ready: VecDeque<u64>,
    buffer: Vec<u8>,
}

impl Flows {
    pub fn new() -> Self {
        Self {
            all: HashMap::new(),
            by_key: HashMap::new(),
            next: 0,
            ready: VecDeque::new(),
            buffer: vec![0; super::wire::MAX_PACKET],
        }
    }

    /// How many there are.
    #[cfg(any(test, feature = "testing"))]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn is_busy(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn clear(&mut self) {
        self.all.clear();
        self.by_key.clear();
        self.ready.clear();
    }

    /// Forgets those that are silent.
    pub fn expire(&mut self, now: Instant) {
        let old = self.all.iter().filter(|(_, flow)| flow.used + SILENCE <= now);
        for id in old.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(flow) = self.all.remove(&id) {
            self.by_key.remove(&flow.key);
        }
    }

    /// A datagram of the guest, with its UDP header.
    pub fn datagram(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        datagram: &[u8],
        now: Instant,
        host: &mut Host,
    ) {
        let Ok(udp) = UdpPacket::new_checked(datagram) else { return };
        let from = SocketAddrV4::new(from, udp.src_port());
        let to = SocketAddrV4::new(to, udp.dst_port());
        self.send((Kind::Udp, from, to), udp.payload(), now, host);
    }

    /// An ICMP message of the guest: echoes of the network's own hosts are
    /// answered here, and others by whoever they are for.
    pub fn icmp(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        message: &[u8],
        now: Instant,
        outbox: &mut Outbox,
        host: &mut Host,
    ) {
        let Ok(icmp) = Icmpv4Packet::new_checked(message) else { return };
        if icmp.msg_type() != Icmpv4Message::EchoRequest || !icmp.verify_checksum() {
            return;
        }
        if HOSTS.contains(&to) {
            return echo(outbox, (to, from), icmp.echo_ident(), message);
        }
        let from = SocketAddrV4::new(from, icmp.echo_ident());
        self.send((Kind::Echo, from, SocketAddrV4::new(to, 0)), message, now, host);
    }

    fn send(&mut self, key: Key, data: &[u8], now: Instant, host: &mut Host) {
        let id = self.by_key.get(&key).copied().or_else(|| self.open(key, now, host));
        let Some(flow) = id.and_then(|id| self.all.get_mut(&id)) else { return };
        flow.used = now;
        if key.0 == Kind::Udp && *key.2.ip() == NAMES {
            flow.ask_another(now, host);
        }
        // One that the host does not take is lost, as on any network. Whether
        // the one before was refused is told first.
        if flow.socket.send(data).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            let _ = flow.socket.send(data);
        }
    }

    fn open(&mut self, key: Key, now: Instant, host: &mut Host) -> Option<u64> {
        let (kind, _, far) = key;
        if self.all.len() >= MAX_FLOWS {
            let oldest = self.all.iter().min_by_key(|(_, flow)| flow.used).map(|(id, _)| *id);
            oldest.into_iter().for_each(|id| self.remove(id));
        }
        let socket = match kind {
            Kind::Udp => socket::connect_datagrams(host.routes.host(far, 0)?),
            Kind::Echo => socket::connect_echoes(host.routes.echo(*far.ip())?),
        };
        let socket = socket.ok()?;
        let id = self.next;
        host.watch(socket.as_raw_fd(), token(FLOW, id)).ok()?;
        self.next += 1;
        host.counts.flows += 1;
        self.all.insert(id, Flow { key, socket, used: now, asked: None, silent: 0, listed: false });
        self.by_key.insert(key, id);
        Some(id)
    }

    /// News of a socket.
    pub fn event(&mut self, id: u64) {
        if let Some(flow) = self.all.get_mut(&id)
            && !std::mem::replace(&mut flow.listed, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Receives what has come, `turns` of them at most.
    pub fn run(&mut self, now: Instant, turns: usize, outbox: &mut Outbox) {
        for _ in 0..turns.min(self.ready.len()) {
            if outbox.is_full() {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(flow) = self.all.get_mut(&id) else { continue };
            flow.listed = false;
            if flow.receive(now, &mut self.buffer, outbox) {
                self.event(id);
            }
        }
    }
}

impl Flow {
    /// Receives a turn's datagrams; whether there may be more.
    fn receive(&mut self, now: Instant, buffer: &mut [u8], outbox: &mut Outbox) -> bool {
        let (kind, guest, far) = self.key;
        for _ in 0..TURN {
            if outbox.is_full() {
                return true;
            }
            let data = match self.socket.recv(buffer) {
                Ok(n) => buffer.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) => {
                    if kind == Kind::Udp && e.kind() == ErrorKind::ConnectionRefused {
                        unreachable(outbox, guest, far);
                    }
                    continue;
                }
            };
            (self.used, self.asked) = (now, None);
            match kind {
                Kind::Udp => outbox.datagram(far, guest, data),
                Kind::Echo => echo(outbox, (*far.ip(), *guest.ip()), guest.port(), data),
            }
        }
        true
    }

    /// Turns to the next name server when this one has not answered for a while.
    fn ask_another(&mut self, now: Instant, host: &Host) {
        let asked = *self.asked.get_or_insert(now);
        if now < asked + WAIT_FOR_ANSWER {
            return;
        }
        self.asked = Some(now);
        self.silent = self.silent.wrapping_add(1);
        let Some(to) = host.routes.host(self.key.2, self.silent) else { return };
        if let Err(e) = self.socket.connect(to) {
            log::debug!("net user: name server {to}: {e}");
        }
    }
}

/// Sends the guest the echo that `message` is or asks for.
fn echo(outbox: &mut Outbox, ends: (Ipv4Addr, Ipv4Addr), identifier: u16, message: &[u8]) {
    if Icmpv4Packet::new_checked(message).is_err() {
        return;
    }
    outbox.packet(ends, IpProtocol::Icmp, message.len(), |to| {
        to.copy_from_slice(message);
        let mut icmp = Icmpv4Packet::new_unchecked(to);
        icmp.set_msg_type(Icmpv4Message::EchoReply);
        icmp.set_echo_ident(identifier);
        icmp.fill_checksum();
    });
}

/// Tells the guest that nobody takes its datagrams (RFC 792: the header of the
/// packet and eight bytes more).
fn unreachable(outbox: &mut Outbox, guest: SocketAddrV4, far: SocketAddrV4) {
    const HEADERS: usize = 8 + 20 + 8;
    let repr = Ipv4Repr {
        src_addr: *guest.ip(),
        dst_addr: *far.ip(),
        next_header: IpProtocol::Udp,
        payload_len: 8,
        hop_limit: 64,
    };
    outbox.packet((GATEWAY, *guest.ip()), IpProtocol::Icmp, HEADERS, |message| {
        let (_, packet) = message.split_at_mut(8);
        let (header, udp) = packet.split_at_mut(20);
        repr.emit(&mut Ipv4Packet::new_unchecked(header), &sums());
        let mut udp = UdpPacket::new_unchecked(udp);
        udp.set_src_port(guest.port());
        udp.set_dst_port(far.port());
        udp.set_len(8);
        let mut icmp = Icmpv4Packet::new_unchecked(message);
        icmp.set_msg_type(Icmpv4Message::DstUnreachable);
        // Port unreachable.
        icmp.set_msg_code(3);
        icmp.fill_checksum();
    });
}
