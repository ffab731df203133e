//! Drives, register by register.

use super::testing::{Bench, TABLE, hostile};
use super::unit::{ABRT, BSY, DRQ, ERR, IDNF, READY, UNC};
use super::*;
use crate::irq::IrqLine;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: usize = 1024;
const DEVICE: u64 = 6;
const STATUS: u64 = 7;

fn bench() -> Bench {
    let bench = Bench::new(SECTORS, 4 * 100);
    for (i, byte) in lock(&bench.disk.data).iter_mut().enumerate() {
        *byte = (i / 512 + i) as u8;
    }
    for (i, byte) in lock(&bench.cd.data).iter_mut().enumerate() {
        *byte = (i / 2048 * 3 + i) as u8;
    }
    bench
}

/// Sends a command for `count` sectors from `lba` on.
fn command(bench: &Bench, command: u8, lba: u32, count: u8) {
    let [low, middle, high, top] = lba.to_le_bytes();
    for (offset, value) in [(2, count), (3, low), (4, middle), (5, high), (6, 0xe0 | top)] {
        bench.write(offset, value);
    }
    bench.write(STATUS, command);
}

fn select(bench: &Bench, drive: u8) {
    bench.write(DEVICE, 0xa0 | drive << 4);
}

/// Sends a packet to the CD.
fn packet(bench: &Bench, packet: &[u8], dma: bool) {
    select(bench, 1);
    for (offset, value) in [(1, u8::from(dma)), (4, 0xfe), (5, 0xff)] {
        bench.write(offset, value);
    }
    bench.write(STATUS, 0xa0);
    assert_eq!(bench.read(STATUS) & (BSY | DRQ | ERR), DRQ, "the packet is asked for");
    assert_eq!(bench.read(2), 1, "command, from the host");
    let mut twelve = [0; 12];
    twelve[..packet.len()].copy_from_slice(packet);
    bench.send(&twelve);
}

/// The data of a packet's answer, by PIO.
fn answer(bench: &Bench) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        while bench.worker.run() {}
        assert!(bench.interrupted());
        if bench.read(STATUS) & DRQ == 0 {
            assert_eq!(bench.read(2), 3, "the command's end");
            return all;
        }
        let len = usize::from(u16::from_le_bytes([bench.read(4), bench.read(5)]));
        all.extend(bench.receive(len));
    }
}

#[test]
fn drives_show_their_signatures_after_a_reset() {
    let bench = bench();
    lock(&bench.channel).write_device_control(4);
    assert_eq!(lock(&bench.channel).alternate_status(), BSY);
    lock(&bench.channel).write_device_control(0);
    assert_eq!((bench.read(STATUS), bench.read(1)), (READY, 1));
    assert_eq!([2, 3, 4, 5].map(|r| bench.read(r)), [1, 1, 0, 0]);
    select(&bench, 1);
    assert_eq!(bench.read(STATUS), 0);
    assert_eq!([2, 3, 4, 5].map(|r| bench.read(r)), [1, 1, 0x14, 0xeb]);
    // Who asks a CD whether it is a disk is told that it is none.
    bench.write(STATUS, 0xec);
    assert_eq!((bench.read(STATUS), bench.read(1)), (READY | ERR, ABRT));
    assert_eq!([4, 5].map(|r| bench.read(r)), [0x14, 0xeb]);
}

#[test]
fn absent_drives_do_not_echo() {
    let irq = || IrqLine::new().unwrap();
    let empty = Channel::new([None, None], irq()).unwrap();
    let bench = bench();
    let disk = Unit::new(Kind::Disk, Box::new(bench.disk.clone()), String::new(), true);
    let single = Channel::new([Some(disk), None], irq()).unwrap();
    for (mut channel, floats) in [(empty, 0xff), (single, 0)] {
        channel.write_command_block(DEVICE, &[0xb0]);
        for (offset, value) in [(2, 0x55), (3, 0xaa)] {
            channel.write_command_block(offset, &[value]);
            let mut byte = [0];
            channel.read_command_block(offset, &mut byte);
            assert_eq!(byte, [floats]);
        }
        assert_eq!(channel.alternate_status(), floats);
    }
}

