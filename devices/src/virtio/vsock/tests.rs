//! The device between a driver in memory and a host in memory.

use super::packet::*;
use super::*;
use crate::bus::{BusDevice, lock};
use crate::virtio::VIRTIO_RING_F_EVENT_IDX;
use crate::virtio::mmio::*;
use crate::virtio::testing::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

/// Rings of the other queues, behind those that [`Bench`] has made.
const TX_RINGS: u64 = 0x4000;
const EVENT_RINGS: u64 = 0x8000;
/// Where packets to be sent are, and events.
const OUT: u64 = 0x1_0000;
const EVENTS: u64 = 0xf000;
/// Where packets are received: a buffer for each descriptor.
const IN: u64 = 0x4_0000;
const BUFFER: u32 = 0x2000;
const CID: u32 = 42;

/// The host's side of one connection.
#[derive(Default)]
struct Peer {
    token: u64,
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    /// How much of `outgoing` fits.
    room: usize,
    ended: bool,
    gone: bool,
    shut: Vec<Shutdown>,
    dropped: bool,
}

type SharedPeer = Arc<Mutex<Peer>>;

/// A host in memory.
#[derive(Default)]
struct Host {
    servers: HashSet<u32>,
    clients: VecDeque<SharedPeer>,
    connected: Vec<SharedPeer>,
    news: Vec<Readiness>,
}

#[derive(Clone, Default)]
struct MemHost(Arc<Mutex<Host>>);

struct MemStream(SharedPeer);

impl VsockBackend for MemHost {
    fn connect(&mut self, port: u32, token: u64) -> io::Result<Box<dyn HostStream>> {
        let mut host = lock(&self.0);
        if !host.servers.contains(&port) {
            return Err(ErrorKind::NotFound.into());
        }
        let peer = SharedPeer::default();
        lock(&peer).token = token;
        lock(&peer).room = usize::MAX;
        host.connected.push(peer.clone());
        Ok(Box::new(MemStream(peer)))
    }

    fn accept(&mut self, token: u64) -> io::Result<Option<Box<dyn HostStream>>> {
        let Some(peer) = lock(&self.0).clients.pop_front() else { return Ok(None) };
        lock(&peer).token = token;
        Ok(Some(Box::new(MemStream(peer))))
    }

    fn poll(&mut self, news: &mut Vec<Readiness>) -> io::Result<bool> {
        news.append(&mut lock(&self.0).news);
        Ok(false)
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

impl HostStream for MemStream {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        match peer.incoming.is_empty() {
            true if peer.ended || peer.gone => Ok(0),
            true => Err(ErrorKind::WouldBlock.into()),
            false => {
                let n = to.copy_in(peer.incoming.make_contiguous());
                peer.incoming.drain(..n);
                Ok(n)
            }
        }
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        if peer.gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let n = from.len().min((peer.room - peer.outgoing.len()) as u64) as usize;
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        for piece in from.as_slice() {
            // SAFETY: the entry points to that many bytes, which nobody writes.
            let bytes = unsafe { std::slice::from_raw_parts(piece.iov_base.cast(), piece.iov_len) };
            peer.outgoing.extend_from_slice(bytes);
        }
        let all = peer.outgoing.len() - from.len() as usize + n;
        peer.outgoing.truncate(all);
        Ok(n)
    }

    fn shutdown(&mut self, how: Shutdown) {
        lock(&self.0).shut.push(how);
    }
}

impl Drop for MemStream {
    fn drop(&mut self) {
        lock(&self.0).dropped = true;
    }
}

/// A device, its driver and its host.
struct Machine {
    bench: Bench,
    tx: Rings,
    events: Rings,
    host: Arc<Mutex<Host>>,
    device: Arc<Mutex<Vsock>>,
    /// Descriptors of the receive queue that were offered.
    given: u64,
    /// Whether buffers are offered again when they come back.
    generous: bool,
}

impl Machine {
    fn new() -> Self {
        let host = MemHost::default();
        let shared = host.0.clone();
        let device = Arc::new(Mutex::new(Vsock::new(CID, Box::new(host))));
        let (tx, events) = (Rings::new(TX_RINGS, 16), Rings::new(EVENT_RINGS, 16));
        let bench = Bench::new(device.clone());
        Self { bench, tx, events, host: shared, device, given: 0, generous: true }
    }

