//! The block device against drivers good and bad.

use super::request::*;
use super::*;
use crate::backend::disk::testing::make_qcow2;
use crate::backend::disk::{Qcow2Disk, RawDisk, RawOptions};
use crate::bus::{BusDevice, lock};
use crate::virtio::mmio::{CONFIG, QUEUE_NOTIFY, STATUS};
use crate::virtio::queue::IoVecs;
use crate::virtio::testing::*;
use crate::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX};
use proptest::prelude::*;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const HEADER: u64 = 0x8000;
const STATUS_AT: u64 = 0x9000;
const DATA: u64 = 0xa000;
const SECTORS: usize = 64;

fn named(serial: &str) -> Options {
    Options { serial: serial.to_owned(), ..Options::default() }
}

struct Drive {
    bench: Bench,
    disk: MemDisk,
    metrics: Arc<BlockMetrics>,
}

fn drive_on(disk: MemDisk, features: u64) -> Drive {
    let device = Block::new(Box::new(disk.clone()), named("a serial number that is too long"));
    let device = device.unwrap();
    let metrics = device.metrics().clone();
    let bench = Bench::started(Arc::new(Mutex::new(device)), features);
    Drive { bench, disk, metrics }
}

fn drive() -> Drive {
    drive_on(MemDisk::new(SECTORS), F_FLUSH)
}

impl Drive {
    fn header(&self, kind: u32, sector: u64) {
        let raw = u128::from(kind) | u128::from(sector) << 64;
        self.put(HEADER, &raw.to_le_bytes());
    }

    fn put(&self, addr: u64, data: &[u8]) {
        self.bench.mem.write_slice(data, GuestAddress(addr)).unwrap();
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    /// A request whose status is `STATUS_AT`: the status, and the used length.
    fn request(
        &mut self,
        (kind, sector): (u32, u64),
        data_out: &[(u64, u32)],
        data_in: &[(u64, u32)],
    ) -> (u8, u32) {
        self.header(kind, sector);
        self.put(STATUS_AT, &[0xaa]);
        let readable = [&[(HEADER, 16)], data_out].concat();
        let writable = [data_in, &[(STATUS_AT, 1)]].concat();
        let used = self.bench.request(&readable, &writable).expect("an answer");
        assert!(!self.bench.needs_reset());
        (self.get(STATUS_AT, 1)[0], used)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut raw = Vec::new();
        for (sector, sectors, flags) in ranges {
            raw.extend(sector.to_le_bytes());
            raw.extend(sectors.to_le_bytes());
            raw.extend(flags.to_le_bytes());
        }
        self.put(DATA, &raw);
        self.request((kind, 0), &[(DATA, raw.len() as u32)], &[]).0
    }

    fn count(&self, counter: impl Fn(&BlockMetrics) -> &AtomicU64) -> u64 {
        counter(&self.metrics).load(Ordering::Relaxed)
    }
}

#[test]
fn sectors_are_written_and_read_back() {
    let mut d = drive();
    d.put(DATA, &[7; 1024]);
    assert_eq!(d.request((T_OUT, 3), &[(DATA, 1024)], &[]), (S_OK, 1));
    assert_eq!(lock(&d.disk.data)[3 * 512..5 * 512], [7; 1024]);
    assert_eq!(d.request((T_IN, 4), &[], &[(DATA + 0x1000, 512)]), (S_OK, 513));
    assert_eq!(d.get(DATA + 0x1000, 512), [7; 512]);
    assert_eq!(d.request((T_IN, 64), &[], &[]), (S_OK, 1), "nothing, at the very end");
    assert_eq!(d.count(|m| &m.reads), 2);
    assert_eq!((d.count(|m| &m.bytes_read), d.count(|m| &m.bytes_written)), (512, 1024));
    assert_eq!((d.count(|m| &m.writes), d.count(|m| &m.errors)), (1, 0));
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut d = drive();
    lock(&d.disk.data)[512..1024].fill(9);
    d.header(T_IN, 1);
    // The header in three pieces, the status in the last byte of the last one.
    let readable = [(HEADER, 5), (HEADER + 5, 10), (HEADER + 15, 1)];
    d.put(DATA, &[0xaa; 600]);
    let used = d.bench.request(&readable, &[(DATA, 100), (DATA + 100, 0), (DATA + 100, 413)]);
    assert_eq!(used, Some(513));
    assert_eq!(d.get(DATA, 512), [9; 512]);
    assert_eq!(d.get(DATA + 512, 2), [S_OK, 0xaa]);
    // The header and the data to write in one piece.
    d.header(T_OUT, 2);
    d.put(HEADER + 16, &[5; 512]);
    assert_eq!(d.bench.request(&[(HEADER, 528)], &[(STATUS_AT, 1)]), Some(1));
    assert_eq!(lock(&d.disk.data)[1024..1536], [5; 512]);
}

#[test]
fn bad_requests_get_a_status_and_the_queue_goes_on() {
    let mut d = drive();
    for (sector, len) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 65 * 512),
    ] {
        assert_eq!(d.request((T_IN, sector), &[], &[(DATA, len)]).0, S_IOERR, "{sector} {len}");
        assert_eq!(d.request((T_OUT, sector), &[(DATA, len)], &[]).0, S_IOERR);
    }
    for kind in [2, 3, 5, 9, 14, u32::MAX] {
        assert_eq!(d.request((kind, 0), &[], &[(DATA, 512)]).0, S_UNSUPP);
    }
    // Not even a header.
    assert_eq!(d.bench.request(&[(HEADER, 15)], &[(STATUS_AT, 1)]), Some(1));
    assert_eq!(d.get(STATUS_AT, 1), [S_IOERR]);
    assert_eq!(d.bench.request(&[], &[(STATUS_AT, 1)]), Some(1));
    assert_eq!(d.count(|m| &m.errors), 14 + 6 + 2);
    assert_eq!(*lock(&d.disk.data), vec![0; SECTORS * 512]);
    assert_eq!(d.request((T_IN, 0), &[], &[(DATA, 512)]), (S_OK, 513));
}

