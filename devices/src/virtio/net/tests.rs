//! The card between a driver in memory and a network in memory.

use super::features::{GUEST_CSUM, GUEST_TSO4, HOST_USO, MRG_RXBUF};
use super::*;
use crate::bus::{BusDevice, lock};
use crate::state::StateError;
use crate::virtio::mmio::*;
use crate::virtio::testing::*;
use crate::virtio::{VIRTIO_RING_F_EVENT_IDX, VirtioDevice};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use vm_memory::{Bytes, GuestAddress};

const MAC_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Rings of the transmit queue, behind those that [`Bench`] has made.
const TX_RINGS: u64 = 0x4000;
/// Where frames to be sent are.
const OUT: u64 = 0x1_0000;
/// Where frames are received.
const IN: u64 = 0x4_0000;

#[derive(Default)]
pub(super) struct Wire {
    pub incoming: VecDeque<Vec<u8>>,
    pub outgoing: Vec<Vec<u8>>,
    pub chosen: Option<u64>,
    pub broken: bool,
    pub enabled: Option<bool>,
    /// It can't begin or end to take part.
    pub stuck: bool,
}

/// A network in memory.
#[derive(Clone, Default)]
pub(super) struct MemNet {
    pub wire: Arc<Mutex<Wire>>,
    pub features: u64,
}

impl NetBackend for MemNet {
    fn features(&self) -> u64 {
        self.features
    }

    fn set_features(&mut self, negotiated: u64) -> io::Result<()> {
        lock(&self.wire).chosen = Some(negotiated);
        Ok(())
    }

    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        if wire.broken || frame.as_slice().len() > libc::UIO_MAXIOV as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = vec![0; frame.len() as usize];
        assert_eq!(frame.copy_out(&mut bytes), bytes.len());
        wire.outgoing.push(bytes);
        Ok(())
    }

    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>> {
        assert!(frame.as_slice().len() < libc::UIO_MAXIOV as usize);
        let mut wire = lock(&self.wire);
        if wire.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(bytes) = wire.incoming.pop_front() else { return Ok(None) };
        let n = frame.copy_in(&bytes);
        let m = rest.len().min(bytes.len() - n);
        rest[..m].copy_from_slice(&bytes[n..n + m]);
        Ok(Some(n + m))
    }

    fn source(&self) -> Option<RawFd> {
        None
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        match wire.stuck {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => {
                wire.enabled = Some(on);
                Ok(())
            }
        }
    }
}

fn card(mtu: Option<u16>, backend: MemNet) -> Net {
    let options = Options { mac: MAC_ADDRESS, mtu, ..Options::default() };
    Net::new(options, vec![Box::new(backend)]).unwrap()
}

/// A card and its driver.
struct Card {
    bench: Bench,
    tx: Rings,
    wire: Arc<Mutex<Wire>>,
    counters: Arc<NetCounters>,
}

impl Card {
    fn new(backend: MemNet) -> Self {
        let wire = backend.wire.clone();
        let net = card(Some(1500), backend);
        let counters = net.counters(0).unwrap();
        let bench = Bench::new(Arc::new(Mutex::new(net)));
        Self { bench, tx: Rings::new(TX_RINGS, 16), wire, counters }
    }

    fn started(features: u64) -> Self {
        let mut card = Self::new(MemNet::default());
        card.start(features);
        card
    }

    fn start(&mut self, features: u64) {
        let mem = self.bench.mem.clone();
        mem.write_slice(&[0; 0x6000], GuestAddress(0x1000)).unwrap();
        (self.bench.rings, self.tx) = (Rings::new(0x1000, 16), Rings::new(TX_RINGS, 16));
        self.bench.negotiate(features);
        self.bench.set_up_queue();
        let rings = self.tx.clone();
        self.bench.write(QUEUE_SEL, 1);
        self.bench.write(QUEUE_NUM, rings.size.into());
        self.bench.write_address(QUEUE_DESC_LOW, rings.desc);
        self.bench.write_address(QUEUE_DRIVER_LOW, rings.avail);
        self.bench.write_address(QUEUE_DEVICE_LOW, rings.used);
        self.bench.write(QUEUE_READY, 1);
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.bench.write(STATUS, status | STATUS_DRIVER_OK);
    }

    /// Offers a chain to send, and lets it be sent; its used length.
    fn send(&mut self, pieces: &[(u64, u32)]) -> Option<u32> {
        let head = self.tx.chain(&self.bench.mem, pieces, &[]);
        self.send_chain(head)
    }

