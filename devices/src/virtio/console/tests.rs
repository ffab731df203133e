//! The console device, over both transports.

use super::*;
use crate::backend::port::SocketPort;
use crate::bus::lock;
use crate::virtio::mmio;
use crate::virtio::testing::driver::{Carrier, Driver};
use crate::virtio::testing::pci::PciBench;
use crate::virtio::testing::*;
use proptest::prelude::{any, prop, proptest};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

/// Where things are.
const OUT: u64 = 0x2_0000;
const IN: u64 = 0x3_0000;

#[derive(Default)]
struct Peer {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    room: usize,
    there: bool,
    left: bool,
}

/// A host in memory.
#[derive(Clone, Default)]
struct MemPort(Arc<Mutex<Peer>>);

impl MemPort {
    fn there() -> Self {
        let port = Self::default();
        lock(&port.0).there = true;
        lock(&port.0).room = usize::MAX;
        port
    }
}

impl PortBackend for MemPort {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        if peer.incoming.is_empty() {
            return if peer.left { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let n = to.copy_in(peer.incoming.make_contiguous());
        peer.incoming.drain(..n);
        Ok(n)
    }
    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let mut peer = lock(&self.0);
        let n = (from.len() as usize).min(peer.room - peer.outgoing.len());
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
    fn poll(&mut self) -> bool {
        lock(&self.0).there
    }
    fn leave(&mut self) {
        lock(&self.0).there = false;
    }
    // A number that is never looked at.
    fn source(&self) -> Option<RawFd> {
        Some(-1)
    }
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
}

type Shared = Arc<Mutex<Console>>;

fn single() -> (Shared, MemPort) {
    let port = MemPort::there();
    (Arc::new(Mutex::new(Console::new(Some(Box::new(port.clone())), Vec::new()))), port)
}

/// A terminal and a named port without anybody.
fn double() -> (Shared, MemPort, MemPort) {
    let (terminal, named) = (MemPort::there(), MemPort::default());
    lock(&named.0).room = usize::MAX;
    let ports: Vec<(String, Box<dyn PortBackend>)> =
        vec![("agent".to_owned(), Box::new(named.clone()))];
    let console = Console::new(Some(Box::new(terminal.clone())), ports);
    (Arc::new(Mutex::new(console)), terminal, named)
}

fn write<C: Carrier>(driver: &mut Driver<C>, queue: usize, text: &[u8]) -> Option<u32> {
    driver.mem.write_slice(text, GuestAddress(OUT)).unwrap();
    driver.request(queue, &[(OUT, text.len() as u32)], &[])
}

fn read(mem: &Ram, addr: u64, len: u32) -> Vec<u8> {
    let mut data = vec![0; len as usize];
    mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
    data
}

fn bytes_flow<C: Carrier>() {
    let (device, port) = single();
    let mut driver = Driver::<C>::new(device);
    assert_eq!(write(&mut driver, 1, b"hello"), Some(0));
    assert_eq!(lock(&port.0).outgoing, b"hello");
    assert_eq!(driver.request(0, &[], &[(IN, 4)]), None);
    lock(&port.0).incoming.extend(b"abcdef");
    driver.source(0);
    assert_eq!(driver.collect(0), [(0, 4)]);
    assert_eq!(read(&driver.mem, IN, 4), b"abcd");
    assert_eq!(driver.request(0, &[], &[(IN, 100)]), Some(2));
    // A slow host: the chain waits where it is, and is not sent twice.
    lock(&port.0).room = 8;
    assert_eq!(write(&mut driver, 1, b"123456"), None);
    driver.carrier.save_and_restore();
    driver.run();
    lock(&port.0).room = usize::MAX;
    driver.source(0);
    assert_eq!(driver.collect(1).len(), 1);
    assert_eq!(lock(&port.0).outgoing, b"hello123456");
    assert_eq!(driver.counter("bytes_to_host"), Some(11));
    assert_eq!(driver.counter("bytes_to_guest"), Some(6));
}

#[test]
fn bytes_flow_both_ways() {
    bytes_flow::<Bench>();
    bytes_flow::<PciBench>();
}

#[test]
fn the_size_is_in_the_configuration() {
    let (device, _) = single();
    let mut driver = Driver::<Bench>::new(device.clone());
    lock(&device).set_size((132, 50)).unwrap();
    let config: Vec<u8> = (0..8).map(|i| driver.carrier.config(i)).collect();
    assert_eq!(config, [132, 0, 50, 0, 1, 0, 0, 0]);
    assert_eq!(driver.carrier.read(mmio::INTERRUPT_STATUS), crate::virtio::INT_CONFIG);
}

fn control<C: Carrier>(driver: &mut Driver<C>, id: u32, event: u16, value: u16) {
    let message = Message { id, event, value }.bytes(&[]);
    assert_eq!(write(driver, CONTROL_TX, &message), Some(0));
}

/// What the driver is told.
fn told<C: Carrier>(driver: &mut Driver<C>) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let back = driver.collect(CONTROL_RX);
    let all = back.into_iter().map(|(head, len)| {
        let bytes = read(&driver.mem, IN + 0x100 * u64::from(head), len);
        let message = Message::parse(bytes[..HEADER].try_into().unwrap());
        (message.id, message.event, message.value, bytes[HEADER..].to_vec())
    });
    all.collect()
}

