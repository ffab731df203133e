//! The driver from hell. Each function reads a program out of bytes, plays it
//! against a device and panics when the device breaks a promise: property tests
//! and fuzzers feed them the same way.

use super::driver::{Carrier, Driver};
use super::pci::PciBench;
use super::*;
use crate::pci::root::Function;
use crate::virtio::block::{Block, Options};
use crate::virtio::pci::BAR_SIZE;
use crate::virtio::queue::{Chain, IoVecStore, MAX_INDIRECT, QueueError};
use crate::virtio::rng::Rng;

/// A program: numbers until the bytes run out, zeroes from then on.
pub struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    /// The program in `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn done(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.0.split_at(self.0.len().min(N));
        self.0 = tail;
        let mut bytes = [0; N];
        bytes[..head.len()].copy_from_slice(head);
        bytes
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// An address that is likely to hurt.
    fn addr(&mut self) -> u64 {
        let small = u64::from(self.u16());
        match self.u8() % 10 {
            0 => u64::MAX - small,
            1 => SEAM - (small & 0x1f),
            2 => HOLE - (small & 0x1f),
            3 => HOLE + small,
            4 => END - (small & 0x3ff),
            5 => u64::from_le_bytes(self.bytes()),
            6 => HIGH + small,
            7 => 0x1000 + (small & 0x3fff),
            _ => 0x8000 + small,
        }
    }

    pub(super) fn len(&mut self) -> u32 {
        match self.u8() % 8 {
            0 => 0,
            1 => 1,
            2 => u32::MAX - u32::from(self.u8()),
            3 => self.u32(),
            4 => 16,
            5 => 512,
            _ => self.u16().into(),
        }
    }

    fn descriptor(&mut self, size: u16) -> (u64, u32, u16, u16) {
        let (addr, len) = (self.addr(), self.len());
        let flags = u16::from(self.u8() % 8);
        // Mostly inside of the table, now and then not.
        let next = if self.u8().is_multiple_of(16) { self.u16() } else { self.u16() % size };
        (addr, len, flags, next)
    }
}

/// Scribbles over the rings and over memory, as only a driver can.
pub(super) fn scribble(p: &mut Program<'_>, mem: &Ram, rings: &mut Rings) {
    match p.u8() % 8 {
        0..3 => {
            let (at, d) = (p.u16() % rings.size, p.descriptor(rings.size));
            rings.descriptor(mem, at, d);
        }
        3 => {
            // An indirect table, and somewhere to hang it.
            let (table, entries) = (0x8000 + u64::from(p.u16() & 0x3ff), p.u8() % 24);
            for i in 0..entries {
                descriptor(mem, table, i.into(), p.descriptor(entries.max(1).into()));
            }
            let at = p.u16() % rings.size;
            let len = u32::from(entries) * 16 + u32::from(p.u8().is_multiple_of(16));
            rings.descriptor(mem, at, (table, len, INDIRECT, 0));
        }
        4 | 5 => {
            let head = if p.u8().is_multiple_of(32) { p.u16() } else { p.u16() % rings.size };
            rings.offer(mem, head);
        }
        6 if p.u8().is_multiple_of(8) => rings.publish(mem, p.u16()),
        6 => {}
        _ => {
            let (addr, bytes) = (p.addr(), p.bytes::<8>());
            // Where there is no RAM, nothing happens.
            let _ = mem.write_slice(&bytes, GuestAddress(addr));
        }
    }
}

/// A queue alone.
pub fn queue(data: &[u8]) {
    let p = &mut Program::new(data);
    let mem = ram();
    let size = 1 << (p.u8() % 6);
    let base = if p.u8().is_multiple_of(4) { SEAM - 16 * u64::from(size / 2) } else { 0x1000 };
    let mut rings = Rings::new(base, size);
    let mut vq = rings.queue(64);
    vq.set_event_idx(p.u8().is_multiple_of(2));
    vq.validate(&mem).expect("good rings");
    let (mut chain, mut store) = (Chain::new(), IoVecStore::new());
    while !p.done() {
        match p.u8() % 8 {
            0..5 => scribble(p, &mem, &mut rings),
            5 => {
                // Another place for everything, which may be refused but not used.
                let mut other = vq.clone();
                other.set_size(p.u16());
                other.set_desc_table_address(Some(p.u32()), None);
                other.set_avail_ring_address(None, Some(p.u32()));
                if other.validate(&mem).is_ok() {
                    let _ = drain(&mut other, &mem, &mut chain, &mut store);
                }
            }
            6 => {
                let saved = vq.save();
                let mut twin = Vq::new(64).expect("64 is fine");
                twin.restore(&saved).expect("own state");
                assert_eq!(twin.save(), saved);
                vq = twin;
            }
            _ => {
                if drain(&mut vq, &mem, &mut chain, &mut store).is_err() {
                    // As after a reset of the device.
                    vq = rings.queue(64);
                    rings = Rings::new(base, size);
                    rings.publish(&mem, 0);
                }
            }
        }
    }
}