#[test]
fn a_disk_identifies_itself() {
    let bench = bench();
    command(&bench, 0xec, 0, 0);
    assert!(bench.interrupted());
    assert_eq!(bench.read(STATUS), READY | DRQ);
    let data = bench.receive(512);
    assert_eq!(bench.read(STATUS), READY);
    assert!(!bench.interrupted(), "none for the end of the data");
    let word = |n: usize| u16::from_le_bytes([data[2 * n], data[2 * n + 1]]);
    assert_eq!(word(0), 0x0040);
    assert_eq!(&data[20..24], b"1S  ", "the characters of a word are swapped");
    assert_eq!(&data[54..66], b"IMRCVO MIDKS");
    assert_eq!((word(49), word(63), word(88)), (0x0b00, 0x0007, 0));
    assert_eq!(u32::from(word(60)) | u32::from(word(61)) << 16, SECTORS as u32);
    assert_eq!(word(100), SECTORS as u16);
    assert_eq!(word(83) & 0xc400, 0x4400, "48-bit addresses");
}

#[test]
fn sectors_are_read_by_pio_with_an_interrupt_for_each_block() {
    for (opcode, multiple) in [(0x20, 1), (0xc4, 8)] {
        let bench = bench();
        command(&bench, 0xc6, 0, 8);
        assert!(bench.interrupted());
        command(&bench, opcode, 7, 20);
        assert_eq!(bench.read(STATUS), BSY, "nothing is read on the vCPU's thread");
        assert!(bench.worker.run());
        let mut data = Vec::new();
        while data.len() < 20 * 512 {
            assert!(bench.interrupted());
            assert_eq!(bench.read(STATUS), READY | DRQ);
            data.extend(bench.receive((20 * 512 - data.len()).min(multiple * 512)));
        }
        assert_eq!((bench.read(STATUS), bench.interrupted()), (READY, false));
        assert_eq!(data, lock(&bench.disk.data)[7 * 512..27 * 512]);
        let counters = lock(&bench.channel).counters(0).unwrap();
        assert!(counters.contains(&("bytes_read", 20 * 512)), "{counters:?}");
    }
}

#[test]
fn sectors_are_written_by_pio() {
    for (opcode, multiple) in [(0x30, 1), (0xc5, 16)] {
        let bench = bench();
        command(&bench, 0xc6, 0, 16);
        assert!(bench.interrupted());
        command(&bench, opcode, 100, 0);
        assert!(!bench.interrupted(), "the first block is asked for without");
        let data: Vec<u8> = (0..256 * 512u32).map(|i| ((i * 7) >> 3) as u8).collect();
        for (i, block) in data.chunks(multiple * 512).enumerate() {
            assert_eq!(bench.interrupted(), i > 0);
            assert_eq!(bench.read(STATUS), READY | DRQ);
            bench.send(block);
        }
        assert_eq!(bench.read(STATUS), BSY);
        assert!(bench.worker.run());
        assert!(bench.interrupted());
        assert_eq!(bench.read(STATUS), READY);
        assert_eq!(data, lock(&bench.disk.data)[100 * 512..356 * 512]);
    }
}

#[test]
fn long_transfers_go_in_parts() {
    let bench = bench();
    // 600 sectors, by 48-bit addresses: the registers are written twice.
    for (offset, value) in [(2, 2), (3, 0), (4, 0), (5, 0), (2, 88), (3, 10), (4, 0), (5, 0)] {
        bench.write(offset, value);
    }
    bench.write(DEVICE, 0xe0);
    bench.write(STATUS, 0x24);
    let mut data = Vec::new();
    while data.len() < 600 * 512 {
        while bench.worker.run() {}
        assert!(bench.interrupted());
        data.extend(bench.receive(512));
    }
    assert_eq!(bench.read(STATUS), READY);
    assert_eq!(data, lock(&bench.disk.data)[10 * 512..610 * 512]);
    lock(&bench.channel).write_device_control(0x80);
    assert_eq!(bench.read(2), 2, "the value before the last");
}

