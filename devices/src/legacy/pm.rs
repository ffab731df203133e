//! Power management of a hardware-reduced ACPI machine (ACPI 6.5): sleep control
//! and status (4.8.3.7), the reset register (4.8.3.6), and the events of the
//! Generic Event Device (5.6.9): the power button, and PCI slots of which
//! something is to be told ([`crate::pci::hotplug`]). One byte each:
//!
//! | port | register | |
//! | --- | --- | --- |
//! | 0x600 | `SLEEP_CONTROL_REG` | write `SLP_EN` with `SLP_TYPx` 5: power off |
//! | 0x601 | `SLEEP_STATUS_REG` | reads 0: no wake status |
//! | 0x602 | `RESET_REG` | write: reset |
//! | 0x604 | events of the GED | read: what happened, and clears it |
//!
//! What the DSDT says of the button:
//!
//! ```text
//! Device (GED) {
//!     Name (_HID, "ACPI0013")
//!     Name (_CRS, ResourceTemplate () { Interrupt (ResourceConsumer, Edge, ActiveHigh) { gsi } })
//!     OperationRegion (EVTR, SystemIO, 0x604, 1)
//!     Field (EVTR, ByteAcc) { EVTS, 8 }
//!     Method (_EVT, 1, Serialized) {
//!         Local0 = EVTS
//!         If (Local0 & 1) { Notify (PWRB, 0x80) }
//!         If (Local0 & 2) { \_SB.PCI0.PCNT () }
//!     }
//! }
//! Device (PWRB) { Name (_HID, "PNP0C0C") }
//! ```

use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// `SLEEP_CONTROL_REG`.
pub const SLEEP_CONTROL: u16 = 0x600;
/// `SLEEP_STATUS_REG`.
pub const SLEEP_STATUS: u16 = 0x601;
/// `RESET_REG`; any write resets.
pub const RESET: u16 = 0x602;
/// Ports from [`SLEEP_CONTROL`] on.
pub const SIZE: u64 = 3;
/// Events of the Generic Event Device, the port of [`PowerButton`].
pub const GED_EVENTS: u16 = 0x604;
/// Ports of [`PowerButton`].
pub const GED_SIZE: u64 = 1;

/// Sleep control: enter the sleep state.
const SLP_EN: u8 = 1 << 5;
/// `SLP_TYPx` of the soft-off state, as the DSDT's `_S5_` tells it.
pub const SLP_TYP_S5: u8 = 5;

/// The three registers. They hold nothing between accesses.
pub struct PowerManagement {
    power: PowerLine,
}

impl PowerManagement {
    /// Registers that send their requests over `power`.
    pub fn new(power: PowerLine) -> Self {
        Self { power }
    }
}

impl BusDevice for PowerManagement {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No wake status is ever pending.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = data else { return };
        let soft_off = byte & SLP_EN != 0 && (byte >> 2) & 7 == SLP_TYP_S5;
        let register = offset + u64::from(SLEEP_CONTROL);
        if register == u64::from(SLEEP_CONTROL) && soft_off {
            self.power.request(PowerRequest::PowerOff);
        } else if register == u64::from(RESET) {
            self.power.request(PowerRequest::Reset);
        }
    }
}

/// Event: the power button was pressed.
const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Event: PCI slots have something to tell.
const EVENT_PCI_SLOTS: u8 = 1 << 1;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    events: u8,
}

/// The machine's power button and its other events, at [`GED_EVENTS`].
pub struct PowerButton {
    irq: IrqLine,
    events: u8,
}

impl PowerButton {
    /// A button that interrupts through `irq`, edge-triggered.
    pub fn new(irq: IrqLine) -> Self {
        Self { irq, events: 0 }
    }

    /// Asks the guest to shut down. It may take its time, or not listen.
    pub fn press(&mut self) {
        self.events |= EVENT_POWER_BUTTON;
        self.irq.raise();
    }

    /// Tells the guest to look at its PCI slots.
    pub fn slots_changed(&mut self) {
        self.events |= EVENT_PCI_SLOTS;
        self.irq.raise();
    }

    /// The button's state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("power button", VERSION, &State { events: self.events })
    }

    /// Takes over a saved state. An event that the guest had not read yet is
    /// announced again.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { events } = saved.open("power button", VERSION)?;
        self.events = events;
        if events != 0 {
            self.irq.raise();
        }
        Ok(())
    }
}

impl BusDevice for PowerButton {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = std::mem::take(&mut self.events);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn only_s5_with_enable_powers_off() {
        let (line, seen) = recorder();
        let mut dev = PowerManagement::new(line);
        for value in [0, SLP_EN, SLP_TYP_S5 << 2, SLP_EN | 3 << 2] {
            dev.write(0, &[value]);
        }
        dev.write(0, &[SLP_EN | SLP_TYP_S5 << 2, 0]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(0, &[SLP_EN | SLP_TYP_S5 << 2]);
        dev.write(2, &[1]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::PowerOff, PowerRequest::Reset]);
        let mut b = [0xff];
        dev.read(1, &mut b);
        assert_eq!(b, [0]);
    }

    fn button() -> (PowerButton, IrqLine) {
        let irq = IrqLine::new().unwrap();
        (PowerButton::new(irq.try_clone().unwrap()), irq)
    }

    #[test]
    fn a_press_is_read_once() {
        let (mut button, irq) = button();
        let mut b = [0xff];
        button.read(0, &mut b);
        assert_eq!(b, [0]);
        button.press();
        button.press();
        assert!(irq.eventfd().read().is_ok());
        for expected in [EVENT_POWER_BUTTON, 0] {
            button.read(0, &mut b);
            assert_eq!(b, [expected]);
        }
    }

    #[test]
    fn events_of_several_kinds_are_read_together() {
        let (mut button, irq) = button();
        button.slots_changed();
        button.press();
        assert_eq!(irq.eventfd().read().unwrap(), 2);
        let mut b = [0xff];
        button.read(0, &mut b);
        assert_eq!(b, [EVENT_POWER_BUTTON | EVENT_PCI_SLOTS]);
    }

    #[test]
    fn a_press_survives_a_restoration() {
        let (mut a, _irq) = button();
        a.press();
        let (mut b, irq) = button();
        b.restore(&a.save().unwrap()).unwrap();
        assert!(irq.eventfd().read().is_ok());
        let mut event = [0xff];
        b.read(0, &mut event);
        assert_eq!(event, [EVENT_POWER_BUTTON]);
    }

    proptest! {
        #[test]
        fn no_accesses_make_them_panic(
            accesses in vec((any::<bool>(), 0..SIZE, vec(any::<u8>(), 1..5)), 0..100)
        ) {
            let (mut button, _irq) = button();
            let mut dev = PowerManagement::new(recorder().0);
            for (write, offset, mut data) in accesses {
                if write {
                    dev.write(offset, &data);
                    button.write(offset, &data);
                } else {
                    dev.read(offset, &mut data);
                    button.read(offset, &mut data);
                }
            }
        }
    }
}
