//! A channel without a guest, for unit tests, property tests and fuzzers.

use super::{Channel, Kind, SharedChannel, Unit, Worker};
use crate::bus::lock;
use crate::irq::IrqLine;
use crate::virtio::Ram;
use crate::virtio::testing::{MemDisk, ram};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// Where [`Bench::regions`] puts its table.
pub const TABLE: u64 = 0x8000;

/// A channel with a disk and a CD, and a worker that is run by hand.
pub struct Bench {
    /// Guest memory.
    pub mem: Ram,
    /// The channel.
    pub channel: SharedChannel,
    /// The disk's contents.
    pub disk: MemDisk,
    /// The CD's.
    pub cd: MemDisk,
    /// What an event loop would run.
    pub worker: Worker,
    irq: IrqLine,
}

impl Bench {
    /// A channel with a disk and a CD of these sizes, in sectors of 512 bytes.
    ///
    /// # Panics
    ///
    /// When there are no descriptors left.
    pub fn new(sectors: usize, cd: usize) -> Self {
        let irq = IrqLine::new().expect("an eventfd");
        let line = irq.try_clone().expect("another");
        let (disk, cd) = (MemDisk::new(sectors), MemDisk::new(cd));
        let serial = || "S1".to_owned();
        let units = [
            Some(Unit::new(Kind::Disk, Box::new(disk.clone()), serial(), true)),
            Some(Unit::new(Kind::Cd, Box::new(cd.clone()), serial(), true)),
        ];
        let channel = Channel::new(units, line).expect("an eventfd");
        let channel = Arc::new(Mutex::new(channel));
        let mem = ram();
        let worker = Worker::new(channel.clone(), mem.clone());
        Self { mem, channel, disk, cd, worker, irq }
    }

    /// Writes a register of the command block.
    pub fn write(&self, offset: u64, value: u8) {
        lock(&self.channel).write_command_block(offset, &[value]);
    }

    /// Reads one.
    pub fn read(&self, offset: u64) -> u8 {
        let mut byte = [0xff];
        lock(&self.channel).read_command_block(offset, &mut byte);
        byte[0]
    }

    /// Writes a register of the bus master.
    pub fn write_bus_master(&self, offset: u16, data: &[u8]) {
        lock(&self.channel).write_bus_master(offset, data);
    }

    /// Reads one.
    pub fn read_bus_master(&self, offset: u16) -> u8 {
        let mut byte = [0xff];
        lock(&self.channel).read_bus_master(offset, &mut byte);
        byte[0]
    }

    /// Writes words to the data port.
    pub fn send(&self, data: &[u8]) {
        for pair in data.chunks(2) {
            lock(&self.channel).write_command_block(0, pair);
        }
    }

    /// Reads words from it.
    pub fn receive(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        for pair in data.chunks_mut(2) {
            lock(&self.channel).read_command_block(0, pair);
        }
        data
    }

    /// Whether the drive has interrupted since the last time.
    pub fn interrupted(&self) -> bool {
        self.irq.eventfd().read().is_ok()
    }

    /// A table of physical region descriptors.
    ///
    /// # Panics
    ///
    /// When there are too many.
    pub fn regions(&self, regions: &[(u32, u16)]) {
        for (i, (address, count)) in (0u64..).zip(regions) {
            let last = if i + 1 == regions.len() as u64 { 1 << 63 } else { 0 };
            let raw = u64::from(*address) | u64::from(*count) << 32 | last;
            self.mem.write_obj(raw, GuestAddress(TABLE + 8 * i)).expect("in RAM");
        }
        self.write_bus_master(4, &(TABLE as u32).to_le_bytes());
    }
}

/// Lets a driver that knows no protocol loose on the drives: every few bytes are
/// an access, a descriptor or the event loop's turn.
pub fn hostile(program: &[u8]) {
    const SECTORS: usize = 64;
    let bench = Bench::new(SECTORS, SECTORS);
    for step in program.chunks_exact(4) {
        let [kind, a, b, c] = [step[0], step[1], step[2], step[3]];
        match kind % 9 {
            0 => bench.write(u64::from(a % 8), b),
            1 => drop(bench.read(u64::from(a % 8))),
            2 => bench.write_bus_master(u16::from(a % 10), &[b, c]),
            3 => drop(bench.read_bus_master(u16::from(a))),
            4 => drop(bench.receive(usize::from(a) * 16)),
            5 => bench.send(&step.repeat(usize::from(a) + 1)),
            6 => lock(&bench.channel).write_device_control(a),
            7 => bench.regions(&[(u32::from(a) << 12, u16::from(b) << 8), (u32::from(c) << 14, 0)]),
            // A whole command, which is hard to hit upon byte by byte.
            _ => {
                for (offset, value) in [(6, a), (2, b), (3, c), (4, 0), (5, 0)] {
                    bench.write(offset, value);
                }
                bench
                    .write(7, [0x20, 0x30, 0xc8, 0xca, 0x25, 0x35, 0xa0, 0xec][usize::from(c % 8)]);
            }
        }
        while a & 1 == 0 && bench.worker.run() {}
        let state = lock(&bench.channel).save();
        assert!(lock(&bench.channel).fits(&state), "what can be saved can be restored: {state:?}");
    }
}