    fn started(features: u64) -> Self {
        let mut machine = Self::new();
        machine.start(features);
        machine
    }

    fn start(&mut self, features: u64) {
        let mem = self.bench.mem.clone();
        mem.write_slice(&[0; 0xf000], GuestAddress(0x1000)).unwrap();
        self.bench.rings = Rings::new(0x1000, 16);
        (self.tx, self.events) = (Rings::new(TX_RINGS, 16), Rings::new(EVENT_RINGS, 16));
        self.bench.negotiate(features);
        self.bench.set_up_queue();
        for (i, rings) in [(1, self.tx.clone()), (2, self.events.clone())] {
            self.bench.write(QUEUE_SEL, i);
            self.bench.write(QUEUE_NUM, rings.size.into());
            self.bench.write_address(QUEUE_DESC_LOW, rings.desc);
            self.bench.write_address(QUEUE_DRIVER_LOW, rings.avail);
            self.bench.write_address(QUEUE_DEVICE_LOW, rings.used);
            self.bench.write(QUEUE_READY, 1);
        }
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.bench.write(STATUS, status | STATUS_DRIVER_OK);
        self.given = 0;
        if self.generous {
            (0..16).for_each(|_| self.give(BUFFER));
        }
        self.bench.run();
    }

    /// Offers a buffer of `len` bytes to receive into.
    fn give(&mut self, len: u32) {
        let addr = IN + self.given % 16 * u64::from(BUFFER);
        self.given += 1;
        let head = self.bench.rings.chain(&self.bench.mem, &[], &[(addr, len)]);
        self.bench.rings.offer(&self.bench.mem, head);
    }

    /// Sends a packet, in two pieces.
    fn send(&mut self, header: Header, payload: &[u8]) {
        let mem = self.bench.mem.clone();
        mem.write_slice(&header.bytes(), GuestAddress(OUT)).unwrap();
        mem.write_slice(payload, GuestAddress(OUT + HEADER as u64)).unwrap();
        let pieces = [(OUT, 30), (OUT + 30, HEADER as u32 - 30 + payload.len() as u32)];
        let head = self.tx.chain(&mem, &pieces, &[]);
        self.tx.offer(&mem, head);
        self.bench.write(QUEUE_NOTIFY, 1);
        self.bench.run();
        assert_eq!(self.tx.collect(&mem), [(head.into(), 0)]);
    }

    /// All that came.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let back = self.bench.rings.collect(&self.bench.mem);
            if back.is_empty() {
                return all;
            }
            for (head, len) in back {
                let mut bytes = vec![0; len as usize];
                let addr = IN + u64::from(head) * u64::from(BUFFER);
                self.bench.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
                if let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() {
                    let header = Header::parse(header);
                    assert_eq!(header.len as usize, payload.len());
                    assert_eq!(header.dst_cid, u64::from(CID));
                    all.push((header, payload.to_vec()));
                }
                if self.generous {
                    self.give(BUFFER);
                }
            }
            self.bench.kick();
        }
    }

    /// The operations of all that came.
    fn ops(&mut self) -> Vec<u16> {
        self.received().iter().map(|(header, _)| header.op).collect()
    }

    /// The host has news of `peer`.
    fn news(&mut self, peer: &SharedPeer) {
        let token = lock(peer).token;
        let hung_up = lock(peer).gone;
        let one = Readiness { token, readable: true, writable: true, hung_up };
        lock(&self.host).news.push(one);
        self.bench.worker.source_event(0);
        self.bench.run();
    }

    /// A client that says `line`.
    fn client(&mut self, line: &str) -> SharedPeer {
        let peer = SharedPeer::default();
        lock(&peer).room = usize::MAX;
        lock(&peer).incoming.extend(line.bytes());
        lock(&self.host).clients.push_back(peer.clone());
        lock(&self.host).news.push(Readiness { token: CLIENTS, ..Default::default() });
        self.bench.worker.source_event(0);
        self.bench.run();
        peer
    }

    /// A connection that the guest has made to port 80.
    fn connected(&mut self) -> SharedPeer {
        lock(&self.host).servers.insert(80);
        self.send(packet(op::REQUEST), &[]);
        let all = self.received();
        assert!(
            matches!(all.as_slice(), [(h, _)] if h.op == op::RESPONSE && h.buf_alloc == BUF_ALLOC)
        );
        let peer = lock(&self.host).connected.pop();
        peer.unwrap()
    }

    fn connections(&self) -> usize {
        lock(&self.device).connections()
    }
}

