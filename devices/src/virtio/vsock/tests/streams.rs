//! Connections and their bytes, from their beginning to their end.

use super::*;
use crate::virtio::VIRTIO_RING_F_EVENT_IDX;

#[test]
fn a_guest_connects_to_the_host_and_bytes_flow_both_ways() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        let mut machine = Machine::started(features);
        let peer = machine.connected();
        let (header, bytes) = data(3000);
        machine.send(header, &bytes);
        assert_eq!(lock(&peer).outgoing, bytes);
        assert!(machine.bench.interrupted());
        lock(&peer).incoming.extend(&bytes);
        machine.news(&peer);
        let all = machine.received();
        let [(header, payload)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((header.op, header.fwd_cnt), (op::RW, 3000));
        assert_eq!((header.src_port, header.dst_port, header.src_cid), (80, 1000, 2));
        assert_eq!(*payload, bytes);
    }
}

#[test]
fn a_client_of_the_host_is_told_its_port_when_the_guest_accepts() {
    let mut machine = Machine::started(0);
    let peer = machine.client("CONNECT 1000\nand more");
    let request = machine.received().pop().unwrap().0;
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1000));
    assert!(lock(&peer).outgoing.is_empty());
    let answer = Header { dst_port: request.src_port, ..packet(op::RESPONSE) };
    machine.send(answer, &[]);
    assert_eq!(lock(&peer).outgoing, format!("OK {}\n", request.src_port).as_bytes());
    let (header, payload) = machine.received().pop().unwrap();
    assert_eq!((header.op, payload.as_slice()), (op::RW, &b"and more"[..]));
    // Another one at the same port of the guest has another port here.
    machine.client("CONNECT 1000\n");
    assert_ne!(machine.received().pop().unwrap().0.src_port, request.src_port);
}

#[test]
fn clients_that_say_something_else_are_left() {
    let mut machine = Machine::started(0);
    for line in ["CONNECT\n", "CONNECT x\n", "\n", &"C".repeat(100), "CONNECT 99999999999\n"] {
        let peer = machine.client(line);
        assert!(lock(&peer).dropped, "{line:?}");
    }
    let slow = machine.client("CONN");
    assert_eq!(machine.connections(), 1);
    lock(&slow).incoming.extend(b"ECT 5\n");
    machine.news(&slow);
    assert_eq!(machine.ops(), [op::REQUEST]);
    let fickle = machine.client("CONN");
    lock(&fickle).gone = true;
    machine.news(&fickle);
    assert!(lock(&fickle).dropped);
    // One that goes while the guest is asked.
    lock(&slow).gone = true;
    machine.news(&slow);
    assert_eq!(machine.ops(), [op::RST]);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let mut machine = Machine::started(0);
    let peer = machine.client("CONNECT 1000\n");
    let request = machine.received().pop().unwrap().0;
    machine.send(Header { dst_port: request.src_port, ..packet(op::RST) }, &[]);
    assert!(lock(&peer).dropped);
    assert!(lock(&peer).outgoing.is_empty());
    assert!(machine.ops().is_empty(), "no answer to an answer");
}

