//! The balloon, over both transports.

use super::*;
use crate::bus::lock;
use crate::virtio::mmio;
use crate::virtio::testing::driver::{Carrier, Driver};
use crate::virtio::testing::pci::PciBench;
use crate::virtio::testing::*;
use proptest::prelude::*;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const OPTIONS: Options = Options {
    target: 0x10_0000,
    memory: 0x30_0000,
    deflate_on_oom: true,
    stats: Some(Duration::ZERO),
    reporting: true,
};
/// Queue numbers with all features.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORTING: usize = 3;
/// Where requests are.
const OUT: u64 = 0x2_0000;

fn balloon(options: Options) -> Arc<Mutex<Balloon>> {
    Arc::new(Mutex::new(Balloon::new(options).unwrap()))
}

fn filled<C: Carrier>() -> (Driver<C>, Arc<Mutex<Balloon>>) {
    let device = balloon(OPTIONS);
    let driver = Driver::new(device.clone());
    for base in [0x8_0000, SEAM - 0x1_0000, SEAM, HIGH] {
        driver.mem.write_slice(&[0xaa; 0x1_0000], GuestAddress(base)).unwrap();
    }
    (driver, device)
}

fn byte(mem: &Ram, addr: u64) -> u8 {
    mem.read_obj(GuestAddress(addr)).unwrap()
}

fn send_pfns<C: Carrier>(driver: &mut Driver<C>, queue: usize, pfns: &[u32]) -> Option<u32> {
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    driver.mem.write_slice(&bytes, GuestAddress(OUT)).unwrap();
    driver.request(queue, &[(OUT, bytes.len() as u32)], &[])
}

fn pages_go_back<C: Carrier>() {
    let (mut driver, _) = filled::<C>();
    // In no order, one twice, across the seam of two regions.
    let pfns = [0x81, 0x83, 0x101, 0xff, 0x100, 0x81, 0x400];
    assert_eq!(send_pfns(&mut driver, INFLATE, &pfns), Some(0));
    for (addr, want) in [
        (0x8_0fff, 0xaa),
        (0x8_1000, 0),
        (0x8_1fff, 0),
        (0x8_2000, 0xaa),
        (0x8_3000, 0),
        (0xf_efff, 0xaa),
        (0xf_f000, 0),
        (SEAM, 0),
        (SEAM + 0x1fff, 0),
        (SEAM + 0x2000, 0xaa),
        (HIGH, 0),
        (HIGH + 0x1000, 0xaa),
    ] {
        assert_eq!(byte(&driver.mem, addr), want, "{addr:#x}");
    }
    assert_eq!(driver.counter("inflated_bytes"), Some(6 * PAGE));
    assert_eq!(send_pfns(&mut driver, DEFLATE, &[0x81, 0x83]), Some(0));
    assert_eq!(driver.counter("deflated_bytes"), Some(2 * PAGE));
    assert!(!driver.broken());
}

#[test]
fn pages_go_back_to_the_host() {
    pages_go_back::<Bench>();
    pages_go_back::<PciBench>();
}

#[test]
fn pages_outside_of_ram_are_left_alone_and_counted() {
    let (mut driver, _) = filled::<Bench>();
    let hole = (HOLE / PAGE) as u32;
    let pfns = [u32::MAX, u32::MAX - 1, hole, hole + 1, (END / PAGE) as u32, 0x80];
    assert_eq!(send_pfns(&mut driver, INFLATE, &pfns), Some(0));
    assert_eq!(driver.counter("inflated_bytes"), Some(PAGE));
    assert_eq!(driver.counter("outside_ram_bytes"), Some(5 * PAGE));
    // Neither is a buffer that can't hold a number, or half of one.
    assert_eq!(driver.request(INFLATE, &[(OUT, 3)], &[]), Some(0));
    assert_eq!(driver.request(INFLATE, &[], &[(OUT, 4096)]), Some(0));
    assert!(!driver.broken());
}

