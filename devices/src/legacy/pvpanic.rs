//! pvpanic (QEMU `docs/specs/pvpanic.rst`): the guest's kernel tells that it
//! panicked by writing a byte.

use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;

/// The port that QEMU gave it.
pub const PORT: u16 = 0x505;
/// A panic that no kernel for crash dumps takes care of.
const PANICKED: u8 = 1 << 0;
/// A crash kernel has been loaded and will take over: no end yet.
const CRASH_LOADED: u8 = 1 << 1;

/// The device; it has no state.
pub struct PvPanic {
    power: PowerLine,
}

impl PvPanic {
    /// A device that reports over `power`.
    pub fn new(power: PowerLine) -> Self {
        Self { power }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        match data {
            [byte] if byte & PANICKED != 0 => self.power.request(PowerRequest::Panic),
            [byte] if byte & CRASH_LOADED != 0 => {
                log::info!("the guest panicked and goes on in its crash kernel");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;

    #[test]
    fn only_a_panic_ends_the_machine() {
        let (line, seen) = recorder();
        let mut dev = PvPanic::new(line);
        dev.write(0, &[CRASH_LOADED]);
        dev.write(0, &[]);
        dev.write(0, &[PANICKED, 0]);
        dev.write(0, &[!(PANICKED | CRASH_LOADED)]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(0, &[PANICKED]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Panic]);
        let mut events = [0xff];
        dev.read(0, &mut events);
        assert_eq!(events, [PANICKED | CRASH_LOADED]);
    }
}
