//! The keyboard controller (Intel 8042), as far as resetting goes: no keyboard
//! and no mouse are attached. Commands as in the IBM PC AT Technical Reference,
//! section 1-46.

use super::power::{PowerLine, PowerRequest};
use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// First port; the range is [`SIZE`] ports long, most of them not ours.
pub const BASE: u16 = 0x60;
/// Ports 0x60 to 0x64.
pub const SIZE: u64 = 5;

const DATA: u64 = 0;
/// Written: command; read: status.
const COMMAND: u64 = 4;

/// Status: output buffer full.
const OBF: u8 = 1 << 0;
/// Status: the last self test passed.
const SYSTEM_FLAG: u8 = 1 << 2;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 1 << 4;

const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const TEST_AUX: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// Pulse output port line 0, which is wired to the processor's reset.
const PULSE_RESET: u8 = 0xfe;

/// Output port: A20 gate open, reset line high.
const OUTPUT_PORT: u8 = 0x03;
/// Output port bit that holds the processor in reset while low.
const RESET_LINE: u8 = 1;

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
        match command {
            READ_COMMAND_BYTE => self.state.output = Some(self.state.command_byte),
            SELF_TEST => self.state.output = Some(0x55),
            // Nothing there: the line test finds the clock line stuck low.
            TEST_AUX | TEST_KEYBOARD => self.state.output = Some(0x01),
            READ_OUTPUT_PORT => self.state.output = Some(OUTPUT_PORT),
            WRITE_COMMAND_BYTE | WRITE_OUTPUT_PORT => self.state.pending = Some(command),
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
            COMMAND => self.command(*byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::power::testing::recorder;

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
}