/// A packet from port 1000 of the guest to port 80 of the host, with room for
/// 64 KiB.
fn packet(op: u16) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: VMADDR_CID_HOST,
        src_port: 1000,
        dst_port: 80,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 16,
        ..Default::default()
    }
}

fn data(len: usize) -> (Header, Vec<u8>) {
    let header = Header { len: len as u32, ..packet(op::RW) };
    (header, (0..len).map(|i| (i * 7 >> 3) as u8).collect())
}

#[test]
fn a_guest_connects_to_the_host_and_bytes_flow_both_ways() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut machine = Machine::started(features);
        let peer = machine.connected();
        let (header, bytes) = data(3000);
        machine.send(header, &bytes);
        assert_eq!(lock(&peer).outgoing, bytes);
        assert!(machine.bench.interrupted());
        lock(&peer).incoming.extend(&bytes);
        machine.news(&peer);
        let all = machine.received();
        let [(header, payload)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((header.op, header.fwd_cnt), (op::RW, 3000));
        assert_eq!((header.src_port, header.dst_port, header.src_cid), (80, 1000, 2));
        assert_eq!(*payload, bytes);
    }
}

#[test]
fn a_client_of_the_host_is_told_its_port_when_the_guest_accepts() {
    let mut machine = Machine::started(0);
    let peer = machine.client("CONNECT 1000\nand more");
    let request = machine.received().pop().unwrap().0;
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1000));
    assert!(lock(&peer).outgoing.is_empty());
    let answer = Header { dst_port: request.src_port, ..packet(op::RESPONSE) };
    machine.send(answer, &[]);
    assert_eq!(lock(&peer).outgoing, format!("OK {}\n", request.src_port).as_bytes());
    let (header, payload) = machine.received().pop().unwrap();
    assert_eq!((header.op, payload.as_slice()), (op::RW, &b"and more"[..]));
    // Another one at the same port of the guest has another port here.
    machine.client("CONNECT 1000\n");
    assert_ne!(machine.received().pop().unwrap().0.src_port, request.src_port);
}

#[test]
fn clients_that_say_something_else_are_left() {
    let mut machine = Machine::started(0);
    for line in ["CONNECT\n", "CONNECT x\n", "\n", &"C".repeat(100), "CONNECT 99999999999\n"] {
        let peer = machine.client(line);
        assert!(lock(&peer).dropped, "{line:?}");
    }
    let slow = machine.client("CONN");
    assert_eq!(machine.connections(), 1);
    lock(&slow).incoming.extend(b"ECT 5\n");
    machine.news(&slow);
    assert_eq!(machine.ops(), [op::REQUEST]);
    let fickle = machine.client("CONN");
    lock(&fickle).gone = true;
    machine.news(&fickle);
    assert!(lock(&fickle).dropped);
    // One that goes while the guest is asked.
    lock(&slow).gone = true;
    machine.news(&slow);
    assert_eq!(machine.ops(), [op::RST]);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let mut machine = Machine::started(0);
    let peer = machine.client("CONNECT 1000\n");
    let request = machine.received().pop().unwrap().0;
    machine.send(Header { dst_port: request.src_port, ..packet(op::RST) }, &[]);
    assert!(lock(&peer).dropped);
    assert!(lock(&peer).outgoing.is_empty());
    assert!(machine.ops().is_empty(), "no answer to an answer");
}

#[test]
fn packets_to_nobody_are_answered_with_a_reset() {
    let mut machine = Machine::started(0);
    let wrong = [
        packet(op::REQUEST), // nobody listens
        packet(op::RW),
        packet(op::RESPONSE),
        packet(op::SHUTDOWN),
        packet(77),
        Header { kind: 2, ..packet(op::REQUEST) },
        Header { dst_cid: 5, ..packet(op::REQUEST) },
        Header { src_cid: 5, ..packet(op::REQUEST) },
    ];
    for (i, header) in wrong.into_iter().enumerate() {
        if i > 0 {
            lock(&machine.host).servers.insert(80);
        }
        machine.send(header, &[]);
        let all = machine.received();
        let [(reset, _)] = all.as_slice() else { panic!("{header:?}: {all:?}") };
        assert_eq!((reset.op, reset.kind), (op::RST, header.kind));
        assert_eq!((reset.src_port, reset.dst_port), (80, 1000));
        assert_eq!(reset.src_cid, header.dst_cid);
        machine.send(Header { op: op::RST, ..header }, &[]);
        assert!(machine.ops().is_empty());
    }
    assert_eq!(machine.connections(), 0);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let short = Header { len: 10, ..packet(op::RW) };
    for header in [packet(op::REQUEST), packet(op::RESPONSE), packet(0), packet(99), short] {
        let mut machine = Machine::started(0);
        let peer = machine.connected();
        machine.send(header, &[]);
        assert_eq!(machine.ops(), [op::RST], "{header:?}");
        assert!(lock(&peer).dropped && !machine.bench.needs_reset());
    }
}

