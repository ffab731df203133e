//! A device behind the PCI transport, driven as a driver would.

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::hostile;
use crate::virtio::testing::pci::{BASE, Host, PciBench};
use proptest::prelude::*;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

fn bench() -> PciBench {
    PciBench::new(Arc::new(Mutex::new(Rng::new())))
}

/// Asks for 64 random bytes; whether they came.
fn random(bench: &mut PciBench) -> bool {
    bench.request(&[], &[(0x8000, 64)]) == Some(64)
}

#[test]
fn it_introduces_itself() {
    let mut bench = bench();
    assert_eq!(bench.config(0, 4), 0x1044_1af4);
    assert_eq!(bench.config(8, 1), 1, "a modern device");
    assert_eq!(bench.config(0x3d, 1), 0, "no pin");
    for (kind, offset) in
        [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE), (CAP_NOTIFY, NOTIFY)]
    {
        let at = bench.capability(VENDOR_CAPABILITY, kind);
        assert_eq!((bench.config(at + 4, 1), u64::from(bench.config(at + 8, 4))), (0, offset));
    }
    let msix = bench.capability(msix::CAPABILITY, 0);
    assert_eq!(bench.config(msix + 2, 2), 1, "two vectors");
    assert_eq!(bench.read(0x12, 2), 1, "one queue");
    assert_eq!(bench.read(0x1a, 2), 0xffff);
    bench.write(0x16, 1, 2);
    assert_eq!((bench.read(0x18, 2), bench.read(0x1c, 2)), (0, 0), "no second");
}

#[test]
fn a_request_is_answered_by_a_message() {
    let mut bench = bench();
    bench.start();
    assert_eq!(*bench.host.routes.lock().unwrap(), [(1, 0xfee0_0000, 0x41)]);
    assert!(random(&mut bench));
    assert_eq!(bench.fired(), [0, 1]);
    let mut random = [0u8; 64];
    bench.mem.read_slice(&mut random, GuestAddress(0x8000)).unwrap();
    assert_ne!(random, [0; 64]);
    bench.write(0x14, 0, 1);
    assert_eq!((bench.read(0x14, 1), bench.read(0x1a, 2)), (0, 0xffff), "a reset forgets");
}

#[test]
fn doorbells_move_with_the_bar() {
    let mut bench = bench();
    let base = u64::from(BASE);
    bench.start();
    bench.function.write_config(4, &[0, 0]);
    bench.function.write_config(0x10, &[0xff; 4]);
    assert_eq!(bench.config(0x10, 4), !(BAR_SIZE - 1));
    bench.function.write_config(0x10, &(BASE + 0x1_0000).to_le_bytes());
    bench.function.write_config(4, &[2, 0]);
    let moves = bench.host.moves.lock().unwrap().clone();
    assert_eq!(moves, [(None, base + NOTIFY), (Some(base + NOTIFY), base + 0x1_0000 + NOTIFY)]);
    assert!(random(&mut bench));
}

#[test]
fn a_function_that_has_left_is_not_there() {
    let mut bench = bench();
    bench.start();
    assert!(random(&mut bench));
    bench.function.retire().unwrap();
    let moves = bench.host.moves.lock().unwrap().clone();
    assert_eq!(moves.last(), Some(&(Some(u64::from(BASE) + NOTIFY), 0)), "doorbells are untied");
    let routes = bench.host.routes.lock().unwrap().len();
    bench.function.write_config(4, &[6, 0]);
    bench.function.write_config(0x10, &0xd018_0000u32.to_le_bytes());
    bench.write(TABLE + 28, 1, 4);
    bench.write(TABLE + 16, 0xfee0_1000, 8);
    bench.write(TABLE + 28, 0, 4);
    bench.write(0x14, 15, 1);
    assert_eq!(bench.function.bar(), None);
    assert_eq!(bench.host.moves.lock().unwrap().len(), moves.len());
    assert_eq!(bench.host.routes.lock().unwrap().len(), routes, "its GSIs are another's by now");
    let mut word = [0xff; 4];
    bench.function.read_config(0, &mut word);
    bench.function.read_bar(0, &mut word);
    assert_eq!(word, [0xff; 4]);
}

