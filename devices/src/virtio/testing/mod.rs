//! A driver without a guest: rings, registers and a disk in memory, for unit
//! tests, property tests and fuzzers alike.
//!
//! [`Rings`] is the driver's half of a queue, [`Bench`] a device behind its
//! transport with a worker that is run by hand, [`hostile`] the driver from hell.

pub mod driver;
pub mod hostile;
pub mod pci;
pub mod vsock;

use super::mmio::*;
use super::queue::Vq;
use super::worker::Worker;
use super::{Interrupt, Ram, SharedVirtio, VIRTIO_F_VERSION_1};
use crate::backend::disk::Disk;
use crate::bus::{BusDevice, lock};
use crate::irq::IrqLine;
use crate::virtio::queue::IoVecs;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// Where the second region of [`ram`] starts, right behind the first.
pub const SEAM: u64 = 0x10_0000;
/// Where the hole behind it starts.
pub const HOLE: u64 = 0x20_0000;
/// Where the third region starts.
pub const HIGH: u64 = 0x40_0000;
/// Where RAM ends.
pub const END: u64 = 0x50_0000;

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// Guest memory of three regions, two of them adjacent.
pub fn ram() -> Ram {
    let len = 0x10_0000;
    Ram::from_ranges(&[
        (GuestAddress(0), len),
        (GuestAddress(SEAM), len),
        (GuestAddress(HIGH), len),
    ])
    .expect("RAM for a test")
}

/// The driver's half of a queue.
#[derive(Debug, Clone)]
pub struct Rings {
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
    /// The available index that was published last.
    pub avail_idx: u16,
    /// The used index up to which everything was collected.
    pub used_idx: u16,
    next_descriptor: u16,
}

impl Rings {
    /// Rings one behind the other from `base` on, page by page.
    pub fn new(base: u64, size: u16) -> Self {
        let desc = base;
        let avail = (desc + 16 * u64::from(size)).next_multiple_of(4096);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4096);
        Self { size, desc, avail, used, avail_idx: 0, used_idx: 0, next_descriptor: 0 }
    }

    /// The device's half.
    pub fn queue(&self, max_size: u16) -> Vq {
        let mut q = Vq::new(max_size).expect("a power of two");
        q.set_size(self.size);
        q.set_desc_table_address(Some(self.desc as u32), Some((self.desc >> 32) as u32));
        q.set_avail_ring_address(Some(self.avail as u32), Some((self.avail >> 32) as u32));
        q.set_used_ring_address(Some(self.used as u32), Some((self.used >> 32) as u32));
        q.set_ready(true);
        q
    }

    /// Writes a descriptor of the table.
    pub fn descriptor(&self, mem: &Ram, index: u16, d: (u64, u32, u16, u16)) {
        descriptor(mem, self.desc, index, d);
    }

    /// Writes a chain into the next free descriptors; returns its head.
    pub fn chain(&mut self, mem: &Ram, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let all = readable.iter().map(|b| (*b, 0)).chain(writable.iter().map(|b| (*b, WRITE)));
        let count = readable.len() + writable.len();
        let head = self.next_descriptor;
        for (i, ((addr, len), flags)) in all.enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % self.size;
            let more = if i + 1 < count { NEXT } else { 0 };
            self.descriptor(mem, at, (addr, len, flags | more, self.next_descriptor));
        }
        head
    }

    /// Makes a chain available.
    pub fn offer(&mut self, mem: &Ram, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        put(mem, self.avail + 4 + 2 * slot, head);
        self.publish(mem, self.avail_idx.wrapping_add(1));
    }

    /// Publishes an available index, whatever it is.
    pub fn publish(&mut self, mem: &Ram, idx: u16) {
        self.avail_idx = idx;
        put(mem, self.avail + 2, idx);
    }

    /// What came back since the last call: head and length.
    pub fn collect(&mut self, mem: &Ram) -> Vec<(u32, u32)> {
        let mut back = Vec::new();
        while self.used_idx != get(mem, self.used + 2) {
            let at = self.used + 4 + 8 * u64::from(self.used_idx % self.size);
            let e: u64 = mem.read_obj(GuestAddress(at)).expect("rings are in RAM");
            back.push((e as u32, (e >> 32) as u32));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        back
    }
}

/// Writes a descriptor of any table.
pub fn descriptor(mem: &Ram, table: u64, index: u16, d: (u64, u32, u16, u16)) {
    let raw = u128::from(d.0) | u128::from(d.1) << 64 | u128::from(d.2) << 96;
    let raw = raw | u128::from(d.3) << 112;
    let addr = GuestAddress(table + 16 * u64::from(index));
    mem.write_slice(&raw.to_le_bytes(), addr).expect("tables are in RAM");
}

/// Reads a word of guest memory.
pub fn get(mem: &Ram, addr: u64) -> u16 {
    mem.read_obj(GuestAddress(addr)).expect("in RAM")
}

/// Writes a word of guest memory.
pub fn put(mem: &Ram, addr: u64, value: u16) {
    mem.write_obj(value, GuestAddress(addr)).expect("in RAM");
}

/// A disk in memory that remembers what was asked of it and fails on demand.
#[derive(Debug, Clone)]
pub struct MemDisk {
    /// The contents.
    pub data: Arc<Mutex<Vec<u8>>>,
    /// Flushes so far.
    pub flushes: Arc<AtomicU64>,
    /// The error that every operation ends in, or 0.
    pub errno: Arc<AtomicI32>,
    /// Whether it is read-only.
    pub read_only: bool,
}

