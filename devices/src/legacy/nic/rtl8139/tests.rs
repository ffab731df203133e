//! The card, register by register.

use super::super::testing::{Bench, MAC, frame, hostile_rtl8139};
use super::*;
use crate::bus::lock;
use proptest::prelude::*;

const RING: u32 = 0x10_0000;
const EVERYTHING: u32 = AAP | APM | AM | AB;

/// A card that its driver has brought up, with a ring of `8 KiB << size`.
fn started(rcr: u32) -> Bench<Rtl8139> {
    let mut bench = Bench::rtl8139();
    bench.card.write_config(4, &[7, 0]);
    bench.write(CR as u16, RST.into(), 1);
    assert_eq!(bench.read(CR as u16, 1) as u8 & RST, 0, "it is over at once");
    bench.write(RBSTART as u16, RING, 4);
    bench.write(CR as u16, (RE | TE).into(), 1);
    bench.write(RCR as u16, rcr, 4);
    bench.write(IMR as u16, ISR_ALL.into(), 2);
    bench
}

/// Takes the next frame out of the ring, as a driver does.
fn take(bench: &mut Bench<Rtl8139>) -> Option<(u16, Vec<u8>)> {
    if bench.read(CR as u16, 1) as u8 & BUFE != 0 {
        return None;
    }
    let ring = bench.card.ring();
    let at = (bench.read(CAPR as u16, 2) + 16) % ring;
    let byte = |i: u32| -> u8 {
        let at = if bench.card.long(RCR) & WRAP != 0 { at + i } else { (at + i) % ring };
        bench.mem.read_obj(GuestAddress((RING + at).into())).unwrap()
    };
    let status = u16::from_le_bytes([byte(0), byte(1)]);
    let len = u32::from(u16::from_le_bytes([byte(2), byte(3)]));
    let data: Vec<u8> = (4..len).map(byte).collect();
    let check: Vec<u8> = (len..len + 4).map(byte).collect();
    assert_eq!(check, check_sequence(&data));
    let next = (at + len + 4).next_multiple_of(4).wrapping_sub(16);
    bench.write(CAPR as u16, next, 2);
    Some((status, data))
}

#[test]
fn it_says_who_it_is() {
    let mut bench = Bench::rtl8139();
    let mut word = [0; 4];
    bench.card.read_config(0, &mut word);
    assert_eq!(word, [0xec, 0x10, 0x39, 0x81]);
    bench.card.read_config(8, &mut word);
    assert_eq!(word, [0x10, 0, 0, 2], "not an 8139C+, whose revision is 0x20");
    assert_eq!(bench.read(TCR as u16, 4) & 0x7cc0_0000, VERSION_8139C);
    let address: Vec<u8> = (0..6).map(|i| bench.read(i, 1) as u8).collect();
    assert_eq!(address, MAC);
    assert_eq!(bench.read(BMSR as u16, 2) & 0x24, 0x24, "negotiated, and up");
    assert_eq!(bench.read(MSR as u16, 1) & 4, 0, "up");
    bench.write(0, 0x99, 1);
    assert_eq!(bench.read(0, 1), u32::from(MAC[0]), "locked");
    bench.write(CR9346 as u16, UNLOCKED.into(), 1);
    bench.write(0, 0x98, 1);
    assert_eq!(bench.read(0, 1), 0x98);
    assert_eq!(bench.card.words[7..10], [0x1102, 0x3322, 0x5544]);
    bench.card.write_config(4, &[7, 0]);
    assert_eq!(
        (bench.card.io_bar(), bench.card.bar()),
        (Some((0xc000, 256)), Some((0xd010_0000, 256)))
    );
}

