//! A guest on smoltcp behind the gateway, and the host's sockets on the other
//! side of it.

use super::*;
use crate::virtio::queue::IoVecStore;
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv4Message, Icmpv4Packet, IpCidr,
    Ipv4Packet, TcpPacket,
};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration as Time, Instant as Clock};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 15];
const LIMIT: Time = Time::from_secs(20);
const HEADER: usize = 12;

/// The guest's end of the link.
#[derive(Default)]
struct Cable {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
}

struct Frames(Vec<u8>);

impl RxToken for Frames {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Frames;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Frames, Sending<'_>)> {
        Some((Frames(self.to_guest.pop_front()?), Sending(&mut self.from_guest)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Guest {
    net: UserNet,
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Clock,
}

fn options() -> Options {
    Options { host_loopback: true, ..Default::default() }
}

impl Guest {
    /// A guest with its address; its driver completes checksums or not.
    fn new(options: Options, sums: bool) -> Self {
        let mut net = UserNet::new(MAC, options).unwrap();
        net.set_features(if sums { features::GUEST_CSUM } else { 0 }).unwrap();
        let mut cable = Cable::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut cable, Instant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(route::GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let (sockets, started) = (SocketSet::new(Vec::new()), Clock::now());
        Self { net, cable, interface, sockets, started }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut bytes = [&[0; HEADER], frame].concat();
        let mut store = IoVecStore::new();
        self.net.send(&mut IoVecs::from_slice(&mut store, &mut bytes)).unwrap();
    }

    /// A frame for the guest as its driver hands it on: with its checksum.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; HEADER + 18 + 65536];
        let mut store = IoVecStore::new();
        let (front, rest) = bytes.split_at_mut(100);
        let len = self.net.receive(&mut IoVecs::from_slice(&mut store, front), rest).unwrap()?;
        bytes.truncate(len);
        let (start, offset) = (at(&bytes, 6), at(&bytes, 8));
        let needs = bytes[0] & 1 != 0;
        let mut frame = bytes.split_off(HEADER);
        if needs {
            let sum = !smoltcp::wire::checksum::data(&frame[start..]);
            frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Some(frame)
    }

    /// Moves what there is, both ways.
    fn step(&mut self) {
        let now = Instant::from_micros(self.started.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
        while let Some(frame) = self.cable.from_guest.pop_front() {
            self.send(&frame);
        }
        self.net.flush();
        for _ in 0..64 {
            let Some(frame) = self.receive() else { break };
            self.cable.to_guest.push_back(frame);
        }
    }

    /// Goes on until `done`, sleeping only as long as the gateway has no news.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Clock::now() + LIMIT;
        while !done(self) {
            assert!(Clock::now() < end, "{what} never came");
            self.step();
            if self.cable.to_guest.is_empty() {
                let mut poll = libc::pollfd {
                    fd: self.net.source().unwrap(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one pollfd that outlives the call.
                unsafe { libc::poll(&mut poll, 1, 1) };
            }
        }
    }

    fn tcp(&mut self, buffer: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Starts to connect to `to`.
    fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let handle = self.tcp(64 << 10);
        let port = 40_000 + self.sockets.iter().count() as u16;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), (*to.ip(), to.port()), port).unwrap();
        handle
    }

    fn stream(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends all of `data`, and receives to the end of the stream.
    fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let opening = [tcp::State::SynSent, tcp::State::SynReceived];
        self.until("a connection", |guest| !opening.contains(&guest.stream(handle).state()));
        let (mut sent, mut received, mut closed) = (0, Vec::new(), false);
        self.until("the end of the stream", |guest| {
            let socket = guest.stream(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            if sent == data.len() && socket.may_send() {
                socket.close();
            }
            closed |= !socket.may_send();
            closed && !socket.may_recv()
        });
        received
    }

    fn open_connections(&self) -> usize {
        self.net.connections.count()
    }
}

/// A little-endian field of the virtio header.
fn at(bytes: &[u8], offset: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]]))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddrV4::new(GATEWAY, port))
}

/// Sends back all that a client sends, once it has sent it all.
fn mirror(listener: TcpListener) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    })
}