/// What a device does with a queue, with every promise checked.
fn drain(
    vq: &mut Vq,
    mem: &Ram,
    chain: &mut Chain,
    store: &mut IoVecStore,
) -> Result<(), QueueError> {
    vq.suppress_notifications(mem)?;
    for _ in 0..vq.size() {
        if !vq.pop(mem, chain)? {
            break;
        }
        let first = chain.clone();
        vq.undo_pop();
        assert!(vq.pop(mem, chain)?, "what was given back is there again");
        assert_eq!(&first, chain, "and the same, while nobody writes");
        check(chain, mem, store, vq.size());
        let written = chain.writable_len();
        // A few bytes at both ends: it must all be there.
        let mut byte = [0];
        if let Some(last) = chain.readable_len().checked_sub(1) {
            chain.read_at(mem, 0, &mut byte)?;
            chain.read_at(mem, last, &mut byte)?;
        }
        assert!(chain.read_at(mem, chain.readable_len(), &mut byte).is_err());
        assert!(chain.write_at(mem, written, &byte).is_err());
        assert!(chain.write_at(mem, u64::MAX, &byte).is_err());
        vq.push_used(mem, chain.head, u32::try_from(written).expect("chains are below 4 GiB"))?;
    }
    vq.enable_notifications(mem)?;
    vq.needs_interrupt(mem)?;
    assert_eq!(vq.needs_interrupt(mem), Ok(false), "nothing was pushed since");
    Ok(())
}

fn check(chain: &Chain, mem: &Ram, store: &mut IoVecStore, size: u16) {
    let count = chain.readable.len() + chain.writable.len();
    assert!(count <= usize::from(size).max(MAX_INDIRECT as usize));
    let (readable, writable) = (chain.readable_len(), chain.writable_len());
    assert!(readable + writable <= u32::MAX.into());
    for b in chain.readable.iter().chain(&chain.writable) {
        let end = b.addr.0.checked_add(b.len.into()).expect("no buffer wraps");
        assert!(b.len > 0 && (end <= HOLE || (b.addr.0 >= HIGH && end <= END)), "{b:?}");
    }
    for skip in [0, readable / 2, readable] {
        let v = chain.readable_iovecs(mem, store, skip, readable - skip).expect("in RAM");
        let sum: usize = v.as_slice().iter().map(|v| v.iov_len).sum();
        assert_eq!(sum as u64, readable - skip);
    }
    assert!(chain.writable_iovecs(mem, store, 1, writable).is_err());
}

/// The bench of a block device with a disk of 64 sectors.
pub fn block_bench() -> (Bench, MemDisk) {
    let disk = MemDisk::new(64);
    let device = Block::new(Box::new(disk.clone()), Options::default()).expect("no ring");
    (Bench::new(Arc::new(Mutex::new(device))), disk)
}

/// After everything: a reset, and the device reads a sector as if nothing had
/// happened.
fn block_still_works(bench: &mut Bench, disk: &MemDisk) {
    disk.errno.store(0, Ordering::SeqCst);
    bench.start(0);
    assert!(!bench.needs_reset());
    lock(&disk.data)[512..1024].fill(0x5a);
    let (mem, header) = (bench.mem.clone(), 0x8000);
    mem.write_slice(&[0; 8], GuestAddress(header)).expect("in RAM");
    mem.write_obj(1u64, GuestAddress(header + 8)).expect("in RAM");
    let used = bench.request(&[(header, 16)], &[(0x9000, 512), (0xa000, 1)]);
    assert_eq!(used, Some(513));
    let mut sector = [0; 512];
    mem.read_slice(&mut sector, GuestAddress(0x9000)).expect("in RAM");
    assert_eq!(sector, [0x5a; 512]);
    assert_eq!(mem.read_obj::<u8>(GuestAddress(0xa000)).expect("in RAM"), 0);
    assert!(bench.interrupted());
}

