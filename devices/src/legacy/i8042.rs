//! The keyboard controller (Intel 8042), as far as resetting goes: no keyboard
//! and no mouse are attached. Commands as in the IBM PC AT Technical Reference,
//! section 1-46, and for the auxiliary device the PS/2 Hardware Interface
//! Technical Reference.
//!
//! A driver polls for half a second for each answer that does not come, so every
//! command that has one gets one. Port 0x61, between the controller's two, goes
//! to [`SystemControlB`].

use super::port61::SystemControlB;
use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// First port; of the range of [`SIZE`] ports 0x62 and 0x63 float.
pub const BASE: u16 = 0x60;
/// Ports 0x60 to 0x64.
pub const SIZE: u64 = 5;

/// The data port.
pub const DATA: u64 = 0;
/// Port 0x61.
const SYSTEM_CONTROL_B: u64 = 1;
/// Written: command; read: status.
pub const COMMAND: u64 = 4;

/// Status: output buffer full.
const OBF: u8 = 1 << 0;
/// Status: the last self test passed.
const SYSTEM_FLAG: u8 = 1 << 2;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 1 << 4;

const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const DISABLE_AUX: u8 = 0xa7;
const ENABLE_AUX: u8 = 0xa8;
const TEST_AUX: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// The next byte appears as if the keyboard had sent it.
const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
/// The next byte appears as if the auxiliary device had sent it.
const WRITE_AUX_BUFFER: u8 = 0xd3;
/// The next byte goes to the auxiliary device.
const WRITE_AUX: u8 = 0xd4;
/// Pulse output port line 0, which is wired to the processor's reset.
const PULSE_RESET: u8 = 0xfe;

/// Output port: A20 gate open, reset line high.
const OUTPUT_PORT: u8 = 0x03;
/// Output port bit that holds the processor in reset while low.
const RESET_LINE: u8 = 1;

/// Command byte: the keyboard's and the auxiliary device's clock is held.
const KEYBOARD_DISABLED: u8 = 1 << 4;
const AUX_DISABLED: u8 = 1 << 5;

/// What the self test answers: passed.
const SELF_TEST_PASSED: u8 = 0x55;
/// What the line tests answer with nothing attached: clock stuck low.
const CLOCK_LOW: u8 = 0x01;
/// What stands for the answer of a device that does not answer: "resend".
const RESEND: u8 = 0xfe;

/// The version of [`State`].
const VERSION: u32 = 1;

/// The controller's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct State {
    command_byte: u8,
    /// A command that waits for its data byte.
    pending: Option<u8>,
    /// The byte in the output buffer.
    output: Option<u8>,
    control_b: SystemControlB,
}

/// An 8042 with nothing attached.
pub struct I8042 {
    state: State,
    power: PowerLine,
}

impl I8042 {
    /// A controller after power-on.
    pub fn new(power: PowerLine) -> Self {
        Self { state: State::default(), power }
    }