    fn send_chain(&mut self, head: u16) -> Option<u32> {
        self.tx.offer(&self.bench.mem, head);
        self.bench.write(QUEUE_NOTIFY, 1);
        self.bench.run();
        match collect(&mut self.tx, &self.bench.mem).as_slice() {
            [(id, len)] if *id == u32::from(head) => Some(*len),
            [] => None,
            other => panic!("sent {head}, got {other:?}"),
        }
    }

    /// Offers a buffer to receive into.
    fn offer(&mut self, pieces: &[(u64, u32)]) -> u32 {
        let head = self.bench.rings.chain(&self.bench.mem, &[], pieces);
        self.bench.rings.offer(&self.bench.mem, head);
        head.into()
    }

    /// A frame comes.
    fn comes(&mut self, frame: &[u8]) {
        lock(&self.wire).incoming.push_back(frame.to_vec());
        self.looks();
        self.bench.run();
    }

    /// As when its source is ready, which this network does not have.
    fn looks(&mut self) {
        self.bench.worker.queue_event(RECEIVE);
    }

    fn received(&mut self) -> Vec<(u32, u32)> {
        collect(&mut self.bench.rings, &self.bench.mem)
    }

    fn guest(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn waiting_in_backend(&self) -> usize {
        lock(&self.wire).incoming.len()
    }
}

/// What came back; asks for an interrupt with the next (`used_event`).
fn collect(rings: &mut Rings, mem: &Ram) -> Vec<(u32, u32)> {
    let back = rings.collect(mem);
    put(mem, rings.avail + 4 + 2 * u64::from(rings.size), rings.used_idx);
    back
}

pub(super) fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A frame with a header, whose `num_buffers` is 0 as a TAP leaves it.
pub(super) fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
    frame[10..12].fill(0);
    frame
}