/// A block device whose driver has good rings and bad intentions.
pub fn block(data: &[u8]) {
    let p = &mut Program::new(data);
    let (mut bench, disk) = block_bench();
    let offered = lock(bench.transport.device()).features();
    bench.start(offered & u64::from_le_bytes(p.bytes()));
    let len = disk.len();
    while !p.done() {
        match p.u8() % 16 {
            0..4 => scribble(p, &bench.mem.clone(), &mut bench.rings),
            4..11 => block_request(p, &mut bench),
            11 => disk
                .errno
                .store([0, 0, libc::EIO, libc::ENOSPC][p.u8() as usize % 4], Ordering::SeqCst),
            12 => {
                // Not through the doorbell: it is the worker's to be woken for nothing.
                bench.worker.queue_event(p.u8().into());
                bench.worker.source_event(p.u8().into());
            }
            13 => bench.transport.write(CONFIG + u64::from(p.u8()), &[p.u8()]),
            14 if bench.needs_reset() => bench.start(offered),
            _ => drop(bench.kick()),
        }
    }
    assert_eq!(disk.len(), len);
    block_still_works(&mut bench, &disk);
}

/// A request that may even be a good one.
fn block_request(p: &mut Program<'_>, bench: &mut Bench) {
    let header = 0x8000 + 16 * u64::from(p.u8() & 0x3f);
    let kind = [0, 1, 4, 8, 11, 13, 2, u32::MAX][p.u8() as usize % 8];
    let sector = if p.u8().is_multiple_of(8) {
        u64::MAX / u64::from(p.u16().max(1))
    } else {
        u64::from(p.u8() % 72)
    };
    let mem = bench.mem.clone();
    mem.write_obj(kind, GuestAddress(header)).expect("in RAM");
    mem.write_obj(sector, GuestAddress(header + 8)).expect("in RAM");
    let mut readable = vec![(header, 16)];
    let mut writable = Vec::new();
    for _ in 0..p.u8() % 4 {
        let list = if p.u8().is_multiple_of(2) { &mut readable } else { &mut writable };
        list.push((
            0xa000 + 16 * u64::from(p.u8()),
            if p.u8().is_multiple_of(4) { p.len() } else { 512 },
        ));
    }
    if !p.u8().is_multiple_of(16) {
        writable.push((0x9000, 1));
    }
    let head = bench.rings.chain(&mem, &readable, &writable);
    bench.rings.offer(&mem, head);
}

/// The registers, of a block device or an entropy device.
pub fn mmio(data: &[u8]) {
    let p = &mut Program::new(data);
    let (mut bench, disk) = block_bench();
    if p.u8().is_multiple_of(4) {
        bench = Bench::new(Arc::new(Mutex::new(Rng::new())));
    }
    if p.u8().is_multiple_of(2) {
        bench.start(0);
    }
    let offered = lock(bench.transport.device()).features();
    while !p.done() {
        match p.u8() % 16 {
            0..6 => {
                let value = match p.u8() % 4 {
                    0 => p.u32(),
                    1 => p.u8().into(),
                    2 => 1 << (p.u8() % 32),
                    _ => p.addr() as u32,
                };
                // Word for word, sometimes with an offset of a byte.
                let offset = u64::from(p.u8() & !3) + u64::from(p.u8().is_multiple_of(32));
                bench.write(offset, value);
            }
            6 => {
                let offset = u64::from(p.u16()) & 0xfff;
                let width = 1 << (p.u8() % 4);
                let mut data = vec![0xff; width];
                bench.transport.read(offset, &mut data);
                bench.transport.write(offset, &p.bytes::<8>()[..width]);
            }
            7 => bench.negotiate(offered & u64::from_le_bytes(p.bytes())),
            8 => {
                bench.rings.size = [1, 2, 3, 16, 256, 512][p.u8() as usize % 6];
                bench.rings.desc = p.addr() & !15;
                bench.set_up_queue();
                bench.rings = Rings::new(0x1000, 16);
            }
            9 => bench.set_up_queue(),
            10 => bench.write(STATUS, 15),
            11 => scribble(p, &bench.mem.clone(), &mut bench.rings),
            12 => {
                let saved = bench.transport.save().expect("any state can be saved");
                bench.transport.restore(&saved).expect("and restored");
                let again = bench.transport.save().expect("as before");
                let (mut a, mut b) = (saved.data, again.data);
                for state in [&mut a, &mut b] {
                    state["config_generation"] = 0.into();
                    // A device that waits for its reset comes back without its queues.
                    state["activated"] = false.into();
                }
                assert_eq!(a, b);
            }
            13 => bench.start(0),
            _ => drop(bench.kick()),
        }
        let status = bench.read(STATUS);
        let started = status & STATUS_DRIVER_OK != 0;
        assert!(!started || status & STATUS_FEATURES_OK != 0, "{status:#x}");
        let active = lock(bench.transport.device()).queues().is_some();
        assert!(!active || started, "an active device without DRIVER_OK");
        assert_eq!(bench.read(MAGIC_VALUE), 0x7472_6976);
    }
    if bench.read(DEVICE_ID) == 2 {
        block_still_works(&mut bench, &disk);
    }
}