#[test]
fn a_guest_gets_its_address_by_dhcp() {
    let mut guest = Guest::new(options(), true);
    guest.interface.update_ip_addrs(|all| all.clear());
    let dhcp = guest.sockets.add(dhcpv4::Socket::new());
    let mut lease = None;
    guest.until("a lease", |guest| {
        if let Some(dhcpv4::Event::Configured(config)) =
            guest.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll()
        {
            lease = Some((config.address, config.router, config.dns_servers.to_vec()));
        }
        lease.is_some()
    });
    let (address, router, names) = lease.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (route::GUEST, 24));
    assert_eq!((router, names), (Some(GATEWAY), vec![route::NAMES]));
}

#[test]
fn streams_arrive_whole_both_ways_with_and_without_checksum_offload() {
    for sums in [true, false] {
        let mut guest = Guest::new(options(), sums);
        let (listener, to) = listener();
        let server = mirror(listener);
        let handle = guest.connect(to);
        let data = pattern(3 << 20);
        assert!(guest.exchange(handle, &data) == data, "bytes are lost or changed");
        server.join().unwrap();
        guest.until("the end", |guest| guest.open_connections() == 0);
    }
}

#[test]
fn a_segment_as_large_as_an_offload_makes_it_is_one() {
    let mut guest = Guest::new(options(), true);
    let (listener, to) = listener();
    let handle = guest.connect(to);
    guest.until("a connection", |guest| guest.stream(handle).may_send());
    let mut server = listener.accept().unwrap().0;
    // What the guest sends in segments of its own is put together here.
    guest.stream(handle).send_slice(&pattern(40_000)).unwrap();
    let now = Instant::from_micros(guest.started.elapsed().as_micros() as i64);
    guest.interface.poll(now, &mut guest.cable, &mut guest.sockets);
    let frames: Vec<_> = guest.cable.from_guest.drain(..).collect();
    let mut joined = frames[0].clone();
    let mut headers = 34;
    for (i, frame) in frames.iter().enumerate() {
        let tcp = TcpPacket::new_checked(&frame[34..]).unwrap();
        headers = 34 + usize::from(tcp.header_len());
        if i > 0 {
            joined.extend_from_slice(tcp.payload());
        }
    }
    assert!(frames.len() > 10);
    let total = joined.len() - 14;
    let mut ip = Ipv4Packet::new_unchecked(&mut joined[14..]);
    ip.set_total_len(total as u16);
    ip.fill_checksum();
    // `VIRTIO_NET_HDR_F_NEEDS_CSUM`, `VIRTIO_NET_HDR_GSO_TCPV4`.
    let mut bytes = [&[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0][..], &joined].concat();
    let mut store = IoVecStore::new();
    guest.net.send(&mut IoVecs::from_slice(&mut store, &mut bytes)).unwrap();
    guest.net.flush();
    let mut got = vec![0; joined.len() - headers];
    server.read_exact(&mut got).unwrap();
    assert!(got == pattern(got.len()));
    guest.until("its acknowledgement", |guest| guest.stream(handle).send_queue() == 0);
}

#[test]
fn a_connection_that_nobody_takes_is_refused() {
    let (listener, closed) = listener();
    drop(listener);
    let lonely = Options { host_loopback: false, ..options() };
    let (_open, hidden) = self::listener();
    for (options, to) in [
        (options(), closed),
        // Not asked for: the host itself, and what no guest may reach by name.
        (lonely.clone(), hidden),
        (lonely.clone(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, hidden.port())),
        (lonely, SocketAddrV4::new(route::NAMES, 53)),
    ] {
        let mut guest = Guest::new(options, false);
        // The guest's own stack would not send to its loopback address.
        let handle = guest.connect(to);
        guest.until("a refusal", |guest| !guest.stream(handle).is_open());
        assert_eq!(guest.open_connections(), 0);
    }
}