fn with_num_buffers(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn a_frame_is_sent_as_it_is_wherever_its_pieces_are() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut card = Card::started(features);
        for round in 0..40 {
            let bytes = frame(1500 + round);
            card.bench.mem.write_slice(&bytes[..12], GuestAddress(OUT)).unwrap();
            card.bench.mem.write_slice(&bytes[12..], GuestAddress(SEAM - 100)).unwrap();
            let pieces = [(OUT, 5), (OUT + 5, 7), (SEAM - 100, (bytes.len() - 12) as u32)];
            assert_eq!(card.send(&pieces), Some(0));
            assert!(card.bench.interrupted());
            assert_eq!(lock(&card.wire).outgoing.pop(), Some(bytes));
        }
        assert_eq!(count(&card.counters.tx_frames), 40);
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_given_back() {
    let mut card = Card::started(0);
    let too_long = MAX_FRAME as u32 + 1;
    for pieces in [vec![(OUT, 12)], vec![(OUT, 0)], vec![(OUT, 4), (OUT, 8)], vec![(OUT, too_long)]]
    {
        assert_eq!(card.send(&pieces), Some(0), "{pieces:?}");
    }
    let head = card.tx.chain(&card.bench.mem, &[], &[(OUT, 100)]);
    assert_eq!(card.send_chain(head), Some(0), "nothing to send in it");
    assert_eq!(count(&card.counters.tx_dropped), 5);
    assert_eq!(card.send(&[(OUT, too_long - 1)]), Some(0));
    assert_eq!(card.send(&[(OUT, 13)]), Some(0));
    lock(&card.wire).broken = true;
    assert_eq!(card.send(&[(OUT, 100)]), Some(0));
    assert_eq!(count(&card.counters.tx_dropped), 6);
    assert_eq!(lock(&card.wire).outgoing.len(), 2);
    assert!(!card.bench.needs_reset());
}

#[test]
fn a_frame_in_more_pieces_than_the_kernel_takes_is_sent_whole() {
    let mut card = Card::started(crate::virtio::VIRTIO_RING_F_INDIRECT_DESC);
    let (mem, bytes, table) = (card.bench.mem.clone(), frame(1024), 0x2_0000);
    mem.write_slice(&bytes, GuestAddress(OUT)).unwrap();
    for i in 0..1024u16 {
        let flags = if i < 1023 { NEXT } else { 0 };
        descriptor(&mem, table, i, (OUT + u64::from(i), 1, flags, i + 1));
    }
    card.tx.descriptor(&mem, 0, (table, 1024 * 16, INDIRECT, 0));
    assert_eq!(card.send_chain(0), Some(0));
    assert_eq!(lock(&card.wire).outgoing.pop(), Some(bytes.clone()));

    // The same on the other side.
    for i in 0..1024u16 {
        let flags = if i < 1023 { NEXT } else { 0 };
        descriptor(&mem, table, i, (IN + u64::from(i), 1, flags | WRITE, i + 1));
    }
    card.bench.rings.descriptor(&mem, 0, (table, 1024 * 16, INDIRECT, 0));
    card.bench.rings.offer(&mem, 0);
    card.comes(&bytes);
    assert_eq!(card.received(), [(0, 1024)]);
    assert_eq!(card.guest(IN, 1024), with_num_buffers(bytes, 1));
}

#[test]
fn a_frame_that_fits_is_received_into_one_buffer() {
    for features in [0, MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX] {
        let mut card = Card::started(features);
        for round in 0..40 {
            let head = card.offer(&[(IN, 7), (SEAM - 600, 1000), (IN + 7, 9000)]);
            let bytes = frame(1200 + round);
            card.comes(&bytes);
            assert!(card.bench.interrupted());
            assert_eq!(card.received(), [(head, bytes.len() as u32)]);
            let seam = card.guest(SEAM - 600, 1000);
            let got = [card.guest(IN, 7), seam, card.guest(IN + 7, bytes.len() - 1007)].concat();
            assert_eq!(got, with_num_buffers(bytes, 1));
        }
        assert_eq!(count(&card.counters.rx_frames), 40);
    }
}

#[test]
fn a_large_frame_is_laid_into_mergeable_buffers() {
    let mut card = Card::started(MRG_RXBUF | VIRTIO_RING_F_EVENT_IDX);
    let heads: Vec<u32> = (0..4).map(|i| card.offer(&[(IN + i * 0x1000, 1000)])).collect();
    let bytes = frame(2500);
    card.comes(&bytes);
    assert_eq!(card.received(), [(heads[0], 1000), (heads[1], 1000), (heads[2], 500)]);
    let got = [card.guest(IN, 1000), card.guest(IN + 0x1000, 1000), card.guest(IN + 0x2000, 500)];
    assert_eq!(got.concat(), with_num_buffers(bytes, 3));
    // The fourth buffer is still there.
    card.comes(&frame(100));
    assert_eq!(card.received(), [(heads[3], 100)]);
    let biggest = frame(MAX_FRAME);
    for i in 0..9 {
        card.offer(&[(IN + i * 0x2000, 0x2000)]);
    }
    card.comes(&biggest);
    let back = card.received();
    assert_eq!(back.iter().map(|b| b.1 as usize).sum::<usize>(), MAX_FRAME);
    assert_eq!(card.guest(IN, MAX_FRAME), with_num_buffers(biggest, back.len() as u16));
}

#[test]
fn a_driver_that_polls_never_sees_a_part_of_a_frame() {
    let mut card = Card::started(MRG_RXBUF);
    let (mem, used) = (card.bench.mem.clone(), card.bench.rings.used);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let driver = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let idx: u16 = mem.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
            assert_eq!(idx % 4, 0, "a part of a frame");
        }
    });
    for _ in 0..5000 {
        for i in 0..4 {
            card.offer(&[(IN + i * 100, 100)]);
        }
        card.comes(&frame(350));
        assert_eq!(card.received().len(), 4);
    }
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}

#[test]
fn a_frame_too_large_for_a_lone_buffer_is_dropped_and_the_buffer_stays() {
    let mut card = Card::started(0);
    let head = card.offer(&[(IN, 100)]);
    card.comes(&frame(101));
    assert_eq!(card.received(), []);
    card.comes(&frame(100));
    assert_eq!(card.received(), [(head, 100)]);
    assert_eq!(count(&card.counters.rx_dropped), 1);
}

#[test]
fn frames_wait_in_the_backend_for_buffers() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut card = Card::started(features);
        card.comes(&frame(100));
        card.comes(&frame(200));
        assert_eq!(card.waiting_in_backend(), 2);
        card.offer(&[(IN, 1000)]);
        card.bench.kick();
        assert_eq!(card.received().len(), 1);
        assert_eq!(card.waiting_in_backend(), 1);
        card.offer(&[(IN, 1000)]);
        card.bench.kick();
        assert_eq!(card.received().len(), 1);
        assert_eq!(card.waiting_in_backend(), 0);
    }
}