    /// The controller's state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("i8042", VERSION, &self.state)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        self.state = saved.open("i8042", VERSION)?;
        Ok(())
    }

    fn command(&mut self, command: u8) {
        let state = &mut self.state;
        state.pending = None;
        match command {
            READ_COMMAND_BYTE => state.output = Some(state.command_byte),
            SELF_TEST => state.output = Some(SELF_TEST_PASSED),
            TEST_AUX | TEST_KEYBOARD => state.output = Some(CLOCK_LOW),
            READ_OUTPUT_PORT => state.output = Some(OUTPUT_PORT),
            DISABLE_KEYBOARD => state.command_byte |= KEYBOARD_DISABLED,
            ENABLE_KEYBOARD => state.command_byte &= !KEYBOARD_DISABLED,
            DISABLE_AUX => state.command_byte |= AUX_DISABLED,
            ENABLE_AUX => state.command_byte &= !AUX_DISABLED,
            WRITE_COMMAND_BYTE
            | WRITE_OUTPUT_PORT
            | WRITE_KEYBOARD_BUFFER
            | WRITE_AUX_BUFFER
            | WRITE_AUX => state.pending = Some(command),
            PULSE_RESET => self.power.request(PowerRequest::Reset),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        match self.state.pending.take() {
            Some(WRITE_COMMAND_BYTE) => self.state.command_byte = value,
            Some(WRITE_OUTPUT_PORT) if value & RESET_LINE == 0 => {
                self.power.request(PowerRequest::Reset);
            }
            // Without the status bit that would say it is the auxiliary
            // device's: drivers learn from that that there is no such port.
            Some(WRITE_KEYBOARD_BUFFER | WRITE_AUX_BUFFER) => self.state.output = Some(value),
            Some(WRITE_AUX) => self.state.output = Some(RESEND),
            // A keyboard would answer; none is there.
            _ => {}
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        match offset {
            DATA => *byte = self.state.output.take().unwrap_or(0),
            SYSTEM_CONTROL_B => *byte = self.state.control_b.read(),
            COMMAND => {
                let full = if self.state.output.is_some() { OBF } else { 0 };
                *byte = UNLOCKED | SYSTEM_FLAG | full;
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = data else { return };
        match offset {
            DATA => self.data(*byte),
            SYSTEM_CONTROL_B => self.state.control_b.write(*byte),
            COMMAND => self.command(*byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn get(dev: &mut I8042, offset: u64) -> u8 {
        let mut b = [0xff];
        dev.read(offset, &mut b);
        b[0]
    }

    #[test]
    fn a_pulse_on_the_reset_line_resets() {
        let (line, seen) = recorder();
        let mut dev = I8042::new(line);
        dev.write(COMMAND, &[0xff]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(COMMAND, &[PULSE_RESET]);
        dev.write(COMMAND, &[WRITE_OUTPUT_PORT]);
        dev.write(DATA, &[0x02]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Reset; 2]);
    }

    #[test]
    fn commands_answer_through_the_output_buffer() {
        let mut dev = I8042::new(recorder().0);
        assert_eq!(get(&mut dev, COMMAND) & OBF, 0);
        dev.write(COMMAND, &[SELF_TEST]);
        assert_eq!(get(&mut dev, COMMAND) & OBF, OBF);
        assert_eq!(get(&mut dev, DATA), 0x55);
        dev.write(COMMAND, &[WRITE_COMMAND_BYTE]);
        dev.write(DATA, &[0x47]);
        dev.write(COMMAND, &[READ_COMMAND_BYTE]);
        let saved = dev.save().unwrap();
        let mut other = I8042::new(recorder().0);
        other.restore(&saved).unwrap();
        assert_eq!(get(&mut other, DATA), 0x47);
        assert_eq!(get(&mut other, COMMAND) & OBF, 0);
    }

    /// `i8042_check_aux` of Linux: each wait without an answer takes 500 ms.
    #[test]
    fn a_driver_that_looks_for_a_mouse_is_not_kept_waiting() {
        let mut dev = I8042::new(recorder().0);
        for (command, value, answer) in [
            (WRITE_AUX_BUFFER, Some(0x5a), 0x5a),
            (TEST_AUX, None, 1),
            (WRITE_AUX, Some(0xf2), RESEND),
        ] {
            dev.write(COMMAND, &[command]);
            if let Some(value) = value {
                dev.write(DATA, &[value]);
            }
            let status = get(&mut dev, COMMAND);
            assert_eq!((status & OBF, status & 0x20), (OBF, 0), "{command:#x}");
            assert_eq!(get(&mut dev, DATA), answer, "{command:#x}");
        }
        dev.write(COMMAND, &[DISABLE_AUX]);
        dev.write(COMMAND, &[READ_COMMAND_BYTE]);
        assert_eq!(get(&mut dev, DATA), AUX_DISABLED);
    }

    #[test]
    fn port_61_is_between_its_ports() {
        let mut dev = I8042::new(recorder().0);
        dev.write(SYSTEM_CONTROL_B, &[3]);
        assert_eq!(get(&mut dev, SYSTEM_CONTROL_B) & 0x23, 0x23);
        assert_eq!(get(&mut dev, 2), 0xff, "the bus floats");
    }

    proptest! {
        #[test]
        fn no_accesses_make_it_panic(
            accesses in vec((any::<bool>(), 0..SIZE, vec(any::<u8>(), 1..5)), 0..200)
        ) {
            let mut dev = I8042::new(recorder().0);
            for (write, offset, mut data) in accesses {
                if write { dev.write(offset, &data) } else { dev.read(offset, &mut data) }
                let saved = dev.save().unwrap();
                dev.restore(&saved).unwrap();
            }
        }
    }
}
