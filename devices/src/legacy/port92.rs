//! System control port A, 0x92 (IBM PS/2): the quick way to open the A20 gate,
//! and to reset the processor.

use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;

/// The port.
pub const PORT: u16 = 0x92;

/// Writing a 1 resets the processor.
const FAST_RESET: u8 = 1 << 0;
/// The gate is always open: no address line is ever held back here.
const A20: u8 = 1 << 1;

/// The port. It has no state.
pub struct SystemControlA {
    power: PowerLine,
}

impl SystemControlA {
    /// A port that resets over `power`.
    pub fn new(power: PowerLine) -> Self {
        Self { power }
    }
}

impl BusDevice for SystemControlA {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(A20);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|byte| byte & FAST_RESET != 0) {
            self.power.request(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;

    #[test]
    fn the_gate_is_open_and_bit_0_resets() {
        let (line, seen) = recorder();
        let mut port = SystemControlA::new(line);
        port.write(0, &[0]);
        port.write(0, &[A20]);
        let mut byte = [0xff];
        port.read(0, &mut byte);
        assert_eq!(byte, [A20]);
        assert!(seen.lock().unwrap().is_empty());
        port.write(0, &[A20 | FAST_RESET]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Reset]);
    }
}