#[test]
fn each_side_can_end_its_half_of_a_stream_first() {
    let mut guest = Guest::new(options(), false);
    let (listener, to) = listener();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"all I have to say").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    });
    let handle = guest.connect(to);
    let mut heard = Vec::new();
    guest.until("the host's end", |guest| {
        let socket = guest.stream(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes))).unwrap();
        }
        socket.state() == tcp::State::CloseWait && !socket.can_recv()
    });
    assert_eq!(heard, b"all I have to say");
    // The other half is open still.
    let data = pattern(300_000);
    guest.exchange(handle, &data);
    guest.until("the end", |guest| guest.open_connections() == 0);
    assert!(server.join().unwrap() == data);
}

#[test]
fn who_does_not_read_stops_the_other_side_and_loses_nothing() {
    let mut guest = Guest::new(options(), true);
    let (listener, to) = listener();
    let handle = guest.connect(to);
    guest.until("a connection", |guest| guest.stream(handle).may_send());
    let mut server = listener.accept().unwrap().0;
    // The guest sends until nobody takes more.
    let data = pattern(32 << 20);
    let (mut sent, mut still) = (0, Clock::now());
    guest.until("a full buffer", |guest| {
        let socket = guest.stream(handle);
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            still = Clock::now();
        }
        still.elapsed() > Time::from_millis(500)
    });
    assert!(sent < data.len(), "32 MiB have no place between them");
    guest.stream(handle).close();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        (server, all)
    });
    guest.until("the reader", |_| reader.is_finished());
    let (server, all) = reader.join().unwrap();
    assert!(all == data[..sent], "{} of {sent} bytes", all.len());

    // And now the host, while the guest does not read.
    let copy = data.clone();
    let writer = std::thread::spawn(move || (&server).write_all(&copy).unwrap());
    let waiting = Clock::now();
    guest.until("half a second", |_| waiting.elapsed() > Time::from_millis(500));
    assert!(!writer.is_finished(), "32 MiB have no place between them");
    assert!(guest.exchange(handle, &[]) == data);
    writer.join().unwrap();
}

#[test]
fn a_connection_that_is_reset_is_reset_on_the_other_side() {
    let mut guest = Guest::new(options(), false);
    let (listener, to) = listener();
    let handle = guest.connect(to);
    guest.until("a connection", |guest| guest.stream(handle).may_send());
    let mut server = listener.accept().unwrap().0;
    guest.stream(handle).abort();
    guest.until("the end", |guest| guest.open_connections() == 0);
    let error = server.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let handle = guest.connect(to);
    guest.until("a connection", |guest| guest.stream(handle).may_send());
    let server = listener.accept().unwrap().0;
    rustix::net::sockopt::set_socket_linger(&server, Some(Time::ZERO)).unwrap();
    drop(server);
    guest.until("a reset", |guest| guest.stream(handle).state() == tcp::State::Closed);
}

fn datagrams(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 64 << 10]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.sockets.get_mut::<udp::Socket>(handle).bind(port).unwrap();
    handle
}

