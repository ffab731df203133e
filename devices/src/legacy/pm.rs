//! Power management of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.7 and
//! 4.8.3.6): sleep control and status, and the reset register, a byte each.

use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;

/// `SLEEP_CONTROL_REG`.
pub const SLEEP_CONTROL: u16 = 0x600;
/// `SLEEP_STATUS_REG`.
pub const SLEEP_STATUS: u16 = 0x601;
/// `RESET_REG`; any write resets.
pub const RESET: u16 = 0x602;
/// Ports from [`SLEEP_CONTROL`] on.
pub const SIZE: u64 = 3;

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
        match offset + u64::from(SLEEP_CONTROL) {
            o if o == u64::from(SLEEP_CONTROL) => {
                if byte & SLP_EN != 0 && byte >> 2 & 7 == SLP_TYP_S5 {
                    self.power.request(PowerRequest::PowerOff);
                }
            }
            o if o == u64::from(RESET) => self.power.request(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;

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
}
