//! Several pairs of queues, the control queue, and limits, over both transports.

use super::features::*;
use super::tests::{MemNet, Wire, count, frame};
use super::*;
use crate::bus::lock;
use crate::rate::Rate;
use crate::virtio::testing::driver::{Carrier, Driver};
use crate::virtio::testing::pci::PciBench;
use crate::virtio::testing::{Bench, HOLE};
use crate::virtio::{COMMON_FEATURES, SharedVirtio, VIRTIO_RING_F_EVENT_IDX, VirtioDevice};
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const OUT: u64 = 0x4_0000;
const IN: u64 = 0x6_0000;
/// Where commands and their answers are.
const COMMAND: u64 = 0x5_0000;
const ACK: u64 = 0x5_1000;

/// Each pair of a card, as its network sees it.
type Wires = Vec<Arc<Mutex<Wire>>>;

fn card_with(pairs: usize, options: Options) -> (Arc<Mutex<Net>>, Wires) {
    let backends: Vec<MemNet> = (0..pairs)
        .map(|_| MemNet { features: GUEST_CSUM | GUEST_TSO4 | HOST_USO, ..Default::default() })
        .collect();
    let wires = backends.iter().map(|backend| backend.wire.clone()).collect();
    let backends = backends.into_iter().map(|b| Box::new(b) as Box<dyn NetBackend>).collect();
    let options = Options { mac: [2, 0, 0, 0, 0, 7], ..options };
    (Arc::new(Mutex::new(Net::new(options, backends).unwrap())), wires)
}

fn card(pairs: usize) -> (SharedVirtio, Wires) {
    let (net, wires) = card_with(pairs, Options::default());
    (net, wires)
}

/// Sends a command; its answer.
fn command<C: Carrier>(driver: &mut Driver<C>, queue: usize, bytes: &[u8]) -> Option<u8> {
    driver.mem.write_slice(bytes, GuestAddress(COMMAND)).unwrap();
    driver.mem.write_obj(0xeeu8, GuestAddress(ACK)).unwrap();
    let len = bytes.len() as u32;
    let used = driver.request(
        queue,
        &[(COMMAND, len.min(2)), (COMMAND + 2, len - len.min(2))],
        &[(ACK, 1)],
    );
    used.map(|used| {
        assert_eq!(used, 1);
        driver.mem.read_obj(GuestAddress(ACK)).unwrap()
    })
}

fn pairs(count: u16) -> [u8; 4] {
    let [low, high] = count.to_le_bytes();
    [MQ_VQ_PAIRS_SET.0, MQ_VQ_PAIRS_SET.1, low, high]
}

fn enabled(wires: &Wires) -> Vec<Option<bool>> {
    wires.iter().map(|wire| lock(wire).enabled).collect()
}

/// A frame comes on a pair, into a buffer of its own; whether it got there.
fn comes<C: Carrier>(driver: &mut Driver<C>, wires: &Wires, pair: usize) -> bool {
    let head = driver.rings[2 * pair].chain(&driver.mem, &[], &[(IN, 2000)]);
    driver.rings[2 * pair].offer(&driver.mem, head);
    lock(&wires[pair]).incoming.push_back(frame(100));
    driver.carrier.ring(2 * pair);
    driver.run();
    driver.collect(2 * pair) == [(head.into(), 100)]
}

fn goes<C: Carrier>(driver: &mut Driver<C>, wires: &Wires, pair: usize) -> bool {
    driver.send(2 * pair + 1, &[(OUT, 60)], &[]);
    driver.collect(2 * pair + 1).len() == 1 && lock(&wires[pair]).outgoing.pop().is_some()
}