impl MemDisk {
    /// A disk of `sectors`, all zero.
    pub fn new(sectors: usize) -> Self {
        Self {
            data: Arc::new(Mutex::new(vec![0; sectors * 512])),
            flushes: Arc::default(),
            errno: Arc::default(),
            read_only: false,
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        // An index out of range is a failure of the device under test.
        lock(&self.data)[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }
}

impl Disk for MemDisk {
    fn len(&self) -> u64 {
        lock(&self.data).len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&self, to: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
        self.check()?;
        let (start, len) = (offset as usize, to.len() as usize);
        to.copy_in(&lock(&self.data)[start..start + len]);
        Ok(())
    }
    fn write_at(&self, from: &mut IoVecs<'_>, offset: u64) -> io::Result<()> {
        self.check()?;
        assert!(!self.read_only, "a read-only disk is written to");
        let (start, len) = (offset as usize, from.len() as usize);
        from.copy_out(&mut lock(&self.data)[start..start + len]);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.check()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.zero(offset, len)
    }
}

/// Someone who interrupts in a device's place, and remembers how it is to.
#[derive(Debug, Default)]
pub struct Calls(pub Mutex<Vec<(usize, Option<std::os::fd::RawFd>)>>);

impl super::Caller for Calls {
    fn call(&self, queue: usize, line: Option<&vmm_sys_util::eventfd::EventFd>) {
        lock(&self.0).push((queue, line.map(std::os::fd::AsRawFd::as_raw_fd)));
    }
}

/// A device behind its registers, with a driver's view of it.
pub struct Bench {
    /// Guest memory.
    pub mem: Ram,
    /// The registers.
    pub transport: MmioTransport,
    /// What an event loop would run.
    pub worker: Worker,
    /// The driver's half of queue 0.
    pub rings: Rings,
    /// Whether the device answers later, by way of its first source.
    pub answers_later: bool,
}

impl Bench {
    /// A device after power-on.
    pub fn new(device: SharedVirtio) -> Self {
        let mem = ram();
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().expect("an eventfd")));
        let transport =
            MmioTransport::new(mem.clone(), device, interrupt).expect("eventfds for a test");
        let worker = transport.worker();
        let rings = Rings::new(0x1000, 16);
        Self { mem, transport, worker, rings, answers_later: false }
    }

    /// A device that its driver has brought up with `features`.
    pub fn started(device: SharedVirtio, features: u64) -> Self {
        let mut bench = Self::new(device);
        bench.start(features);
        bench
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Writes both halves of an address.
    pub fn write_address(&mut self, low: u64, value: u64) {
        self.write(low, value as u32);
        self.write(low + 4, (value >> 32) as u32);
    }

    /// The start of the ritual (3.1.1), up to the features.
    pub fn negotiate(&mut self, features: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, STATUS_ACKNOWLEDGE);
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let features = features | VIRTIO_F_VERSION_1;
        for (sel, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, sel);
            self.write(DRIVER_FEATURES, word);
        }
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    }

    /// Sets queue 0 up.
    pub fn set_up_queue(&mut self) {
        let rings = self.rings.clone();
        self.set_up(0, &rings);
    }

    /// Sets any queue up.
    pub fn set_up(&mut self, index: u32, rings: &Rings) {
        self.write(QUEUE_SEL, index);
        self.write(QUEUE_NUM, rings.size.into());
        self.write_address(QUEUE_DESC_LOW, rings.desc);
        self.write_address(QUEUE_DRIVER_LOW, rings.avail);
        self.write_address(QUEUE_DEVICE_LOW, rings.used);
        self.write(QUEUE_READY, 1);
    }

    /// The whole ritual, with fresh rings.
    pub fn start(&mut self, features: u64) {
        self.rings = Rings::new(0x1000, 16);
        self.mem.write_slice(&[0; 0x4000], GuestAddress(0x1000)).expect("in RAM");
        self.negotiate(features);
        self.set_up_queue();
        self.write(STATUS, self.transport_status() | STATUS_DRIVER_OK);
    }

    /// `Status`, without the mutability of a register read.
    fn transport_status(&self) -> u32 {
        STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK
    }

    /// Rings the doorbell and lets the worker run until it has nothing to do;
    /// returns how often it was called.
    pub fn kick(&mut self) -> usize {
        self.write(QUEUE_NOTIFY, 0);
        self.run()
    }

    /// Lets the worker run until it has nothing to do.
    ///
    /// # Panics
    ///
    /// When that takes forever.
    pub fn run(&mut self) -> usize {
        let doorbells = self.transport.doorbells().to_vec();
        for calls in 0..100_000 {
            let rung = doorbells.iter().position(|d| d.read().is_ok());
            let Some(queue) = rung else { return calls };
            self.worker.queue_event(queue);
        }
        panic!("the device spins");
    }

    /// Whether the driver sees an interrupt, which it then acknowledges.
    pub fn interrupted(&mut self) -> bool {
        let causes = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, causes);
        causes != 0
    }

    /// Whether the device asks for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.read(STATUS) & STATUS_DEVICE_NEEDS_RESET != 0
    }

    /// Sends one chain and waits for it: its used length, if it came back.
    pub fn request(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u32> {
        let head = self.rings.chain(&self.mem, readable, writable);
        self.rings.offer(&self.mem, head);
        self.kick();
        for _ in 0..100_000 {
            match self.rings.collect(&self.mem).as_slice() {
                [(id, len)] if *id == u32::from(head) => return Some(*len),
                [] if self.answers_later && !self.needs_reset() => {
                    std::thread::sleep(std::time::Duration::from_micros(50));
                    self.worker.source_event(0);
                }
                [] => return None,
                other => panic!("sent {head}, got {other:?}"),
            }
        }
        panic!("no answer");
    }
}
