//! The queue against drivers good and bad.

use super::*;
use crate::virtio::testing::*;
use proptest::prelude::*;

fn good() -> (Ram, Rings, Vq) {
    let (mem, rings) = (ram(), Rings::new(0x1000, 16));
    let vq = rings.queue(256);
    vq.validate(&mem).unwrap();
    (mem, rings, vq)
}

fn pop(vq: &mut Vq, mem: &Ram) -> Result<Option<Chain>, QueueError> {
    let mut chain = Chain::new();
    Ok(vq.pop(mem, &mut chain)?.then_some(chain))
}

/// Offers a chain of raw descriptors and says what becomes of it.
fn offered(descriptors: &[(u64, u32, u16, u16)]) -> Result<Option<Chain>, QueueError> {
    let (mem, mut rings, mut vq) = good();
    for (i, d) in descriptors.iter().enumerate() {
        rings.descriptor(&mem, i as u16, *d);
    }
    rings.offer(&mem, 0);
    pop(&mut vq, &mem)
}

#[test]
fn chains_come_out_in_order_and_go_back_used() {
    let (mem, mut rings, mut vq) = good();
    assert_eq!(pop(&mut vq, &mem), Ok(None));
    for round in 0..100u32 {
        let first = rings.chain(&mem, &[(0x8000, 4), (0x9000, 0)], &[(0xa000, 8)]);
        let second = rings.chain(&mem, &[], &[(0xb000, 1)]);
        rings.offer(&mem, first);
        rings.offer(&mem, second);
        let a = pop(&mut vq, &mem).unwrap().unwrap();
        assert_eq!((a.head, a.readable_len(), a.writable_len()), (first, 4, 8));
        assert_eq!(a.readable.len(), 1, "empty buffers carry nothing");
        vq.undo_pop();
        assert_eq!(pop(&mut vq, &mem).unwrap(), Some(a));
        let b = pop(&mut vq, &mem).unwrap().unwrap();
        assert_eq!(b.head, second);
        assert_eq!(pop(&mut vq, &mem), Ok(None));
        vq.push_used(&mem, second, round).unwrap();
        vq.push_used(&mem, first, 8).unwrap();
        assert_eq!(rings.collect(&mem), [(second.into(), round), (first.into(), 8)]);
    }
}

#[test]
fn indices_wrap_around() {
    let (mem, mut rings, mut vq) = good();
    for i in 0..70_000u32 {
        let head = rings.chain(&mem, &[(0x8000, 1)], &[]);
        rings.offer(&mem, head);
        assert!(pop(&mut vq, &mem).unwrap().is_some(), "{i}");
        vq.push_used(&mem, head, i).unwrap();
        assert_eq!(rings.collect(&mem), [(head.into(), i)]);
    }
}

#[test]
fn data_is_copied_across_buffers_and_regions() {
    let (mem, mut rings, mut vq) = good();
    let head = rings.chain(&mem, &[(0x8000, 3), (SEAM - 2, 4)], &[(SEAM - 1, 2), (HIGH, 3)]);
    mem.write_slice(b"abc", GuestAddress(0x8000)).unwrap();
    mem.write_slice(b"defg", GuestAddress(SEAM - 2)).unwrap();
    rings.offer(&mem, head);
    let chain = pop(&mut vq, &mem).unwrap().unwrap();
    let mut data = [0; 5];
    chain.read_at(&mem, 1, &mut data).unwrap();
    assert_eq!(&data, b"bcdef");
    let mut store = IoVecStore::new();
    let mut v = chain.readable_iovecs(&mem, &mut store, 2, 5).unwrap();
    assert_eq!(v.as_slice().iter().map(|v| v.iov_len).collect::<Vec<_>>(), [1, 2, 2]);
    v.advance(2);
    assert_eq!((v.len(), v.as_slice().len()), (3, 2));
    let mut rest = [0; 8];
    assert_eq!(v.copy_out(&mut rest), 3);
    assert_eq!(&rest[..3], b"efg");
    assert!(v.is_empty() && v.as_slice().is_empty());
    chain.write_at(&mem, 1, b"123").unwrap();
    let mut high = [0; 2];
    mem.read_slice(&mut high, GuestAddress(HIGH)).unwrap();
    assert_eq!(&high, b"23");
    assert_eq!(
        chain.write_at(&mem, 3, b"xyz"),
        Err(QueueError::Short { offset: 3, wanted: 3, len: 5 })
    );
}

