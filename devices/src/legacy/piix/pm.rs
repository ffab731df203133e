//! PIIX4 power management (Intel 82371AB, chapter 7): the fixed hardware of ACPI
//! (ACPI 6.5, 4.8.3). Sixteen-bit registers but for the timer:
//!
//! | port | register | |
//! | --- | --- | --- |
//! | 0x600 | `PMSTS` | what happened: timer overflow, power button; write 1 to clear |
//! | 0x602 | `PMEN` | which of it raises the SCI |
//! | 0x604 | `PMCNTRL` | `SCI_EN`; `SUS_EN` with `SUS_TYP` 0: power off |
//! | 0x608 | `PMTMR` | 24 bits at 3.579545 MHz |
//!
//! The machine is always in ACPI mode: nothing has to be asked of an SMI handler,
//! and `SCI_EN` stays set. The timer's overflow is in `PMSTS` when that is read;
//! it raises no SCI by itself, which no operating system asks for.

use super::VENDOR;
use crate::bus::BusDevice;
use crate::legacy::power::{PowerLine, PowerRequest};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::intx::InterruptInputs;
use crate::pci::root::Function;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// Where the registers are (`PMBA`).
pub const BASE: u16 = 0x600;
/// Ports of them.
pub const SIZE: u64 = 64;
/// `PMSTS` and `PMEN`: the PM1a event block.
pub const EVENT_BLOCK: u16 = BASE;
/// `PMCNTRL`: the PM1a control block.
pub const CONTROL_BLOCK: u16 = BASE + 4;
/// `PMTMR`.
pub const TIMER_BLOCK: u16 = BASE + 8;
/// The system control interrupt.
pub const SCI: u32 = 9;
/// `SUS_TYP` of soft off, as `\_S5` tells it.
pub const SUS_TYP_OFF: u8 = 0;

const PMSTS: u64 = 0x00;
const PMEN: u64 = 0x02;
const PMCNTRL: u64 = 0x04;
const PMTMR: u64 = 0x08;

/// `PMSTS`: bit 23 of the timer has changed.
const TMROF_STS: u16 = 1 << 0;
/// `PMSTS`: the power button was pressed.
const PWRBTN_STS: u16 = 1 << 8;
/// `PMCNTRL`: events raise the SCI.
const SCI_EN: u16 = 1 << 0;
/// `PMCNTRL`: enter the state of `SUS_TYP`.
const SUS_EN: u16 = 1 << 13;
const SUS_TYP_SHIFT: u16 = 10;

/// `PMEN` bits that there are.
const PMEN_WRITABLE: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 10;
/// `PMCNTRL` bits that are kept: `BRLD_EN_BM` and `SUS_TYP`.
const PMCNTRL_WRITABLE: u16 = 1 << 1 | 7 << SUS_TYP_SHIFT;

/// The timer's frequency in Hz.
const FREQUENCY: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;
/// The timer's bits.
const TIMER_MASK: u64 = (1 << 24) - 1;
/// Ticks after which its highest bit changes.
const HALF: u64 = 1 << 23;

const KIND: &str = "piix4 pm";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    /// Ticks when `clock` was started.
    ticks: u64,
    /// Ticks up to which changes of the highest bit are in `status`.
    seen: u64,
    config: Vec<u8>,
}

/// The registers of power management.
pub struct PowerManagement {
    state: State,
    config: ConfigSpace,
    clock: Instant,
    inputs: Arc<dyn InterruptInputs>,
    sci: bool,
    power: PowerLine,
}

impl PowerManagement {
    /// The function as firmware has set it up. The SCI is input [`SCI`].
    pub fn new(inputs: Arc<dyn InterruptInputs>, power: PowerLine) -> Self {
        let identity = Identity { vendor: VENDOR, device: 0x7113, class: 0x06_8000, revision: 3 };
        let mut config = ConfigSpace::new(identity);
        // `PMBA`, at a fixed place, and `PMREGMISC`: it is decoded.
        config.set_registers(0x40, &[BASE as u8 | 1, (BASE >> 8) as u8, 0, 0], &[]);
        config.set_registers(0x80, &[1], &[0xff]);
        // `CNTA` … `DEVRESJ`, and `SMBBA` with its registers: kept for firmware.
        config.set_registers(0x44, &[0; 0x3c], &[0xff; 0x3c]);
        config.set_registers(0x90, &[0x01, 0, 0, 0], &[0, 0, 0, 0]);
        config.set_registers(0xd2, &[0; 5], &[0xff; 5]);
        config.set_interrupt(1, SCI as u8);
        let clock = Instant::now();
        Self { state: State::default(), config, clock, inputs, sci: false, power }
    }

    /// The power button.
    pub fn press(&mut self) {
        self.state.status |= PWRBTN_STS;
        self.update();
    }

    fn ticks(&self) -> u64 {
        let elapsed = self.clock.elapsed().as_nanos() * FREQUENCY / NANOSECONDS;
        self.state.ticks.wrapping_add(elapsed as u64)
    }

    /// Notes overflows since the last look.
    fn status(&mut self) -> u16 {
        let now = self.ticks();
        if now / HALF != self.state.seen / HALF {
            self.state.status |= TMROF_STS;
        }
        self.state.seen = now;
        self.state.status
    }

    fn update(&mut self) {
        let level = self.state.status & self.state.enable & PMEN_WRITABLE != 0;
        if level != self.sci {
            self.sci = level;
            self.inputs.set(SCI, level);
        }
    }

    /// The register at `offset` and what follows it, as the chip shows it.
    fn register(&mut self, offset: u64) -> u32 {
        match offset {
            PMSTS => u32::from(self.status()) | u32::from(self.state.enable) << 16,
            PMCNTRL => (self.state.control | SCI_EN).into(),
            PMTMR => (self.ticks() & TIMER_MASK) as u32,
            _ => 0,
        }
    }

