//! A guest from hell and hosts that are no better, played out of bytes: for
//! property tests and fuzzers. Whatever the guest sends goes to this machine's
//! own sockets and nowhere else.

use super::route::{GATEWAY, GUEST, HOSTS};
use super::wire::{GATEWAY_MAC, MAX_PACKET, MAX_QUEUED};
use super::{Forward, MAX_CONNECTIONS, MAX_FLOWS, Options, Protocol, UserNet};
use crate::virtio::net::{NetBackend, features};
use crate::virtio::queue::{IoVecStore, IoVecs};
use smoltcp::wire::{Icmpv4Packet, Ipv4Packet, TcpPacket, UdpPacket};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 15];
const HEADER: usize = 12;

/// Numbers until the bytes run out, zeroes from then on.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn take(&mut self, len: usize) -> Vec<u8> {
        let (head, tail) = self.0.split_at(len.min(self.0.len()));
        self.0 = tail;
        let mut bytes = head.to_vec();
        bytes.resize(len, 0);
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u32(&mut self) -> u32 {
        let bytes = self.take(4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Some bytes, mostly few.
    fn data(&mut self) -> Vec<u8> {
        let len = match self.u8() {
            len @ 0..250 => usize::from(len % 64),
            len => usize::from(len - 249) * 10_000,
        };
        self.take(len)
    }
}

/// Both sides of the network.
struct World {
    net: UserNet,
    listener: TcpListener,
    datagrams: UdpSocket,
    forwarded: SocketAddrV4,
    clients: Vec<TcpStream>,
    /// What the guest knows of each of its connections, by its port.
    seen: [(u32, u32); 8],
}

/// Plays the program and panics when a promise is broken.
///
/// # Panics
///
/// When the gateway breaks one of its bounds, or this machine has no sockets.
pub fn run(data: &[u8]) {
    let program = &mut Program(data);
    let mut world = World::new(program.u8());
    while !program.0.is_empty() {
        match program.u8() % 16 {
            0..9 => world.segment(program),
            9 => world.datagram(program),
            10 => world.raw(program),
            11 => world.host_accepts(),
            12 => world.host_speaks(program),
            13 => world.host_calls(program),
            14 => world.net.restart(),
            _ => {}
        }
        world.step();
    }
}

impl World {
    fn new(choice: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("a listener");
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        datagrams.set_nonblocking(true).expect("a socket");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let forwarded = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free.expect("a port").port());
        let forward = |protocol| Forward { protocol, host: forwarded, guest: 1 };
        let forwards = vec![forward(Protocol::Tcp), forward(Protocol::Udp)];
        let net = UserNet::new(MAC, Options { forwards, ..Options::default() });
        // Another program may have taken the port in between.
        let mut net = net.or_else(|_| UserNet::new(MAC, Options::default())).expect("a network");
        net.host.routes.only = listener.local_addr().ok();
        let sums = if choice & 1 == 0 { 0 } else { features::GUEST_CSUM };
        net.set_features(sums).expect("any features will do");
        Self { net, listener, datagrams, forwarded, clients: Vec::new(), seen: [(0, 0); 8] }
    }

    fn send(&mut self, header: u8, to: Ipv4Addr, protocol: u8, content: &[u8]) {
        let mut frame = vec![0; HEADER + 14 + 20];
        frame[0] = header;
        frame[HEADER..HEADER + 6].copy_from_slice(&GATEWAY_MAC.0);
        frame[HEADER + 6..HEADER + 12].copy_from_slice(&MAC);
        frame[HEADER + 12] = 8;
        frame.extend(content);
        let len = (frame.len() - HEADER - 14).min(MAX_PACKET) as u16;
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[HEADER + 14..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(len);
        ip.set_hop_limit(64);
        ip.set_next_header(protocol.into());
        ip.set_src_addr(GUEST);
        ip.set_dst_addr(to);
        ip.fill_checksum();
        let mut store = IoVecStore::new();
        // A frame that is lost is no failure.
        let _ = self.net.send(&mut IoVecs::from_slice(&mut store, &mut frame));
    }

    /// A segment that mostly fits into its connection.
    fn segment(&mut self, p: &mut Program<'_>) {
        let (which, flags, skew) = (p.u8(), p.u8(), p.u8());
        let data = if flags & 0x40 == 0 { Vec::new() } else { p.data() };
        let port = u16::from(which % 8);
        let (sequence, acknowledged) = self.seen[usize::from(port)];
        // Now and then numbers that are anything.
        let skewed = |p: &mut Program<'_>, bit| if skew & bit == 0 { 0 } else { p.u32() };
        let sequence = sequence.wrapping_add(skewed(p, 1));
        let acknowledged = acknowledged.wrapping_add(skewed(p, 2));
        let mut segment = vec![0; 20];
        segment[..2].copy_from_slice(&(port + 1).to_be_bytes());
        segment[2..4].copy_from_slice(&u16::from(which / 8 + 1).to_be_bytes());
        segment[4..8].copy_from_slice(&sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = flags & 0x3f;
        let window = if skew & 4 == 0 { [0xff; 2] } else { [0, p.u8()] };
        segment[14..16].copy_from_slice(&window);
        if skew & 8 != 0 {
            // Options, which may be nonsense.
            segment[12] = 7 << 4;
            segment.extend(p.take(8));
        }
        segment.extend(&data);
        if skew & 3 == 0 {
            let taken = data.len() as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
            self.seen[usize::from(port)].0 = sequence.wrapping_add(taken);
        }
        self.send(1, GATEWAY, 6, &segment);
    }

    fn datagram(&mut self, p: &mut Program<'_>) {
        let (which, data) = (p.u8(), p.data());
        let to =
            if which & 1 == 0 { Ipv4Addr::BROADCAST } else { HOSTS[usize::from(which >> 1 & 1)] };
        let mut message = vec![0; 8];
        message.extend(&data);
        let len = message.len() as u16;
        if which & 0x80 != 0 {
            let mut icmp = Icmpv4Packet::new_unchecked(message.as_mut_slice());
            icmp.set_msg_type(8.into());
            icmp.fill_checksum();
            let to = if which & 1 == 0 { Ipv4Addr::new(192, 0, 2, which) } else { to };
            return self.send(0, to, 1, &message);
        }
        let mut udp = UdpPacket::new_unchecked(message.as_mut_slice());
        udp.set_src_port(if which & 4 == 0 { 68 } else { u16::from(which) });
        udp.set_dst_port(if which & 8 == 0 { 67 } else { u16::from(which) });
        udp.set_len(len);
        self.send(1, to, 17, &message);
    }

    /// Bytes that need not be anything.
    fn raw(&mut self, p: &mut Program<'_>) {
        let mut bytes = p.data();
        let mut store = IoVecStore::new();
        let _ = self.net.send(&mut IoVecs::from_slice(&mut store, &mut bytes));
    }

    fn host_accepts(&mut self) {
        if let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).expect("a stream");
            self.clients.push(stream);
        }
    }

    fn host_speaks(&mut self, p: &mut Program<'_>) {
        let (what, data) = (p.u8(), p.data());
        let Some(client) = self.clients.last_mut() else { return };
        match what % 4 {
            0 => drop(self.clients.pop()),
            1 => drop(client.shutdown(std::net::Shutdown::Write)),
            2 => drop(client.read(&mut vec![0; 100_000])),
            _ => drop(client.write(&data)),
        }
    }

    fn host_calls(&mut self, p: &mut Program<'_>) {
        let (what, data) = (p.u8(), p.data());
        if what & 1 == 0 {
            let _ = self.datagrams.send_to(&data, self.forwarded);
        } else if let Ok(stream) = TcpStream::connect(self.forwarded) {
            stream.set_nonblocking(true).expect("a stream");
            self.clients.push(stream);
        }
    }

    /// Both sides take what has come, and the gateway keeps its promises.
    fn step(&mut self) {
        self.net.flush();
        for _ in 0..32 {
            let mut bytes = vec![0; HEADER + 18 + 65536];
            let mut store = IoVecStore::new();
            let received =
                self.net.receive(&mut IoVecs::from_slice(&mut store, &mut bytes), &mut []);
            let Some(len) = received.expect("its own descriptors are in order") else { break };
            self.learn(&bytes[HEADER..len]);
        }
        assert!(self.net.connections.count() <= MAX_CONNECTIONS);
        assert!(self.net.flows.count() <= MAX_FLOWS);
        assert!(self.net.outbox.bytes() <= MAX_QUEUED + 2 * MAX_PACKET);
    }

    /// What the guest would acknowledge next; and that what it gets is a packet.
    fn learn(&mut self, frame: &[u8]) {
        assert_eq!(frame[6..12], GATEWAY_MAC.0);
        if frame[12..14] != [8, 0] {
            return;
        }
        let ip = Ipv4Packet::new_checked(&frame[14..]).expect("a whole packet");
        assert!(ip.verify_checksum());
        if frame[23] != 6 {
            return;
        }
        let tcp = TcpPacket::new_checked(ip.payload()).expect("a whole segment");
        let port = usize::from(tcp.dst_port().wrapping_sub(1));
        if let Some((_, acknowledged)) = self.seen.get_mut(port) {
            let taken = tcp.segment_len() as u32;
            *acknowledged = (tcp.seq_number().0 as u32).wrapping_add(taken);
        }
    }
}
