//! The entropy device.

use super::*;
use crate::rate::Rate;
use crate::virtio::VIRTIO_RING_F_EVENT_IDX;
use crate::virtio::mmio::STATUS;
use crate::virtio::testing::driver::{Carrier, Driver};
use crate::virtio::testing::pci::PciBench;
use crate::virtio::testing::*;
use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::{any, prop, proptest};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

fn bench() -> Bench {
    Bench::started(Arc::new(Mutex::new(Rng::new())), 0)
}

fn zeroes(bench: &Bench, addr: u64, len: usize) -> usize {
    let mut data = vec![0; len];
    bench.mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
    data.iter().filter(|b| **b == 0).count()
}

#[test]
fn buffers_are_filled_with_random_bytes() {
    let mut bench = bench();
    let buffers = [(SEAM - 512, 1024), (0x9000, 0), (HIGH, 1000)];
    assert_eq!(bench.request(&[], &buffers), Some(2024));
    assert!(zeroes(&bench, SEAM - 512, 1024) < 64);
    assert!(zeroes(&bench, HIGH, 1000) < 64);
    assert_eq!(zeroes(&bench, SEAM + 512, 512), 512, "and nothing else is");
    assert!(bench.interrupted());
    // A driver that wants to tell us something gets nothing.
    assert_eq!(bench.request(&[(0x9000, 100)], &[]), Some(0));
    assert!(!bench.needs_reset());
}

#[test]
fn a_greedy_driver_gets_its_share_per_event() {
    let mut bench = bench();
    let mem = bench.mem.clone();
    assert_eq!(bench.request(&[], &[(HIGH, 0x10_0000)]), Some(64 << 10));
    for _ in 0..16 {
        let head = bench.rings.chain(&mem, &[], &[(HIGH, 40 << 10)]);
        bench.rings.offer(&mem, head);
    }
    assert_eq!(bench.kick(), 8, "two in each event");
    let back = bench.rings.collect(&mem);
    assert_eq!(back.len(), 16);
    assert!(back.iter().all(|(_, len)| *len > 0 && *len <= 40 << 10));
}

/// A driver and a worker on two threads, each of which sleeps whenever the other
/// says it may: a wake-up that is lost leaves both asleep.
#[test]
fn no_wake_up_is_lost_between_driver_and_device() {
    for event_idx in [false, true] {
        let features = if event_idx { VIRTIO_RING_F_EVENT_IDX } else { 0 };
        let mut bench = Bench::started(Arc::new(Mutex::new(Rng::new())), features);
        let worker = bench.transport.worker();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let device = std::thread::spawn(move || {
            let mut events = EventManager::new().unwrap();
            events.add_subscriber(worker);
            while !stopped.load(Ordering::SeqCst) {
                events.run_with_timeout(100).unwrap();
            }
        });
        drive(&mut bench, event_idx);
        stop.store(true, Ordering::SeqCst);
        device.join().unwrap();
    }
}

