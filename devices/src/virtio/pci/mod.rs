//! The virtio-pci transport, modern only (virtio 1.2, 4.1): a function of the
//! PCI bus with one memory BAR.
//!
//! | offset in BAR 0 | what | capability |
//! | --- | --- | --- |
//! | `0x0000` | common configuration, 4.1.4.3 ([`common`]) | `VIRTIO_PCI_CAP_COMMON_CFG` |
//! | `0x1000` | ISR status, 4.1.4.5 | `VIRTIO_PCI_CAP_ISR_CFG` |
//! | `0x2000` | the device's own configuration | `VIRTIO_PCI_CAP_DEVICE_CFG` |
//! | `0x3000` | doorbells, one word a queue, 4.1.4.4 | `VIRTIO_PCI_CAP_NOTIFY_CFG` |
//! | `0x4000` | MSI-X table | MSI-X |
//! | `0x5000` | MSI-X pending bits | MSI-X |
//!
//! A BAR may be moved, and the doorbells, which are ioeventfds, go with it. A
//! function that is added while the machine runs has no place for its BAR until
//! the guest gives it one.

mod common;
#[cfg(test)]
mod tests;

use super::transport::{Core, TransportState};
use super::worker::Worker;
use super::{DeviceId, Interrupt, Ram, SharedVirtio};
use crate::bus::lock;
use crate::pci::config::{self, ConfigSpace, Identity};
use crate::pci::msix::{self, Msix, MsixState, Routes};
use crate::pci::root::Function;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const REGION: u64 = 0x1000;
/// `notify_off_multiplier`: bytes between two doorbells.
const NOTIFY_STEP: u64 = 4;

/// Vendor-specific capability.
pub(super) const VENDOR_CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;

/// The virtio vendor.
const VENDOR: u16 = 0x1af4;
/// Device IDs of modern devices start here.
const FIRST_DEVICE: u16 = 0x1040;

const KIND: &str = "virtio-pci";
const STATE_VERSION: u32 = 1;

/// Where the machine keeps doorbells: eventfds at guest addresses.
pub trait Doorbells: Send {
    /// Takes them away from one address and ties them to another, each
    /// `step` bytes behind the one before.
    fn moved(&self, doorbells: &[Arc<EventFd>], step: u64, from: Option<u64>, to: u64);
    /// Takes them away for good.
    fn removed(&self, doorbells: &[Arc<EventFd>], step: u64, from: u64);
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    core: Core,
    msix: Arc<Msix>,
    config: ConfigSpace,
    /// Where `VIRTIO_PCI_CAP_PCI_CFG` and MSI-X are in it.
    access_capability: usize,
    msix_capability: usize,
    doorbells: Box<dyn Doorbells>,
    /// The BAR that the doorbells are tied to.
    tied: Option<u64>,
    /// Whether it has left the machine.
    retired: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    transport: TransportState,
    msix: MsixState,
    config: Vec<u8>,
}

impl VirtioPci {
    /// Puts `device` behind a function whose BAR is at `base` first, 0: nowhere.
    /// Fails when the host is out of file descriptors.
    pub fn new(
        mem: Ram,
        device: SharedVirtio,
        base: u32,
        routes: Box<dyn Routes>,
        doorbells: Box<dyn Doorbells>,
    ) -> io::Result<Self> {
        let queues = lock(&device).queue_max_sizes().len();
        let msix = Arc::new(Msix::new(queues, routes)?);
        let core = Core::new(mem, device, Arc::new(Interrupt::messages(msix.clone())))?;
        let mut config = ConfigSpace::new(identity(core.id));
        config.set_bar0(base, BAR_SIZE);
        let room = || io::Error::other("no room for capabilities");
        let msix_capability = add_msix(&mut config, msix.len()).ok_or_else(room)?;
        let access_capability = add_regions(&mut config, queues).ok_or_else(room)?;
        let (tied, retired) = (None, false);
        let mut function = Self {
            core,
            msix,
            config,
            access_capability,
            msix_capability,
            doorbells,
            tied,
            retired,
        };
        if base != 0 {
            function.tie(base.into());
        }
        Ok(function)
    }

    /// An eventfd for each MSI-X vector, to be tied to GSIs.
    pub fn msix(&self) -> &Arc<Msix> {
        &self.msix
    }

    /// The worker that serves the device on an event loop.
    pub fn worker(&self) -> Worker {
        self.core.worker()
    }

    fn tie(&mut self, base: u64) {
        if self.tied != Some(base) {
            let from = self.tied.replace(base).map(|old| old + NOTIFY);
            self.doorbells.moved(&self.core.doorbells, NOTIFY_STEP, from, base + NOTIFY);
        }
    }

    /// The function leaves the machine, which has taken it off the bus and its
    /// worker off the event loop: the driver's queues are dropped, what it wrote
    /// is made durable, and an access that is late finds nothing.
    pub fn retire(&mut self) -> io::Result<()> {
        self.retired = true;
        self.core.reset();
        if let Some(base) = self.tied.take() {
            self.doorbells.removed(&self.core.doorbells, NOTIFY_STEP, base + NOTIFY);
        }
        lock(&self.core.device).leave()
    }

    /// The state of function, transport, queues and device.
    pub fn save(&self) -> Result<Saved, StateError> {
        let state = State {
            transport: self.core.save()?,
            msix: self.msix.save(),
            config: self.config.bytes().to_vec(),
        };
        Saved::new(KIND, STATE_VERSION, &state)
    }

