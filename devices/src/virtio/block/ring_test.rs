//! The block device with requests under way.

use super::*;
use crate::backend::disk::{RawDisk, RawOptions};
use crate::bus::lock;
use crate::rate::Rate;
use crate::virtio::testing::*;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x20000;
const SECTORS: u64 = 2048;

fn bench(options: Options) -> Option<(Bench, tempfile::NamedTempFile)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    let disk = RawDisk::open(file.path(), RawOptions::default()).unwrap();
    let device = match Block::new(Box::new(disk), options) {
        Ok(device) => device,
        Err(e) => {
            eprintln!("skipped: io_uring: {e}");
            return None;
        }
    };
    Some((Bench::started(Arc::new(Mutex::new(device)), F_FLUSH), file))
}

fn uring() -> Options {
    Options { engine: Engine::Uring, ..Options::default() }
}

/// Offers `many` writes of 4 KiB, each to its place, with a byte of its own.
fn offer_writes(bench: &mut Bench, many: u64) {
    for i in 0..many {
        let (header, data) = (HEADER + i * 16, DATA + i * 4096);
        let raw = 1u128 | u128::from(i * 8) << 64;
        bench.mem.write_slice(&raw.to_le_bytes(), GuestAddress(header)).unwrap();
        bench.mem.write_slice(&[i as u8 + 1; 4096], GuestAddress(data)).unwrap();
        let status = (HEADER + 0x1000 + i, 1);
        let head = bench.rings.chain(&bench.mem, &[(header, 16), (data, 4096)], &[status]);
        bench.rings.offer(&bench.mem, head);
    }
}

fn collect(bench: &mut Bench, many: usize) {
    let (mut seen, start) = (0, Instant::now());
    while seen < many {
        bench.run();
        bench.worker.source_event(0);
        seen += bench.rings.collect(&bench.mem).len();
        assert!(start.elapsed() < Duration::from_secs(10), "{seen} of {many}");
    }
    assert_eq!(seen, many);
}

#[test]
fn many_requests_end_each_once() {
    let Some((mut bench, file)) = bench(uring()) else { return };
    offer_writes(&mut bench, 5);
    bench.kick();
    collect(&mut bench, 5);
    let bytes = std::fs::read(file.path()).unwrap();
    for i in 0..5 {
        assert_eq!(bytes[i * 4096..(i + 1) * 4096], [i as u8 + 1; 4096]);
        let status: u8 = bench.mem.read_obj(GuestAddress(HEADER + 0x1000 + i as u64)).unwrap();
        assert_eq!(status, 0);
    }
}

#[test]
fn a_reset_waits_and_forgets() {
    let Some((mut bench, _file)) = bench(uring()) else { return };
    for _ in 0..50 {
        offer_writes(&mut bench, 5);
        bench.kick();
        bench.start(F_FLUSH);
        bench.worker.source_event(0);
        assert_eq!(bench.rings.collect(&bench.mem), [], "nothing of the life before");
        assert!(!bench.needs_reset());
    }
    offer_writes(&mut bench, 5);
    bench.kick();
    collect(&mut bench, 5);
}

#[test]
fn what_is_under_way_is_part_of_no_state() {
    let Some((mut bench, _file)) = bench(uring()) else { return };
    offer_writes(&mut bench, 5);
    bench.kick();
    let saved = bench.transport.save().unwrap();
    assert_eq!(bench.rings.collect(&bench.mem).len(), 5, "all are answered");
    bench.transport.restore(&saved).unwrap();
    bench.run();
    bench.worker.source_event(0);
    assert_eq!(bench.rings.collect(&bench.mem), [], "and not again");
}

#[test]
fn a_limit_makes_requests_wait_for_the_timer() {
    let operations = Some(Rate { per_second: 1000, burst: 2 });
    let limiter = Some(Limiter::new(None, operations).unwrap());
    let Some((mut bench, _file)) = bench(Options { limiter, ..Options::default() }) else {
        unreachable!("no ring is asked for")
    };
    offer_writes(&mut bench, 5);
    bench.kick();
    let at_once = bench.rings.collect(&bench.mem).len();
    assert!((2..5).contains(&at_once), "{at_once}");
    collect(&mut bench, 5 - at_once);
}

#[test]
fn a_resize_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let disk = RawDisk::open(file.path(), RawOptions::default()).unwrap();
    let device = Block::new(Box::new(disk), Options::default()).unwrap();
    let device = Arc::new(Mutex::new(device));
    let mut bench = Bench::started(device.clone(), 0);
    let before = bench.read(crate::virtio::mmio::CONFIG_GENERATION);
    assert_eq!(lock(&device).resize(Some(1 << 20)).unwrap(), 1 << 20);
    assert!(bench.interrupted());
    assert_eq!(bench.read(crate::virtio::mmio::CONFIG), 2048);
    assert_ne!(bench.read(crate::virtio::mmio::CONFIG_GENERATION), before);
    assert!(lock(&device).resize(Some(100)).is_err());
}