#[test]
fn frames_are_sent_in_turn() {
    let mut bench = started(0);
    for slot in 0..4u16 {
        let data = frame([slot as u8; 6], 60 + usize::from(slot));
        bench.mem.write_slice(&data, GuestAddress(0x5000 + u64::from(slot) * 0x800)).unwrap();
        bench.write(TSAD as u16 + 4 * slot, 0x5000 + u32::from(slot) * 0x800, 4);
    }
    // The second is ready first and waits for the first.
    bench.write(TSD as u16 + 4, 61, 4);
    bench.run();
    assert!(lock(&bench.network.sent).is_empty() && !bench.interrupt());
    bench.write(TSD as u16, 60, 4);
    bench.run();
    assert_eq!(lock(&bench.network.sent).len(), 2);
    assert!(bench.interrupt());
    assert_eq!(bench.read(TSD as u16, 4), 60 | OWN | TOK);
    assert_eq!(bench.read(ISR as u16, 2), u32::from(ISR_TOK));
    bench.write(ISR as u16, ISR_TOK.into(), 2);
    assert!(!bench.interrupt());
    for (slot, size) in [(2, 62), (3, 63), (0, 60)] {
        bench.write(TSD as u16 + 4 * slot, size, 4);
    }
    bench.run();
    let sent = lock(&bench.network.sent);
    assert_eq!(sent.iter().map(|f| f[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 0]);
    assert_eq!(sent[3], frame([3; 6], 63));
}

#[test]
fn what_cannot_be_sent_is_aborted() {
    let mut bench = started(0);
    bench.write(TSD as u16, 1793, 4);
    bench.run();
    assert_eq!(bench.read(TSD as u16, 4), 1793 | OWN | TABT);
    bench.write(TSAD as u16 + 4, 0xfff0_0000, 4);
    bench.write(TSD as u16 + 4, 60, 4);
    bench.run();
    assert_eq!(bench.read(TSD as u16 + 4, 4), 60 | OWN | TABT);
    assert_eq!(bench.read(ISR as u16, 2), u32::from(ISR_TER));
    assert!(lock(&bench.network.sent).is_empty());
}

#[test]
fn the_filter_takes_what_it_is_told_to() {
    let (other, group) = ([4, 0, 0, 0, 0, 1], [0x01, 0x00, 0x5e, 0x00, 0x00, 0x01]);
    for (rcr, wanted) in [
        (0, &[][..]),
        (APM, &[(MAC, PAM)][..]),
        (AB, &[([0xff; 6], BAR)]),
        (AM, &[(group, MULTICAST)]),
        (EVERYTHING, &[(MAC, PAM), ([0xff; 6], BAR), (group, MULTICAST), (other, 0)]),
    ] {
        let mut bench = started(rcr);
        bench.write(MAR as u16, 1 << 31, 4);
        for to in [MAC, [0xff; 6], group, other] {
            bench.arrive(&frame(to, 100));
        }
        bench.run();
        let mut got = Vec::new();
        while let Some((status, data)) = take(&mut bench) {
            assert_eq!(data[6..], frame(MAC, 100)[6..]);
            got.push((<[u8; 6]>::try_from(&data[..6]).unwrap(), status & !ROK));
        }
        assert_eq!(got, wanted);
        assert_eq!(bench.interrupt(), !wanted.is_empty());
    }
}

#[test]
fn a_full_ring_loses_nothing() {
    for rcr in [0, 1 << RBLEN_SHIFT, WRAP, WRAP | 2 << RBLEN_SHIFT] {
        let mut bench = started(rcr | APM);
        let sizes: Vec<usize> = (0..200).map(|i| 60 + i * 37 % (MAX_FRAME - 59)).collect();
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
}

#[test]
fn short_frames_are_padded_and_long_ones_are_nobodys() {
    let mut bench = started(APM);
    bench.arrive(&frame(MAC, 20));
    bench.arrive(&frame(MAC, MAX_FRAME + 1));
    bench.arrive(&[]);
    bench.run();
    let (_, data) = take(&mut bench).unwrap();
    assert_eq!((data.len(), &data[20..]), (60, &[0; 40][..]));
    assert_eq!(take(&mut bench), None);
}

#[test]
fn a_card_that_is_off_does_nothing() {
    let mut bench = started(APM);
    bench.arrive(&frame(MAC, 60));
    bench.card.write_config(4, &[3, 0]);
    bench.write(TSD as u16, 60, 4);
    bench.run();
    assert!(lock(&bench.network.sent).is_empty(), "it may not use memory");
    bench.card.write_config(4, &[7, 4]);
    bench.run();
    assert_eq!(lock(&bench.network.sent).len(), 1);
    assert!(take(&mut bench).is_some());
    assert!(!bench.interrupt(), "its pin is off");
    bench.card.write_config(4, &[7, 0]);
    assert!(bench.interrupt());
    bench.write(CR as u16, RST.into(), 1);
    assert!(!bench.interrupt());
}

#[test]
fn a_restored_card_goes_on() {
    let mut first = started(APM | WRAP);
    first.arrive(&frame(MAC, 77));
    first.run();
    let saved = first.card.save().unwrap();
    let mut second = Bench::rtl8139();
    second.card.restore(&saved).unwrap();
    assert!(second.interrupt());
    second.arrive(&frame(MAC, 78));
    second.run();
    assert_eq!(second.card.unread(), 88 + 88);
    assert!(second.card.restore(&Saved::new("ne2000", 1, &0).unwrap()).is_err());
}

proptest! {
    #[test]
    fn no_driver_breaks_it(program in prop::collection::vec(any::<u8>(), 0..800)) {
        hostile_rtl8139(&program);
    }
}