fn as_many_pairs_as_are_set<C: Carrier>() {
    let (device, wires) = card(4);
    let mut driver = Driver::<C>::new(device);
    assert_eq!([8, 9].map(|at| driver.carrier.config(at)), [4, 0], "max_virtqueue_pairs");
    assert_eq!(enabled(&wires), [Some(true), Some(false), Some(false), Some(false)]);
    assert!(comes(&mut driver, &wires, 0) && !comes(&mut driver, &wires, 1));
    assert_eq!(command(&mut driver, 8, &pairs(4)), Some(OK));
    assert_eq!(enabled(&wires), [Some(true); 4]);
    assert_eq!(driver.collect(2).len(), 1, "what waited on the other pair");
    for pair in 0..4 {
        assert!(comes(&mut driver, &wires, pair) && goes(&mut driver, &wires, pair), "{pair}");
    }
    assert_eq!(command(&mut driver, 8, &pairs(2)), Some(OK));
    assert_eq!(enabled(&wires), [Some(true), Some(true), Some(false), Some(false)]);
    assert!(comes(&mut driver, &wires, 1) && !comes(&mut driver, &wires, 2));
    driver.start();
    assert_eq!(enabled(&wires)[1..], [Some(false); 3], "a reset goes back to one");
    for bad in [0, 5, 0x8000, 0xffff] {
        assert_eq!(command(&mut driver, 8, &pairs(bad)), Some(ERR), "{bad}");
    }
    lock(&wires[2]).stuck = true;
    assert_eq!(command(&mut driver, 8, &pairs(4)), Some(ERR), "the host refuses");
    assert_eq!(enabled(&wires)[1], Some(false));
    lock(&wires[2]).stuck = false;
    assert!(comes(&mut driver, &wires, 0) && goes(&mut driver, &wires, 0));
    assert_eq!(driver.counter("tx_frames"), Some(5));
    assert!(!driver.broken());
}

#[test]
fn a_card_uses_as_many_pairs_as_its_driver_sets() {
    as_many_pairs_as_are_set::<Bench>();
    as_many_pairs_as_are_set::<PciBench>();
}

#[test]
fn counters_are_kept_for_each_queue() {
    let (device, wires) = card(2);
    let mut driver = Driver::<Bench>::new(device.clone());
    assert_eq!(command(&mut driver, 4, &pairs(2)), Some(OK));
    assert!(comes(&mut driver, &wires, 1) && goes(&mut driver, &wires, 1));
    let of = |queue| lock(&device).queue_counters(queue);
    assert_eq!(of(2)[..2], [("frames", 1), ("bytes", 88)]);
    assert_eq!(of(3), [("frames", 1), ("bytes", 48), ("dropped", 0)]);
    assert_eq!((of(1)[0], of(4), of(99)), (("frames", 0), vec![], vec![]));
    assert_eq!(lock(&device).counters()[..2], [("rx_frames", 1), ("rx_bytes", 88)]);
}

#[test]
fn without_multiqueue_the_control_queue_is_behind_the_first_pair() {
    let (device, wires) = card(4);
    let mut driver = Driver::<Bench>::with_features(
        device,
        COMMON_FEATURES & !VIRTIO_RING_F_EVENT_IDX | CTRL_VQ | CTRL_MAC_ADDR,
    );
    assert_eq!(command(&mut driver, 2, &pairs(2)), Some(ERR), "it was not negotiated");
    assert_eq!(command(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), Some(OK));
    assert!(comes(&mut driver, &wires, 0));
    assert!(!goes(&mut driver, &wires, 1));
}

