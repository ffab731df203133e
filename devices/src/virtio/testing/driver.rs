//! A driver of a device with many queues, over either transport.

use super::pci::PciBench;
use super::*;
use crate::pci::root::Function;
use crate::virtio::DeviceId;
use crate::virtio::pci::NOTIFY;
use vm_memory::GuestAddress;

/// Entries of each queue.
const SIZE: u16 = 16;
/// Where the rings of the first queue are, and from one queue to the next.
const RINGS: u64 = 0x1000;
const STEP: u64 = 0x3000;

/// A transport, as far as a driver needs it.
pub trait Carrier {
    /// A device after power-on.
    fn carry(device: SharedVirtio) -> Self;
    /// Guest memory.
    fn mem(&self) -> Ram;
    /// A reset, the features, the queues, and `DRIVER_OK`.
    fn begin(&mut self, features: u64, queues: &[Rings]);
    /// A reset alone.
    fn power_off(&mut self);
    /// Rings a doorbell.
    fn ring(&mut self, queue: usize);
    /// What an event loop would run.
    fn worker(&mut self) -> &mut Worker;
    /// The doorbells.
    fn doorbells(&self) -> Vec<Arc<vmm_sys_util::eventfd::EventFd>>;
    /// Reads the device's configuration, a byte.
    fn config(&mut self, offset: u64) -> u8;
    /// Writes it.
    fn set_config(&mut self, offset: u64, data: &[u8]);
    /// Whether the device asks for a reset.
    fn broken(&mut self) -> bool;
    /// Saves the state and takes it over again.
    fn save_and_restore(&mut self);
    /// Changes features and a queue, when it is too late for that.
    fn meddle(&mut self, queue: u16, value: u32);
}

impl Carrier for Bench {
    fn carry(device: SharedVirtio) -> Self {
        Self::new(device)
    }
    fn mem(&self) -> Ram {
        self.mem.clone()
    }
    fn begin(&mut self, features: u64, queues: &[Rings]) {
        self.negotiate(features);
        (0..).zip(queues).for_each(|(i, rings)| self.set_up(i, rings));
        let status = self.read(STATUS);
        self.write(STATUS, status | STATUS_DRIVER_OK);
    }
    fn power_off(&mut self) {
        self.write(STATUS, 0);
    }
    fn ring(&mut self, queue: usize) {
        self.write(QUEUE_NOTIFY, queue as u32);
    }
    fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }
    fn doorbells(&self) -> Vec<Arc<vmm_sys_util::eventfd::EventFd>> {
        self.transport.doorbells().to_vec()
    }
    fn config(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.transport.read(CONFIG + offset, &mut data);
        data[0]
    }
    fn set_config(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(CONFIG + offset, data);
    }
    fn broken(&mut self) -> bool {
        self.needs_reset()
    }
    fn save_and_restore(&mut self) {
        // A device may say that it can not be saved as it is; then it is not.
        let Ok(saved) = self.transport.save() else { return };
        self.transport.restore(&saved).expect("and restored");
    }
    fn meddle(&mut self, queue: u16, value: u32) {
        self.write(DRIVER_FEATURES, value);
        self.write(QUEUE_SEL, queue.into());
        for register in [QUEUE_NUM, QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW] {
            self.write(register, value);
        }
        self.write(QUEUE_READY, value & 1);
    }
}

/// Where the device's configuration is in the BAR.
const PCI_DEVICE: u64 = 0x2000;