#[test]
fn a_slow_host_makes_the_guest_wait_and_one_that_does_not_is_reset() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).room = 100;
    let (header, bytes) = data(BUF_ALLOC as usize);
    machine.send(header, &bytes);
    assert_eq!(lock(&peer).outgoing.len(), 100);
    assert!(machine.ops().is_empty(), "nothing to tell yet");
    lock(&peer).room = usize::MAX;
    machine.news(&peer);
    assert_eq!(lock(&peer).outgoing, bytes);
    let all = machine.received();
    assert!(
        matches!(all.as_slice(), [(h, _)] if h.op == op::CREDIT_UPDATE && h.fwd_cnt == BUF_ALLOC)
    );

    lock(&peer).room = BUF_ALLOC as usize;
    machine.send(header, &bytes);
    machine.send(data(1).0, &[1]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(lock(&peer).dropped);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    machine.send(Header { buf_alloc: 100, ..packet(op::CREDIT_UPDATE) }, &[]);
    lock(&peer).incoming.extend([5; 250]);
    machine.news(&peer);
    let all = machine.received();
    assert_eq!(
        all.iter().map(|(h, _)| (h.op, h.len)).collect::<Vec<_>>(),
        [(op::RW, 100), (op::CREDIT_REQUEST, 0)]
    );
    machine.send(Header { buf_alloc: 100, fwd_cnt: 60, ..packet(op::CREDIT_UPDATE) }, &[]);
    let all = machine.received();
    assert_eq!((all[0].0.len, all[1].0.op), (60, op::CREDIT_REQUEST));
    // More than was ever sent can't have been forwarded.
    machine.send(Header { buf_alloc: 100, fwd_cnt: 161, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert!(machine.ops().is_empty());
    machine.send(Header { buf_alloc: 0, fwd_cnt: 160, ..packet(op::CREDIT_REQUEST) }, &[]);
    assert_eq!(machine.ops(), [op::CREDIT_UPDATE]);
    machine.send(Header { buf_alloc: 100, fwd_cnt: 160, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(machine.received()[0].0.len, 90);
}

#[test]
fn each_side_ends_its_half_by_itself() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).incoming.extend(b"last words");
    lock(&peer).ended = true;
    machine.news(&peer);
    let all = machine.received();
    assert_eq!(all.iter().map(|(h, _)| h.op).collect::<Vec<_>>(), [op::RW, op::SHUTDOWN]);
    assert_eq!(all[1].0.flags, SHUTDOWN_SEND);
    let (header, bytes) = data(10);
    machine.send(header, &bytes);
    assert_eq!(lock(&peer).outgoing, bytes, "the other half goes on");
    machine.send(Header { flags: SHUTDOWN_SEND, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(lock(&peer).shut, [Shutdown::Write]);
    assert_eq!(machine.connections(), 1);
    lock(&peer).gone = true;
    machine.news(&peer);
    let all = machine.received();
    assert!(matches!(all.as_slice(), [(h, _)] if h.flags == SHUTDOWN_BOTH));
    machine.send(packet(op::RST), &[]);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_that_closes_is_answered_and_its_bytes_still_arrive() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).room = 10;
    let (header, bytes) = data(5000);
    machine.send(header, &bytes);
    machine.send(Header { flags: SHUTDOWN_BOTH, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(!lock(&peer).dropped);
    // The port is free for another one meanwhile.
    let second = machine.connected();
    lock(&peer).room = usize::MAX;
    machine.news(&peer);
    assert_eq!(lock(&peer).outgoing, bytes);
    assert!(lock(&peer).dropped && !lock(&second).dropped);
    machine.send(header, &bytes);
    assert_eq!(lock(&second).outgoing, bytes);
}

#[test]
fn a_host_that_goes_is_told_to_the_guest_once_its_words_are_read() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    machine.send(Header { buf_alloc: 4, ..packet(op::CREDIT_UPDATE) }, &[]);
    lock(&peer).incoming.extend(b"goodbye");
    lock(&peer).gone = true;
    machine.news(&peer);
    assert_eq!(machine.ops(), [op::RW, op::CREDIT_REQUEST]);
    machine.send(Header { buf_alloc: 4, ..data(9).0 }, &[0; 9]);
    let all = machine.received();
    assert!(matches!(all.as_slice(), [(h, _)] if h.flags == SHUTDOWN_RECEIVE), "{all:?}");
    machine.send(Header { buf_alloc: 4, fwd_cnt: 4, ..packet(op::CREDIT_UPDATE) }, &[]);
    let all = machine.received();
    assert_eq!(all[0].1, b"bye");
    assert_eq!((all[1].0.op, all[1].0.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
}

#[test]
fn packets_wait_for_buffers_and_resets_are_bounded() {
    let mut machine = Machine::new();
    machine.generous = false;
    machine.start(VIRTIO_RING_F_EVENT_IDX);
    for _ in 0..5000 {
        machine.send(packet(op::RW), &[]);
    }
    let peer = machine.client("CONNECT 7\n");
    machine.give(HEADER as u32 - 1);
    machine.give(HEADER as u32);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RST], "the first buffer holds no header");
    machine.generous = true;
    (0..8).for_each(|_| machine.give(BUFFER));
    machine.bench.kick();
    let ops = machine.ops();
    assert_eq!(ops.len(), 4096, "{}", ops.len());
    assert_eq!(ops.last(), Some(&op::REQUEST));
    assert!(!lock(&peer).dropped);
}

#[test]
fn a_buffer_without_room_for_a_payload_does_not_spin() {
    let mut machine = Machine::new();
    machine.generous = false;
    machine.start(0);
    lock(&machine.host).servers.insert(80);
    machine.send(packet(op::REQUEST), &[]);
    machine.give(HEADER as u32);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RESPONSE]);
    let peer = lock(&machine.host).connected.pop().unwrap();
    lock(&peer).incoming.extend(b"x");
    machine.give(HEADER as u32);
    machine.news(&peer);
    assert!(machine.ops().is_empty());
    machine.send(packet(op::CREDIT_REQUEST), &[]);
    assert_eq!(machine.ops(), [op::CREDIT_UPDATE]);
    machine.give(BUFFER);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RW]);
}