#[test]
fn bad_chains_are_refused_with_a_reason() {
    use QueueError::*;
    let ok = (0x8000, 4);
    let refused = |d: &[(u64, u32, u16, u16)]| offered(d).unwrap_err();
    assert_eq!(refused(&[(ok.0, ok.1, NEXT, 0)]), ChainTooLong(16));
    assert_eq!(refused(&[(ok.0, 0, NEXT, 1), (ok.0, 0, NEXT, 0)]), ChainTooLong(16));
    assert_eq!(refused(&[(ok.0, ok.1, NEXT, 16)]), DescriptorIndex { index: 16, len: 16 });
    assert_eq!(refused(&[(ok.0, 1, WRITE | NEXT, 1), (ok.0, 1, 0, 0)]), Order);
    for (addr, len) in
        [(HOLE - 1, 2), (HOLE, 1), (END, 1), (u64::MAX, 1), (u64::MAX, 2), (0, u32::MAX)]
    {
        let what = "buffer";
        assert_eq!(refused(&[(addr, len, 0, 0)]), OutsideRam { what, addr, len: len.into() });
    }
    assert_eq!(refused(&[(0x8000, 16, INDIRECT | NEXT, 1)]), Indirect);
    for len in [0, 15, 17, u32::MAX] {
        assert_eq!(refused(&[(0x8000, len, INDIRECT, 0)]), IndirectLength(len));
    }
    let addr = HOLE;
    assert_eq!(
        refused(&[(addr, 16, INDIRECT, 0)]),
        OutsideRam { what: "descriptor", addr, len: 16 }
    );
}

#[test]
fn indirect_tables_are_followed_once() {
    let (mem, mut rings, mut vq) = good();
    // Across the seam, aligned to nothing.
    let table = SEAM - 16 * 10 - 5;
    for i in 0..40 {
        let flags = NEXT | if i < 20 { 0 } else { WRITE };
        descriptor(&mem, table, i, (0x8000, 2, if i == 39 { WRITE } else { flags }, i + 1));
    }
    rings.descriptor(&mem, 0, (0x9000, 1, NEXT, 1));
    rings.descriptor(&mem, 1, (table, 40 * 16, INDIRECT, 0));
    rings.offer(&mem, 0);
    let chain = pop(&mut vq, &mem).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (41, 40), "longer than the queue");
    vq.undo_pop();
    for (last, error) in [
        ((0x8000, 1, NEXT | WRITE, 25), QueueError::ChainTooLong(40)),
        ((0x8000, 1, NEXT | WRITE, 40), QueueError::DescriptorIndex { index: 40, len: 40 }),
        ((table, 16, INDIRECT, 0), QueueError::Indirect),
        ((0x8000, 1, 0, 0), QueueError::Order),
    ] {
        descriptor(&mem, table, 39, last);
        assert_eq!(pop(&mut vq, &mem), Err(error));
    }
}

#[test]
fn a_chain_of_4_gib_is_refused() {
    let mem = ram();
    let mut big = Rings::new(0x1000, 4096);
    let mut vq = big.queue(4096);
    for i in 0..4096 {
        big.descriptor(&mem, i, (0, HOLE as u32, NEXT, (i + 1) % 4096));
    }
    big.offer(&mem, 0);
    assert_eq!(pop(&mut vq, &mem), Err(QueueError::ChainTooBig));
}

#[test]
fn an_available_index_that_jumps_is_refused() {
    let (mem, mut rings, mut vq) = good();
    rings.publish(&mem, 17);
    assert_eq!(pop(&mut vq, &mem), Err(QueueError::AvailIndex { from: 0, to: 17, size: 16 }));
    rings.publish(&mem, 0xffff);
    assert!(pop(&mut vq, &mem).is_err(), "backwards is a jump as well");
    rings.publish(&mem, 16);
    rings.descriptor(&mem, 0, (0x8000, 1, 0, 0));
    for _ in 0..16 {
        assert!(pop(&mut vq, &mem).unwrap().is_some());
    }
    assert_eq!(pop(&mut vq, &mem), Ok(None));
}

#[test]
fn bad_rings_are_refused() {
    let mem = ram();
    let check = |size, desc, avail, used| {
        let mut rings = Rings::new(0, 16);
        (rings.size, rings.desc, rings.avail, rings.used) = (size, desc, avail, used);
        rings.queue(256).validate(&mem)
    };
    assert_eq!(check(16, 0x1000, 0x2000, 0x3000), Ok(()));
    assert_eq!(check(16, SEAM - 16, SEAM - 2, SEAM - 4), Ok(()), "regions may meet in a ring");
    for size in [0, 3, 512, 0x8000, 0xffff] {
        let refused = check(size, 0x1000, 0x2000, 0x3000);
        assert_eq!(refused, Err(QueueError::Size { size, max: 256 }));
    }
    for (desc, avail, used) in
        [(0x1008, 0x2000, 0x3000), (0x1000, 0x2001, 0x3000), (0x1000, 0x2000, 0x3002)]
    {
        assert!(matches!(check(16, desc, avail, used), Err(QueueError::Misaligned { .. })));
    }
    let used_len = 6 + 8 * 16;
    for bad in [HOLE - 16, HOLE, END - 16, !15] {
        assert!(matches!(check(16, bad, 0x2000, 0x3000), Err(QueueError::OutsideRam { .. })));
        assert!(matches!(check(16, 0x1000, bad, 0x3000), Err(QueueError::OutsideRam { .. })));
        assert!(matches!(check(16, 0x1000, 0x2000, bad), Err(QueueError::OutsideRam { .. })));
    }
    assert_eq!(check(16, 0x1000, 0x2000, END - used_len - 2), Ok(()));
    assert!(Vq::new(0).is_err() && Vq::new(3).is_err() && Vq::new(0x8000).is_ok());
}