/// A disk behind the PCI transport: configuration space, BAR, rings, in any order.
pub fn pci(data: &[u8]) {
    let p = &mut Program::new(data);
    let disk = MemDisk::new(64);
    let device = Block::new(Box::new(disk.clone()), Options::default()).expect("no ring");
    let mut bench = PciBench::new(Arc::new(Mutex::new(device)));
    while !p.done() {
        let len = 1 << (p.u8() % 4);
        match p.u8() % 12 {
            0 => bench.start(),
            1..4 => {
                let (offset, value) = (u64::from(p.u8() % 0x40), p.u32());
                bench.write(offset, value.into(), len);
            }
            4 => {
                let offset = u64::from(p.u16()) % u64::from(BAR_SIZE);
                bench.read(offset, len);
                bench.write(offset, u64::from_le_bytes(p.bytes()), len);
            }
            5..7 => {
                let offset = usize::from(p.u8());
                bench.config(offset, len.min(4));
                bench.function.write_config(offset, &p.bytes::<4>()[..len.min(4)]);
            }
            7 => scribble(p, &bench.mem.clone(), &mut bench.rings),
            8 => {
                let saved = bench.function.save().expect("any state can be saved");
                bench.function.restore(&saved).expect("and restored");
            }
            _ => bench.worker.queue_event(p.u8().into()),
        }
        let bar = bench.function.bar();
        assert!(bar.is_none_or(|(base, size)| base.is_multiple_of(size)));
    }
    // After everything: a reset, and it works as if nothing had happened.
    bench.rings = Rings::new(0x1000, 16);
    bench.mem.write_slice(&[0; 0x4000], GuestAddress(0x1000)).expect("in RAM");
    bench.start();
    let header = 0x8000;
    bench.mem.write_slice(&[0; 16], GuestAddress(header)).expect("in RAM");
    disk.errno.store(0, Ordering::SeqCst);
    let used = bench.request(&[(header, 16)], &[(0x9000, 512), (0xa000, 1)]);
    assert_eq!(used, Some(513));
}

/// Any device with any number of queues, over any transport: its driver has
/// good rings and bad intentions. In the end it is reset, and `still_works`.
pub fn any_device<C: Carrier>(
    data: &[u8],
    device: SharedVirtio,
    still_works: impl FnOnce(&mut Driver<C>),
) {
    let p = &mut Program::new(data);
    let mut driver = Driver::<C>::new(device);
    let (mem, queues) = (driver.mem.clone(), driver.rings.len());
    while !p.done() {
        let queue = usize::from(p.u8()) % queues;
        match p.u8() % 16 {
            0..7 => scribble(p, &mem, &mut driver.rings[queue]),
            7..10 => {
                // A request of sizes that may be right.
                let pieces = |p: &mut Program<'_>| {
                    let count = p.u8() % 3;
                    let addr = |p: &mut Program<'_>| 0x2_0000 + u64::from(p.u16());
                    (0..count).map(|_| (addr(p), u32::from(p.u16() % 0x1100))).collect::<Vec<_>>()
                };
                let (readable, writable) = (pieces(p), pieces(p));
                if readable.len() + writable.len() > 0 {
                    let head = driver.rings[queue].chain(&mem, &readable, &writable);
                    driver.rings[queue].offer(&mem, head);
                }
            }
            10 => {
                drop(mem.write_slice(&p.bytes::<16>(), GuestAddress(0x2_0000 + u64::from(p.u16()))))
            }
            11 => driver.source(usize::from(p.u8() % 4)),
            12 => driver.carrier.set_config(u64::from(p.u8() % 32), &p.bytes::<4>()),
            13 if p.u8().is_multiple_of(4) => driver.carrier.save_and_restore(),
            13 => drop(driver.carrier.config(p.u8().into())),
            14 if driver.broken() => driver.start(),
            14 if p.u8().is_multiple_of(2) => driver.carrier.meddle(queue as u16, p.u32()),
            14 => driver.carrier.worker().queue_event(p.u8().into()),
            _ => driver.carrier.ring(queue),
        }
        driver.run();
    }
    driver.start();
    assert!(!driver.broken(), "a reset mends everything");
    still_works(&mut driver);
}

