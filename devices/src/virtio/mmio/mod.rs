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

#[cfg(test)]
mod tests;

use super::transport::{Core, Part};
pub use super::transport::{
    STATUS_ACKNOWLEDGE, STATUS_DEVICE_NEEDS_RESET, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FAILED,
    STATUS_FEATURES_OK,
};
use super::worker::Worker;
use super::{Interrupt, Ram, SharedVirtio};
use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

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

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// "µvm", more or less.
const VENDOR: u32 = 0x006d_7675;
/// The kind and version of the saved state.
const KIND: &str = "virtio-mmio";
const STATE_VERSION: u32 = 1;

/// A virtio device on the memory bus.
pub struct MmioTransport {
    core: Core,
}

impl MmioTransport {
    /// Puts `device` behind registers. Fails when the host is out of file
    /// descriptors.
    ///
    /// # Panics
    ///
    /// When the device's queues are not powers of two: a mistake in its code.
    pub fn new(mem: Ram, device: SharedVirtio, interrupt: Arc<Interrupt>) -> io::Result<Self> {
        Core::new(mem, device, interrupt).map(|core| Self { core })
    }

    /// One eventfd per queue, to be tied to [`QUEUE_NOTIFY`] as ioeventfds.
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.core.doorbells
    }

    /// How the device interrupts, to be tied to a GSI.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.core.interrupt
    }

    /// The device itself.
    pub fn device(&self) -> &SharedVirtio {
        &self.core.device
    }

    /// The worker that serves the device on an event loop.
    pub fn worker(&self) -> Worker {
        self.core.worker()
    }

    /// The state of transport, queues and device. Only while no vCPU runs and
    /// no event is being handled.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new(KIND, STATE_VERSION, &self.core.save()?)
    }

    /// Takes over a saved state and activates the device if it was active. On
    /// error the device is as after a reset.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        self.core.reset();
        self.core.restore(&saved.open(KIND, STATE_VERSION)?)
    }

    fn register(&mut self, offset: u64) -> Option<u32> {
        let core = &mut self.core;
        Some(match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => core.id as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => core.device_features(),
            QUEUE_NUM_MAX => core.selected().map_or(0, |q| q.max_size().into()),
            QUEUE_READY => core.selected().map_or(0, |q| q.ready().into()),
            INTERRUPT_STATUS => core.interrupt.status(),
            STATUS => core.status(),
            // No device here has shared memory: a length of -1 says so.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            QUEUE_RESET => 0,
            CONFIG_GENERATION => core.generation(),
            _ => return None,
        })
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        let core = &mut self.core;
        match offset {
            DEVICE_FEATURES_SEL => core.device_features_sel = value,
            DRIVER_FEATURES_SEL => core.driver_features_sel = value,
            DRIVER_FEATURES => core.set_driver_features(value),
            QUEUE_SEL => core.queue_sel = value,
            QUEUE_NUM => core.set_queue_size(value),
            QUEUE_READY => core.set_queue_ready(value & 1 != 0),
            QUEUE_NOTIFY => core.notify(value),
            INTERRUPT_ACK => core.interrupt.acknowledge(value),
            STATUS => core.set_status(value),
            QUEUE_DESC_LOW => core.set_queue_address(Part::Descriptors, Some(value), None),
            QUEUE_DESC_HIGH => core.set_queue_address(Part::Descriptors, None, Some(value)),
            QUEUE_DRIVER_LOW => core.set_queue_address(Part::Driver, Some(value), None),
            QUEUE_DRIVER_HIGH => core.set_queue_address(Part::Driver, None, Some(value)),
            QUEUE_DEVICE_LOW => core.set_queue_address(Part::Device, Some(value), None),
            QUEUE_DEVICE_HIGH => core.set_queue_address(Part::Device, None, Some(value)),
            // `SHMSel`, `QueueReset`, what is read-only, and what is nothing.
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.read_config(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && let Some(value) = self.register(offset)
        {
            *word = value.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.write_config(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(word));
        }
    }
}