#[test]
fn a_request_without_a_status_stops_the_device() {
    let mut d = drive();
    d.header(T_OUT, 0);
    assert_eq!(d.bench.request(&[(HEADER, 16), (DATA, 512)], &[]), None);
    assert!(d.bench.needs_reset());
    d.bench.start(F_FLUSH);
    assert_eq!(d.request((T_IN, 0), &[], &[(DATA, 512)]), (S_OK, 513));
}

#[test]
fn errors_of_the_disk_reach_the_guest_as_such() {
    let mut d = drive();
    for errno in [libc::EIO, libc::ENOSPC, libc::EINTR, libc::EFAULT] {
        d.disk.errno.store(errno, Ordering::SeqCst);
        assert_eq!(d.request((T_IN, 0), &[], &[(DATA, 512)]), (S_IOERR, 0));
        assert_eq!(d.request((T_OUT, 0), &[(DATA, 512)], &[]).0, S_IOERR);
        assert_eq!(d.request((T_FLUSH, 0), &[], &[]).0, S_IOERR);
        assert_eq!(d.ranges(T_DISCARD, &[(0, 8, 0)]), S_IOERR);
    }
    d.disk.errno.store(0, Ordering::SeqCst);
    assert_eq!(d.request((T_IN, 0), &[], &[(DATA, 512)]).0, S_OK);
}

