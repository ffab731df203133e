//! What every transport has in common: features, queues and status of one
//! device (virtio 1.2, 2.1 and 3.1), and the rules of who may change what when.

mod state;

pub use state::TransportState;

use super::queue::{QueueError, Vq};
use super::worker::Worker;
use super::{
    Activation, DeviceError, DeviceId, Interrupt, Ram, SharedVirtio, VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
};
use crate::bus::lock;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// `ACKNOWLEDGE`.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// `DRIVER`.
pub const STATUS_DRIVER: u32 = 2;
/// `DRIVER_OK`.
pub const STATUS_DRIVER_OK: u32 = 4;
/// `FEATURES_OK`.
pub const STATUS_FEATURES_OK: u32 = 8;
/// `DEVICE_NEEDS_RESET`.
pub const STATUS_DEVICE_NEEDS_RESET: u32 = 64;
/// `FAILED`.
pub const STATUS_FAILED: u32 = 128;

/// As much of the configuration space as [`CONFIG_GENERATION`] watches: more
/// than any device has.
const CONFIG_WATCHED: usize = 256;

/// A device as its driver sees it, whatever the registers.
pub struct Core {
    mem: Ram,
    pub(super) device: SharedVirtio,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) id: DeviceId,
    offered: u64,
    pub(super) queues: Vec<Vq>,
    pub(super) doorbells: Vec<Arc<EventFd>>,
    /// What the driver has written; `DEVICE_NEEDS_RESET` is the interrupt's.
    status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    driver_features: [u32; 4],
    pub(super) queue_sel: u32,
    /// Whether the device holds its queues. Not so while `DRIVER_OK` is set
    /// after an activation that failed.
    activated: bool,
    config_generation: u32,
    config_seen: Vec<u8>,
}

/// One of the three parts of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

impl Core {
    /// Puts `device` behind registers. Fails when the host is out of file
    /// descriptors.
    ///
    /// # Panics
    ///
    /// When the device's queues are not powers of two: a mistake in its code.
    pub fn new(mem: Ram, device: SharedVirtio, interrupt: Arc<Interrupt>) -> io::Result<Self> {
        let (id, offered, sizes) = {
            let device = lock(&device);
            (device.id(), device.features(), device.queue_max_sizes().to_vec())
        };
        let mut queues = Vec::new();
        let mut doorbells = Vec::new();
        for size in sizes {
            let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
            let mut queue = Vq::new(size).expect("a device's queue sizes are powers of two");
            queue.set_doorbell(doorbell.clone());
            queues.push(queue);
            doorbells.push(doorbell);
        }
        Ok(Self {
            mem,
            device,
            interrupt,
            id,
            offered,
            queues,
            doorbells,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: [0; 4],
            queue_sel: 0,
            activated: false,
            config_generation: 0,
            config_seen: Vec::new(),
        })
    }

    /// The worker that serves the device on an event loop.
    pub fn worker(&self) -> Worker {
        Worker::new(self.device.clone(), self.interrupt.clone(), self.doorbells.clone())
    }

    fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    pub(super) fn features(&self) -> u64 {
        let [low, high, ..] = self.driver_features;
        u64::from(low) | u64::from(high) << 32
    }

    fn features_acceptable(&self) -> bool {
        let [.., more, most] = self.driver_features;
        let features = self.features();
        more == 0
            && most == 0
            && features & !self.offered == 0
            && features & VIRTIO_F_VERSION_1 != 0
    }

    /// The selected queue, if there is one.
    pub fn selected(&self) -> Option<&Vq> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, while the driver may set it up.
    fn selected_mut(&mut self) -> Option<&mut Vq> {
        let may = self.has(STATUS_FEATURES_OK) && self.status & NO_SETUP == 0;
        self.queues.get_mut(self.queue_sel as usize).filter(|_| may)
    }

    /// The selected queue, while the driver may move it.
    fn unready_mut(&mut self) -> Option<&mut Vq> {
        self.selected_mut().filter(|q| !q.ready())
    }

    /// `Status`.
    pub fn status(&self) -> u32 {
        match self.interrupt.needs_reset() {
            true => self.status | STATUS_DEVICE_NEEDS_RESET,
            false => self.status,
        }
    }