fn drive(bench: &mut Bench, event_idx: bool) {
    let mem = bench.mem.clone();
    let doorbell = bench.transport.doorbells()[0].clone();
    let interrupt = bench.transport.interrupt().line().unwrap().try_clone().unwrap();
    let rings = &mut bench.rings;
    let used_event = rings.avail + 4 + 2 * u64::from(rings.size);
    let avail_event = rings.used + 4 + 8 * u64::from(rings.size);
    let (mut sent, mut back, mut rung, mut woken) = (0u32, 0u32, 0u32, 0u32);
    while back < 20_000 {
        let before = rings.avail_idx;
        for _ in 0..(sent % 7 + 1).min(16 - (sent - back)) {
            let head = rings.chain(&mem, &[], &[(0x9000, 1)]);
            rings.offer(&mem, head);
            sent += 1;
        }
        fence(Ordering::SeqCst);
        let wanted = match event_idx {
            true => {
                let passed = rings.avail_idx.wrapping_sub(get(&mem, avail_event)).wrapping_sub(1);
                passed < rings.avail_idx.wrapping_sub(before)
            }
            false => get(&mem, rings.used) & 1 == 0,
        };
        if wanted {
            doorbell.write(1).unwrap();
            rung += 1;
        }
        // Sleep until there is something, in the way of a driver: announce it,
        // then look once more.
        put(&mem, used_event, rings.used_idx);
        fence(Ordering::SeqCst);
        while get(&mem, rings.used + 2) == rings.used_idx {
            let mut fd = libc::pollfd {
                fd: interrupt.eventfd().as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry, which lives here.
            let ready = unsafe { libc::poll(&mut fd, 1, 10_000) };
            assert_eq!(ready, 1, "{sent} sent, {back} back, event_idx {event_idx}");
            let _ = interrupt.eventfd().read();
            woken += 1;
        }
        back += rings.collect(&mem).len() as u32;
    }
    assert!(rung > 0 && woken > 0, "the test means something: {rung} {woken}");
}

#[test]
fn a_broken_ring_is_reset_and_works_again() {
    let mut bench = bench();
    assert_eq!(bench.request(&[], &[(HOLE, 1)]), None);
    assert!(bench.needs_reset());
    bench.start(0);
    assert_eq!(bench.request(&[], &[(0x9000, 8)]), Some(8));
    bench.write(STATUS, 0);
    assert!(bench.kick() == 1 && !bench.needs_reset());
}

#[test]
fn it_is_saved_and_goes_on() {
    let mut bench = bench();
    assert_eq!(bench.request(&[], &[(0x9000, 8)]), Some(8));
    let saved = bench.transport.save().unwrap();
    bench.write(STATUS, 0);
    bench.transport.restore(&saved).unwrap();
    assert_eq!(bench.request(&[], &[(0x9000, 8)]), Some(8));
}

#[test]
fn it_needs_its_queue() {
    let mut bench = Bench::new(Arc::new(Mutex::new(Rng::new())));
    bench.negotiate(0);
    bench.write(STATUS, 15);
    assert!(bench.needs_reset());
}

/// A driver that always wants more, for a second: what it gets is the rate.
#[test]
fn a_rate_holds_within_five_percent() {
    let rate = Rate { per_second: 4 << 20, burst: 64 << 10 };
    let device = Arc::new(Mutex::new(Rng::limited(Limiter::new(Some(rate), None).unwrap())));
    let fd = device.lock().unwrap().sources()[0];
    let mut bench = Bench::started(device.clone(), 0);
    let mem = bench.mem.clone();
    let (start, mut bytes, mut waits) = (Instant::now(), 0, 0);
    for _ in 0..8 {
        let head = bench.rings.chain(&mem, &[], &[(HIGH, 3000)]);
        bench.rings.offer(&mem, head);
    }
    bench.kick();
    while start.elapsed() < Duration::from_secs(1) {
        for (_, len) in bench.rings.collect(&mem) {
            bytes += u64::from(len);
            let head = bench.rings.chain(&mem, &[], &[(HIGH, 3000)]);
            bench.rings.offer(&mem, head);
        }
        assert!(bench.kick() < 100, "it spins while it is throttled");
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&mut poll, 1, 1) } == 1 {
            waits += 1;
            bench.worker.source_event(0);
            bench.run();
        }
    }
    let allowed = rate.burst as f64 + rate.per_second as f64 * start.elapsed().as_secs_f64();
    assert!((0.95..1.05).contains(&(bytes as f64 / allowed)), "{bytes} of {allowed}");
    let counters = device.lock().unwrap().counters();
    assert!(waits > 10 && counters.iter().any(|(name, n)| *name == "throttled" && *n > 10));
    // A reset while it waits: the next driver is served.
    bench.start(0);
    bench.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.request(&[], &[(0x9000, 8)]), Some(8));
}

proptest! {
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 0..600)) {
        let rate = Some(Rate { per_second: 1 << 30, burst: 1000 });
        let device = || Arc::new(Mutex::new(Rng::limited(Limiter::new(rate, None).unwrap())));
        hostile::any_device::<Bench>(&data, device(), still_works);
        hostile::any_device::<PciBench>(&data, device(), still_works);
    }
}

fn still_works<C: Carrier>(driver: &mut Driver<C>) {
    // A debt of 64 KiB is paid in a moment.
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(driver.request(0, &[], &[(0x9000, 8)]), Some(8));
}