#[test]
fn the_driver_can_change_address_and_offloads() {
    let (device, wires) = card(1);
    let mut driver = Driver::<PciBench>::new(device.clone());
    let offloads = |bits: u64| [&[5, 0], &bits.to_le_bytes()[..]].concat();
    assert_ne!(lock(&device).features() & CTRL_GUEST_OFFLOADS, 0);
    assert_eq!(command(&mut driver, 2, &offloads(GUEST_CSUM)), Some(OK));
    let chosen = lock(&wires[0]).chosen.unwrap();
    assert_eq!(chosen & GUEST_OFFLOADS, GUEST_CSUM);
    assert_ne!(chosen & HOST_USO, 0, "the others stay");
    for bad in [GUEST_TSO6, HOST_USO, 1 << 63] {
        assert_eq!(command(&mut driver, 2, &offloads(bad)), Some(ERR), "{bad:#x}");
    }
    assert_eq!(command(&mut driver, 2, &[1, 1, 2, 1, 2, 3, 4, 5]), Some(OK));
    let address = |driver: &mut Driver<PciBench>| {
        [0, 1, 5].map(|at| Carrier::config(&mut driver.carrier, at))
    };
    assert_eq!(address(&mut driver), [2, 1, 5]);
    for bad in [[1, 0, 0, 0, 0, 1], [0; 6]] {
        assert_eq!(command(&mut driver, 2, &[&[1, 1], &bad[..]].concat()), Some(ERR));
    }
    driver.start();
    assert_eq!(address(&mut driver), [2, 0, 7], "a reset brings it back");
}

fn commands_that_make_no_sense<C: Carrier>() {
    let (device, wires) = card(2);
    let mut driver = Driver::<C>::new(device);
    for bytes in [
        &[0u8, 0, 1][..],
        &[0, 3, 1],
        &[1, 0, 0, 0, 0, 0],
        &[4],
        &[4, 0],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4, 1, 2, 0],
        &[1, 1, 2, 0, 0, 0, 0],
        &[5, 0, 0],
        &[0xff, 0xff],
    ] {
        assert_eq!(command(&mut driver, 4, bytes), Some(ERR), "{bytes:?}");
    }
    // Nothing to read.
    assert_eq!(driver.request(4, &[], &[(ACK, 1)]), Some(1));
    // In pieces, with an answer of more room than it needs.
    driver.mem.write_slice(&pairs(2), GuestAddress(COMMAND)).unwrap();
    let pieces = [0, 1, 2, 3].map(|i| (COMMAND + i, 1));
    assert_eq!(driver.request(4, &pieces, &[(ACK, 100)]), Some(1));
    assert_eq!(enabled(&wires), [Some(true); 2]);
    assert!(!driver.broken());
    for (readable, writable) in [
        // No room for the answer; not in RAM; no end.
        (vec![(COMMAND, 4)], vec![]),
        (vec![(HOLE, 4)], vec![(ACK, 1)]),
        (vec![(COMMAND, 4)], vec![(HOLE, 1)]),
        (vec![(COMMAND, u32::MAX)], vec![(ACK, 1)]),
    ] {
        assert_eq!(driver.request(4, &readable, &writable), None);
        assert!(driver.broken(), "{readable:?} {writable:?}");
        driver.start();
        assert!(!driver.broken());
    }
    let rings = driver.rings[4].clone();
    rings.descriptor(&driver.mem, 0, (COMMAND, 1, 1, 1));
    rings.descriptor(&driver.mem, 1, (COMMAND, 1, 1, 0));
    driver.rings[4].offer(&driver.mem, 0);
    driver.carrier.ring(4);
    driver.run();
    assert!(driver.broken(), "a loop");
    driver.start();
    assert_eq!(command(&mut driver, 4, &pairs(2)), Some(OK));
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    commands_that_make_no_sense::<Bench>();
    commands_that_make_no_sense::<PciBench>();
}

#[test]
fn a_restored_card_has_what_its_driver_chose() {
    let (device, wires) = card(4);
    let mut driver = Driver::<Bench>::new(device.clone());
    assert_eq!(command(&mut driver, 8, &pairs(3)), Some(OK));
    assert_eq!(
        command(&mut driver, 8, &[&[5, 0], &GUEST_CSUM.to_le_bytes()[..]].concat()),
        Some(OK)
    );
    assert_eq!(command(&mut driver, 8, &[1, 1, 2, 9, 9, 9, 9, 9]), Some(OK));
    let saved = lock(&device).save().unwrap();
    driver.carrier.save_and_restore();
    driver.run();
    assert_eq!(enabled(&wires), [Some(true), Some(true), Some(true), Some(false)]);
    assert_eq!(lock(&wires[0]).chosen.unwrap() & GUEST_OFFLOADS, GUEST_CSUM);
    assert_eq!(driver.carrier.config(1), 9);
    assert!(comes(&mut driver, &wires, 2) && !comes(&mut driver, &wires, 3));
    let (other, _) = card(2);
    assert!(lock(&other).restore(&saved).is_err(), "another number of pairs");
}