fn give<C: Carrier>(driver: &mut Driver<C>, count: u64) {
    for _ in 0..count {
        let at = u64::from(driver.rings[CONTROL_RX].avail_idx % 16);
        driver.send(CONTROL_RX, &[], &[(IN + 0x100 * at, 0x100)]);
    }
}

fn ports_are_introduced<C: Carrier>() {
    let (device, _, named) = double();
    let mut driver = Driver::<C>::new(device.clone());
    control(&mut driver, u32::MAX, event::DEVICE_READY, 1);
    give(&mut driver, 10);
    assert_eq!(told(&mut driver), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    control(&mut driver, 0, event::PORT_READY, 1);
    let size = vec![0; 4];
    assert_eq!(told(&mut driver), [(0, 4, 1, vec![]), (0, 6, 1, vec![]), (0, 5, 0, size)]);
    control(&mut driver, 1, event::PORT_READY, 1);
    assert_eq!(told(&mut driver), [(1, 7, 1, b"agent".to_vec())]);
    lock(&device).set_size((80, 24)).unwrap();
    assert_eq!(told(&mut driver), [(0, 5, 0, vec![80, 0, 24, 0])]);
    // Nobody is there: what is written is dropped.
    assert_eq!(write(&mut driver, 5, b"lost"), Some(0));
    assert_eq!(driver.counter("bytes_dropped"), Some(4));
    // Somebody comes; the guest's program does not listen yet.
    lock(&named.0).there = true;
    lock(&named.0).incoming.extend(b"hi");
    driver.source(1);
    assert_eq!(told(&mut driver), [(1, 6, 1, vec![])]);
    assert_eq!(driver.request(4, &[], &[(IN + 0x2000, 10)]), None);
    control(&mut driver, 1, event::PORT_OPEN, 1);
    assert_eq!(driver.collect(4), [(0, 2)]);
    give(&mut driver, 6);
    // And leaves.
    lock(&named.0).left = true;
    driver.source(1);
    driver.send(4, &[], &[(IN + 0x2000, 10)]);
    assert_eq!(told(&mut driver), [(1, 6, 0, vec![])]);
    // What makes no sense is counted and left.
    control(&mut driver, 9, event::PORT_READY, 1);
    control(&mut driver, 1, 99, 1);
    assert_eq!(driver.request(CONTROL_TX, &[(OUT, 7)], &[]), Some(0));
    assert_eq!(driver.counter("control_unknown"), Some(3));
    assert!(!driver.broken());
}

#[test]
fn ports_are_introduced_and_tell_who_is_there() {
    ports_are_introduced::<Bench>();
    ports_are_introduced::<PciBench>();
}

#[test]
fn a_socket_has_one_client_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    let socket = Box::new(SocketPort::listen(&path).unwrap());
    assert!(SocketPort::listen(&path).is_err());
    let device = Arc::new(Mutex::new(Console::new(Some(socket), Vec::new())));
    let mut driver = Driver::<Bench>::new(device);
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        driver.source(0);
        assert_eq!(driver.counter("ports_connected"), Some(1), "{round}");
        assert_eq!(write(&mut driver, 1, b"from the guest"), Some(0));
        let mut got = [0; 14];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"from the guest");
        client.write_all(b"back").unwrap();
        driver.source(0);
        assert_eq!(driver.request(0, &[], &[(IN, 100)]), Some(4));
        drop(client);
        assert_eq!(driver.request(0, &[], &[(IN, 100)]), None);
        assert_eq!(driver.counter("ports_connected"), Some(0));
        // The buffer is still the device's: give it back by a new life.
        driver.start();
    }
    drop(driver);
    assert!(!path.exists());
}

fn still_works<C: Carrier>(driver: &mut Driver<C>) {
    control(driver, 0, event::DEVICE_READY, 1);
    give(driver, 2);
    assert_eq!(told(driver), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    assert_eq!(write(driver, 1, b"hello"), Some(0));
}

proptest! {
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 0..600)) {
        hostile::any_device::<Bench>(&data, double().0, still_works);
        hostile::any_device::<PciBench>(&data, double().0, still_works);
        hostile::any_device::<Bench>(&data, single().0, |_| ());
    }
}
