//! What is refused, what is bounded, and the life of the device.

use super::*;
use crate::virtio::VIRTIO_RING_F_EVENT_IDX;

#[test]
fn packets_to_nobody_are_answered_with_a_reset() {
    let mut machine = Machine::started(0);
    let wrong = [
        packet(op::REQUEST), // nobody listens
        packet(op::RW),
        packet(op::RESPONSE),
        packet(op::SHUTDOWN),
        packet(77),
        Header { kind: 2, ..packet(op::REQUEST) },
        Header { dst_cid: 5, ..packet(op::REQUEST) },
        Header { src_cid: 5, ..packet(op::REQUEST) },
    ];
    for (i, header) in wrong.into_iter().enumerate() {
        if i > 0 {
            lock(&machine.host).servers.insert(80);
        }
        machine.send(header, &[]);
        let all = machine.received();
        let [(reset, _)] = all.as_slice() else { panic!("{header:?}: {all:?}") };
        assert_eq!((reset.op, reset.kind), (op::RST, header.kind));
        assert_eq!((reset.src_port, reset.dst_port), (80, 1000));
        assert_eq!(reset.src_cid, header.dst_cid);
        machine.send(Header { op: op::RST, ..header }, &[]);
        assert!(machine.ops().is_empty());
    }
    assert_eq!(machine.connections(), 0);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let short = Header { len: 10, ..packet(op::RW) };
    for header in [packet(op::REQUEST), packet(op::RESPONSE), packet(0), packet(99), short] {
        let mut machine = Machine::started(0);
        let peer = machine.connected();
        machine.send(header, &[]);
        assert_eq!(machine.ops(), [op::RST], "{header:?}");
        assert!(lock(&peer).dropped && !machine.bench.needs_reset());
    }
}

#[test]
fn packets_wait_for_buffers_and_resets_are_bounded() {
    let mut machine = Machine::new();
    machine.generous = false;
    machine.start(VIRTIO_RING_F_EVENT_IDX);
    for _ in 0..5000 {
        machine.send(packet(op::RW), &[]);
    }
    let peer = machine.client("CONNECT 7\n");
    machine.give(HEADER as u32 - 1);
    machine.give(HEADER as u32);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RST], "the first buffer holds no header");
    machine.generous = true;
    (0..8).for_each(|_| machine.give(BUFFER));
    machine.bench.kick();
    let ops = machine.ops();
    assert_eq!(ops.len(), 4096, "{}", ops.len());
    assert_eq!(ops.last(), Some(&op::REQUEST));
    assert!(!lock(&peer).dropped);
}

#[test]
fn a_buffer_without_room_for_a_payload_does_not_spin() {
    let mut machine = Machine::new();
    machine.generous = false;
    machine.start(0);
    lock(&machine.host).servers.insert(80);
    machine.send(packet(op::REQUEST), &[]);
    machine.give(HEADER as u32);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RESPONSE]);
    let peer = lock(&machine.host).connected.pop().unwrap();
    lock(&peer).incoming.extend(b"x");
    machine.give(HEADER as u32);
    machine.news(&peer);
    assert!(machine.ops().is_empty());
    machine.send(packet(op::CREDIT_REQUEST), &[]);
    assert_eq!(machine.ops(), [op::CREDIT_UPDATE]);
    machine.give(BUFFER);
    machine.bench.kick();
    assert_eq!(machine.ops(), [op::RW]);
}