#[test]
fn a_queue_that_is_not_ready_gives_nothing() {
    let mem = ram();
    assert_eq!(pop(&mut Vq::new(16).unwrap(), &mem), Err(QueueError::NotReady));
    let (mem, _, mut vq) = good();
    assert!(vq.push_used(&mem, 16, 0).is_err());
    vq.reset();
    assert_eq!((vq.ready(), vq.size(), vq.desc_table()), (false, 256, 0));
}

#[test]
fn interrupts_are_raised_when_the_driver_wants_them() {
    let (mem, rings, mut vq) = good();
    assert_eq!(vq.needs_interrupt(&mem), Ok(false), "for nothing there is no interrupt");
    vq.push_used(&mem, 0, 0).unwrap();
    assert_eq!(vq.needs_interrupt(&mem), Ok(true));
    put(&mem, rings.avail, 1); // VRING_AVAIL_F_NO_INTERRUPT
    vq.push_used(&mem, 0, 0).unwrap();
    assert_eq!(vq.needs_interrupt(&mem), Ok(false));

    let (mem, rings, mut vq) = good();
    vq.set_event_idx(true);
    let used_event = rings.avail + 4 + 2 * 16;
    // The driver wants to hear of the entry 2, no earlier, and no later again.
    put(&mem, used_event, 2);
    for wanted in [false, false, true, false] {
        vq.push_used(&mem, 0, 0).unwrap();
        assert_eq!(vq.needs_interrupt(&mem), Ok(wanted));
    }
    put(&mem, used_event, 5);
    for _ in 0..4 {
        vq.push_used(&mem, 0, 0).unwrap();
    }
    assert_eq!(vq.needs_interrupt(&mem), Ok(true), "it was among the four");
}

#[test]
fn notifications_are_asked_for_without_a_gap() {
    for event_idx in [false, true] {
        let (mem, mut rings, mut vq) = good();
        vq.set_event_idx(event_idx);
        vq.suppress_notifications(&mem).unwrap();
        assert_eq!(get(&mem, rings.used), u16::from(!event_idx));
        assert_eq!(vq.enable_notifications(&mem), Ok(false));
        assert_eq!(get(&mem, rings.used), 0);
        let head = rings.chain(&mem, &[(0x8000, 1)], &[]);
        rings.offer(&mem, head);
        assert_eq!(vq.enable_notifications(&mem), Ok(true), "one came in between");
        pop(&mut vq, &mem).unwrap().unwrap();
        assert_eq!(vq.enable_notifications(&mem), Ok(false));
        let avail_event = rings.used + 4 + 8 * 16;
        assert_eq!(get(&mem, avail_event), u16::from(event_idx));
    }
}

#[test]
fn a_device_can_ask_to_be_called_again() {
    let doorbell = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
    let mut vq = Vq::new(16).unwrap();
    vq.call_again();
    vq.set_doorbell(doorbell.clone());
    vq.reset();
    vq.clone().call_again();
    assert_eq!(doorbell.read().unwrap(), 1);
}

#[test]
fn a_saved_queue_goes_on_where_it_was() {
    let (mem, mut rings, mut vq) = good();
    vq.set_event_idx(true);
    put(&mem, rings.avail + 4 + 2 * 16, 1);
    for _ in 0..3 {
        let head = rings.chain(&mem, &[(0x8000, 1)], &[]);
        rings.offer(&mem, head);
    }
    for head in 0..2 {
        assert_eq!(pop(&mut vq, &mem).unwrap().unwrap().head, head);
        vq.push_used(&mem, head, 0).unwrap();
    }
    let json = serde_json::to_string(&vq.save()).unwrap();
    let mut twin = Vq::new(256).unwrap();
    twin.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(twin.needs_interrupt(&mem), Ok(true), "the entry it waits for was before");
    assert_eq!(pop(&mut twin, &mem).unwrap().unwrap().head, 2);
    assert_eq!(pop(&mut twin, &mem), Ok(None));
    twin.push_used(&mem, 2, 0).unwrap();
    assert_eq!(rings.collect(&mem).len(), 3);

    let other = QueueState { max_size: 128, ..vq.save() };
    assert!(twin.restore(&other).is_err());
    assert!(twin.restore(&QueueState { version: 2, ..vq.save() }).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_driver_breaks_the_queue(program in proptest::collection::vec(any::<u8>(), 0..600)) {
        hostile::queue(&program);
    }
}