/// A shared directory whose guest sends whatever it likes: headers that may be
/// right, names that may exist.
pub fn fs<C: Carrier>(data: &[u8], directory: &std::path::Path) {
    use crate::backend::share::Share;
    use crate::virtio::fs::{Fs, fuse};
    use zerocopy::IntoBytes;
    let share = Share::open("tag", directory, false).expect("a directory");
    let device: SharedVirtio = Arc::new(Mutex::new(Fs::new("tag", share)));
    let p = &mut Program::new(data);
    let mut driver = Driver::<C>::new(device.clone());
    let mem = driver.mem.clone();
    let (request, answer) = (0x2_0000, 0x3_0000);
    while !p.done() {
        // Not what takes up the host's disk.
        let opcode = Some(u32::from(p.u8() % 56)).filter(|o| *o != fuse::op::FALLOCATE);
        let opcode = opcode.unwrap_or(fuse::op::LOOKUP);
        let nodeid = u64::from(p.u8() % 6);
        let header = fuse::InHeader { opcode, nodeid, ..Default::default() };
        let mut bytes = header.as_bytes().to_vec();
        // Numbers of nodes and handles are small, and so are offsets.
        for _ in 0..p.u8() % 14 {
            let number = if p.u8().is_multiple_of(4) { p.u32() } else { u32::from(p.u8() % 8) };
            bytes.extend(number.to_le_bytes());
        }
        let names: [&[u8]; 8] =
            [b"a\0", b"b\0", b"..\0", b"c/d\0", b"user.x\0", b"\0", b"a", b"link\0"];
        for _ in 0..p.u8() % 3 {
            bytes.extend(names[usize::from(p.u8() % 8)]);
        }
        mem.write_slice(&bytes, GuestAddress(request)).expect("in RAM");
        let room = [0x2000, 16, 15, 0x1_0000, 200][usize::from(p.u8() % 5)];
        let chain = [(request, bytes.len() as u32)];
        let queue = usize::from(p.u8().is_multiple_of(8)) ^ 1;
        let head = driver.rings[queue].chain(&mem, &chain, &[(answer, room)]);
        driver.rings[queue].offer(&mem, head);
        driver.carrier.ring(queue);
        driver.run();
        if driver.broken() {
            driver.start();
        }
    }
    any_device::<C>(data, device, |driver| {
        let init = fuse::InHeader { opcode: fuse::op::INIT, ..Default::default() };
        let asked = fuse::InitIn { major: 7, minor: 38, ..Default::default() };
        let bytes = [init.as_bytes(), asked.as_bytes()].concat();
        mem_write(driver, request, &bytes);
        let head =
            driver.rings[1].chain(&driver.mem, &[(request, bytes.len() as u32)], &[(answer, 80)]);
        driver.rings[1].offer(&driver.mem, head);
        driver.carrier.ring(1);
        driver.run();
        assert_eq!(driver.rings[1].collect(&driver.mem), [(head.into(), 80)]);
    });
}

fn mem_write<C: Carrier>(driver: &Driver<C>, at: u64, bytes: &[u8]) {
    driver.mem.write_slice(bytes, GuestAddress(at)).expect("in RAM");
}

/// A network whose frames all come back, twice the long ones.
#[derive(Default)]
struct Mirror(std::collections::VecDeque<Vec<u8>>);

