//! Guests and hosts that do as they please.

use super::*;
use crate::virtio::testing::hostile::any_device;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Packet(Header, usize),
    Raw(Vec<u8>),
    Client(String),
    Says(usize, usize),
    Takes(usize, usize),
    Ends(usize, bool),
    Buffer(u32),
}

fn header() -> impl Strategy<Value = Header> {
    let ports = (998u32..1002, 79u32..82, any::<bool>());
    let sizes = prop_oneof![Just(0u32), 0u32..5000, any::<u32>()];
    let credit = (prop_oneof![0u32..1000, any::<u32>()], prop_oneof![0u32..1000, any::<u32>()]);
    let odd = prop_oneof![9 => Just(false), 1 => Just(true)];
    (ports, 0u16..9, sizes, credit, 0u32..4, odd).prop_map(
        |(ports, op, len, credit, flags, odd)| {
            let dst_port = if ports.2 { (1 << 30) + ports.1 - 79 } else { ports.1 };
            Header {
                src_port: ports.0,
                dst_port,
                len,
                flags,
                kind: if odd { 2 } else { 1 },
                buf_alloc: credit.0,
                fwd_cnt: credit.1,
                ..packet(op)
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (header(), 0usize..6000).prop_map(|(h, len)| Step::Packet(h, len)),
        4 => (header(), 0usize..6000).prop_map(|(h, len)| Step::Packet(Header { len: len as u32, ..h }, len)),
        1 => vec(any::<u8>(), 0..80).prop_map(Step::Raw),
        2 => prop_oneof![
            (998u32..1002).prop_map(|port| format!("CONNECT {port}\nxyz")),
            "CONN[ -~\n]{0,20}",
        ].prop_map(Step::Client),
        3 => (0usize..8, 0usize..9000).prop_map(|(i, n)| Step::Says(i, n)),
        3 => (0usize..8, 0usize..90_000).prop_map(|(i, n)| Step::Takes(i, n)),
        2 => (0usize..8, any::<bool>()).prop_map(|(i, gone)| Step::Ends(i, gone)),
        5 => (0..=BUFFER).prop_map(Step::Buffer),
    ]
}

/// Does one step; the peers are all that there ever were.
fn act(machine: &mut Machine, peers: &mut Vec<SharedPeer>, step: Step) {
    let pick = |i: usize| peers.get(i % peers.len().max(1)).cloned();
    match step {
        Step::Packet(header, len) => machine.send(header, &vec![1; len]),
        Step::Raw(bytes) => {
            let mem = machine.bench.mem.clone();
            mem.write_slice(&bytes, GuestAddress(OUT)).unwrap();
            let head = machine.tx.chain(&mem, &[(OUT, bytes.len() as u32)], &[]);
            machine.tx.offer(&mem, head);
            machine.bench.write(QUEUE_NOTIFY, 1);
            machine.bench.run();
            machine.tx.collect(&mem);
        }
        Step::Client(line) => {
            let peer = machine.client(&line);
            peers.push(peer);
        }
        Step::Says(i, n) => {
            if let Some(peer) = pick(i) {
                lock(&peer).incoming.extend(vec![2; n]);
                machine.news(&peer);
            }
        }
        Step::Takes(i, n) => {
            if let Some(peer) = pick(i) {
                let room = lock(&peer).outgoing.len() + n;
                lock(&peer).room = room;
                machine.news(&peer);
            }
        }
        Step::Ends(i, gone) => {
            if let Some(peer) = pick(i) {
                lock(&peer).ended = true;
                lock(&peer).gone |= gone;
                machine.news(&peer);
            }
        }
        Step::Buffer(len) => {
            machine.give(len);
            machine.bench.kick();
        }
    }
    peers.append(&mut lock(&machine.host).connected);
}

proptest! {
    /// No panic, no endless loop (`Bench::run` ends), nothing unbounded, and the
    /// device still works afterwards.
    #[test]
    fn no_guest_and_no_host_breaks_it(steps in vec(step(), 0..80)) {
        let mut machine = Machine::new();
        machine.generous = false;
        machine.start(0);
        lock(&machine.host).servers.extend([80, 81]);
        let mut peers = Vec::new();
        for step in steps {
            act(&mut machine, &mut peers, step);
            machine.received();
            prop_assert!(!machine.bench.needs_reset());
            prop_assert!(lock(&machine.device).most_buffered() <= BUF_ALLOC as usize);
            let open = peers.iter().filter(|peer| !lock(peer).dropped).count();
            prop_assert_eq!(open, machine.connections());
        }
        machine.generous = true;
        machine.start(0);
        lock(&machine.host).connected.clear();
        machine.connected();
    }

    /// Whatever the guest says of its room, no more is sent than that.
    #[test]
    fn credit_is_never_exceeded(
        steps in vec((prop_oneof![0u32..300, any::<u32>()], 0u32..400, 0usize..500), 1..60),
    ) {
        let mut machine = Machine::started(0);
        let peer = machine.connected();
        let (mut sent, mut room) = (0u32, 1u32 << 16);
        let mut fwd_cnt = 0u32;
        for (buf_alloc, forwarded, said) in steps {
            lock(&peer).incoming.extend(vec![0; said]);
            machine.news(&peer);
            for (header, _) in machine.received() {
                sent += header.len;
                prop_assert!(header.len == 0 || sent - fwd_cnt <= room, "{} of {}", sent - fwd_cnt, room);
            }
            // Never back, never more than came.
            fwd_cnt = (fwd_cnt + forwarded).min(sent);
            room = buf_alloc;
            machine.send(Header { buf_alloc, fwd_cnt, ..packet(op::CREDIT_UPDATE) }, &[]);
            for (header, _) in machine.received() {
                sent += header.len;
                prop_assert!(header.len == 0 || sent - fwd_cnt <= room, "{} of {}", sent - fwd_cnt, room);
            }
        }
    }

    /// Both sides and the rings at once, as the fuzzer does it.
    #[test]
    fn no_program_breaks_it(data in vec(any::<u8>(), 0..800)) {
        crate::virtio::testing::vsock::vsock(&data);
    }

    #[test]
    fn no_driver_breaks_it_over_any_transport(data in vec(any::<u8>(), 0..600)) {
        let device = || Arc::new(Mutex::new(Vsock::new(CID, Box::new(MemHost::default()))));
        any_device::<Bench>(&data, device(), |_| ());
        any_device::<crate::virtio::testing::pci::PciBench>(&data, device(), |driver| {
            assert_eq!(driver.request(TX, &[(OUT, HEADER as u32)], &[]), Some(0));
        });
    }
}