#[test]
fn connections_are_capped_and_room_is_used_again() {
    let mut machine = Machine::started(0);
    lock(&machine.host).servers.insert(80);
    for i in 0..MAX_CONNECTIONS as u32 {
        machine.send(Header { src_port: i, ..packet(op::REQUEST) }, &[]);
        assert_eq!(machine.ops(), [op::RESPONSE]);
    }
    machine.send(Header { src_port: 5000, ..packet(op::REQUEST) }, &[]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(lock(&machine.client("CONNECT 1\n")).dropped);
    machine.send(Header { src_port: 0, ..packet(op::RST) }, &[]);
    assert!(!lock(&machine.client("CONNECT 1\n")).dropped);
    assert_eq!(machine.connections(), MAX_CONNECTIONS);
    machine.bench.write(STATUS, 0);
    assert_eq!(machine.connections(), 0);
    assert!(lock(&machine.host).connected.iter().all(|peer| lock(peer).dropped));
}

#[test]
fn a_client_without_a_descriptor_waits_for_the_end_of_another() {
    let mut machine = Machine::started(0);
    machine.connected();
    lock(&machine.host).exhausted = true;
    machine.client("CONNECT 9\n");
    assert!(machine.ops().is_empty());
    lock(&machine.host).exhausted = false;
    machine.send(packet(op::RST), &[]);
    assert_eq!(machine.ops(), [op::REQUEST]);
}

#[test]
fn clients_that_come_before_the_driver_are_served_later() {
    let mut machine = Machine::new();
    let peer = machine.client("CONNECT 9\n");
    assert_eq!(machine.connections(), 0);
    machine.start(0);
    assert_eq!(machine.ops(), [op::REQUEST]);
    machine.start(0);
    assert!(lock(&peer).dropped, "a reset ends all connections");
    assert!(machine.ops().is_empty());
}

#[test]
fn the_configuration_space_tells_the_context_id() {
    let mut machine = Machine::new();
    let mut config = [0xff; 10];
    for (i, byte) in config.iter_mut().enumerate() {
        machine.bench.transport.read(CONFIG + i as u64, std::slice::from_mut(byte));
    }
    assert_eq!(config, [CID as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_restored_driver_hears_that_its_connections_are_gone() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut a = Machine::started(features);
        a.connected();
        let saved = a.bench.transport.save().unwrap();

        let mut b = Machine::new();
        lock(&b.device).cid = 7;
        (b.bench.rings, b.tx) = (a.bench.rings.clone(), a.tx.clone());
        (b.events, b.given) = (a.events.clone(), a.given);
        let mut memory = vec![0; 0x10_0000];
        a.bench.mem.read_slice(&mut memory, GuestAddress(0)).unwrap();
        b.bench.mem.write_slice(&memory, GuestAddress(0)).unwrap();
        b.bench.transport.restore(&saved).unwrap();
        let mem = b.bench.mem.clone();
        mem.write_slice(&[0xff; 8], GuestAddress(EVENTS)).unwrap();
        for len in [3, 8] {
            let head = b.events.chain(&mem, &[], &[(EVENTS, len)]);
            b.events.offer(&mem, head);
        }
        b.bench.write(QUEUE_NOTIFY, 2);
        b.bench.run();
        assert_eq!(b.events.collect(&mem), [(0, 0), (1, 4)]);
        let mut event = [0; 8];
        mem.read_slice(&mut event, GuestAddress(EVENTS)).unwrap();
        assert_eq!(event, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        // The context ID came along, and a new connection can be made.
        let (header, bytes) = data(10);
        b.send(header, &bytes);
        assert_eq!(b.ops(), [op::RST]);
        b.connected();
        // Once is enough.
        let head = b.events.chain(&mem, &[], &[(EVENTS, 8)]);
        b.events.offer(&mem, head);
        b.bench.write(QUEUE_NOTIFY, 2);
        b.bench.run();
        assert_eq!(b.events.collect(&mem), []);
    }
}

#[test]
fn a_state_that_no_guest_can_have_is_refused() {
    let mut device = Vsock::new(CID, Box::new(MemHost::default()));
    for cid in [0, 2, u32::MAX] {
        let saved = Saved::new(KIND, crate::virtio::vsock::VERSION, &State { cid }).unwrap();
        assert!(matches!(device.restore(&saved), Err(StateError::Invalid { .. })));
    }
    assert_eq!(device.cid, CID);
}

#[test]
fn broken_rings_ask_for_a_reset_and_a_reset_mends_it() {
    let mut machine = Machine::started(0);
    let mem = machine.bench.mem.clone();
    let head = machine.tx.chain(&mem, &[(HOLE, 100)], &[]);
    machine.tx.offer(&mem, head);
    machine.bench.write(QUEUE_NOTIFY, 1);
    machine.bench.run();
    assert!(machine.bench.needs_reset());
    machine.start(0);
    machine.connected();
}