#[test]
fn a_slow_host_makes_the_guest_wait_and_one_that_does_not_is_reset() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).room = 100;
    let (header, bytes) = data(BUF_ALLOC as usize);
    machine.send(header, &bytes);
    assert_eq!(lock(&peer).outgoing.len(), 100);
    assert!(machine.ops().is_empty(), "nothing to tell yet");
    lock(&peer).room = usize::MAX;
    machine.news(&peer);
    assert_eq!(lock(&peer).outgoing, bytes);
    let all = machine.received();
    assert!(
        matches!(all.as_slice(), [(h, _)] if h.op == op::CREDIT_UPDATE && h.fwd_cnt == BUF_ALLOC)
    );

    lock(&peer).room = BUF_ALLOC as usize;
    machine.send(header, &bytes);
    machine.send(data(1).0, &[1]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(lock(&peer).dropped);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    machine.send(Header { buf_alloc: 100, ..packet(op::CREDIT_UPDATE) }, &[]);
    lock(&peer).incoming.extend([5; 250]);
    machine.news(&peer);
    let all = machine.received();
    assert_eq!(
        all.iter().map(|(h, _)| (h.op, h.len)).collect::<Vec<_>>(),
        [(op::RW, 100), (op::CREDIT_REQUEST, 0)]
    );
    machine.send(Header { buf_alloc: 100, fwd_cnt: 60, ..packet(op::CREDIT_UPDATE) }, &[]);
    let all = machine.received();
    assert_eq!((all[0].0.len, all[1].0.op), (60, op::CREDIT_REQUEST));
    // More than was ever sent can't have been forwarded.
    machine.send(Header { buf_alloc: 100, fwd_cnt: 161, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert!(machine.ops().is_empty());
    machine.send(Header { buf_alloc: 0, fwd_cnt: 160, ..packet(op::CREDIT_REQUEST) }, &[]);
    assert_eq!(machine.ops(), [op::CREDIT_UPDATE]);
    machine.send(Header { buf_alloc: 100, fwd_cnt: 160, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(machine.received()[0].0.len, 90);
}

#[test]
fn each_side_ends_its_half_by_itself() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).incoming.extend(b"last words");
    lock(&peer).ended = true;
    machine.news(&peer);
    let all = machine.received();
    assert_eq!(all.iter().map(|(h, _)| h.op).collect::<Vec<_>>(), [op::RW, op::SHUTDOWN]);
    assert_eq!(all[1].0.flags, SHUTDOWN_SEND);
    let (header, bytes) = data(10);
    machine.send(header, &bytes);
    assert_eq!(lock(&peer).outgoing, bytes, "the other half goes on");
    machine.send(Header { flags: SHUTDOWN_SEND, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(lock(&peer).shut, [Shutdown::Write]);
    assert_eq!(machine.connections(), 1);
    lock(&peer).gone = true;
    machine.news(&peer);
    let all = machine.received();
    assert!(matches!(all.as_slice(), [(h, _)] if h.flags == SHUTDOWN_BOTH));
    machine.send(packet(op::RST), &[]);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_that_closes_is_answered_and_its_bytes_still_arrive() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    lock(&peer).room = 10;
    let (header, bytes) = data(5000);
    machine.send(header, &bytes);
    machine.send(Header { flags: SHUTDOWN_BOTH, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(machine.ops(), [op::RST]);
    assert!(!lock(&peer).dropped);
    // The port is free for another one meanwhile.
    let second = machine.connected();
    lock(&peer).room = usize::MAX;
    machine.news(&peer);
    assert_eq!(lock(&peer).outgoing, bytes);
    assert!(lock(&peer).dropped && !lock(&second).dropped);
    machine.send(header, &bytes);
    assert_eq!(lock(&second).outgoing, bytes);
}

#[test]
fn a_host_that_goes_is_told_to_the_guest_once_its_words_are_read() {
    let mut machine = Machine::started(0);
    let peer = machine.connected();
    machine.send(Header { buf_alloc: 4, ..packet(op::CREDIT_UPDATE) }, &[]);
    lock(&peer).incoming.extend(b"goodbye");
    lock(&peer).gone = true;
    machine.news(&peer);
    assert_eq!(machine.ops(), [op::RW, op::CREDIT_REQUEST]);
    machine.send(Header { buf_alloc: 4, ..data(9).0 }, &[0; 9]);
    let all = machine.received();
    assert!(matches!(all.as_slice(), [(h, _)] if h.flags == SHUTDOWN_RECEIVE), "{all:?}");
    machine.send(Header { buf_alloc: 4, fwd_cnt: 4, ..packet(op::CREDIT_UPDATE) }, &[]);
    let all = machine.received();
    assert_eq!(all[0].1, b"bye");
    assert_eq!((all[1].0.op, all[1].0.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
}
