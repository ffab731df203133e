//! Slots whose functions come and go while the guest runs: the registers through
//! which its ACPI methods learn of that (ACPI 6.5, 6.3: `_EJ0`, `Notify`).
//!
//! | port | register | |
//! | --- | --- | --- |
//! | 0x610 | `PCIU` | read: slots that have a new function, and clears it |
//! | 0x614 | `PCID` | read: slots that the guest is to give back, and clears it |
//! | 0x618 | `B0EJ` | write: slots that it gives back |
//!
//! A bit each, bit N for device N. What the DSDT does with them is in
//! `arch::acpi::hotplug`.
//!
//! ```text
//!  plugged ─► PCIU ─► GED: Notify (slot, 1) ─► the guest looks and finds it
//!  release ─► PCID ─► GED: Notify (slot, 3) ─► the guest stops using it, _EJ0
//!                                                   └─► B0EJ ─► off the bus ─► given_back
//! ```
//!
//! The guest gives back only what it was asked for: it could otherwise take a
//! disk away from the machine that its user still counts on.

use super::root::{MAX_DEVICES, Root, SharedFunction};
use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The first port.
pub const BASE: u16 = 0x610;
/// Ports from there on.
pub const SIZE: u64 = 12;

const PCIU: u64 = 0;
const PCID: u64 = 4;
const B0EJ: u64 = 8;

const KIND: &str = "PCI hot plug";
const VERSION: u32 = 1;

/// What the guest has still to be told, and what it was asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slots {
    /// New functions that it has not read of.
    up: u32,
    /// Requests that it has not read of.
    down: u32,
    /// Slots that it was asked to give back and has not.
    asked: u32,
}

/// The registers.
pub struct HotPlug {
    root: Arc<Root>,
    slots: Slots,
    /// What the guest gave back, for whoever takes it apart.
    given_back: Vec<(usize, SharedFunction)>,
    event: EventFd,
}

fn bit(slot: usize) -> u32 {
    if slot < MAX_DEVICES { 1 << slot } else { 0 }
}

impl HotPlug {
    /// The slots of `root`. Fails when the host is out of file descriptors.
    pub fn new(root: Arc<Root>) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { root, slots: Slots::default(), given_back: Vec::new(), event })
    }

    /// Another handle on what is written when the guest gives something back.
    pub fn event(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// There is a new function. The guest has to be told that something happened.
    pub fn plugged(&mut self, slot: usize) {
        self.slots.up |= bit(slot);
    }

    /// The guest is to give back a slot. It has to be told that something
    /// happened.
    pub fn release(&mut self, slot: usize) {
        self.slots.down |= bit(slot);
        self.slots.asked |= bit(slot);
    }

    /// Nothing is left to be asked of a slot: its function is gone.
    pub fn forget(&mut self, slot: usize) {
        let Slots { up, down, asked } = &mut self.slots;
        for bits in [up, down, asked] {
            *bits &= !bit(slot);
        }
    }

    /// What the guest has given back since the last call. It is off the bus.
    pub fn given_back(&mut self) -> Vec<(usize, SharedFunction)> {
        let _ = self.event.read();
        std::mem::take(&mut self.given_back)
    }

    fn eject(&mut self, slots: u32) {
        let mut slots = slots & self.slots.asked;
        while slots != 0 {
            let slot = slots.trailing_zeros() as usize;
            slots &= slots - 1;
            self.forget(slot);
            if let Some(function) = self.root.remove(slot) {
                self.given_back.push((slot, function));
                // It can fail only when it is full, and then it is readable.
                let _ = self.event.write(1);
            }
        }
    }

    /// The state of the registers.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new(KIND, VERSION, &self.slots)
    }

    /// Takes over a saved state. If the guest has something to read, it has to
    /// be told again; returns whether that is so.
    pub fn restore(&mut self, saved: &Saved) -> Result<bool, StateError> {
        self.slots = saved.open(KIND, VERSION)?;
        Ok(self.slots.up | self.slots.down != 0)
    }
}

impl BusDevice for HotPlug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Only whole registers are read; anything less would lose bits.
        let value = match (offset, data.len()) {
            (PCIU, 4) => std::mem::take(&mut self.slots.up),
            (PCID, 4) => std::mem::take(&mut self.slots.down),
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (B0EJ, Ok(slots)) = (offset, <[u8; 4]>::try_from(data)) {
            self.eject(u32::from_le_bytes(slots));
        }
    }
}

#[cfg(test)]
#[path = "hotplug_test.rs"]
mod tests;
