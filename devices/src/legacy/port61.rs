//! System control port B, 0x61 (IBM PC AT Technical Reference, section 1-10):
//! the gate of timer 2, the speaker, parity checks.
//!
//! There is no timer 2 here: where KVM has one (`KVM_CREATE_PIT2` with the
//! speaker) it answers this port itself. Without one, software that waits for
//! the timer's output or for a memory refresh must not wait for ever: the
//! output always reads as high, and the refresh bit changes with every read.

use serde::{Deserialize, Serialize};

/// What can be written: timer gate, speaker, parity check and channel check
/// disabled.
const WRITABLE: u8 = 0x0f;
/// Refresh request: toggles with every memory refresh.
const REFRESH: u8 = 1 << 4;
/// Output of timer 2.
const OUT2: u8 = 1 << 5;

/// The port's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SystemControlB {
    control: u8,
    refresh: bool,
}

impl SystemControlB {
    /// What the guest reads.
    pub fn read(&mut self) -> u8 {
        self.refresh = !self.refresh;
        let refresh = if self.refresh { REFRESH } else { 0 };
        OUT2 | refresh | self.control & WRITABLE
    }

    /// What the guest writes.
    pub fn write(&mut self, value: u8) {
        self.control = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_ever() {
        let mut port = SystemControlB::default();
        port.write(0xff);
        let (a, b) = (port.read(), port.read());
        assert_eq!(a & OUT2 & b, OUT2);
        assert_eq!((a ^ b) & REFRESH, REFRESH);
        assert_eq!(a & 0xcf, WRITABLE, "no parity error");
    }
}