fn receive(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
    guest.until("a datagram", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    let (data, meta) = guest.sockets.get_mut::<udp::Socket>(handle).recv().unwrap();
    (data.to_vec(), SocketAddr::from((meta.endpoint.addr, meta.endpoint.port)))
}

fn local_datagrams() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[test]
fn datagrams_are_exchanged_with_whoever_was_spoken_to() {
    for sums in [true, false] {
        let mut guest = Guest::new(options(), sums);
        let (server, port) = local_datagrams();
        let handle = datagrams(&mut guest, 5000);
        for len in [0, 1, 1400] {
            let data = pattern(len);
            let socket = guest.sockets.get_mut::<udp::Socket>(handle);
            socket.send_slice(&data, (GATEWAY, port)).unwrap();
            // The guest's own ARP comes first.
            guest.step();
            guest.step();
            let mut got = [0; 2000];
            let (n, client) = server.recv_from(&mut got).unwrap();
            assert!(got[..n] == data);
            server.send_to(&got[..n], client).unwrap();
            let from = SocketAddr::new(GATEWAY.into(), port);
            assert_eq!(receive(&mut guest, handle), (data, from));
        }
        assert_eq!(guest.net.host.counts.flows, 1);
    }
}

#[test]
fn a_datagram_to_a_closed_port_is_answered_as_the_host_was() {
    let mut guest = Guest::new(options(), false);
    let (server, port) = local_datagrams();
    drop(server);
    let handle = datagrams(&mut guest, 5000);
    guest.sockets.get_mut::<udp::Socket>(handle).send_slice(b"?", (GATEWAY, port)).unwrap();
    let is_icmp = |frame: &&Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 1;
    let mut frame = Vec::new();
    guest.until("an answer", |guest| {
        frame = guest.cable.to_guest.iter().find(is_icmp).cloned().unwrap_or_default();
        !frame.is_empty()
    });
    let icmp = Icmpv4Packet::new_checked(&frame[34..]).unwrap();
    assert_eq!((icmp.msg_type(), icmp.msg_code()), (Icmpv4Message::DstUnreachable, 3));
    assert!(icmp.verify_checksum());
    let original = Ipv4Packet::new_unchecked(icmp.data());
    assert_eq!((original.src_addr(), original.dst_addr()), (route::GUEST, GATEWAY));
    let ports = &icmp.data()[20..24];
    assert_eq!(ports, [5000u16.to_be_bytes(), port.to_be_bytes()].concat());
}

#[test]
fn names_are_asked_of_the_next_server_when_one_is_silent() {
    let ((first, one), (second, two)) = (local_datagrams(), local_datagrams());
    let resolvers = [one, two].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).to_vec();
    let mut guest = Guest::new(Options { resolvers, ..Default::default() }, true);
    let handle = datagrams(&mut guest, 5000);
    let ask = |guest: &mut Guest| {
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        socket.send_slice(b"who?", (route::NAMES, 53)).unwrap();
        guest.step();
        guest.step();
    };
    let mut got = [0; 64];
    ask(&mut guest);
    assert_eq!(first.recv_from(&mut got).unwrap().0, 4);
    ask(&mut guest);
    assert_eq!(first.recv_from(&mut got).unwrap().0, 4, "it has a second for its answer");
    std::thread::sleep(Time::from_millis(1100));
    ask(&mut guest);
    let (_, client) = second.recv_from(&mut got).unwrap();
    second.send_to(b"me", client).unwrap();
    let from = SocketAddr::new(route::NAMES.into(), 53);
    assert_eq!(receive(&mut guest, handle), (b"me".to_vec(), from));
}

fn forwards(protocol: Protocol, guest: u16) -> (Options, SocketAddrV4) {
    // A port that was free a moment ago.
    let port = match protocol {
        Protocol::Tcp => listener().1.port(),
        Protocol::Udp => local_datagrams().1,
    };
    let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    (Options { forwards: vec![Forward { protocol, host, guest }], ..Default::default() }, host)
}