#[test]
fn the_link_can_go_down_and_up() {
    let (net, _) = card_with(1, Options::default());
    let mut bench = Bench::started(net.clone(), STATUS);
    bench.interrupted();
    let status = |bench: &mut Bench| {
        let mut status = [0];
        crate::bus::BusDevice::read(
            &mut bench.transport,
            crate::virtio::mmio::CONFIG + 6,
            &mut status,
        );
        status[0]
    };
    assert_eq!(status(&mut bench), 1);
    lock(&net).set_link(false);
    assert_eq!(status(&mut bench), 0);
    assert_eq!(lock(&net).config()[6], 0);
    let saved = lock(&net).save().unwrap();
    let (mut other, _) = card_with(1, Options::default());
    Arc::get_mut(&mut other).unwrap().get_mut().unwrap().restore(&saved).unwrap();
    assert_eq!(lock(&other).config()[6], 0, "and so it is restored");
}

/// How many frames of 48 bytes go through in a while, each way, two pairs taking
/// turns, and no faster than the limit.
#[test]
fn limits_hold_for_each_direction_and_starve_no_pair() {
    let limiter = || {
        let ops = Some(Rate { per_second: 2000, burst: 20 });
        Some(Limiter::new(None, ops).unwrap())
    };
    let (net, wires) =
        card_with(2, Options { receive: limiter(), transmit: limiter(), ..Options::default() });
    let fds: Vec<RawFd> = lock(&net).sources();
    assert_eq!(fds.len(), 2, "their timers");
    let mut driver = Driver::<Bench>::new(net.clone());
    assert_eq!(command(&mut driver, 4, &pairs(2)), Some(OK));
    let start = std::time::Instant::now();
    let mut moved = [0; 4];
    let spend = std::time::Duration::from_millis(400);
    while start.elapsed() < spend {
        for (pair, wire) in wires.iter().enumerate() {
            if lock(wire).incoming.len() < 16 {
                lock(wire).incoming.push_back(frame(60));
            }
            for queue in [2 * pair, 2 * pair + 1] {
                let rings = &mut driver.rings[queue];
                if rings.avail_idx.wrapping_sub(rings.used_idx) < 8 {
                    let (out, back) = ([(OUT, 60)], [(IN, 100)]);
                    let head = match queue % 2 {
                        0 => rings.chain(&driver.mem, &[], &back),
                        _ => rings.chain(&driver.mem, &out, &[]),
                    };
                    rings.offer(&driver.mem, head);
                }
                driver.carrier.ring(queue);
            }
        }
        // An event loop would be woken by the timers.
        for (source, fd) in fds.iter().enumerate() {
            let mut poll = libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            if unsafe { libc::poll(&mut poll, 1, 0) } == 1 {
                driver.source(source);
            }
        }
        driver.run();
        for (queue, moved) in moved.iter_mut().enumerate() {
            *moved += driver.collect(queue).len();
        }
    }
    let most = (2000.0 * start.elapsed().as_secs_f64()) as usize + 20 + 1;
    for direction in 0..2 {
        let (first, second) = (moved[direction], moved[direction + 2]);
        assert!(first + second <= most, "{moved:?}, {most}");
        assert!(first > 20 && second > 20, "{moved:?}");
    }
    assert_eq!(count(&lock(&net).counters(0).unwrap().rx_frames), moved[0] as u64);
}