#[test]
fn connections_are_capped_and_room_is_used_again() {
    let mut machine = Machine::started(0);
    lock(&machine.host).servers.insert(80);
    for i in 0..MAX_CONNECTIONS as u32 {
        machine.send(Header { src_port: i, ..packet(op::REQUEST) }, &[]);
        assert_eq!(machine.ops(), [op::RESPONSE]);
    }
    machine.send(Header { src_port: 5000, ..packet(op::REQUEST) }, &[]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(lock(&machine.client("CONNECT 1\n")).dropped);
    machine.send(Header { src_port: 0, ..packet(op::RST) }, &[]);
    assert!(!lock(&machine.client("CONNECT 1\n")).dropped);
    assert_eq!(machine.connections(), MAX_CONNECTIONS);
    machine.bench.write(STATUS, 0);
    assert_eq!(machine.connections(), 0);
    assert!(lock(&machine.host).connected.iter().all(|peer| lock(peer).dropped));
}

#[test]
fn clients_that_come_before_the_driver_are_served_later() {
    let mut machine = Machine::new();
    let peer = machine.client("CONNECT 9\n");
    assert_eq!(machine.connections(), 0);
    machine.start(0);
    assert_eq!(machine.ops(), [op::REQUEST]);
    machine.start(0);
    assert!(lock(&peer).dropped, "a reset ends all connections");
    assert!(machine.ops().is_empty());
}

#[test]
fn the_configuration_space_tells_the_context_id() {
    let mut machine = Machine::new();
    let mut config = [0xff; 10];
    for (i, byte) in config.iter_mut().enumerate() {
        machine.bench.transport.read(CONFIG + i as u64, std::slice::from_mut(byte));
    }
    assert_eq!(config, [CID as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_restored_driver_hears_that_its_connections_are_gone() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut a = Machine::started(features);
        a.connected();
        let saved = a.bench.transport.save().unwrap();

        let mut b = Machine::new();
        lock(&b.device).cid = 7;
        (b.bench.rings, b.tx) = (a.bench.rings.clone(), a.tx.clone());
        (b.events, b.given) = (a.events.clone(), a.given);
        let mut memory = vec![0; 0x10_0000];
        a.bench.mem.read_slice(&mut memory, GuestAddress(0)).unwrap();
        b.bench.mem.write_slice(&memory, GuestAddress(0)).unwrap();
        b.bench.transport.restore(&saved).unwrap();
        let mem = b.bench.mem.clone();
        mem.write_slice(&[0xff; 8], GuestAddress(EVENTS)).unwrap();
        for len in [3, 8] {
            let head = b.events.chain(&mem, &[], &[(EVENTS, len)]);
            b.events.offer(&mem, head);
        }
        b.bench.write(QUEUE_NOTIFY, 2);
        b.bench.run();
        assert_eq!(b.events.collect(&mem), [(0, 0), (1, 4)]);
        let mut event = [0; 8];
        mem.read_slice(&mut event, GuestAddress(EVENTS)).unwrap();
        assert_eq!(event, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        // The context ID came along, and a new connection can be made.
        let (header, bytes) = data(10);
        b.send(header, &bytes);
        assert_eq!(b.ops(), [op::RST]);
        b.connected();
        // Once is enough.
        let head = b.events.chain(&mem, &[], &[(EVENTS, 8)]);
        b.events.offer(&mem, head);
        b.bench.write(QUEUE_NOTIFY, 2);
        b.bench.run();
        assert_eq!(b.events.collect(&mem), []);
    }
}

#[test]
fn a_state_that_no_guest_can_have_is_refused() {
    let mut device = Vsock::new(CID, Box::new(MemHost::default()));
    for cid in [0, 2, u32::MAX] {
        let saved = Saved::new(KIND, super::VERSION, &State { cid }).unwrap();
        assert!(matches!(device.restore(&saved), Err(StateError::Invalid { .. })));
    }
    assert_eq!(device.cid, CID);
}

#[test]
fn broken_rings_ask_for_a_reset_and_a_reset_mends_it() {
    let mut machine = Machine::started(0);
    let mem = machine.bench.mem.clone();
    let head = machine.tx.chain(&mem, &[(HOLE, 100)], &[]);
    machine.tx.offer(&mem, head);
    machine.bench.write(QUEUE_NOTIFY, 1);
    machine.bench.run();
    assert!(machine.bench.needs_reset());
    machine.start(0);
    machine.connected();
}

#[derive(Debug, Clone)]
enum Step {
    Packet(Header, usize),
    Raw(Vec<u8>),
    Client(String),
    Says(usize, usize),
    Takes(usize, usize),
    Ends(usize, bool),
    Buffer(u32),
}

fn header() -> impl Strategy<Value = Header> {
    let ports = (998u32..1002, 79u32..82, any::<bool>());
    let sizes = prop_oneof![Just(0u32), 0u32..5000, any::<u32>()];
    let credit = (prop_oneof![0u32..1000, any::<u32>()], prop_oneof![0u32..1000, any::<u32>()]);
    let odd = prop_oneof![9 => Just(false), 1 => Just(true)];
    (ports, 0u16..9, sizes, credit, 0u32..4, odd).prop_map(
        |(ports, op, len, credit, flags, odd)| {
            let dst_port = if ports.2 { (1 << 30) + ports.1 - 79 } else { ports.1 };
            Header {
                src_port: ports.0,
                dst_port,
                len,
                flags,
                kind: if odd { 2 } else { 1 },
                buf_alloc: credit.0,
                fwd_cnt: credit.1,
                ..packet(op)
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (header(), 0usize..6000).prop_map(|(h, len)| Step::Packet(h, len)),
        4 => (header(), 0usize..6000).prop_map(|(h, len)| Step::Packet(Header { len: len as u32, ..h }, len)),
        1 => vec(any::<u8>(), 0..80).prop_map(Step::Raw),
        2 => prop_oneof![
            (998u32..1002).prop_map(|port| format!("CONNECT {port}\nxyz")),
            "CONN[ -~\n]{0,20}",
        ].prop_map(Step::Client),
        3 => (0usize..8, 0usize..9000).prop_map(|(i, n)| Step::Says(i, n)),
        3 => (0usize..8, 0usize..90_000).prop_map(|(i, n)| Step::Takes(i, n)),
        2 => (0usize..8, any::<bool>()).prop_map(|(i, gone)| Step::Ends(i, gone)),
        5 => (0..=BUFFER).prop_map(Step::Buffer),
    ]
}

/// Does one step; the peers are all that there ever were.
fn act(machine: &mut Machine, peers: &mut Vec<SharedPeer>, step: Step) {
    let pick = |i: usize| peers.get(i % peers.len().max(1)).cloned();
    match step {
        Step::Packet(header, len) => machine.send(header, &vec![1; len]),
        Step::Raw(bytes) => {
            let mem = machine.bench.mem.clone();
            mem.write_slice(&bytes, GuestAddress(OUT)).unwrap();
            let head = machine.tx.chain(&mem, &[(OUT, bytes.len() as u32)], &[]);
            machine.tx.offer(&mem, head);
            machine.bench.write(QUEUE_NOTIFY, 1);
            machine.bench.run();
            machine.tx.collect(&mem);
        }
        Step::Client(line) => {
            let peer = machine.client(&line);
            peers.push(peer);
        }
        Step::Says(i, n) => {
            if let Some(peer) = pick(i) {
                lock(&peer).incoming.extend(vec![2; n]);
                machine.news(&peer);
            }
        }
        Step::Takes(i, n) => {
            if let Some(peer) = pick(i) {
                let room = lock(&peer).outgoing.len() + n;
                lock(&peer).room = room;
                machine.news(&peer);
            }
        }
        Step::Ends(i, gone) => {
            if let Some(peer) = pick(i) {
                lock(&peer).ended = true;
                lock(&peer).gone |= gone;
                machine.news(&peer);
            }
        }
        Step::Buffer(len) => {
            machine.give(len);
            machine.bench.kick();
        }
    }
    peers.append(&mut lock(&machine.host).connected);
}

proptest! {
    /// No panic, no endless loop (`Bench::run` ends), nothing unbounded, and the
    /// device still works afterwards.
    #[test]
    fn no_guest_and_no_host_breaks_it(steps in vec(step(), 0..80)) {
        let mut machine = Machine::new();
        machine.generous = false;
        machine.start(0);
        lock(&machine.host).servers.extend([80, 81]);
        let mut peers = Vec::new();
        for step in steps {
            act(&mut machine, &mut peers, step);
            machine.received();
            prop_assert!(!machine.bench.needs_reset());
            prop_assert!(lock(&machine.device).connections.most_buffered() <= BUF_ALLOC as usize);
            let open = peers.iter().filter(|peer| !lock(peer).dropped).count();
            prop_assert_eq!(open, machine.connections());
        }
        machine.generous = true;
        machine.start(0);
        lock(&machine.host).connected.clear();
        machine.connected();
    }

    /// Whatever the guest says of its room, no more is sent than that.
    #[test]
    fn credit_is_never_exceeded(
        steps in vec((prop_oneof![0u32..300, any::<u32>()], 0u32..400, 0usize..500), 1..60),
    ) {
        let mut machine = Machine::started(0);
        let peer = machine.connected();
        let (mut sent, mut room) = (0u32, 1u32 << 16);
        let mut fwd_cnt = 0u32;
        for (buf_alloc, forwarded, said) in steps {
            lock(&peer).incoming.extend(vec![0; said]);
            machine.news(&peer);
            for (header, _) in machine.received() {
                sent += header.len;
                prop_assert!(header.len == 0 || sent - fwd_cnt <= room, "{} of {}", sent - fwd_cnt, room);
            }
            // Never back, never more than came.
            fwd_cnt = (fwd_cnt + forwarded).min(sent);
            room = buf_alloc;
            machine.send(Header { buf_alloc, fwd_cnt, ..packet(op::CREDIT_UPDATE) }, &[]);
            for (header, _) in machine.received() {
                sent += header.len;
                prop_assert!(header.len == 0 || sent - fwd_cnt <= room, "{} of {}", sent - fwd_cnt, room);
            }
        }
    }
}
