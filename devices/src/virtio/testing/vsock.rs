//! Guests and hosts of a vsock that do as they please.

use super::driver::{Carrier, Driver};
use super::hostile::{Program, scribble};
use super::*;
use crate::virtio::vsock::*;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::RawFd;

/// Queues.
const RX: usize = 0;
const TX: usize = 1;
/// Where packets are sent from and received.
const OUT: u64 = 0x2_0000;
const IN: u64 = 0x4_0000;
const HEADER: u32 = 44;
const CID: u32 = 3;

/// The host's end of a connection: how much it has to say and takes.
#[derive(Debug, Default)]
struct Peer {
    token: u64,
    line: VecDeque<u8>,
    says: usize,
    takes: usize,
    ended: bool,
    gone: bool,
    dropped: bool,
}

type SharedPeer = Arc<Mutex<Peer>>;

#[derive(Default)]
struct Host {
    clients: VecDeque<SharedPeer>,
    peers: Vec<SharedPeer>,
    news: Vec<Readiness>,
    refuses: bool,
}

#[derive(Clone, Default)]
struct SharedHost(Arc<Mutex<Host>>);

struct Stream(SharedPeer);

impl VsockBackend for SharedHost {
    fn connect(&mut self, _port: u32, token: u64) -> io::Result<Box<dyn HostStream>> {
        let mut host = lock(&self.0);
        if host.refuses {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let peer = Arc::new(Mutex::new(Peer { token, takes: 5000, ..Default::default() }));
        host.peers.push(peer.clone());
        Ok(Box::new(Stream(peer)))
    }

    fn accept(&mut self, token: u64) -> io::Result<Option<Box<dyn HostStream>>> {
        let mut host = lock(&self.0);
        if host.refuses {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let Some(peer) = host.clients.pop_front() else { return Ok(None) };
        lock(&peer).token = token;
        host.peers.push(peer.clone());
        Ok(Some(Box::new(Stream(peer))))
    }

    fn poll(&mut self, news: &mut Vec<Readiness>) -> io::Result<bool> {
        news.append(&mut lock(&self.0).news);
        Ok(false)
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

impl HostStream for Stream {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        if !peer.line.is_empty() {
            let n = to.copy_in(peer.line.make_contiguous());
            peer.line.drain(..n);
            return Ok(n);
        }
        match peer.says.min(to.len() as usize) {
            0 if peer.ended || peer.gone => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            n => {
                peer.says -= n;
                Ok(to.copy_in(&vec![2; n]))
            }
        }
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        match peer.takes.min(from.len() as usize) {
            _ if peer.gone => Err(ErrorKind::BrokenPipe.into()),
            0 => Err(ErrorKind::WouldBlock.into()),
            n => {
                peer.takes -= n;
                Ok(n)
            }
        }
    }

    fn shutdown(&mut self, _how: Shutdown) {}
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.0).dropped = true;
    }
}

/// Sends a packet from one of few ports to one of few ports.
fn packet(p: &mut Program<'_>, driver: &mut Driver<Bench>) {
    let small = |p: &mut Program<'_>| u32::from(p.u8() % 4);
    let (src_port, mut dst_port, op) = (1000 + small(p), 80 + small(p), u16::from(p.u8() % 9));
    if p.u8().is_multiple_of(2) {
        // Where the host's clients are.
        dst_port += (1 << 30) - 80;
    }
    let payload = u32::from(p.u16() % 0x3000);
    let len = if p.u8().is_multiple_of(8) { p.len() } else { payload };
    let (cid, kind) = if p.u8().is_multiple_of(16) { (p.u32(), p.u16()) } else { (CID, 1) };
    let credit = if p.u8().is_multiple_of(4) { [p.len(), p.len()] } else { [1 << 16, 0] };
    let mut bytes = Vec::with_capacity(HEADER as usize);
    bytes.extend([u64::from(cid), 2].map(u64::to_le_bytes).concat());
    bytes.extend([src_port, dst_port, len].map(u32::to_le_bytes).concat());
    bytes.extend([kind, op].map(u16::to_le_bytes).concat());
    bytes.extend([u32::from(p.u8() % 4), credit[0], credit[1]].map(u32::to_le_bytes).concat());
    driver.mem.write_slice(&bytes, GuestAddress(OUT)).expect("in RAM");
    driver.send(TX, &[(OUT, 30), (OUT + 30, HEADER - 30 + payload)], &[]);
}

/// A buffer to receive in, while there is room for one.
fn buffer(p: &mut Program<'_>, driver: &mut Driver<Bench>) {
    driver.collect(RX);
    let rings = &driver.rings[RX];
    if rings.avail_idx.wrapping_sub(rings.used_idx) < rings.size {
        let len = [0, 20, HEADER, HEADER + 1, 200, 4096][usize::from(p.u8() % 6)];
        driver.send(RX, &[], &[(IN + 0x1000 * u64::from(p.u8() % 16), len)]);
    }
}

/// Something happens on the host.
fn host_acts(p: &mut Program<'_>, host: &SharedHost) {
    let mut host = lock(&host.0);
    let what = p.u8() % 8;
    if what < 2 {
        let line = match p.u8() % 4 {
            0 => p.bytes::<24>().to_vec(),
            port => format!("CONNECT {}\nxyz", 999 + u32::from(port)).into_bytes(),
        };
        host.clients.push_back(Arc::new(Mutex::new(Peer { line: line.into(), ..Peer::default() })));
        host.news.push(Readiness { token: CLIENTS, ..Default::default() });
    } else if what == 2 {
        host.refuses = p.u8().is_multiple_of(2);
    } else if !host.peers.is_empty() {
        let peer = host.peers[usize::from(p.u8()) % host.peers.len()].clone();
        let mut peer = lock(&peer);
        match what {
            3 => peer.says += usize::from(p.u16()),
            4 | 5 => peer.takes += usize::from(p.u16()) * 4,
            6 => peer.ended = true,
            _ => peer.gone = true,
        }
        let (token, hung_up) = (peer.token, peer.gone);
        host.news.push(Readiness { token, readable: true, writable: true, hung_up });
    }
}

/// A vsock between a guest and a host that both do as they please.
pub fn vsock(data: &[u8]) {
    let p = &mut Program::new(data);
    let host = SharedHost::default();
    let device = Arc::new(Mutex::new(Vsock::new(CID, Box::new(host.clone()))));
    let mut driver = Driver::<Bench>::new(device.clone());
    while !p.done() {
        match p.u8() % 16 {
            0..6 => packet(p, &mut driver),
            6..9 => buffer(p, &mut driver),
            9..12 => {
                host_acts(p, &host);
                driver.source(0);
            }
            12 => {
                let queue = usize::from(p.u8() % 3);
                let mem = driver.mem.clone();
                scribble(p, &mem, &mut driver.rings[queue]);
            }
            13 if p.u8().is_multiple_of(8) => driver.carrier.save_and_restore(),
            14 if driver.broken() => driver.start(),
            _ => driver.carrier.ring(usize::from(p.u8() % 4)),
        }
        driver.run();
        let most = lock(&device).most_buffered();
        let count = lock(&device).connections();
        assert!(most <= BUF_ALLOC as usize && count <= MAX_CONNECTIONS);
        let open = lock(&host.0).peers.iter().filter(|peer| !lock(peer).dropped).count();
        assert_eq!(open, count, "every socket belongs to a connection");
    }
    // After everything: a reset, and the guest connects.
    lock(&host.0).refuses = false;
    lock(&host.0).clients.clear();
    lock(&host.0).news.clear();
    driver.start();
    driver.send(RX, &[], &[(IN, 4096)]);
    let request: &[u8] = &[
        3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0,
        1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
    ];
    driver.mem.write_slice(request, GuestAddress(OUT)).expect("in RAM");
    assert_eq!(driver.request(TX, &[(OUT, HEADER)], &[]), Some(0));
    assert_eq!(driver.collect(RX), [(0, HEADER)]);
    assert_eq!(get(&driver.mem, IN + 30), 2, "the answer is a RESPONSE");
}