#[test]
fn a_frame_waits_for_the_rest_of_its_buffers() {
    let mut card = Card::started(MRG_RXBUF | VIRTIO_RING_F_EVENT_IDX);
    let bytes = frame(2900);
    card.offer(&[(IN, 1000)]);
    card.comes(&bytes);
    card.offer(&[(IN + 1000, 1000)]);
    card.bench.kick();
    assert_eq!(card.received(), [], "not before all of it has a place");
    card.comes(&frame(50));
    card.offer(&[(IN + 2000, 1000)]);
    card.bench.kick();
    assert_eq!(card.received().iter().map(|b| b.1).collect::<Vec<_>>(), [1000, 1000, 900]);
    assert_eq!(card.guest(IN, 2900), with_num_buffers(bytes, 3));
    card.offer(&[(IN, 1000)]);
    card.bench.kick();
    assert_eq!(card.received().len(), 1, "the next one was not forgotten");
}

#[test]
fn a_frame_larger_than_all_buffers_together_does_not_block_the_next() {
    let mut card = Card::started(MRG_RXBUF);
    for _ in 0..16 {
        card.offer(&[(IN, 20)]);
    }
    card.comes(&frame(1000));
    card.comes(&frame(20));
    assert_eq!(card.received().len(), 1);
    assert_eq!(count(&card.counters.rx_dropped), 1);
}

#[test]
fn a_buffer_without_room_for_a_header_comes_back_empty() {
    let mut card = Card::started(MRG_RXBUF);
    let bad = card.offer(&[(IN, 11)]);
    let good = card.offer(&[(IN, 100)]);
    let unreadable = card.bench.rings.chain(&card.bench.mem.clone(), &[(IN, 100)], &[]);
    card.bench.rings.offer(&card.bench.mem.clone(), unreadable);
    card.comes(&frame(60));
    assert_eq!(card.received(), [(bad, 0), (good, 60), (unreadable.into(), 0)]);
    assert_eq!(count(&card.counters.rx_bad_buffers), 2);
    card.comes(&frame(60));
    // In the middle of a frame, where the first buffer was good.
    let pieces = [30, 0, 30].map(|len| card.offer(&[(IN, len)]));
    card.bench.kick();
    assert_eq!(card.received(), [(pieces[0], 30), (pieces[1], 0), (pieces[2], 30)]);
    assert!(!card.bench.needs_reset());
}

#[test]
fn broken_rings_ask_for_a_reset_and_a_reset_mends_it() {
    for queue in [RECEIVE, TRANSMIT] {
        let mut card = Card::started(MRG_RXBUF);
        match queue {
            RECEIVE => {
                card.offer(&[(HOLE, 100)]);
                card.comes(&frame(60));
            }
            _ => assert_eq!(card.send(&[(HOLE, 100)]), None),
        }
        assert!(card.bench.needs_reset());
        card.start(MRG_RXBUF);
        assert!(!card.bench.needs_reset());
        lock(&card.wire).incoming.clear();
        card.offer(&[(IN, 100)]);
        card.comes(&frame(60));
        assert_eq!(card.received().len(), 1);
        assert_eq!(card.send(&[(OUT, 60)]), Some(0));
    }
}

#[test]
fn a_backend_that_fails_is_no_fault_of_the_driver() {
    let mut card = Card::started(0);
    card.offer(&[(IN, 100)]);
    lock(&card.wire).broken = true;
    card.comes(&frame(60));
    card.comes(&frame(60));
    assert!(!card.bench.needs_reset());
    lock(&card.wire).broken = false;
    card.looks();
    assert_eq!(card.received().len(), 1);
}

#[test]
fn activation_finds_what_came_before_and_tells_the_offloads_later() {
    let features = GUEST_CSUM | GUEST_TSO4 | HOST_USO;
    let mut card = Card::new(MemNet { features, ..Default::default() });
    card.comes(&frame(60));
    card.start(GUEST_CSUM | MRG_RXBUF);
    card.offer(&[(IN, 100)]);
    assert_eq!(lock(&card.wire).chosen, None, "not on the vCPU's thread");
    card.bench.run();
    let chosen = lock(&card.wire).chosen.unwrap();
    assert_eq!(chosen & features, GUEST_CSUM);
    assert_eq!(card.received().len(), 1);
}

#[test]
fn the_configuration_space_tells_address_link_and_mtu() {
    let mut card = Card::new(MemNet::default());
    let mut config = [0xff; 16];
    for (i, byte) in config.iter_mut().enumerate() {
        card.bench.transport.read(CONFIG + i as u64, std::slice::from_mut(byte));
    }
    assert_eq!(config[..6], MAC_ADDRESS);
    assert_eq!(config[6..], [1, 0, 1, 0, 0xdc, 0x05, 0, 0, 0, 0]);
}

#[test]
fn a_derived_address_is_stable_local_and_unicast() {
    let address = derived_mac("vmtap0");
    assert_eq!(address, derived_mac("vmtap0"));
    assert_ne!(address, derived_mac("vmtap1"));
    assert_eq!(address[0] & 3, 2);
}