#[test]
fn the_bus_master_moves_data_both_ways() {
    let bench = bench();
    bench.regions(&[(0x1_0000, 0x400), (0x2_0000, 0xc00)]);
    command(&bench, 0xc8, 5, 8);
    assert!(!bench.worker.run(), "not before it is started");
    bench.write_bus_master(0, &[9]);
    assert_eq!(bench.read_bus_master(2) & 7, 1, "active");
    assert!(bench.worker.run());
    assert!(bench.interrupted());
    assert_eq!(bench.read_bus_master(2) & 7, 4, "interrupt, no longer active");
    assert_eq!(bench.read(STATUS), READY);
    bench.write_bus_master(0, &[8]);
    bench.write_bus_master(2, &[4]);
    assert_eq!(bench.read_bus_master(2) & 7, 0);
    let mut data = vec![0; 8 * 512];
    bench.mem.read_slice(&mut data[..0x400], GuestAddress(0x1_0000)).unwrap();
    bench.mem.read_slice(&mut data[0x400..], GuestAddress(0x2_0000)).unwrap();
    assert_eq!(data, lock(&bench.disk.data)[5 * 512..13 * 512]);

    // The other way, started before the command.
    bench.write_bus_master(0, &[1]);
    command(&bench, 0xca, 900, 8);
    assert!(bench.worker.run());
    assert_eq!(lock(&bench.disk.data)[900 * 512..908 * 512], data);
    assert_eq!(bench.disk.flushes.load(Ordering::SeqCst), 0);
    command(&bench, 0xe7, 0, 0);
    assert!(bench.worker.run());
    assert_eq!(bench.disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn tables_that_do_not_fit_are_told_apart() {
    for (region, status, drive) in [
        ((0x1_0000, 0x200), 4, READY),
        ((0x1_0000, 0x400), 5, READY),
        ((0x1_0000, 0x100), 0, READY | DRQ),
        ((0xfff0_0000, 0x200), 6, READY | ERR),
    ] {
        let bench = bench();
        bench.regions(&[region]);
        command(&bench, 0xc8, 0, 1);
        bench.write_bus_master(0, &[9]);
        assert!(bench.worker.run());
        assert_eq!(bench.read_bus_master(2) & 7, status, "{region:?}");
        assert_eq!(bench.read(STATUS), drive, "{region:?}");
        // And it can be used again.
        lock(&bench.channel).write_device_control(4);
        lock(&bench.channel).write_device_control(0);
        bench.write_bus_master(0, &[0]);
        assert_eq!(bench.read(STATUS), READY);
    }
    assert_eq!(TABLE % 4, 0);
}

#[test]
fn sectors_that_do_not_exist_are_not_found() {
    for opcode in [0x20, 0x30, 0xc8, 0xca, 0x40] {
        let bench = bench();
        command(&bench, opcode, SECTORS as u32 - 1, 2);
        assert!(bench.interrupted());
        assert_eq!((bench.read(STATUS), bench.read(1)), (READY | ERR, IDNF));
        assert!(!bench.worker.run());
    }
    // Without LBA: the first sector of a track is 1.
    let bench = bench();
    command(&bench, 0x20, 0, 1);
    bench.worker.run();
    bench.receive(512);
    bench.write(DEVICE, 0xa0);
    bench.write(2, 1);
    bench.write(STATUS, 0x20);
    assert_eq!(bench.read(1), IDNF);
    for (offset, value) in [(2, 1), (3, 2), (6, 0xa1)] {
        bench.write(offset, value);
    }
    bench.write(STATUS, 0x20);
    assert!(bench.worker.run());
    assert_eq!(bench.receive(512), lock(&bench.disk.data)[64 * 512..65 * 512], "head 1");
}

#[test]
fn failures_of_the_image_reach_the_driver() {
    let bench = bench();
    bench.disk.errno.store(libc::EIO, Ordering::SeqCst);
    for (opcode, error) in [(0x20, UNC), (0xe7, ABRT)] {
        command(&bench, opcode, 0, 1);
        assert!(bench.worker.run());
        assert!(bench.interrupted());
        assert_eq!((bench.read(STATUS), bench.read(1)), (READY | ERR, error));
    }
    bench.cd.errno.store(libc::EIO, Ordering::SeqCst);
    packet(&bench, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1], false);
    assert!(bench.worker.run());
    assert_eq!((bench.read(STATUS), bench.read(1) >> 4), (READY | ERR, 3));
    assert!(bench.interrupted());
    packet(&bench, &[0x03, 0, 0, 0, 18], false);
    let sense = answer(&bench);
    assert_eq!((sense[2], sense[12]), (3, 0x11));
}

#[test]
fn a_disk_without_its_write_cache_writes_through() {
    let bench = bench();
    bench.write(1, 0x82);
    command(&bench, 0xef, 0, 0);
    assert!(bench.worker.run());
    command(&bench, 0x30, 0, 1);
    bench.send(&[1; 512]);
    assert!(bench.worker.run());
    assert_eq!(bench.disk.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn interrupts_can_be_held_back() {
    let bench = bench();
    lock(&bench.channel).write_device_control(2);
    command(&bench, 0xe5, 0, 0);
    assert!(!bench.interrupted());
    assert_eq!(bench.read_bus_master(2) & 4, 4, "the drive has asked all the same");
    lock(&bench.channel).write_device_control(0);
    assert!(bench.interrupted());
    assert_eq!(bench.read(2), 0xff, "active");
    bench.read(STATUS);
    for control in [2, 0] {
        lock(&bench.channel).write_device_control(control);
    }
    assert!(!bench.interrupted(), "reading the status acknowledged it");
}

#[test]
fn a_reset_cancels_what_is_under_way() {
    let bench = bench();
    bench.regions(&[(0x1_0000, 0x200)]);
    command(&bench, 0xc8, 0, 1);
    bench.write_bus_master(0, &[9]);
    lock(&bench.channel).write_device_control(4);
    assert!(!bench.worker.run());
    lock(&bench.channel).write_device_control(0);
    assert_eq!(bench.read(STATUS), READY);
    // Stopping the bus master does as well.
    bench.write_bus_master(0, &[0]);
    bench.write_bus_master(0, &[9]);
    command(&bench, 0xc8, 0, 1);
    bench.write_bus_master(0, &[0]);
    assert!(!bench.worker.run());
    assert_eq!(bench.read(STATUS), READY | DRQ);
    let late = lock(&bench.channel).take_job();
    assert!(late.is_none());
}

#[test]
fn a_cd_says_what_it_is_and_what_is_on_it() {
    let bench = bench();
    select(&bench, 1);
    bench.write(STATUS, 0xa1);
    assert!(bench.interrupted());
    assert_eq!(bench.receive(2), [0x80, 0x85]);
    packet(&bench, &[0x12, 0, 0, 0, 36], false);
    let inquiry = answer(&bench);
    assert_eq!((inquiry.len(), inquiry[0], &inquiry[8..15]), (36, 5, &b"MICROVM"[..]));
    packet(&bench, &[0x25], false);
    assert_eq!(answer(&bench), [0, 0, 0, 99, 0, 0, 8, 0]);
    packet(&bench, &[0x43, 0, 0, 0, 0, 0, 0, 0, 40], false);
    let toc = answer(&bench);
    assert_eq!((toc.len(), toc[2], toc[14], toc[19]), (20, 1, 0xaa, 100));
    packet(&bench, &[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 40], false);
    assert_eq!(answer(&bench)[8..], [0, 0, 3, 25], "block 100 is at 3 s and 25 frames");
    packet(&bench, &[0x46, 2, 0, 3, 0, 0, 0, 0, 40], false);
    assert_eq!(answer(&bench)[8..11], [0, 3, 3]);
    packet(&bench, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], false);
    assert_eq!(answer(&bench)[4..6], [0, 2], "no news, and a disc");
    packet(&bench, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128], false);
    let page = answer(&bench);
    assert_eq!((page[8], usize::from(page[1]) + 2), (0x2a, page.len()));
    packet(&bench, &[0, 0], false);
    assert!(answer(&bench).is_empty());
}

#[test]
fn a_cd_is_read_both_ways() {
    let bench = bench();
    packet(&bench, &[0x28, 0, 0, 0, 0, 3, 0, 0, 50], false);
    assert_eq!(answer(&bench), lock(&bench.cd.data)[3 * 2048..53 * 2048]);
    bench.regions(&[(0x1_0000, 0x1000)]);
    packet(&bench, &[0xa8, 0, 0, 0, 0, 98, 0, 0, 0, 2], true);
    bench.write_bus_master(0, &[9]);
    assert!(bench.worker.run());
    assert!(bench.interrupted());
    assert_eq!((bench.read(STATUS), bench.read(2)), (READY, 3));
    let mut data = vec![0; 4096];
    bench.mem.read_slice(&mut data, GuestAddress(0x1_0000)).unwrap();
    assert_eq!(data, lock(&bench.cd.data)[98 * 2048..]);
    // Answers go the same way.
    bench.write_bus_master(0, &[0]);
    bench.regions(&[(0x2_0000, 8)]);
    packet(&bench, &[0x25], true);
    bench.write_bus_master(0, &[9]);
    assert!(bench.worker.run());
    let last: [u8; 4] = bench.mem.read_obj(GuestAddress(0x2_0000)).unwrap();
    assert_eq!(last, [0, 0, 0, 99]);
}

#[test]
fn what_a_cd_cannot_do_is_told_by_its_sense() {
    let cases: [(&[u8], u8); 4] = [
        (&[0x28, 0, 0, 0, 0, 99, 0, 0, 2], 0x21),
        (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], 0x20),
        (&[0x5a, 0, 0x0e, 0, 0, 0, 0, 0, 8], 0x24),
        (&[0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], 0x21),
    ];
    for (wanted, code) in cases {
        let bench = bench();
        packet(&bench, wanted, false);
        assert!(bench.interrupted());
        assert_eq!((bench.read(STATUS), bench.read(1) >> 4), (READY | ERR, 5));
        for code in [code, 0] {
            packet(&bench, &[0x03, 0, 0, 0, 18], false);
            assert_eq!(answer(&bench)[12], code, "told once");
        }
    }
}