#[test]
fn a_forwarded_port_leads_into_the_guest() {
    let (options, host) = forwards(Protocol::Tcp, 22);
    let mut guest = Guest::new(options, true);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(&pattern(500_000)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    let handle = guest.tcp(64 << 10);
    guest.stream(handle).listen(22).unwrap();
    guest.until("a client", |guest| guest.stream(handle).may_send());
    let answer = pattern(100_000);
    assert!(guest.exchange(handle, &answer) == pattern(500_000));
    guest.until("the end", |guest| guest.open_connections() == 0);
    assert!(client.join().unwrap() == answer);

    // Nobody listens now: the client hears of it.
    let mut late = TcpStream::connect(host).unwrap();
    let late = std::thread::spawn(move || late.read(&mut [0; 16]));
    guest.until("a refusal", |_| late.is_finished());
    assert!(late.join().unwrap().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
}

#[test]
fn datagrams_of_a_forwarded_port_are_answered_to_each_client() {
    let (options, host) = forwards(Protocol::Udp, 53);
    let mut guest = Guest::new(options, false);
    let handle = datagrams(&mut guest, 53);
    let clients = [local_datagrams().0, local_datagrams().0];
    for client in &clients {
        client.send_to(b"ask", host).unwrap();
    }
    let asked = [receive(&mut guest, handle).1, receive(&mut guest, handle).1];
    assert_ne!(asked[0], asked[1]);
    for (i, client) in asked.iter().enumerate() {
        let SocketAddr::V4(client) = client else { unreachable!() };
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        socket.send_slice(&[i as u8], (*client.ip(), client.port())).unwrap();
    }
    guest.step();
    guest.step();
    for (i, client) in clients.iter().enumerate() {
        let mut got = [0; 16];
        assert_eq!(client.recv_from(&mut got).unwrap(), (1, host.into()));
        assert_eq!(usize::from(got[0]), i);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (listener, address) = listener();
    let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port());
    let forwards = vec![Forward { protocol: Protocol::Tcp, host, guest: 22 }];
    let error = UserNet::new(MAC, Options { forwards, ..Default::default() }).err().unwrap();
    assert!(error.to_string().contains(&host.to_string()), "{error}");
    drop(listener);
}

/// A frame of the guest to its gateway.
fn frame(ethertype: EthernetProtocol, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + content.len()];
    let mut ethernet = EthernetFrame::new_unchecked(frame.as_mut_slice());
    ethernet.set_src_addr(EthernetAddress(MAC));
    ethernet.set_dst_addr(wire::GATEWAY_MAC);
    ethernet.set_ethertype(ethertype);
    ethernet.payload_mut().copy_from_slice(content);
    frame
}

/// A packet of the guest with an IP header that is right.
fn packet(to: Ipv4Addr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20 + content.len()];
    packet[20..].copy_from_slice(content);
    let mut ip = Ipv4Packet::new_unchecked(packet.as_mut_slice());
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len(20 + content.len() as u16);
    ip.set_hop_limit(64);
    ip.set_next_header(protocol.into());
    ip.set_src_addr(route::GUEST);
    ip.set_dst_addr(to);
    ip.fill_checksum();
    frame(EthernetProtocol::Ipv4, &packet)
}

#[test]
fn the_gateway_answers_arp_and_echoes_and_nobody_else_does() {
    let mut guest = Guest::new(options(), true);
    for (address, answers) in [
        (GATEWAY, true),
        (route::NAMES, true),
        (route::GUEST, false),
        ([10, 0, 2, 9].into(), false),
    ] {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(MAC);
        arp.extend(route::GUEST.octets());
        arp.extend([0; 6]);
        arp.extend(address.octets());
        guest.send(&frame(EthernetProtocol::Arp, &arp));
        let reply = guest.receive();
        assert_eq!(reply.is_some(), answers, "{address}");
        if let Some(reply) = reply {
            assert_eq!(reply[22..28], wire::GATEWAY_MAC.0);
            assert_eq!(reply[28..32], address.octets());
        }
    }
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, b'h', b'i'];
    Icmpv4Packet::new_unchecked(echo.as_mut_slice()).fill_checksum();
    guest.send(&packet(GATEWAY, 1, &echo));
    let reply = guest.receive().unwrap();
    let icmp = Icmpv4Packet::new_checked(&reply[34..]).unwrap();
    assert_eq!((icmp.msg_type(), icmp.echo_ident()), (Icmpv4Message::EchoReply, 0x1234));
    assert!(icmp.verify_checksum());
    // One whose checksum is wrong is lost.
    echo[9] = b'o';
    guest.send(&packet(GATEWAY, 1, &echo));
    assert_eq!(guest.receive(), None);
}

/// The first segment of a connection from `port`.
fn syn(to: SocketAddrV4, port: u16) -> Vec<u8> {
    let mut segment = vec![0; 20];
    let mut tcp = TcpPacket::new_unchecked(segment.as_mut_slice());
    tcp.set_src_port(port);
    tcp.set_dst_port(to.port());
    tcp.set_header_len(20);
    tcp.set_syn(true);
    tcp.set_window_len(1000);
    tcp.fill_checksum(&route::GUEST.into(), &(*to.ip()).into());
    packet(*to.ip(), 6, &segment)
}

