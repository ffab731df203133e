//! What one request costs a device, with no guest: from its doorbell to its
//! interrupt. `cargo xtask bench devices` runs it, also for an earlier commit.
//!
//! The driver's part is one store: rings and buffers are laid out once, and each
//! turn makes the same chains available again.
//!
//! ```text
//!   path --bench            time, by criterion
//!   path count NAME TURNS   so many turns of NAME, for whoever counts instructions
//!   path list               the names
//! ```

use criterion::{Criterion, Throughput};
use devices::backend::disk::{Disk, RawDisk, RawOptions};
use devices::virtio::SharedVirtio;
use devices::virtio::block::{Block, Options};
use devices::virtio::net::{self, Net, NetBackend};
use devices::virtio::queue::{Chain, IoVecs, Vq};
use devices::virtio::testing::driver::Driver;
use devices::virtio::testing::{Bench, NEXT, Rings, WRITE, put, ram};
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Where the buffers are, behind all rings.
const HEADER: u64 = 0x2_0000;
const WRITE_HEADER: u64 = 0x2_2000;
const STATUS: u64 = 0x2_1000;
const DATA: u64 = 0x4_0000;
const DISK: u64 = 16 << 20;

/// A thing to measure: so many requests for a turn, which does them.
struct Way {
    name: &'static str,
    requests: u16,
    make: fn(u16) -> Box<dyn FnMut()>,
}

const WAYS: [Way; 9] = [
    Way { name: "queue, pop and push", requests: 1, make: queue },
    Way { name: "block, read 4 KiB from nowhere", requests: 1, make: |n| block(nowhere(), 0, n) },
    Way { name: "block, 8 reads from nowhere", requests: 8, make: |n| block(nowhere(), 0, n) },
    Way { name: "block, read 4 KiB from memory", requests: 1, make: |n| block(memory(), 0, n) },
    Way { name: "block, write 4 KiB to memory", requests: 1, make: |n| block(memory(), 1, n) },
    Way { name: "net, frame out", requests: 1, make: |n| card(1, n) },
    Way { name: "net, 8 frames out", requests: 8, make: |n| card(1, n) },
    Way { name: "net, frame in", requests: 1, make: |n| card(0, n) },
    Way { name: "net, 8 frames in", requests: 8, make: |n| card(0, n) },
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => WAYS.iter().for_each(|way| println!("{}", way.name)),
        ["count", name, turns] => {
            let way = WAYS.iter().find(|way| way.name == *name).expect("a name of the list");
            let mut turn = (way.make)(way.requests);
            (0..turns.parse().expect("a number")).for_each(|_: u32| turn());
        }
        _ => time(),
    }
}

fn time() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("path");
    for way in WAYS {
        let mut turn = (way.make)(way.requests);
        group.throughput(Throughput::Elements(way.requests.into()));
        group.bench_function(way.name, |b| b.iter(&mut turn));
    }
    group.finish();
    criterion.final_summary();
}

/// A driver that makes `requests` chains available, all of them the one that
/// begins with descriptor 0, and wants an interrupt for the last.
fn offer(mem: &devices::virtio::Ram, rings: &mut Rings, requests: u16) {
    let last = rings.avail_idx.wrapping_add(requests - 1);
    put(mem, rings.avail + 4 + 2 * u64::from(rings.size), last);
    rings.publish(mem, last.wrapping_add(1));
}

fn queue(_: u16) -> Box<dyn FnMut()> {
    let mem = ram();
    let mut rings = Rings::new(0x1000, 16);
    rings.chain(&mem, &[(HEADER, 16)], &[(DATA, 4096), (STATUS, 1)]);
    let mut queue: Vq = rings.queue(16);
    queue.set_event_idx(true);
    let mut chain = Chain::new();
    Box::new(move || {
        offer(&mem, &mut rings, 1);
        assert!(queue.pop(&mem, &mut chain).expect("a good queue"));
        queue.push_used(&mem, chain.head, 4097).expect("a good queue");
        assert!(queue.needs_interrupt(&mem).expect("a good queue"));
    })
}

