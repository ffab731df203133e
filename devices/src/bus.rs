//! Port and memory dispatch: which device answers at an address.
//!
//! ```text
//!   vCPU exit (port 0x3f9, 1 byte) ─► Bus::read ─► range 0x3f8..0x400 ─► Serial::read(offset 1)
//! ```
//!
//! A bus is assembled once and then shared by all vCPU threads without a lock
//! of its own; each device has its own mutex.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device that answers reads and writes of a range of ports or addresses.
///
/// `offset` counts from the start of the range. `data` has the length of the
/// access (1, 2, 4 or 8 bytes) and never reaches past the end of the range.
/// An access that the device does not define must leave `data` as it is
/// (all ones, as on a floating bus) or be ignored; it must never panic.
pub trait BusDevice: Send {
    /// The guest reads. `data` arrives filled with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a device can't be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes (or ports).
        len: u64,
    },
    /// Another device has part of the range.
    #[error("bus range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes (or ports).
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
}

/// A part of a device's range, where another device has the rest.
pub struct Part {
    device: SharedDevice,
    from: u64,
}

impl Part {
    /// What `device` has from offset `from` on.
    pub fn new(device: SharedDevice, from: u64) -> Self {
        Self { device, from }
    }
}

impl BusDevice for Part {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.device).read(self.from + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.device).write(self.from + offset, data);
    }
}

struct Entry {
    base: u64,
    len: u64,
    device: SharedDevice,
}

/// An address space of devices, sorted by first address.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// An empty bus: every read floats to ones, every write is dropped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base .. base + len`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let end =
            base.checked_add(len).filter(|_| len > 0).ok_or(BusError::BadRange { base, len })?;
        let at = self.entries.partition_point(|e| e.base < base);
        let before = at.checked_sub(1).and_then(|i| self.entries.get(i));
        let clash = before
            .filter(|e| e.base + e.len > base)
            .or_else(|| self.entries.get(at).filter(|e| e.base < end));
        if let Some(e) = clash {
            return Err(BusError::Overlap { base, len, other: e.base });
        }
        self.entries.insert(at, Entry { base, len, device });
        Ok(())
    }

    /// The device whose range holds the whole access, and the offset in it.
    fn find(&self, addr: u64, size: usize) -> Option<(u64, &SharedDevice)> {
        let i = self.entries.partition_point(|e| e.base <= addr).checked_sub(1)?;
        let e = &self.entries[i];
        let offset = addr - e.base;
        let end = offset.checked_add(size as u64)?;
        (end <= e.len).then_some((offset, &e.device))
    }

    /// Reads from the device at `addr`; without one, `data` becomes all ones.
    /// Returns whether a device answered.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                lock(device).read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes to the device at `addr`; without one the write is dropped.
    /// Returns whether a device took it.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                lock(device).write(offset, data);
                true
            }
            None => false,
        }
    }
}

/// Locks a device. A poisoned lock means that another thread panicked inside
/// the device; the process is about to end, so the state no longer matters.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(offset as u8));
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn echo(v: u8) -> SharedDevice {
        Arc::new(Mutex::new(Echo(v)))
    }

    #[test]
    fn finds_the_device_that_holds_the_whole_access() {
        let mut bus = Bus::new();
        bus.insert(0x10, 4, echo(1)).unwrap();
        bus.insert(0x20, 8, echo(2)).unwrap();
        let mut one = [0];
        assert!(bus.read(0x11, &mut one));
        assert_eq!(one, [2]);
        let mut four = [0; 4];
        assert!(!bus.read(0x12, &mut four), "an access across the end is nobody's");
        assert_eq!(four, [0xff; 4]);
        assert!(!bus.read(0x0f, &mut one));
        assert!(bus.write(0x27, &[9]));
        assert!(!bus.write(0x28, &[9]));
        assert!(!bus.read(u64::MAX, &mut four));
    }

    #[test]
    fn a_part_has_the_offsets_of_the_whole() {
        let whole = echo(1);
        let mut bus = Bus::new();
        bus.insert(0x60, 1, echo(9)).unwrap();
        bus.insert(0x64, 1, Arc::new(Mutex::new(Part::new(whole.clone(), 4)))).unwrap();
        let mut one = [0];
        assert!(bus.read(0x64, &mut one));
        assert_eq!(one, [5]);
        assert!(bus.write(0x64, &[7]));
        lock(&whole).read(0, &mut one);
        assert_eq!(one, [7]);
    }

    #[test]
    fn refuses_overlaps_and_bad_ranges() {
        let mut bus = Bus::new();
        bus.insert(0x10, 4, echo(1)).unwrap();
        for (base, len) in [(0x10, 1), (0x0f, 2), (0x13, 1), (0x0, 0x100)] {
            assert!(matches!(bus.insert(base, len, echo(0)), Err(BusError::Overlap { .. })));
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(bus.insert(base, len, echo(0)), Err(BusError::BadRange { .. })));
        }
        bus.insert(0x14, 1, echo(0)).unwrap();
        bus.insert(0x0f, 1, echo(0)).unwrap();
    }
}