fn controller(bench: &Bench) -> Ide {
    let other = Channel::new([None, None], IrqLine::new().unwrap()).unwrap();
    Ide::new([bench.channel.clone(), Arc::new(Mutex::new(other))], 0xc000)
}

#[test]
fn the_controller_decodes_its_bus_master_where_its_bar_is() {
    let bench = bench();
    let mut ide = controller(&bench);
    assert_eq!(ide.io_bar(), Some((0xc000, 16)));
    let mut word = [0; 4];
    ide.read_config(0x40, &mut word);
    assert_eq!(word, [0, 0x80, 0, 0], "a channel without drives is off");
    ide.write_config(0x20, &0xc101u32.to_le_bytes());
    assert_eq!(ide.io_bar(), Some((0xc100, 16)));
    ide.write_io(4, &[0x44, 0x33, 0x22, 0x11]);
    assert_eq!(lock(&bench.channel).table(), 0x1122_3344);
    // Without bus mastering nothing moves until it is allowed.
    ide.write_config(4, &[1, 0]);
    bench.regions(&[(0x1_0000, 0x200)]);
    command(&bench, 0xc8, 0, 1);
    ide.write_io(0, &[9]);
    assert!(!bench.worker.run());
    ide.write_config(4, &[5, 0]);
    assert!(bench.worker.run());
}

#[test]
fn a_restored_controller_finishes_what_was_begun() {
    let first = bench();
    let ide = controller(&first);
    command(&first, 0x20, 3, 2);
    first.worker.run();
    let mut data = first.receive(700);
    let saved = ide.save().unwrap();
    let second = bench();
    let mut other = controller(&second);
    other.restore(&saved).unwrap();
    data.extend(second.receive(324));
    assert_eq!(data, lock(&second.disk.data)[3 * 512..5 * 512]);
    assert_eq!(second.read(STATUS), READY);
    // A job that nobody has begun is begun there.
    command(&first, 0x20, 3, 1);
    other.restore(&ide.save().unwrap()).unwrap();
    assert!(second.worker.run());
    assert_eq!(second.receive(512), lock(&second.disk.data)[3 * 512..4 * 512]);
    let small = Bench::new(8, 8);
    assert!(controller(&small).restore(&saved).is_err());
}

proptest! {
    #[test]
    fn no_driver_breaks_the_drives(program in prop::collection::vec(any::<u8>(), 0..400)) {
        hostile(&program);
    }
}
