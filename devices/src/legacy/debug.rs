//! The POST code port of the PC, 0x80: firmware writes progress codes, Linux
//! writes to it to wait a microsecond. Benchmarks mark milestones with it.

use crate::bus::BusDevice;

/// The port.
pub const PORT: u16 = 0x80;

/// Takes codes and hands them to whoever listens.
#[derive(Default)]
pub struct PostCodes {
    last: Option<u8>,
    listener: Option<Box<dyn FnMut(u8) + Send>>,
}

impl PostCodes {
    /// A port that swallows codes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A port that tells `listener` every code, on the vCPU's thread.
    pub fn with_listener(listener: impl FnMut(u8) + Send + 'static) -> Self {
        Self { last: None, listener: Some(Box::new(listener)) }
    }

    /// The last code that was written.
    pub fn last(&self) -> Option<u8> {
        self.last
    }
}

impl BusDevice for PostCodes {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(code) = data.first() else { return };
        self.last = Some(*code);
        if let Some(listener) = &mut self.listener {
            listener(*code);
        }
    }
}

/// The port of firmware's own messages.
pub const CONSOLE: u16 = 0x402;
/// What it reads as where somebody listens.
const LISTENING: u8 = 0xe9;
/// A line is told at the latest when it is this long.
const LINE: usize = 200;

/// Collects firmware's messages into lines.
pub struct DebugConsole {
    line: Vec<u8>,
    listener: Box<dyn FnMut(&str) + Send>,
}

impl DebugConsole {
    /// A port that tells `listener` every line, on the vCPU's thread.
    pub fn new(listener: impl FnMut(&str) + Send + 'static) -> Self {
        Self { line: Vec::new(), listener: Box::new(listener) }
    }
}

impl BusDevice for DebugConsole {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(LISTENING);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for byte in data {
            if *byte != b'\n' {
                self.line.push(*byte);
            }
            if *byte == b'\n' || self.line.len() >= LINE {
                // A guest's bytes: nothing of them may reach a terminal as it is.
                let line = String::from_utf8_lossy(&self.line).escape_debug().to_string();
                (self.listener)(&line);
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn messages_are_told_in_lines() {
        let (tell, told) = mpsc::channel();
        let mut port = DebugConsole::new(move |line| tell.send(line.to_owned()).unwrap());
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [LISTENING]);
        b"Sea\x1b[2J\nBIOS".iter().for_each(|byte| port.write(0, &[*byte]));
        port.write(0, &[b'x'; LINE]);
        let lines: Vec<String> = told.try_iter().collect();
        assert_eq!(lines[0], "Sea\\u{1b}[2J");
        assert_eq!((lines.len(), lines[1].len()), (2, LINE));
    }

    #[test]
    fn codes_are_told_and_the_last_is_kept() {
        let (tell, told) = mpsc::channel();
        let mut port = PostCodes::with_listener(move |code| tell.send(code).unwrap());
        assert_eq!(port.last(), None);
        for code in [[0x12].as_slice(), &[0x34, 0x56], &[]] {
            port.write(0, code);
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [0x12, 0x34]);
        assert_eq!(port.last(), Some(0x34));
        let mut byte = [0xff];
        port.read(0, &mut byte);
        assert_eq!(byte, [0xff], "the bus floats");
    }
}