#[test]
fn a_guest_that_wants_too_much_gets_no_more_than_its_share() {
    let mut guest = Guest::new(options(), true);
    let (_listener, to) = listener();
    for port in 1..=2 * MAX_CONNECTIONS as u16 {
        guest.send(&syn(to, port));
        assert!(guest.open_connections() <= MAX_CONNECTIONS);
    }
    let Counts { tcp, refused, .. } = guest.net.host.counts;
    assert_eq!(tcp + refused, 2 * MAX_CONNECTIONS as u64);
    assert!(refused >= MAX_CONNECTIONS as u64);
    // It takes none of the answers: they are bounded, too.
    assert!(guest.net.outbox.bytes() <= wire::MAX_QUEUED + 2 * wire::MAX_PACKET);
    // Another driver starts with nothing.
    guest.net.restart();
    assert_eq!((guest.open_connections(), guest.net.outbox.bytes()), (0, 0));

    for port in 1..=2 * MAX_FLOWS as u16 {
        let mut datagram = vec![0; 8];
        let mut udp = smoltcp::wire::UdpPacket::new_unchecked(datagram.as_mut_slice());
        udp.set_src_port(port);
        udp.set_dst_port(9);
        udp.set_len(8);
        guest.send(&packet(GATEWAY, 17, &datagram));
    }
    assert_eq!(guest.net.host.counts.flows, 2 * MAX_FLOWS as u64);
    assert!(guest.net.flows.count() <= MAX_FLOWS);
}

/// What a hostile guest sends.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    let to = prop_oneof![
        5 => (0u8..5).prop_map(|host| Ipv4Addr::new(10, 0, 2, host)),
        1 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits & 0x7f00_0000_u32 | 0x7f00_0000)),
    ];
    let arp = vec(any::<u8>(), 0..40).prop_map(|content| frame(EthernetProtocol::Arp, &content));
    let ip = (to, prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()], vec(any::<u8>(), 0..80))
        .prop_map(|(to, protocol, content)| packet(to, protocol, &content));
    let segment = (0u16..4, vec(any::<u8>(), 0..60), any::<u8>(), any::<[u8; 10]>()).prop_map(
        |(port, data, flags, numbers)| {
            let mut segment = vec![0; 20];
            segment[..2].copy_from_slice(&(1000 + port).to_be_bytes());
            segment[2..4].copy_from_slice(&9u16.to_be_bytes());
            segment[4..8].copy_from_slice(&numbers[..4]);
            segment[8..12].copy_from_slice(&numbers[4..8]);
            segment[12] = 5 << 4;
            segment[13] = flags & 0x3f;
            segment[14..16].copy_from_slice(&numbers[8..]);
            segment.extend(data);
            packet(GATEWAY, 6, &segment)
        },
    );
    let dhcp = vec(any::<u8>(), 0..320).prop_map(|mut message| {
        if message.len() >= 240 {
            message[..3].copy_from_slice(&[1, 1, 6]);
            message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        }
        let len = (8 + message.len()) as u16;
        let header = [68u16, 67, len, 0].map(u16::to_be_bytes).concat();
        packet(Ipv4Addr::BROADCAST, 17, &[header, message].concat())
    });
    prop_oneof![arp, ip, segment, dhcp, vec(any::<u8>(), 0..100)]
}

proptest! {
    #[test]
    fn no_frames_break_the_gateway(
        frames in vec((nonsense(), any::<bool>()), 0..60),
        sums in any::<bool>(),
    ) {
        let mut guest = Guest::new(options(), sums);
        for (frame, trusted) in frames {
            // A driver that says that it left the checksum to the device.
            let mut bytes = [&[u8::from(trusted); HEADER], &frame[..]].concat();
            let mut store = IoVecStore::new();
            guest.net.send(&mut IoVecs::from_slice(&mut store, &mut bytes)).unwrap();
            guest.net.flush();
            guest.receive();
        }
        prop_assert!(guest.open_connections() <= MAX_CONNECTIONS);
        // It works for everyone else as before.
        guest.net.restart();
        guest.net.set_features(0).unwrap();
        let (listener, to) = listener();
        let handle = guest.connect(to);
        guest.until("a connection", |guest| guest.stream(handle).may_send());
        drop(listener);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn neither_the_guest_nor_the_host_breaks_it(program in vec(any::<u8>(), 0..600)) {
        hostile::run(&program);
    }
}
