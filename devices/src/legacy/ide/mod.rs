//! The IDE controller of the PIIX3 (Intel 82371SB, 2.3) with its drives: ATA
//! disks (T13 ATA/ATAPI-7, D1532) and ATAPI CD-ROMs (the same, and MMC-3).
//!
//! ```text
//!  guest ─ ports 1F0..1F7, 3F6 ─► Channel ─ command ─► Unit (a disk or a CD)
//!   │ ▲                              │ job                    │ registers, phase
//!   │ └── IRQ 14, 15 ◄───────────────┤                        ▼
//!   └─ BMIDE, BAR 4 ─► BusMaster ────┴─► Worker (event loop) ─► Media ─► image
//!                         PRD table ──────────────────────────► guest memory
//! ```
//!
//! Two channels of two drives each, at their addresses of the PC AT. A command
//! that needs the image makes the drive busy (`BSY`) and leaves a job for the
//! event loop, which interrupts when it is done: no vCPU waits for a file. Data
//! ports move what is in the drive's buffer already.
//!
//! A command is cancelled by a reset or when the bus master is stopped; whoever
//! does that waits until the image is no longer being used on its behalf, so that
//! nothing touches guest memory afterwards.

mod atapi;
mod channel;
mod disk;
mod identify;
mod media;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod unit;
mod worker;

pub use channel::Channel;
pub use unit::{Kind, Unit};
pub use worker::Worker;

use crate::bus::{BusDevice, lock};
use crate::legacy::piix::VENDOR;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::root::Function;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Channels of the controller.
pub const CHANNELS: usize = 2;
/// Drives of a channel.
pub const DRIVES: usize = 2;
/// The first port of each channel's command block, of [`COMMAND_SIZE`].
pub const COMMAND_PORTS: [u16; CHANNELS] = [0x1f0, 0x170];
/// Ports of a command block.
pub const COMMAND_SIZE: u64 = 8;
/// The port of each channel's control block.
pub const CONTROL_PORTS: [u16; CHANNELS] = [0x3f6, 0x376];
/// The interrupts of the channels.
pub const IRQS: [u32; CHANNELS] = [14, 15];
/// Ports of the bus master's registers, BAR 4.
pub const BUS_MASTER_SIZE: u16 = 16;
/// Of which each channel has these.
const BUS_MASTER_STEP: u16 = 8;
/// The BAR.
const BUS_MASTER_BAR: usize = 4;

/// `IDETIM`, a word for each channel.
const IDETIM: usize = 0x40;
/// `IDETIM`, upper byte: the channel's ports are decoded.
const DECODE_ENABLE: u8 = 1 << 7;

const KIND: &str = "piix3 ide";
const VERSION: u32 = 1;

/// A channel as its ports, the bus master and the worker share it.
pub type SharedChannel = Arc<Mutex<Channel>>;

/// The controller as a PCI function.
pub struct Ide {
    config: ConfigSpace,
    channels: [SharedChannel; CHANNELS],
}

#[derive(Serialize, Deserialize)]
struct State {
    config: Vec<u8>,
    channels: Vec<channel::State>,
}

impl Ide {
    /// The controller of `channels`, with its BAR at `base`, as firmware has set
    /// it up. A channel without drives is off: nobody probes it.
    pub fn new(channels: [SharedChannel; CHANNELS], base: u16) -> Self {
        // Both channels at their legacy addresses; a bus master.
        let identity = Identity { vendor: VENDOR, device: 0x7010, class: 0x01_0180, revision: 0 };
        let mut config = ConfigSpace::new(identity);
        config.set_io_bar(BUS_MASTER_BAR, base, BUS_MASTER_SIZE);
        for (i, channel) in channels.iter().enumerate() {
            let on = if lock(channel).is_empty() { 0 } else { DECODE_ENABLE };
            config.set_registers(IDETIM + 2 * i, &[0, on], &[0xff, 0xff]);
        }
        // `SIDETIM`; `UDMACTL`, `UDMATIM` and `IDE_CONFIG` of later chips.
        config.set_registers(0x44, &[0], &[0xff]);
        config.set_registers(0x48, &[0; 4], &[0xff; 4]);
        config.set_registers(0x54, &[0; 4], &[0xff; 4]);
        config.enable();
        Self { config, channels }
    }

    /// The state of the function, the channels and their drives.
    pub fn save(&self) -> Result<Saved, StateError> {
        let channels = self.channels.iter().map(|channel| lock(channel).save()).collect();
        Saved::new(KIND, VERSION, &State { config: self.config.bytes().to_vec(), channels })
    }

    /// Takes over a saved state; the drives must be there already.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        let fits = state.channels.len() == CHANNELS
            && self.channels.iter().zip(&state.channels).all(|(c, s)| lock(c).fits(s));
        if !fits {
            let reason = "other drives than these".to_owned();
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.config.restore(&state.config);
        for (channel, state) in self.channels.iter().zip(state.channels) {
            lock(channel).restore(state);
        }
        Ok(())
    }
}

impl Function for Ide {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        for channel in &self.channels {
            lock(channel).set_bus_master(self.config.bus_master());
        }
    }

    fn io_bar(&self) -> Option<(u16, u16)> {
        self.config.io_bar(BUS_MASTER_BAR).map(|base| (base, BUS_MASTER_SIZE))
    }

    fn read_io(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(channel) = self.channels.get(usize::from(offset / BUS_MASTER_STEP)) {
            lock(channel).read_bus_master(offset % BUS_MASTER_STEP, data);
        }
    }

    fn write_io(&mut self, offset: u16, data: &[u8]) {
        if let Some(channel) = self.channels.get(usize::from(offset / BUS_MASTER_STEP)) {
            lock(channel).write_bus_master(offset % BUS_MASTER_STEP, data);
        }
    }
}

/// The command block of a channel on the port bus.
pub struct CommandPorts(pub SharedChannel);

impl BusDevice for CommandPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.0).read_command_block(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.0).write_command_block(offset, data);
    }
}

/// The control block of a channel on the port bus.
pub struct ControlPort(pub SharedChannel);

impl BusDevice for ControlPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = lock(&self.0).alternate_status();
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [byte] = data {
            lock(&self.0).write_device_control(*byte);
        }
    }
}