#[test]
fn a_request_without_end_is_refused() {
    let (mut driver, _) = filled::<Bench>();
    let long = MAX_PFNS as u32 * 4;
    for queue in [INFLATE, DEFLATE] {
        assert_eq!(driver.request(queue, &[(HIGH, long)], &[]), Some(0));
        assert_eq!(driver.request(queue, &[(HIGH, long + 4)], &[]), None);
        assert!(driver.broken());
        driver.start();
        assert!(!driver.broken());
    }
}

#[test]
fn the_target_is_in_the_configuration_and_its_change_interrupts() {
    let device = balloon(OPTIONS);
    let mut bench = Bench::started(device.clone(), 0);
    // The deflate queue is missing.
    assert!(bench.needs_reset());
    let mut driver = Driver::<Bench>::new(device.clone());
    let word = |bench: &mut Bench, offset| bench.read(mmio::CONFIG + offset);
    let before = driver.carrier.read(mmio::CONFIG_GENERATION);
    assert_eq!(word(&mut driver.carrier, 0), 0x100);
    assert!(!driver.carrier.interrupted());
    lock(&device).set_target(0x20_0000).unwrap();
    assert_eq!(driver.carrier.read(mmio::INTERRUPT_STATUS), crate::virtio::INT_CONFIG);
    assert_eq!(word(&mut driver.carrier, 0), 0x200);
    assert_ne!(driver.carrier.read(mmio::CONFIG_GENERATION), before);
    assert_eq!(lock(&device).set_target(0x30_1000).unwrap_err().target, 0x30_1000);
    assert_eq!(word(&mut driver.carrier, 0), 0x200);
    driver.carrier.set_config(4, &0x180u32.to_le_bytes());
    driver.carrier.set_config(0, &7u32.to_le_bytes());
    driver.carrier.set_config(5, &[9]);
    assert_eq!(lock(&device).actual(), 0x18_0000);
    assert_eq!(lock(&device).target(), 0x20_0000);
    // After a reset the balloon is empty; the target stays.
    driver.carrier.power_off();
    assert_eq!(lock(&device).actual(), 0);
    assert_eq!(lock(&device).target(), 0x20_0000);
}

fn free_ranges<C: Carrier>() {
    let (mut driver, _) = filled::<C>();
    let ranges = [(0x8_0800, 0x3000), (SEAM - 0x1000, 0x2000)];
    assert_eq!(driver.request(REPORTING, &[], &ranges), Some(0));
    assert_eq!(byte(&driver.mem, 0x8_0fff), 0xaa, "a part of a page stays");
    assert_eq!(byte(&driver.mem, 0x8_1000), 0);
    assert_eq!(byte(&driver.mem, 0x8_3000), 0xaa);
    assert_eq!(byte(&driver.mem, SEAM + 0xfff), 0);
    assert_eq!(driver.counter("reported_free_bytes"), Some(4 * PAGE));
    // A guest that relies on what is in its free pages keeps them.
    driver.carrier.set_config(12, &0xaaaa_aaaau32.to_le_bytes());
    assert_eq!(driver.request(REPORTING, &[], &[(0x8_4000, 0x1000)]), Some(0));
    assert_eq!(byte(&driver.mem, 0x8_4000), 0xaa);
    assert_eq!(driver.counter("reported_kept_bytes"), Some(PAGE));
}

#[test]
fn free_ranges_go_back_unless_their_contents_matter() {
    free_ranges::<Bench>();
    free_ranges::<PciBench>();
}

