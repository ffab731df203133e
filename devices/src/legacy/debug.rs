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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

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