#[test]
fn the_serial_number_is_cut_and_padded() {
    let mut d = drive();
    assert_eq!(d.request((T_GET_ID, 0), &[], &[(DATA, 20)]), (S_OK, 21));
    assert_eq!(d.get(DATA, 20), b"a serial number that");
    assert_eq!(d.request((T_GET_ID, 0), &[], &[(DATA, 4)]), (S_OK, 5));
    assert_eq!(d.request((T_GET_ID, 0), &[], &[(DATA, 512)]), (S_OK, 20));
    let id = Block::new(Box::new(MemDisk::new(1)), named("vda")).unwrap().id;
    assert_eq!(&id, b"vda\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = MemDisk { read_only: true, ..MemDisk::new(SECTORS) };
    let mut d = drive_on(disk, F_RO);
    let features = lock(d.bench.transport.device()).features();
    assert_eq!(features & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    assert_eq!(d.request((T_OUT, 0), &[(DATA, 512)], &[]).0, S_IOERR);
    assert_eq!(d.ranges(T_DISCARD, &[(0, 8, 0)]), S_IOERR);
    assert_eq!(d.ranges(T_WRITE_ZEROES, &[(0, 8, 0)]), S_IOERR);
    assert_eq!(d.request((T_IN, 0), &[], &[(DATA, 512)]).0, S_OK);
}

#[test]
fn ranges_are_checked_before_the_first_is_touched() {
    let mut d = drive();
    lock(&d.disk.data).fill(1);
    let full = vec![1; SECTORS * 512];
    for (kind, ranges, status) in [
        (T_DISCARD, vec![(0, 8, 1)], S_UNSUPP),
        (T_DISCARD, vec![(0, 8, 2)], S_UNSUPP),
        (T_WRITE_ZEROES, vec![(0, 8, 0), (0, 8, 2)], S_UNSUPP),
        (T_WRITE_ZEROES, vec![(0, 8, 0), (57, 8, 0)], S_IOERR),
        (T_DISCARD, vec![(0, 8, 0), (u64::MAX, 1, 0)], S_IOERR),
        (T_DISCARD, vec![(0, u32::MAX, 0)], S_IOERR),
        (T_DISCARD, vec![(0, 1, 0); 17], S_IOERR),
        (T_DISCARD, vec![], S_IOERR),
        (T_DISCARD, vec![(3, 0, 0)], S_OK),
    ] {
        assert_eq!(d.ranges(kind, &ranges), status, "{kind} {ranges:?}");
        assert_eq!(*lock(&d.disk.data), full);
    }
    assert_eq!(d.request((T_DISCARD, 0), &[(DATA, 17)], &[]).0, S_IOERR);
    assert_eq!(d.ranges(T_DISCARD, &[(0, 1, 0), (2, 1, 0)]), S_OK);
    assert_eq!(d.ranges(T_WRITE_ZEROES, &[(4, 1, 1)]), S_OK);
    let data = lock(&d.disk.data);
    let zero: Vec<_> = (0..SECTORS).filter(|s| data[s * 512] == 0).collect();
    assert_eq!(zero, [0, 2, 4]);
}

#[test]
fn without_flush_every_write_is_durable() {
    let flushes = |d: &Drive| d.disk.flushes.load(Ordering::SeqCst);
    let mut d = drive();
    d.request((T_OUT, 0), &[(DATA, 512)], &[]);
    assert_eq!(flushes(&d), 0);
    assert_eq!(d.request((T_FLUSH, 0), &[], &[]), (S_OK, 1));
    assert_eq!((flushes(&d), d.count(|m| &m.flushes)), (1, 1));

    let mut d = drive_on(MemDisk::new(SECTORS), 0);
    d.request((T_OUT, 0), &[(DATA, 512)], &[]);
    d.ranges(T_DISCARD, &[(0, 1, 0)]);
    d.request((T_IN, 0), &[], &[(DATA, 512)]);
    assert_eq!(flushes(&d), 2);
}

#[test]
fn the_cache_is_the_drivers_to_choose() {
    let writeback = |d: &mut Drive| {
        let mut byte = [0xff];
        d.bench.transport.read(CONFIG + CONFIG_WRITEBACK, &mut byte);
        byte[0]
    };
    let mut d = drive_on(MemDisk::new(SECTORS), F_FLUSH | F_CONFIG_WCE);
    assert_eq!(writeback(&mut d), 1);
    d.bench.transport.write(CONFIG + CONFIG_WRITEBACK, &[0]);
    assert_eq!(writeback(&mut d), 0);
    let before = d.disk.flushes.load(Ordering::SeqCst);
    d.request((T_OUT, 0), &[(DATA, 512)], &[]);
    assert_eq!(d.disk.flushes.load(Ordering::SeqCst), before + 1);
    // What was not negotiated is not there; nor is anything else writable.
    let mut d = drive();
    d.bench.transport.write(CONFIG + CONFIG_WRITEBACK, &[0]);
    d.bench.transport.write(CONFIG, &[0]);
    assert_eq!(writeback(&mut d), 1);
    assert_eq!(d.bench.read(CONFIG), SECTORS as u32);
}

#[test]
fn the_configuration_is_where_the_specification_puts_it() {
    let mut d = drive();
    let mut c = |offset| d.bench.read(CONFIG + offset);
    assert_eq!((c(0), c(4)), (64, 0), "capacity");
    assert_eq!((c(8), c(12)), (0, 254), "size_max, seg_max");
    assert_eq!((c(16), c(20)), (0, 512), "geometry, blk_size");
    assert_eq!(c(24).to_le_bytes(), [3, 0, 8, 0], "topology");
    assert_eq!(c(32).to_le_bytes(), [1, 0, 1, 0], "writeback, num_queues");
    assert_eq!((c(36), c(40), c(44)), (4 << 20, 16, 8), "discard");
    assert_eq!((c(48), c(52), c(56)), (64 << 10, 16, 1), "write zeroes");
    assert_eq!((c(60), c(0xefc)), (0, 0), "past the end");
}

#[test]
fn a_batch_is_one_interrupt() {
    let mut d = drive_on(MemDisk::new(SECTORS), F_FLUSH | VIRTIO_RING_F_EVENT_IDX);
    d.header(T_IN, 0);
    let mem = d.bench.mem.clone();
    for _ in 0..5 {
        let head = d.bench.rings.chain(&mem, &[(HEADER, 16)], &[(DATA, 512), (STATUS_AT, 1)]);
        d.bench.rings.offer(&mem, head);
    }
    assert_eq!(d.bench.kick(), 1);
    assert_eq!(d.bench.rings.collect(&mem).len(), 5);
    assert_eq!(d.count(|m| &m.interrupts), 1);
    assert!(d.bench.interrupted());
    assert!(!d.bench.interrupted());
    // Nothing new: no interrupt.
    d.bench.kick();
    assert!(!d.bench.interrupted());
}

/// A disk whose every read makes the driver send another request.
struct Flood {
    rings: Arc<Mutex<Option<(Rings, Ram)>>>,
    reads: Arc<AtomicU64>,
}

impl Disk for Flood {
    fn len(&self) -> u64 {
        512
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read_at(&self, _to: &mut IoVecs<'_>, _offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some((rings, mem)) = &mut *lock(&self.rings) {
            rings.offer(mem, 0);
        }
        Ok(())
    }
    fn write_at(&self, _from: &mut IoVecs<'_>, _offset: u64) -> io::Result<()> {
        unreachable!()
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        unreachable!()
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        unreachable!()
    }
}

#[test]
fn a_flood_is_served_in_shares() {
    let (rings, reads) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU64::new(0)));
    let disk = Flood { rings: rings.clone(), reads: reads.clone() };
    let device = Arc::new(Mutex::new(Block::new(Box::new(disk), named("")).unwrap()));
    let mut bench = Bench::started(device, 0);
    let mem = bench.mem.clone();
    bench.rings.chain(&mem, &[(HEADER, 16)], &[(DATA, 512), (STATUS_AT, 1)]);
    bench.rings.offer(&mem, 0);
    *lock(&rings) = Some((bench.rings.clone(), mem.clone()));
    for share in 1..5 {
        bench.worker.queue_event(0);
        assert_eq!(reads.load(Ordering::SeqCst), share * 16, "a queue's length per event");
        assert_eq!(bench.transport.doorbells()[0].read().unwrap(), 1, "and again later");
        assert!(bench.interrupted());
    }
}