    /// Takes over a saved state and activates the device if it was active. On
    /// error the device is as after a reset.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        self.core.reset();
        let state: State = saved.open(KIND, STATE_VERSION)?;
        if !self.msix.restore(&state.msix) {
            let reason = "another number of MSI-X vectors".to_owned();
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.config.restore(&state.config);
        if let Some(base) = self.config.bar0() {
            self.tie(base);
        }
        // The vectors again: a failed restore resets the device, and them.
        let restored = self.core.restore(&state.transport);
        if restored.is_ok() {
            self.msix.restore(&state.msix);
        }
        restored
    }

    /// What `VIRTIO_PCI_CAP_PCI_CFG` points at: an offset in the BAR and a length.
    fn access_window(&self) -> Option<(u64, usize)> {
        let mut raw = [0; 12];
        self.config.read(self.access_capability + 4, &mut raw);
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let (offset, length) = (word(4), word(8));
        let good = raw[0] == 0
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && offset < BAR_SIZE;
        good.then_some((offset.into(), length as usize))
    }

    /// Where the data of that capability is, if an access touches it.
    fn touches_access(&self, offset: usize, len: usize) -> bool {
        let data = self.access_capability + 16;
        offset < data + 4 && data < offset + len
    }

    fn message_control(&self) -> u16 {
        let mut control = [0; 2];
        self.config.read(self.msix_capability + 2, &mut control);
        u16::from_le_bytes(control)
    }
}

fn identity(id: DeviceId) -> Identity {
    // Base class and sub-class, PCI Code and ID Assignment 1.11.
    let class = match id {
        DeviceId::Net => 0x02_0000,
        DeviceId::Block => 0x01_8000,
        _ => 0xff_0000,
    };
    Identity { vendor: VENDOR, device: FIRST_DEVICE + id as u16, class, revision: 1 }
}

fn add_msix(config: &mut ConfigSpace, vectors: usize) -> Option<usize> {
    let mut body = Vec::new();
    body.extend((vectors as u16 - 1).to_le_bytes());
    body.extend((TABLE as u32).to_le_bytes());
    body.extend((PENDING as u32).to_le_bytes());
    config.add_capability(msix::CAPABILITY, &body, &[0, 0xc0])
}

/// The vendor capabilities; returns where the access capability starts.
fn add_regions(config: &mut ConfigSpace, queues: usize) -> Option<usize> {
    let notify = (queues as u64 * NOTIFY_STEP) as u32;
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    for (kind, offset, length, more) in [
        (CAP_COMMON, COMMON, common::SIZE, &[][..]),
        (CAP_ISR, ISR, 1, &[]),
        (CAP_DEVICE, DEVICE, REGION as u32, &[]),
        (CAP_NOTIFY, NOTIFY, notify, &step),
    ] {
        config.add_capability(VENDOR_CAPABILITY, &region(kind, offset, length, more), &[])?;
    }
    // bar, offset, length and data are the driver's.
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    config.add_capability(VENDOR_CAPABILITY, &region(CAP_PCI, 0, 0, &[0; 4]), &writable)
}

/// `struct virtio_pci_cap` behind its link.
fn region(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    let cap_len = 16 + more.len() as u8;
    let mut body = vec![cap_len, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if self.retired {
            return;
        }
        if self.touches_access(offset, data.len())
            && let Some((at, length)) = self.access_window()
        {
            let mut value = [0; 4];
            self.read_bar(at, &mut value[..length]);
            self.config.write(self.access_capability + 16, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if offset >= config::SIZE || self.retired {
            return;
        }
        self.config.write(offset, data);
        if let Some(base) = self.config.bar0() {
            self.tie(base);
        }
        let control = self.msix_capability + 2;
        if offset < control + 2 && control < offset + data.len() {
            self.msix.set_control(self.message_control());
            self.core.interrupt.redirect();
        }
        if self.touches_access(offset, data.len())
            && let Some((at, length)) = self.access_window()
        {
            let mut value = [0; 4];
            self.config.read(self.access_capability + 16, &mut value);
            self.write_bar(at, &value[..length]);
        }
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.config.bar0().filter(|_| !self.retired).map(|base| (base, BAR_SIZE.into()))
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        if self.retired {
            return;
        }
        let at = offset % REGION;
        match offset - at {
            COMMON => common::read(&mut self.core, &self.msix, at, data),
            ISR if at == 0 && !data.is_empty() => {
                // Reading it acknowledges (4.1.4.5.1).
                let causes = self.core.interrupt.status();
                self.core.interrupt.acknowledge(causes);
                data.fill(0);
                data[0] = causes as u8;
            }
            DEVICE => self.core.read_config(at, data),
            TABLE => self.msix.read_table(at, data),
            PENDING => self.msix.read_pending(at, data),
            _ => data.fill(0),
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        if self.retired {
            return;
        }
        let at = offset % REGION;
        match offset - at {
            COMMON => {
                common::write(&mut self.core, &self.msix, at, data);
                self.core.interrupt.redirect();
            }
            DEVICE => self.core.write_config(at, data),
            NOTIFY => self.core.notify((at / NOTIFY_STEP) as u32),
            TABLE => {
                self.msix.write_table(at, data);
                self.core.interrupt.redirect();
            }
            _ => {}
        }
    }
}