    /// The selected half of what the device offers.
    pub fn device_features(&self) -> u32 {
        match self.device_features_sel {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    /// The selected word of what the driver has accepted.
    pub fn driver_features(&self) -> u32 {
        self.driver_features.get(self.driver_features_sel as usize).copied().unwrap_or(0)
    }

    /// The driver accepts features.
    pub fn set_driver_features(&mut self, value: u32) {
        let may = self.has(STATUS_DRIVER) && self.status & FROZEN == 0;
        let word = self.driver_features.get_mut(self.driver_features_sel as usize);
        if let Some(word) = word.filter(|_| may) {
            *word = value;
        }
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The driver chooses the selected queue's size.
    pub fn set_queue_size(&mut self, value: u32) {
        if let Some(q) = self.unready_mut() {
            // A size that is too big for a queue must not become one that
            // isn't by losing its upper half.
            q.set_size(u16::try_from(value).unwrap_or(0));
        }
    }

    /// The driver enables or disables the selected queue.
    pub fn set_queue_ready(&mut self, ready: bool) {
        if let Some(q) = self.selected_mut() {
            q.set_ready(ready);
        }
    }

    /// The driver places a part of the selected queue, in halves.
    pub fn set_queue_address(&mut self, part: Part, low: Option<u32>, high: Option<u32>) {
        if let Some(q) = self.unready_mut() {
            match part {
                Part::Descriptors => q.set_desc_table_address(low, high),
                Part::Driver => q.set_avail_ring_address(low, high),
                Part::Device => q.set_used_ring_address(low, high),
            }
        }
    }

    /// A doorbell that did not go through an ioeventfd.
    pub fn notify(&self, queue: u32) {
        if let Some(doorbell) = self.doorbells.get(queue as usize) {
            // It can fail only when it is full, and then it is rung.
            let _ = doorbell.write(1);
        }
    }

    /// Reads the device's own configuration. Fields of 64 bits are read in
    /// halves (4.2.2.2).
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        if matches!(data.len(), 1 | 2 | 4) {
            data.fill(0);
            lock(&self.device).read_config(offset, data);
        }
    }

    /// Writes it.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        let alive = self.has(STATUS_DRIVER) && !self.has(STATUS_FAILED);
        if alive && matches!(data.len(), 1 | 2 | 4) {
            lock(&self.device).write_config(offset, data);
        }
    }

    /// Status bits are only ever added, in order, until all are reset by a 0.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        self.status |= value & (STATUS_ACKNOWLEDGE | STATUS_FAILED);
        if self.has(STATUS_ACKNOWLEDGE) {
            self.status |= value & STATUS_DRIVER;
        }
        if self.has(STATUS_DRIVER) && self.features_acceptable() {
            self.status |= value & STATUS_FEATURES_OK;
        }
        let start = value & STATUS_DRIVER_OK != 0;
        if start && self.has(STATUS_FEATURES_OK) && self.status & NO_SETUP == 0 {
            self.status |= STATUS_DRIVER_OK;
            if let Err(e) = self.activate() {
                log::warn!("virtio {:?}: not activated: {e}", self.id);
                self.interrupt.mark_needs_reset();
            }
        }
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let features = self.features();
        let queues = self.running_queues(features)?;
        let (mem, interrupt) = (self.mem.clone(), self.interrupt.clone());
        // On error the device is left as it was, inactive.
        lock(&self.device).activate(Activation { mem, queues, features, interrupt })?;
        self.activated = true;
        Ok(())
    }

    /// The queues as the device gets them. From then on they are its own, so
    /// nothing that is written to a register reaches them.
    fn running_queues(&mut self, features: u64) -> Result<Vec<Option<Vq>>, QueueError> {
        let mut queues = Vec::new();
        for q in &mut self.queues {
            q.set_event_idx(features & VIRTIO_RING_F_EVENT_IDX != 0);
            queues.push(match q.ready() {
                true => {
                    q.validate(&self.mem)?;
                    Some(q.clone())
                }
                false => None,
            });
        }
        Ok(queues)
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        {
            // Waits for a worker that is in the middle of an event. It marks
            // `DEVICE_NEEDS_RESET` under this lock, too, so that no mark of the
            // life before the reset arrives after it.
            let mut device = lock(&self.device);
            device.reset();
            self.interrupt.reset();
        }
        self.queues.iter_mut().for_each(Vq::reset);
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = [0; 4];
        self.queue_sel = 0;
        self.activated = false;
    }

    /// A number that is another one whenever the configuration has changed since
    /// the last look, so that the driver can read it in pieces.
    pub fn generation(&mut self) -> u32 {
        let mut config = vec![0; CONFIG_WATCHED];
        lock(&self.device).read_config(0, &mut config);
        if config != self.config_seen {
            self.config_seen = config;
            self.config_generation = self.config_generation.wrapping_add(1);
        }
        self.config_generation
    }
}

/// With one of these set, features no longer change.
const FROZEN: u32 = STATUS_FEATURES_OK | STATUS_DRIVER_OK | STATUS_FAILED;
/// With one of these set, queues no longer change.
const NO_SETUP: u32 = STATUS_DRIVER_OK | STATUS_FAILED;
