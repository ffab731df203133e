//! The chips of a PC of 1997: the host bridge 82441FX (i440FX, Intel 290549) and
//! the PIIX, one device of three functions:
//!
//! | function | what | datasheet |
//! | --- | --- | --- |
//! | 00:00.0 | i440FX host bridge, 8086:1237 ([`HostBridge`]) | 82441FX, 3.2 |
//! | 00:01.0 | PIIX3 ISA bridge, 8086:7000 ([`IsaBridge`]) | 82371SB, 2.2 |
//! | 00:01.1 | PIIX3 IDE, 8086:7010 ([`super::ide`]) | 82371SB, 2.3 |
//! | 00:01.3 | PIIX4 power management, 8086:7113 ([`pm`]) | 82371AB, 7 |
//!
//! The ISA bridge routes the bus's interrupt lines ([`crate::pci::intx`]).

pub mod pm;
#[cfg(test)]
mod tests;

use super::power::{PowerLine, PowerRequest};
use crate::bus::{BusDevice, lock};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::intx::{LINES, Router, STANDARD_ROUTES};
use crate::pci::root::{ConfigPorts, Function, SharedFunction};
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Intel.
pub const VENDOR: u16 = 0x8086;
/// The device of the PIIX on bus 0.
pub const DEVICE: u8 = 1;
/// The function of the IDE controller.
const IDE_FUNCTION: u8 = 1;
/// The function of power management.
const PM_FUNCTION: u8 = 3;

/// `PAM[0:6]`: whether 0xc0000 to 0xfffff is read from and written to RAM.
pub const PAM: usize = 0x59;
/// `PAM0` has one half: 0xf0000 is RAM.
const PAM0_RAM: u8 = 0x30;
/// The others have two: both are RAM.
const PAM_RAM: u8 = 0x33;
/// `SMRAM`: system management RAM control.
const SMRAM: usize = 0x72;

const BRIDGE_KIND: &str = "i440fx";
const ISA_KIND: &str = "piix3";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    config: Vec<u8>,
}

fn save(kind: &'static str, config: &ConfigSpace) -> Result<Saved, StateError> {
    Saved::new(kind, VERSION, &State { config: config.bytes().to_vec() })
}

/// The host bridge.
///
/// All memory below 1 MiB is RAM from the start, as firmware leaves it after it
/// has copied itself there. The attributes (PAM) can be written and read back,
/// and change nothing: nothing else answers there.
pub struct HostBridge {
    config: ConfigSpace,
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl HostBridge {
    /// The bridge as firmware has set it up.
    pub fn new() -> Self {
        let identity = Identity { vendor: VENDOR, device: 0x1237, class: 0x06_0000, revision: 2 };
        let mut config = ConfigSpace::new(identity);
        let mut pam = [PAM_RAM; 7];
        pam[0] = PAM0_RAM;
        config.set_registers(PAM, &pam, &[0x33; 7]);
        // `DRAMC`, `DRB` and the rest of what firmware writes and reads back.
        config.set_registers(0x50, &[0; 9], &[0xff; 9]);
        config.set_registers(0x60, &[0; 8], &[0xff; 8]);
        config.set_registers(SMRAM, &[0x02], &[0x7f]);
        Self { config }
    }

    /// Its registers.
    pub fn save(&self) -> Result<Saved, StateError> {
        save(BRIDGE_KIND, &self.config)
    }

    /// Takes over saved registers.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { config } = saved.open(BRIDGE_KIND, VERSION)?;
        self.config.restore(&config);
        Ok(())
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }
}

/// `PIRQRC[A:D]`: where the interrupt lines of the bus lead.
pub const PIRQRC: usize = 0x60;

/// The ISA bridge, with the other functions of its chip.
pub struct IsaBridge {
    config: ConfigSpace,
    router: Arc<Router>,
    ide: Option<SharedFunction>,
    pm: SharedFunction,
}

