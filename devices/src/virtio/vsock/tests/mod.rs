//! The device between a driver in memory and a host in memory.

mod hostile;
mod protocol;
mod streams;

use super::packet::*;
use super::*;
use crate::bus::{BusDevice, lock};
use crate::virtio::mmio::*;
use crate::virtio::testing::*;
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
    /// There are no descriptors for clients.
    exhausted: bool,
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
        let mut host = lock(&self.0);
        if host.exhausted {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let Some(peer) = host.clients.pop_front() else { return Ok(None) };
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
    (header, (0..len).map(|i| ((i * 7) >> 3) as u8).collect())
}