    /// The registers' state.
    pub fn save(&self) -> Result<Saved, StateError> {
        let config = self.config.bytes().to_vec();
        let state = State { ticks: self.ticks(), config, ..self.state.clone() };
        Saved::new(KIND, VERSION, &state)
    }

    /// Takes over a saved state; the timer goes on from where it was.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        self.config.restore(&state.config);
        self.state = State { config: Vec::new(), ..state };
        self.clock = Instant::now();
        self.update();
        Ok(())
    }
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let aligned = offset & !3;
        let bytes = self.register(aligned).to_le_bytes();
        let from = bytes.get((offset - aligned) as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(from.iter().chain(std::iter::repeat(&0))) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Bytes of words that are not written keep their value; of `PMSTS`, in
        // which ones clear, they are zero.
        for (at, byte) in (offset..).zip(data) {
            let (register, high) = (at & !1, at & 1 != 0);
            let place = |old: u16| match high {
                true => old & 0x00ff | u16::from(*byte) << 8,
                false => old & 0xff00 | u16::from(*byte),
            };
            match register {
                PMSTS => {
                    self.status();
                    self.state.status &= !place(0);
                }
                PMEN => self.state.enable = place(self.state.enable) & PMEN_WRITABLE,
                PMCNTRL => {
                    let value = place(self.state.control);
                    self.state.control = value & PMCNTRL_WRITABLE;
                    let kind = value >> SUS_TYP_SHIFT & 7;
                    if value & SUS_EN != 0 && kind == u16::from(SUS_TYP_OFF) {
                        self.power.request(PowerRequest::PowerOff);
                    }
                }
                _ => {}
            }
        }
        self.update();
    }
}

impl Function for PowerManagement {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;
    use crate::pci::intx::testing::Recorder;
    use proptest::prelude::*;

    fn device() -> (PowerManagement, Arc<Recorder>) {
        let inputs = Arc::new(Recorder::default());
        (PowerManagement::new(inputs.clone(), recorder().0), inputs)
    }

    fn read(pm: &mut PowerManagement, offset: u64) -> u16 {
        let mut data = [0; 2];
        BusDevice::read(pm, offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn a_press_raises_the_sci_until_it_is_cleared() {
        let (mut pm, inputs) = device();
        pm.press();
        assert_eq!(inputs.take(), [], "not enabled");
        pm.write(PMEN, &PWRBTN_STS.to_le_bytes());
        assert_eq!(inputs.take(), [(SCI, true)]);
        assert_eq!(read(&mut pm, PMSTS) & PWRBTN_STS, PWRBTN_STS);
        pm.write(PMSTS, &[0xff]);
        assert_eq!(inputs.take(), [], "the other byte");
        pm.write(PMSTS + 1, &[0xff]);
        assert_eq!(inputs.take(), [(SCI, false)]);
        assert_eq!(read(&mut pm, PMSTS) & PWRBTN_STS, 0);
    }

    #[test]
    fn only_soft_off_with_enable_powers_off() {
        let (line, seen) = recorder();
        let mut pm = PowerManagement::new(Arc::new(Recorder::default()), line);
        for value in [0u16, 1 << SUS_TYP_SHIFT, SUS_EN | 1 << SUS_TYP_SHIFT, SCI_EN] {
            pm.write(PMCNTRL, &value.to_le_bytes());
        }
        assert!(seen.lock().unwrap().is_empty());
        pm.write(PMCNTRL, &SUS_EN.to_le_bytes());
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::PowerOff]);
        assert_eq!(read(&mut pm, PMCNTRL) & (SCI_EN | SUS_EN), SCI_EN, "always in ACPI mode");
    }

    #[test]
    fn the_timer_runs_at_its_frequency_and_tells_its_overflow() {
        let (mut pm, _) = device();
        let start = pm.ticks();
        let clock = Instant::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let passed = pm.ticks() - start;
        let wanted = (clock.elapsed().as_nanos() * FREQUENCY / NANOSECONDS) as u64;
        assert!(passed.abs_diff(wanted) < FREQUENCY as u64 / 100, "{passed} of {wanted}");
        let mut data = [0xff; 4];
        BusDevice::read(&mut pm, PMTMR, &mut data);
        assert_eq!(data[3], 0, "24 bits");
        pm.state.ticks += HALF;
        assert_eq!(read(&mut pm, PMSTS) & TMROF_STS, TMROF_STS);
        pm.write(PMSTS, &TMROF_STS.to_le_bytes());
        assert_eq!(read(&mut pm, PMSTS) & TMROF_STS, 0);
    }

    #[test]
    fn a_restored_device_goes_on() {
        let (mut a, _) = device();
        a.write(PMEN, &PWRBTN_STS.to_le_bytes());
        a.press();
        a.state.ticks = 12_345_678;
        let (mut b, inputs) = device();
        b.restore(&a.save().unwrap()).unwrap();
        assert_eq!(inputs.take(), [(SCI, true)]);
        assert!(b.ticks() >= 12_345_678);
        assert_eq!(read(&mut b, PMEN), PWRBTN_STS);
    }

    proptest! {
        #[test]
        fn no_accesses_make_it_panic(
            accesses in prop::collection::vec(
                (any::<bool>(), 0..SIZE, prop::collection::vec(any::<u8>(), 1..9)), 0..100)
        ) {
            let (mut pm, _) = device();
            for (write, offset, mut data) in accesses {
                match write {
                    true => pm.write(offset, &data),
                    false => BusDevice::read(&mut pm, offset, &mut data),
                }
                prop_assert_eq!(read(&mut pm, PMCNTRL) & SCI_EN, SCI_EN);
            }
        }
    }
}