#[test]
fn a_bar_without_a_place_is_not_decoded() {
    let (mem, host) = (crate::virtio::testing::ram(), Host::default());
    let device: SharedVirtio = Arc::new(Mutex::new(Rng::new()));
    let (routes, doorbells) = (Box::new(host.clone()), Box::new(host.clone()));
    let mut function = VirtioPci::new(mem, device, 0, routes, doorbells).unwrap();
    function.write_config(4, &[6, 0]);
    assert_eq!(function.bar(), None);
    function.write_config(0x10, &0xd014_0000u32.to_le_bytes());
    assert_eq!(function.bar(), Some((0xd014_0000, BAR_SIZE.into())));
    assert_eq!(*host.moves.lock().unwrap(), [(None, 0xd014_0000 + NOTIFY)]);
}

#[test]
fn registers_can_be_reached_through_the_configuration_space() {
    let mut bench = bench();
    let at = bench.capability(VENDOR_CAPABILITY, CAP_PCI);
    let select = |bench: &mut PciBench, offset: u32, length: u32| {
        bench.function.write_config(at + 8, &offset.to_le_bytes());
        bench.function.write_config(at + 12, &length.to_le_bytes());
    };
    select(&mut bench, 0x12, 2);
    assert_eq!(bench.config(at + 16, 4) & 0xffff, 1, "num_queues");
    select(&mut bench, 0x14, 1);
    bench.function.write_config(at + 16, &[1, 0, 0, 0]);
    assert_eq!(bench.read(0x14, 1), 1, "device_status");
    for (offset, length) in [(0x13, 2), (BAR_SIZE, 4), (0, 3), (0, 8), (u32::MAX, 1)] {
        select(&mut bench, offset, length);
        bench.function.write_config(at + 16, &[0xff; 4]);
        bench.config(at + 16, 4);
    }
}

#[test]
fn a_saved_function_goes_on_where_it_was() {
    let mut bench = bench();
    bench.start();
    assert!(random(&mut bench));
    let saved = serde_json::to_string(&bench.function.save().unwrap()).unwrap();
    let mut other = self::bench();
    let mut ring = vec![0; 0x8000];
    bench.mem.read_slice(&mut ring, GuestAddress(0x1000)).unwrap();
    other.mem.write_slice(&ring, GuestAddress(0x1000)).unwrap();
    other.rings = bench.rings.clone();
    other.function.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(other.read(0x1a, 2), 1);
    let fired = other.fired();
    assert!(random(&mut other));
    assert_eq!(other.fired(), [0, 1], "after {fired:?}");
}

/// While a vector is masked its interrupts must come to us, who keep them.
#[test]
fn whoever_interrupts_in_our_place_is_told_of_masks() {
    use crate::virtio::testing::Calls;
    use std::os::fd::AsRawFd;
    let mut bench = bench();
    bench.start();
    let interrupt = bench.function.core.interrupt.clone();
    let lines: Vec<_> =
        bench.function.msix().lines().map(|line| Some(line.eventfd().as_raw_fd())).collect();
    let calls = Arc::new(Calls::default());
    interrupt.delegate(calls.clone(), 1);
    let told = || std::mem::take(&mut *calls.0.lock().unwrap());
    assert_eq!(told(), [(0, lines[1])]);
    let vector_control = TABLE + 16 + 12;
    bench.write(vector_control, 1, 4);
    assert_eq!(told(), [(0, None)]);
    interrupt.queue(0);
    assert_eq!(bench.fired()[1], 0, "it is masked");
    bench.write(vector_control, 0, 4);
    assert_eq!((told(), bench.fired()[1]), (vec![(0, lines[1])], 1), "and comes later");
    // All at once, in the function's own configuration.
    let control = bench.capability(msix::CAPABILITY, 0) + 2;
    for (value, line) in [(0xc000u16, None), (0x8000, lines[1]), (0, None), (0x8000, lines[1])] {
        bench.function.write_config(control, &value.to_le_bytes());
        assert_eq!(told(), [(0, line)], "{value:#x}");
    }
    bench.write(0x1a, 0, 2);
    assert_eq!(told(), [(0, None)], "another vector, which is masked");
    bench.write(TABLE + 12, 0, 4);
    assert_eq!(told(), [(0, lines[0])]);
    bench.write(0x1a, 0xffff, 2);
    assert_eq!(told(), [(0, None)], "none");
    bench.write(0x14, 0, 1);
    bench.write(0x1a, 0, 2);
    assert_eq!(told(), [], "nobody after a reset");
}

proptest! {
    #[test]
    fn no_driver_breaks_the_function(program in prop::collection::vec(any::<u8>(), 0..600)) {
        hostile::pci(&program);
    }
}
