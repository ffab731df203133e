//! The POST code port of the PC, 0x80: firmware writes progress codes, Linux
//! writes to it to wait a microsecond. Benchmarks mark milestones with it.

use crate::bus::BusDevice;

/// The port.
pub const PORT: u16 = 0x80;

/// Takes codes and hands them to whoever listens.
#[derive(Default)]
pub struct PostCodes {
    listener: Option<Box<dyn FnMut(u8) + Send>>,
}

impl PostCodes {
    /// A port that swallows codes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A port that tells `listener` every code, on the vCPU's thread.
    pub fn with_listener(listener: impl FnMut(u8) + Send + 'static) -> Self {
        Self { listener: Some(Box::new(listener)) }
    }
}

impl BusDevice for PostCodes {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let (Some(listener), Some(code)) = (&mut self.listener, data.first()) {
            listener(*code);
        }
    }
}