#[test]
fn a_restored_card_goes_on_where_it_was() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut a = Card::started(features | MRG_RXBUF);
        let waiting = a.offer(&[(IN, 100)]);
        assert_eq!(a.send(&[(OUT, 60)]), Some(0));
        let saved = a.bench.transport.save().unwrap();

        let mut b = Card::new(MemNet::default());
        (b.bench.rings, b.tx) = (a.bench.rings.clone(), a.tx.clone());
        let mut memory = vec![0; 0x10_0000];
        a.bench.mem.read_slice(&mut memory, GuestAddress(0)).unwrap();
        b.bench.mem.write_slice(&memory, GuestAddress(0)).unwrap();
        b.bench.transport.restore(&saved).unwrap();
        b.comes(&frame(80));
        assert_eq!(b.received(), [(waiting, 80)]);
        assert_eq!(b.send(&[(OUT, 60)]), Some(0));
    }
}

#[test]
fn a_card_with_fewer_offloads_cannot_take_over() {
    let with_uso = || MemNet { features: HOST_USO, ..Default::default() };
    let saved = card(None, with_uso()).save().unwrap();
    let mut poor = card(Some(9000), MemNet::default());
    poor.mac[5] = 8;
    assert!(matches!(poor.restore(&saved), Err(StateError::Invalid { .. })));
    assert_eq!((poor.mac[5], poor.options.mtu), (8, Some(9000)), "nothing was taken over");
    let mut same = card(Some(9000), with_uso());
    same.mac[5] = 8;
    same.restore(&saved).unwrap();
    assert_eq!((same.mac, same.options.mtu), (MAC_ADDRESS, None));
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => IN..IN + 0x1000,
        1 => 0x1000u64..0x7000,
        1 => SEAM - 64..SEAM + 64,
        1 => HOLE - 64..HOLE + 64,
        1 => any::<u64>(),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Descriptor { tx: bool, index: u16, d: (u64, u32, u16, u16) },
    Offer { tx: bool, head: u16 },
    Publish { tx: bool, idx: u16 },
    Frame(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0u32..64, 0u32..3000, 60_000u32..70_000, any::<u32>()];
    prop_oneof![
        6 => (any::<bool>(), 0u16..16, (address(), len, 0u16..8, 0u16..18))
            .prop_map(|(tx, index, d)| Step::Descriptor { tx, index, d }),
        6 => (any::<bool>(), 0u16..17).prop_map(|(tx, head)| Step::Offer { tx, head }),
        1 => (any::<bool>(), any::<u16>()).prop_map(|(tx, idx)| Step::Publish { tx, idx }),
        4 => prop_oneof![12usize..2000, Just(MAX_FRAME)].prop_map(Step::Frame),
    ]
}

proptest! {
    /// No panic, no endless loop (`Bench::run` ends), and a reset mends it all.
    #[test]
    fn no_driver_breaks_it(
        choice in prop::bits::u8::between(0, 3),
        steps in vec(step(), 0..80),
    ) {
        let features = [MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, 1 << 28];
        let chosen = |(i, _): &(usize, &u64)| choice >> i & 1 != 0;
        let features = features.iter().enumerate().filter(chosen).fold(0, |a, (_, b)| a | b);
        let mut card = Card::started(features);
        let mem = card.bench.mem.clone();
        for step in steps {
            let rings = |card: &Card, tx| if tx { card.tx.clone() } else { card.bench.rings.clone() };
            match step {
                Step::Descriptor { tx, index, d } => rings(&card, tx).descriptor(&mem, index, d),
                Step::Offer { tx: true, head } => card.tx.offer(&mem, head),
                Step::Offer { tx: false, head } => card.bench.rings.offer(&mem, head),
                Step::Publish { tx: true, idx } => card.tx.publish(&mem, idx),
                Step::Publish { tx: false, idx } => card.bench.rings.publish(&mem, idx),
                Step::Frame(len) => card.comes(&frame(len)),
            }
            card.bench.write(QUEUE_NOTIFY, 0);
            card.bench.write(QUEUE_NOTIFY, 1);
            card.bench.run();
            if card.bench.needs_reset() {
                card.start(features);
            }
        }
        card.start(features);
        lock(&card.wire).incoming.clear();
        card.offer(&[(IN, 100)]);
        card.comes(&frame(60));
        prop_assert_eq!(card.received().len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_driver_breaks_the_card_over_either_transport(
        program in proptest::collection::vec(any::<u8>(), 0..500),
    ) {
        crate::virtio::testing::hostile::net(&program);
    }
}