#[test]
fn events_without_a_driver_do_nothing() {
    let mut d = drive();
    d.bench.write(STATUS, 0);
    for queue in [0, 1, 77, u32::MAX] {
        d.bench.write(QUEUE_NOTIFY, queue);
    }
    d.bench.run();
    d.bench.worker.queue_event(usize::MAX);
    d.bench.worker.source_event(0);
    assert!(!d.bench.needs_reset());
}

#[test]
fn a_saved_disk_goes_on_where_it_was() {
    let features = F_FLUSH | F_CONFIG_WCE | VIRTIO_RING_F_EVENT_IDX;
    let mut d = drive_on(MemDisk::new(SECTORS), features);
    d.bench.transport.write(CONFIG + CONFIG_WRITEBACK, &[0]);
    d.put(DATA, &[3; 512]);
    assert_eq!(d.request((T_OUT, 1), &[(DATA, 512)], &[]).0, S_OK);
    // A request that nobody has looked at, and whose doorbell is lost.
    d.header(T_IN, 1);
    let mem = d.bench.mem.clone();
    let chain = d.bench.rings.chain(&mem, &[(HEADER, 16)], &[(DATA, 512), (STATUS_AT, 1)]);
    d.bench.rings.offer(&mem, chain);
    let saved = d.bench.transport.save().unwrap();

    let mut e = drive_on(d.disk.clone(), 0);
    let mut all = vec![0; 0x10_0000];
    mem.read_slice(&mut all, GuestAddress(0)).unwrap();
    e.put(0, &all);
    e.bench.rings = d.bench.rings.clone();
    e.bench.transport.restore(&saved).unwrap();
    e.put(DATA, &[0; 512]);
    e.bench.run();
    let mem = e.bench.mem.clone();
    assert_eq!(e.bench.rings.collect(&mem), [(chain.into(), 513)]);
    assert_eq!(e.get(DATA, 512), [3; 512]);
    let before = e.disk.flushes.load(Ordering::SeqCst);
    assert_eq!(e.request((T_OUT, 2), &[(DATA, 512)], &[]).0, S_OK);
    assert_eq!(e.disk.flushes.load(Ordering::SeqCst), before + 1, "still write-through");

    let mut other = drive_on(MemDisk::new(SECTORS - 1), 0);
    let refused = other.bench.transport.restore(&saved).unwrap_err().to_string();
    assert!(refused.contains("64 sectors") && refused.contains("63"), "{refused}");
}