impl crate::virtio::net::NetBackend for Mirror {
    fn features(&self) -> u64 {
        use crate::virtio::net::features::*;
        CSUM | GUEST_CSUM | HOST_TSO4 | HOST_TSO6 | GUEST_TSO4 | GUEST_TSO6
    }
    fn set_features(&mut self, _negotiated: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn send(&mut self, frame: &mut crate::virtio::queue::IoVecs<'_>) -> std::io::Result<()> {
        let len = frame.len() as usize;
        assert!((12..=12 + 18 + 65536).contains(&len), "a frame of {len} bytes");
        assert!(frame.as_slice().len() <= libc::UIO_MAXIOV as usize);
        let mut bytes = vec![0; len];
        assert_eq!(frame.copy_out(&mut bytes), len);
        if self.0.len() < 64 {
            if len > 1000 {
                self.0.push_back(bytes.clone());
            }
            self.0.push_back(bytes);
        }
        Ok(())
    }
    fn receive(
        &mut self,
        frame: &mut crate::virtio::queue::IoVecs<'_>,
        rest: &mut [u8],
    ) -> std::io::Result<Option<usize>> {
        let Some(bytes) = self.0.pop_front() else { return Ok(None) };
        let first = frame.copy_in(&bytes);
        let left = bytes.get(first..).unwrap_or_default();
        let more = left.len().min(rest.len());
        rest[..more].copy_from_slice(&left[..more]);
        Ok(Some(first + more))
    }
    fn source(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

/// A network card with some pairs of queues, each on a network that mirrors, over
/// both transports: commands in the control queue first, which may be right, and
/// then anything.
pub fn net(data: &[u8]) {
    use crate::virtio::net::{Net, Options};
    let pairs = data.first().map_or(1, |byte| byte % 4 + 1);
    let card = || -> SharedVirtio {
        let options = Options { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500), ..Options::default() };
        let backends = (0..pairs).map(|_| Box::new(Mirror::default()) as Box<_>).collect();
        Arc::new(Mutex::new(Net::new(options, backends).expect("no descriptor is needed")))
    };
    net_over::<Bench>(data, card());
    net_over::<PciBench>(data, card());
}

fn net_over<C: Carrier>(data: &[u8], device: SharedVirtio) {
    let p = &mut Program::new(data.get(1..).unwrap_or_default());
    let commands = p.u8() % 16;
    let mut driver = Driver::<C>::new(device.clone());
    let control = driver.rings.len() - 1;
    for _ in 0..commands {
        let kind = [(4, 0), (4, 0), (1, 1), (5, 0), (0, 0), (1, 0), (4, 1), (p.u8(), p.u8())];
        let (class, command) = kind[usize::from(p.u8() % 8)];
        let mut bytes = vec![class, command];
        match p.u8() % 4 {
            // As long as it should be, or not.
            0 => bytes.extend([p.u8() % 6, 0]),
            1 => bytes.extend(p.bytes::<6>()),
            2 => bytes.extend(p.bytes::<8>()),
            _ => bytes.truncate(usize::from(p.u8() % 3)),
        }
        let at = if p.u8().is_multiple_of(16) { p.addr() } else { 0x2_0000 };
        let _ = driver.mem.write_slice(&bytes, GuestAddress(at));
        let split = (p.u8() as usize % bytes.len().max(1)) as u64;
        let pieces = [(at, split as u32), (at.wrapping_add(split), bytes.len() as u32)];
        let ack = [(0x3_0000, u32::from(!p.u8().is_multiple_of(16)))];
        let head = driver.rings[control].chain(&driver.mem, &pieces, &ack);
        driver.rings[control].offer(&driver.mem, head);
        driver.carrier.ring(control);
        driver.run();
        match driver.broken() {
            true => driver.start(),
            false => drop(driver.collect(control)),
        }
    }
    any_device::<C>(p.0, device, net_still_works);
}

/// A frame goes out and comes back.
fn net_still_works<C: Carrier>(driver: &mut Driver<C>) {
    let mem = driver.mem.clone();
    let (out, back) = (0x2_0000, 0x3_0000);
    let frame: Vec<u8> = (0..100).collect();
    mem.write_slice(&[0; 12], GuestAddress(out)).expect("in RAM");
    mem.write_slice(&frame, GuestAddress(out + 12)).expect("in RAM");
    // What was on its way before comes first.
    for i in 0..14 {
        let head = driver.rings[0].chain(&mem, &[], &[(back + i * 0x1000, 0x1000)]);
        driver.rings[0].offer(&mem, head);
    }
    driver.carrier.ring(0);
    driver.run();
    let head = driver.rings[1].chain(&mem, &[(out, 112)], &[]);
    driver.rings[1].offer(&mem, head);
    driver.carrier.ring(1);
    driver.run();
    assert_eq!(driver.rings[1].collect(&mem), [(head.into(), 0)]);
    assert!(!driver.broken());
}
