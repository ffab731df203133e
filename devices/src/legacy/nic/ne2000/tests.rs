//! The card, register by register.

use super::super::testing::{Bench, MAC, frame, hostile_ne2000};
use super::*;
use crate::bus::lock;
use proptest::prelude::*;

const START: u8 = 0x46;
const STOP: u8 = 0x80;

/// Moves `len` bytes from the card's memory, a word at a time.
fn remote_read(bench: &mut Bench<Ne2000>, address: u16, len: u16) -> Vec<u8> {
    for (offset, value) in [(0x0a, len), (0x0b, len >> 8), (8, address), (9, address >> 8)] {
        bench.write(offset, u32::from(value) & 0xff, 1);
    }
    bench.write(0, (STA | REMOTE_READ).into(), 1);
    let mut data = Vec::new();
    while data.len() < usize::from(len) {
        data.extend(&bench.read(DATA_PORT, 2).to_le_bytes()[..2]);
    }
    assert_eq!(bench.read(7, 1) as u8 & RDC, RDC, "the transfer is complete");
    bench.write(7, RDC.into(), 1);
    data.truncate(len.into());
    data
}

fn remote_write(bench: &mut Bench<Ne2000>, address: u16, data: &[u8]) {
    let len = data.len() as u16;
    for (offset, value) in [(0x0a, len), (0x0b, len >> 8), (8, address), (9, address >> 8)] {
        bench.write(offset, u32::from(value) & 0xff, 1);
    }
    bench.write(0, (STA | REMOTE_WRITE).into(), 1);
    for four in data.chunks(4) {
        bench.card.write_io(DATA_PORT, four);
    }
    assert_eq!(bench.read(7, 1) as u8 & RDC, RDC);
    bench.write(7, RDC.into(), 1);
}

/// A card as Linux's `__NS8390_init` leaves it.
fn started(rcr: u8) -> Bench<Ne2000> {
    let mut bench = Bench::ne2000();
    bench.card.write_config(4, &[1, 0]);
    bench.write(0, 0x21, 1);
    for (offset, value) in [
        (0x0e, 0x49),
        (0x0c, rcr),
        (0x0d, 0),
        (0x04, 0x40),
        (0x01, START),
        (0x03, STOP - 1),
        (0x02, STOP),
        (0x07, 0xff),
        (0x0f, 0x3f),
    ] {
        bench.write(offset, value.into(), 1);
    }
    bench.write(0, 0x61, 1);
    for (offset, byte) in (1..).zip(MAC) {
        bench.write(offset, byte.into(), 1);
    }
    bench.write(7, START.into(), 1);
    bench.write(0, 0x22, 1);
    bench
}

/// Takes the next frame out of the ring, as a driver does.
fn take(bench: &mut Bench<Ne2000>) -> Option<(u8, Vec<u8>)> {
    let bnry = bench.read(3, 1) as u8;
    let page = if bnry + 1 == STOP { START } else { bnry + 1 };
    bench.write(0, 0x62, 1);
    let curr = bench.read(7, 1) as u8;
    bench.write(0, 0x22, 1);
    if page == curr {
        return None;
    }
    let header = remote_read(bench, u16::from(page) << 8, 4);
    let len = u16::from_le_bytes([header[2], header[3]]) - 4;
    let data = remote_read(bench, (u16::from(page) << 8) + 4, len);
    let next = header[1];
    bench.write(3, u32::from(if next == START { STOP - 1 } else { next - 1 }), 1);
    Some((header[0], data))
}

#[test]
fn it_says_who_it_is() {
    let mut bench = Bench::ne2000();
    let mut word = [0; 4];
    bench.card.read_config(0, &mut word);
    assert_eq!(word, [0xec, 0x10, 0x29, 0x80]);
    // The presence test of Linux: a tally counter is cleared by being read.
    bench.write(0, 0x61, 1);
    bench.write(0x0d, 0xff, 1);
    bench.write(0, 0x20, 1);
    bench.read(0x0d, 1);
    assert_eq!(bench.read(0x0d, 1), 0);
    // The reset port.
    bench.write(7, 0xff, 1);
    bench.read(0x1f, 1);
    assert_eq!(bench.read(7, 1) as u8 & RST, RST);
    // The address, a byte of each word.
    for (offset, value) in [(0, 0x21), (0x0e, 0x49), (0x0a, 32), (0x0b, 0), (8, 0), (9, 0)] {
        bench.write(offset, value, 1);
    }
    bench.write(0, 0x0a, 1);
    let prom: Vec<u8> = (0..16).map(|_| bench.read(DATA_PORT, 1) as u8).collect();
    assert_eq!((&prom[..6], &prom[14..]), (&MAC[..], &b"WW"[..]));
}