#[derive(Debug, Clone)]
enum Op {
    Write(u8, u8, u8),
    Read(u8, u8),
    Discard(u8, u8),
    Zeroes(u8, u8, bool),
    Flush,
    SaveAndRestore,
}

fn op() -> impl Strategy<Value = Op> {
    let (at, len) = (0..70u8, 0..10u8);
    prop_oneof![
        (at.clone(), len.clone(), any::<u8>()).prop_map(|(a, l, b)| Op::Write(a, l, b)),
        (at.clone(), len.clone()).prop_map(|(a, l)| Op::Read(a, l)),
        (at.clone(), len.clone()).prop_map(|(a, l)| Op::Discard(a, l)),
        (at, len, any::<bool>()).prop_map(|(a, l, u)| Op::Zeroes(a, l, u)),
        Just(Op::Flush),
        Just(Op::SaveAndRestore),
    ]
}

/// Cuts `len` bytes at `addr` in pieces.
fn cut(addr: u64, len: u32, cuts: &[u32]) -> Vec<(u64, u32)> {
    let mut pieces = Vec::new();
    let mut done = 0;
    for c in cuts {
        let step = c % (len - done + 1);
        pieces.push((addr + u64::from(done), step));
        done += step;
    }
    pieces.push((addr + u64::from(done), len - done));
    pieces
}

