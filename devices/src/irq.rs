//! Interrupt lines, as a device sees them.

use std::io;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line: one write to an eventfd that the machine
/// has tied to a GSI (irqfd). Raising it needs no exit and no lock.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// A new line, tied to nothing yet.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(Self)
    }

    /// Another handle on the same line.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The eventfd, for whoever ties it to a GSI.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// Raises the interrupt. The only way this can fail is a counter that is
    /// full, and then the interrupt is already pending.
    pub fn raise(&self) {
        let _ = self.0.write(1);
    }
}

impl vm_superio::Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.raise();
        Ok(())
    }
}