fn put_stats(mem: &Ram, stats: &[(u16, u64)]) -> (u64, u32) {
    let bytes: Vec<u8> = stats
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    mem.write_slice(&bytes, GuestAddress(OUT)).unwrap();
    (OUT, bytes.len() as u32)
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (mut driver, device) = filled::<Bench>();
    let first = put_stats(&driver.mem, &[(4, 1000), (5, 2000), (99, 1)]);
    assert_eq!(driver.request(STATS, &[first], &[]), None, "the buffer is kept");
    assert_eq!(driver.counter("guest_free_bytes"), Some(1000));
    assert_eq!(driver.counter("guest_total_bytes"), Some(2000));
    assert_eq!(driver.counter("guest_available_bytes"), None);
    // Saved and restored, it is still there to be given back.
    driver.carrier.save_and_restore();
    driver.run();
    lock(&device).request_stats().unwrap();
    assert_eq!(driver.collect(STATS), [(0, 0)]);
    lock(&device).request_stats().unwrap();
    assert_eq!(driver.collect(STATS), []);
    let second = put_stats(&driver.mem, &[(6, 500), (4, 900)]);
    assert_eq!(driver.request(STATS, &[second], &[]), None);
    assert_eq!(driver.counter("guest_available_bytes"), Some(500));
    assert_eq!(driver.counter("guest_free_bytes"), Some(900));
    assert_eq!(driver.counter("stats_reports"), Some(2));
    // A second buffer drives out the first.
    assert_eq!(driver.send(STATS, &[second], &[]), 2);
    assert_eq!(driver.collect(STATS), [(1, 0)]);
    // The rest of a report that is cut off is ignored.
    let cut = (second.0, 19);
    driver.send(STATS, &[cut], &[]);
    assert!(!driver.broken());
}

#[test]
fn the_timer_asks_for_statistics() {
    let device = balloon(Options { stats: Some(Duration::from_millis(10)), ..OPTIONS });
    let mut driver = Driver::<Bench>::new(device.clone());
    let fd = lock(&device).sources()[0];
    let report = put_stats(&driver.mem, &[(4, 1)]);
    for head in 0..3 {
        assert_eq!(driver.request(STATS, &[report], &[]), None);
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
        driver.source(0);
        assert_eq!(driver.collect(STATS), [(head, 0)]);
    }
}

#[test]
fn queues_follow_the_features_that_were_negotiated() {
    let plain = Options { stats: None, reporting: false, deflate_on_oom: false, ..OPTIONS };
    assert_eq!(balloon(plain).lock().unwrap().queue_max_sizes().len(), 2);
    // A driver without statistics has its free pages in queue 2.
    let device = balloon(OPTIONS);
    let mut driver = Driver::<Bench>::with_features(device, F_REPORTING);
    driver.mem.write_slice(&[0xaa; 0x1000], GuestAddress(0x8_0000)).unwrap();
    assert_eq!(driver.request(2, &[], &[(0x8_0000, 0x1000)]), Some(0));
    assert_eq!(byte(&driver.mem, 0x8_0000), 0);
}

#[test]
fn it_is_saved_and_goes_on() {
    let (mut driver, device) = filled::<PciBench>();
    driver.carrier.set_config(4, &5u32.to_le_bytes());
    lock(&device).set_target(0x5000).unwrap();
    driver.carrier.save_and_restore();
    assert_eq!(lock(&device).target(), 0x5000);
    assert_eq!(lock(&device).actual(), 0x5000);
    assert_eq!(send_pfns(&mut driver, INFLATE, &[0x80]), Some(0));
    let saved = lock(&device).save().unwrap();
    let other = balloon(Options { stats: None, ..OPTIONS });
    assert!(matches!(lock(&other).restore(&saved), Err(StateError::Invalid { .. })));
}

/// After everything, a page can be given back.
fn still_works<C: Carrier>(driver: &mut Driver<C>) {
    driver.mem.write_slice(&[0xaa; 0x1000], GuestAddress(0x8_0000)).unwrap();
    assert_eq!(send_pfns(driver, INFLATE, &[0x80]), Some(0));
    assert_eq!(byte(&driver.mem, 0x8_0000), 0);
}

proptest! {
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 0..600)) {
        hostile::any_device::<Bench>(&data, balloon(OPTIONS), still_works);
        hostile::any_device::<PciBench>(&data, balloon(OPTIONS), still_works);
    }
}