/// An empty disk of any kind, at `path`.
fn image(kind: u8, path: &Path) -> (Box<dyn Disk>, Engine) {
    let len = (SECTORS * 512) as u64;
    let raw = |offset, size| {
        File::options().write(true).open(path).unwrap().set_len(offset + len + 512).unwrap();
        Box::new(
            RawDisk::open(path, RawOptions { offset, len: size, ..Default::default() }).unwrap(),
        )
    };
    match kind {
        0 => (Box::new(MemDisk::new(SECTORS)), Engine::Auto),
        1 => (raw(0, Some(len)), Engine::Sync),
        2 => (raw(512, Some(len)), Engine::Uring),
        3 => (raw(1 << 20, Some(len)), Engine::Sync),
        _ => {
            make_qcow2(path, len);
            (Box::new(Qcow2Disk::open(path, false).unwrap()), Engine::Auto)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever is done in whatever pieces, the disk is what an array would be.
    #[test]
    fn the_disk_is_an_array(
        ops in proptest::collection::vec((op(), proptest::collection::vec(any::<u32>(), 0..4)), 1..40),
        kind in 0..5u8,
    ) {
        let features = VIRTIO_F_VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let file = tempfile::NamedTempFile::new().unwrap();
        let (disk, engine) = image(kind, file.path());
        let Ok(device) = Block::new(disk, Options { engine, ..Options::default() }) else {
            // No io_uring here.
            return Ok(());
        };
        let answers_later = device.uses_ring();
        let mut bench = Bench::started(Arc::new(Mutex::new(device)), features);
        bench.answers_later = answers_later;
        let mut d = Drive { bench, disk: MemDisk::new(0), metrics: Arc::default() };
        let mut model = vec![0u8; SECTORS * 512];
        // Data lies across the seam of two regions.
        let data = SEAM - 1000;
        for (op, cuts) in ops {
            let range = |at: u8, len: u8| {
                let (at, end) = (usize::from(at), usize::from(at) + usize::from(len));
                (end <= SECTORS).then_some(at * 512..end * 512)
            };
            let pieces = |len: u8| cut(data, u32::from(len) * 512, &cuts);
            let expect = |ok: bool| if ok { S_OK } else { S_IOERR };
            match op {
                Op::Write(at, len, byte) => {
                    let content: Vec<u8> =
                        (0..usize::from(len) * 512).map(|i| byte.wrapping_add(i as u8)).collect();
                    d.put(data, &content);
                    let range = range(at, len);
                    let (status, _) = d.request((T_OUT, at.into()), &pieces(len), &[]);
                    prop_assert_eq!(status, expect(range.is_some()));
                    if let Some(range) = range {
                        model[range].copy_from_slice(&content);
                    }
                }
                Op::Read(at, len) => {
                    d.put(data, &vec![0xaa; usize::from(len) * 512]);
                    let (status, used) = d.request((T_IN, at.into()), &[], &pieces(len));
                    match range(at, len) {
                        Some(range) => {
                            prop_assert_eq!((status, used), (S_OK, u32::from(len) * 512 + 1));
                            prop_assert_eq!(&d.get(data, range.len()), &model[range]);
                        }
                        None => prop_assert_eq!(status, S_IOERR),
                    }
                }
                // On this host's files a discard punches a hole, which reads as
                // zeroes, as it does on the disk in memory.
                Op::Discard(at, len) | Op::Zeroes(at, len, _) => {
                    let (kind, flags) = match op {
                        Op::Zeroes(_, _, unmap) => (T_WRITE_ZEROES, u32::from(unmap)),
                        _ => (T_DISCARD, 0),
                    };
                    let range = range(at, len);
                    let status = d.ranges(kind, &[(at.into(), len.into(), flags)]);
                    prop_assert_eq!(status, expect(range.is_some()));
                    if let Some(range) = range {
                        model[range].fill(0);
                    }
                }
                Op::Flush => prop_assert_eq!(d.request((T_FLUSH, 0), &[], &[]), (S_OK, 1)),
                Op::SaveAndRestore => {
                    let saved = d.bench.transport.save().unwrap();
                    d.bench.transport.restore(&saved).unwrap();
                    d.bench.run();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_driver_breaks_the_block_device(program in proptest::collection::vec(any::<u8>(), 0..600)) {
        hostile::block(&program);
    }
}