impl Carrier for PciBench {
    fn carry(device: SharedVirtio) -> Self {
        Self::new(device)
    }
    fn mem(&self) -> Ram {
        self.mem.clone()
    }
    fn begin(&mut self, features: u64, queues: &[Rings]) {
        self.start_queues(features, queues);
    }
    fn power_off(&mut self) {
        self.write(0x14, 0, 1);
    }
    fn ring(&mut self, queue: usize) {
        self.write(NOTIFY + 4 * queue as u64, queue as u64, 4);
    }
    fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }
    fn doorbells(&self) -> Vec<Arc<vmm_sys_util::eventfd::EventFd>> {
        self.host.doorbells.lock().expect("no test panicked").clone()
    }
    fn config(&mut self, offset: u64) -> u8 {
        self.read(PCI_DEVICE + offset, 1) as u8
    }
    fn set_config(&mut self, offset: u64, data: &[u8]) {
        self.function.write_bar(PCI_DEVICE + offset, data);
    }
    fn broken(&mut self) -> bool {
        self.read(0x14, 1) as u32 & STATUS_DEVICE_NEEDS_RESET != 0
    }
    fn save_and_restore(&mut self) {
        // A device may say that it can not be saved as it is; then it is not.
        let Ok(saved) = self.function.save() else { return };
        self.function.restore(&saved).expect("and restored");
    }
    fn meddle(&mut self, queue: u16, value: u32) {
        self.write(0x0c, value.into(), 4);
        self.write(0x16, queue.into(), 2);
        self.write(0x18, value.into(), 2);
        [0x20, 0x28, 0x30].iter().for_each(|address| self.write(*address, value.into(), 4));
        self.write(0x1c, (value & 1).into(), 2);
    }
}

/// A driver and its device.
pub struct Driver<C> {
    /// The transport.
    pub carrier: C,
    /// Guest memory.
    pub mem: Ram,
    /// The driver's half of each queue.
    pub rings: Vec<Rings>,
    features: u64,
    device: SharedVirtio,
}

impl<C: Carrier> Driver<C> {
    /// A device that was brought up with all that it offers but the event index.
    pub fn new(device: SharedVirtio) -> Self {
        let offered = lock(&device).features() & !crate::virtio::VIRTIO_RING_F_EVENT_IDX;
        Self::with_features(device, offered)
    }

    /// A device that was brought up with `features`.
    pub fn with_features(device: SharedVirtio, features: u64) -> Self {
        let carrier = C::carry(device.clone());
        let mem = carrier.mem();
        let mut new = Self { carrier, mem, rings: Vec::new(), features, device };
        new.start();
        new
    }

    /// Which device it is.
    pub fn id(&self) -> DeviceId {
        lock(&self.device).id()
    }

    /// A reset, and the whole ritual with fresh rings.
    pub fn start(&mut self) {
        self.carrier.power_off();
        let count = lock(&self.device).queue_max_sizes().len() as u64;
        self.rings = (0..count).map(|i| Rings::new(RINGS + i * STEP, SIZE)).collect();
        let blank = vec![0; (count * STEP) as usize];
        self.mem.write_slice(&blank, GuestAddress(RINGS)).expect("in RAM");
        self.carrier.begin(self.features, &self.rings);
        self.run();
    }

    /// Lets the worker run until it has nothing to do.
    ///
    /// # Panics
    ///
    /// When that takes forever.
    pub fn run(&mut self) {
        let doorbells = self.carrier.doorbells();
        for _ in 0..100_000 {
            let rung = doorbells.iter().position(|d| d.read().is_ok());
            let Some(queue) = rung else { return };
            self.carrier.worker().queue_event(queue);
        }
        panic!("the device spins");
    }

    /// A source of the device's own is ready.
    pub fn source(&mut self, source: usize) {
        self.carrier.worker().source_event(source);
        self.run();
    }

    /// Sends a chain through a queue; returns its head.
    pub fn send(&mut self, queue: usize, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let rings = &mut self.rings[queue];
        let head = rings.chain(&self.mem, readable, writable);
        rings.offer(&self.mem, head);
        self.carrier.ring(queue);
        self.run();
        head
    }

    /// What came back in a queue: heads and lengths.
    pub fn collect(&mut self, queue: usize) -> Vec<(u32, u32)> {
        self.rings[queue].collect(&self.mem)
    }

    /// Sends a chain and waits for it: its used length, if it came back.
    pub fn request(
        &mut self,
        queue: usize,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> Option<u32> {
        let head = self.send(queue, readable, writable);
        match self.collect(queue).as_slice() {
            [(id, len)] if *id == u32::from(head) => Some(*len),
            [] => None,
            other => panic!("sent {head}, got {other:?}"),
        }
    }

    /// Whether the device asks for a reset.
    pub fn broken(&mut self) -> bool {
        self.carrier.broken()
    }

    /// One of the device's counters.
    pub fn counter(&self, name: &str) -> Option<u64> {
        lock(&self.device).counters().into_iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}
