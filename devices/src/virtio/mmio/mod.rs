//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2.2).
//!
//! ```text
//!   guest ─► registers (0x000..0x100) ─► status machine, queues ─ DRIVER_OK ─► device.activate
//!         ─► configuration (0x100..)  ─► the device's own
//!         ─► QueueNotify ─► doorbell eventfd (by ioeventfd it never gets here)
//! ```
//!
//! The transport sits behind the bus, so its registers have one user at a time.
//! It takes the device's lock for the configuration space, activation and reset
//! only: interrupts are acknowledged without it.

mod state;
#[cfg(test)]
mod tests;

pub use state::MmioState;

use super::queue::{QueueError, Vq};
use super::worker::Worker;
use super::{
    Activation, DeviceError, DeviceId, Interrupt, Ram, SharedVirtio, VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
};
use crate::bus::{BusDevice, lock};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The size of the window on the bus.
pub const WINDOW: u64 = 0x1000;

// Register offsets, with the names of the specification.
/// `MagicValue`, R.
pub const MAGIC_VALUE: u64 = 0x000;
/// `Version`, R.
pub const VERSION: u64 = 0x004;
/// `DeviceID`, R.
pub const DEVICE_ID: u64 = 0x008;
/// `VendorID`, R.
pub const VENDOR_ID: u64 = 0x00c;
/// `DeviceFeatures`, R.
pub const DEVICE_FEATURES: u64 = 0x010;
/// `DeviceFeaturesSel`, W.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// `DriverFeatures`, W.
pub const DRIVER_FEATURES: u64 = 0x020;
/// `DriverFeaturesSel`, W.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// `QueueSel`, W.
pub const QUEUE_SEL: u64 = 0x030;
/// `QueueNumMax`, R.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// `QueueNum`, W.
pub const QUEUE_NUM: u64 = 0x038;
/// `QueueReady`, RW.
pub const QUEUE_READY: u64 = 0x044;
/// `QueueNotify`, W: where the machine ties the doorbells, one per queue, the
/// index of the queue being the 32-bit value that is written.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// `InterruptStatus`, R.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// `InterruptACK`, W.
pub const INTERRUPT_ACK: u64 = 0x064;
/// `Status`, RW.
pub const STATUS: u64 = 0x070;
/// `QueueDescLow`, W.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// `QueueDescHigh`, W.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// `QueueDriverLow`, W: the available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// `QueueDriverHigh`, W.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// `QueueDeviceLow`, W: the used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// `QueueDeviceHigh`, W.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// `SHMSel`, W.
pub const SHM_SEL: u64 = 0x0ac;
/// `SHMLenLow`, R, the first of four registers of a shared memory region.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// `SHMBaseHigh`, R, the last of them.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// `QueueReset`, RW: `VIRTIO_F_RING_RESET` is not offered, so it reads 0.
pub const QUEUE_RESET: u64 = 0x0c0;
/// `ConfigGeneration`, R.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// `Config`, RW: the device's own space starts here.
pub const CONFIG: u64 = 0x100;

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

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// "µvm", more or less.
const VENDOR: u32 = 0x006d_7675;
/// As much of the configuration space as [`CONFIG_GENERATION`] watches: more
/// than any device has.
const CONFIG_WATCHED: usize = 256;

/// A virtio device on the memory bus.
pub struct MmioTransport {
    mem: Ram,
    device: SharedVirtio,
    interrupt: Arc<Interrupt>,
    id: DeviceId,
    offered: u64,
    queues: Vec<Vq>,
    doorbells: Vec<Arc<EventFd>>,
    /// What the driver has written; `DEVICE_NEEDS_RESET` is the interrupt's.
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: [u32; 4],
    queue_sel: u32,
    /// Whether the device holds its queues. Not so while `DRIVER_OK` is set
    /// after an activation that failed.
    activated: bool,
    config_generation: u32,
    config_seen: Vec<u8>,
}

impl MmioTransport {
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

    /// One eventfd per queue, to be tied to [`QUEUE_NOTIFY`] as ioeventfds.
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// How the device interrupts, to be tied to a GSI.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// The device itself.
    pub fn device(&self) -> &SharedVirtio {
        &self.device
    }

    /// The worker that serves the device on an event loop.
    pub fn worker(&self) -> Worker {
        Worker::new(self.device.clone(), self.interrupt.clone(), self.doorbells.clone())
    }

    fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    fn features(&self) -> u64 {
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

    fn selected(&self) -> Option<&Vq> {
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

    fn register(&mut self, offset: u64) -> Option<u32> {
        Some(match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => self.id as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            QUEUE_NUM_MAX => self.selected().map_or(0, |q| q.max_size().into()),
            QUEUE_READY => self.selected().map_or(0, |q| q.ready().into()),
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS if self.interrupt.needs_reset() => self.status | STATUS_DEVICE_NEEDS_RESET,
            STATUS => self.status,
            // No device here has shared memory: a length of -1 says so.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            QUEUE_RESET => 0,
            CONFIG_GENERATION => self.generation(),
            _ => return None,
        })
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => {
                let may = self.has(STATUS_DRIVER) && self.status & FROZEN == 0;
                let word = self.driver_features.get_mut(self.driver_features_sel as usize);
                if let Some(word) = word.filter(|_| may) {
                    *word = value;
                }
            }
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NUM => {
                if let Some(q) = self.unready_mut() {
                    // A size that is too big for a queue must not become one
                    // that isn't by losing its upper half.
                    q.set_size(u16::try_from(value).unwrap_or(0));
                }
            }
            QUEUE_READY => {
                if let Some(q) = self.selected_mut() {
                    q.set_ready(value & 1 != 0);
                }
            }
            QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    // It can fail only when it is full, and then it is rung.
                    let _ = doorbell.write(1);
                }
            }
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            STATUS => self.set_status(value),
            QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => {
                if let Some(q) = self.unready_mut() {
                    match offset {
                        QUEUE_DESC_LOW => q.set_desc_table_address(Some(value), None),
                        QUEUE_DESC_HIGH => q.set_desc_table_address(None, Some(value)),
                        QUEUE_DRIVER_LOW => q.set_avail_ring_address(Some(value), None),
                        QUEUE_DRIVER_HIGH => q.set_avail_ring_address(None, Some(value)),
                        QUEUE_DEVICE_LOW => q.set_used_ring_address(Some(value), None),
                        QUEUE_DEVICE_HIGH => q.set_used_ring_address(None, Some(value)),
                        _ => {}
                    }
                }
            }
            // `SHMSel`, `QueueReset`, what is read-only, and what is nothing.
            _ => {}
        }
    }

    /// Status bits are only ever added, in order, until all are reset by a 0.
    fn set_status(&mut self, value: u32) {
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

    fn reset(&mut self) {
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
    fn generation(&mut self) -> u32 {
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

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            // Fields of 64 bits are read in halves (4.2.2.2).
            if matches!(data.len(), 1 | 2 | 4) {
                data.fill(0);
                lock(&self.device).read_config(offset, data);
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && let Some(value) = self.register(offset)
        {
            *word = value.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let alive = self.has(STATUS_DRIVER) && !self.has(STATUS_FAILED);
            if alive && matches!(data.len(), 1 | 2 | 4) {
                lock(&self.device).write_config(offset, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(word));
        }
    }
}