/// A device brought up with all that it offers, whose queue `index` has a chain.
fn driver(
    device: SharedVirtio,
    index: usize,
    readable: &[(u64, u32)],
    writable: &[(u64, u32)],
    requests: u16,
) -> Box<dyn FnMut()> {
    let features = devices::bus::lock(&device).features();
    let mut driver = Driver::<Bench>::with_features(device, features);
    let mem = driver.mem.clone();
    put(&mem, WRITE_HEADER, 1);
    let count = readable.len() + writable.len();
    let all = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE)));
    for (at, ((addr, len), flags)) in (0u16..).zip(all) {
        let more = if usize::from(at) + 1 < count { NEXT } else { 0 };
        driver.rings[index].descriptor(&mem, at, (*addr, *len, flags | more, at + 1));
    }
    // A buffer more than is used in a turn, as a network card always has.
    offer(&mem, &mut driver.rings[index], 1);
    driver.carrier.worker.queue_event(index);
    Box::new(move || {
        offer(&mem, &mut driver.rings[index], requests);
        driver.carrier.worker.queue_event(index);
    })
}

fn block(disk: Box<dyn Disk>, kind: u16, requests: u16) -> Box<dyn FnMut()> {
    let block = shared(Block::new(disk, Options::default()).expect("without io_uring"));
    // Its type is the first word of its header, which is the only one not zero.
    match kind {
        0 => driver(block, 0, &[(HEADER, 16)], &[(DATA, 4096), (STATUS, 1)], requests),
        _ => driver(block, 0, &[(WRITE_HEADER, 16), (DATA, 4096)], &[(STATUS, 1)], requests),
    }
}

fn shared(device: impl devices::virtio::VirtioDevice + 'static) -> SharedVirtio {
    Arc::new(Mutex::new(device))
}

/// A file in the host's memory.
fn memory() -> Box<dyn Disk> {
    let directory = ["/dev/shm", "/tmp"].into_iter().find(|d| Path::new(d).is_dir());
    let file = tempfile::NamedTempFile::new_in(directory.expect("a place for a file"));
    let file = file.expect("a file");
    std::fs::write(file.path(), vec![1; DISK as usize]).expect("room for it");
    // It stays open, and goes away with the process.
    Box::new(RawDisk::open(file.path(), RawOptions::default()).expect("a disk"))
}

fn nowhere() -> Box<dyn Disk> {
    Box::new(Nowhere)
}

/// A disk that does nothing.
struct Nowhere;

impl Disk for Nowhere {
    fn len(&self) -> u64 {
        DISK
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, _to: &mut IoVecs<'_>, _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_at(&self, _from: &mut IoVecs<'_>, _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
}

fn card(queue: usize, requests: u16) -> Box<dyn FnMut()> {
    let options = net::Options { mac: [2, 0, 0, 0, 0, 1], ..Default::default() };
    let net = Net::new(options, vec![Box::new(Wire { left: 0, requests })]);
    let net = shared(net.expect("without vhost"));
    match queue {
        0 => driver(net, queue, &[], &[(DATA, 4096)], requests),
        _ => driver(net, queue, &[(HEADER, 12), (DATA, 100)], &[], requests),
    }
}

/// A network that takes everything, and has as many frames for a turn as the
/// driver has buffers; that there is none left is found out by asking.
struct Wire {
    left: u16,
    requests: u16,
}

impl NetBackend for Wire {
    fn features(&self) -> u64 {
        0
    }
    fn set_features(&mut self, _negotiated: u64) -> io::Result<()> {
        Ok(())
    }
    fn send(&mut self, _frame: &mut IoVecs<'_>) -> io::Result<()> {
        Ok(())
    }
    fn receive(&mut self, _frame: &mut IoVecs<'_>, _rest: &mut [u8]) -> io::Result<Option<usize>> {
        let frame = self.left.checked_sub(1);
        self.left = frame.unwrap_or(self.requests);
        Ok(frame.map(|_| 112))
    }
    fn source(&self) -> Option<RawFd> {
        None
    }
}