#[test]
fn a_frame_goes_in_by_the_port_and_out() {
    let mut bench = started(AB);
    let data = frame([9; 6], 100);
    remote_write(&mut bench, 0x4000, &data);
    assert_eq!(remote_read(&mut bench, 0x4000, 100), data);
    for (offset, value) in [(5, 100), (6, 0), (4, 0x40)] {
        bench.write(offset, value, 1);
    }
    bench.write(0, 0x26, 1);
    assert_eq!(bench.read(0, 1) as u8 & TXP, TXP, "until it is sent");
    bench.run();
    assert_eq!(*lock(&bench.network.sent), [data]);
    assert_eq!(bench.read(0, 1) as u8 & TXP, 0);
    assert!(bench.interrupt());
    assert_eq!((bench.read(7, 1), bench.read(4, 1)), (u32::from(PTX), u32::from(TSR_PTX)));
    bench.write(7, PTX.into(), 1);
    assert!(!bench.interrupt());
    // What is not in its memory is not sent.
    bench.write(4, 0xff, 1);
    bench.write(0, 0x26, 1);
    bench.run();
    assert_eq!(bench.read(7, 1), u32::from(TXE));
    assert_eq!(lock(&bench.network.sent).len(), 1);
}

#[test]
fn the_filter_takes_what_it_is_told_to() {
    let other = [4, 0, 0, 0, 0, 1];
    for (rcr, wanted) in [
        (0, &[(MAC, 0)][..]),
        (AB, &[(MAC, 0), ([0xff; 6], RSR_PHY)]),
        (PRO, &[(MAC, 0), ([0xff; 6], RSR_PHY), (other, 0)]),
        (MON, &[]),
    ] {
        let mut bench = started(rcr);
        for to in [MAC, [0xff; 6], other] {
            bench.arrive(&frame(to, 100));
        }
        bench.run();
        let mut got = Vec::new();
        while let Some((status, data)) = take(&mut bench) {
            got.push((<[u8; 6]>::try_from(&data[..6]).unwrap(), status & !RSR_PRX));
        }
        assert_eq!(got, wanted, "{rcr:#x}");
    }
}

#[test]
fn a_full_ring_loses_nothing() {
    let mut bench = started(0);
    let sizes: Vec<usize> = (0..100).map(|i| 60 + i * 37 % (MAX_FRAME - 59)).collect();
    for size in &sizes {
        bench.arrive(&frame(MAC, *size));
    }
    let mut got = Vec::new();
    while got.len() < sizes.len() {
        bench.run();
        let (_, data) = take(&mut bench).expect("there is always one");
        assert_eq!(data, frame(MAC, data.len()));
        got.push(data.len());
    }
    assert_eq!(got, sizes);
    assert_eq!(take(&mut bench), None);
}

#[test]
fn a_card_that_is_stopped_does_nothing() {
    let mut bench = started(0);
    bench.write(0, 0x21, 1);
    bench.arrive(&frame(MAC, 60));
    bench.run();
    assert!(!bench.interrupt());
    bench.write(0, 0x22, 1);
    bench.run();
    assert!(bench.interrupt());
    assert_eq!(take(&mut bench), Some((RSR_PRX, frame(MAC, 60))));
}

#[test]
fn a_restored_card_goes_on() {
    let mut first = started(0);
    first.arrive(&frame(MAC, 77));
    first.run();
    let saved = first.card.save().unwrap();
    let mut second = Bench::ne2000();
    second.card.restore(&saved).unwrap();
    assert!(second.interrupt());
    assert_eq!(take(&mut second), Some((RSR_PRX, frame(MAC, 77))));
    let short = State { memory: vec![0; 1], ..first.card.state.clone() };
    let short = Saved::new(KIND, VERSION, &short).unwrap();
    assert!(second.card.restore(&short).is_err());
}

proptest! {
    #[test]
    fn no_driver_breaks_it(program in prop::collection::vec(any::<u8>(), 0..800)) {
        hostile_ne2000(&program);
    }
}