impl IsaBridge {
    /// The bridge as firmware has set it up.
    pub fn new(router: Arc<Router>, ide: Option<SharedFunction>, pm: SharedFunction) -> Self {
        let identity = Identity { vendor: VENDOR, device: 0x7000, class: 0x06_0100, revision: 0 };
        let mut config = ConfigSpace::new(identity);
        config.set_multi_function();
        config.set_registers(PIRQRC, &STANDARD_ROUTES, &[0x8f; LINES]);
        // `IORT`, `XBCS`; `TOM`, `MSTAT`, `MBIRQ`; `APICBASE`, `DLC`, `SMICNTL` ….
        config.set_registers(0x4c, &[0x4d, 0, 0x03, 0], &[0xff; 4]);
        config.set_registers(0x69, &[0x02, 0, 0], &[0xff; 3]);
        config.set_registers(0x70, &[0x80], &[0xff]);
        config.set_registers(0x76, &[0x0c, 0x0c, 0, 0, 0, 0], &[0xff; 6]);
        config.set_registers(0x80, &[0, 0, 0], &[0x7f, 0, 0x0f]);
        Self { config, router, ide, pm }
    }

    fn apply_routes(&self) {
        let mut routes = [0; LINES];
        self.config.read(PIRQRC, &mut routes);
        self.router.route(routes);
    }

    /// Its registers.
    pub fn save(&self) -> Result<Saved, StateError> {
        save(ISA_KIND, &self.config)
    }

    /// Takes over saved registers.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { config } = saved.open(ISA_KIND, VERSION)?;
        self.config.restore(&config);
        self.apply_routes();
        Ok(())
    }
}

impl Function for IsaBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if offset < PIRQRC + LINES && PIRQRC < offset + data.len() {
            self.apply_routes();
        }
    }

    fn sibling(&self, number: u8) -> Option<SharedFunction> {
        match number {
            IDE_FUNCTION => self.ide.clone(),
            PM_FUNCTION => Some(self.pm.clone()),
            _ => None,
        }
    }

    // The IDE controller's is the only BAR of the chip.
    fn io_bar(&self) -> Option<(u16, u16)> {
        self.ide.as_ref().and_then(|ide| lock(ide).io_bar())
    }

    fn read_io(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(ide) = &self.ide {
            lock(ide).read_io(offset, data);
        }
    }

    fn write_io(&mut self, offset: u16, data: &[u8]) {
        if let Some(ide) = &self.ide {
            lock(ide).write_io(offset, data);
        }
    }
}

/// `RC`, the reset control register, which lies among the configuration ports.
pub const RESET_CONTROL: u16 = 0xcf9;
const RESET_CONTROL_OFFSET: u64 = 1;
/// `RC`: resets when it rises.
const RCPU: u8 = 1 << 2;
/// `RC`: a hard reset instead of one of the processor alone.
const SRST: u8 = 1 << 1;
/// What a write to `RC` resets the machine with.
pub const HARD_RESET: u8 = RCPU | SRST;

/// Configuration mechanism #1 and the reset control register between its bytes.
pub struct ConfigAndReset {
    ports: ConfigPorts,
    control: u8,
    power: PowerLine,
}

impl ConfigAndReset {
    /// The ports at [`crate::pci::root::CONFIG_ADDRESS`].
    pub fn new(ports: ConfigPorts, power: PowerLine) -> Self {
        Self { ports, control: 0, power }
    }
}

impl BusDevice for ConfigAndReset {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (RESET_CONTROL_OFFSET, [byte]) => *byte = self.control,
            (_, data) => self.ports.read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (RESET_CONTROL_OFFSET, [byte]) => {
                if byte & RCPU != 0 && self.control & RCPU == 0 {
                    self.power.request(PowerRequest::Reset);
                }
                self.control = byte & SRST;
            }
            _ => self.ports.write(offset, data),
        }
    }
}
