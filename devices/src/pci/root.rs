//! The root bus: who answers at an address.
//!
//! Functions may come and go while the machine runs. Whoever reaches one keeps
//! it alive for the length of an access, and holds no lock of the bus meanwhile.

use super::config::{ConfigSpace, Identity};
use crate::bus::{BusDevice, lock};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// First port of configuration mechanism #1, of eight.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// Ports of configuration mechanism #1.
pub const CONFIG_PORTS: u64 = 8;
/// `CONFIG_ADDRESS`: accesses of `CONFIG_DATA` are configuration cycles.
const ENABLE: u32 = 1 << 31;

/// A function of the bus. Nothing it is given can be trusted.
pub trait Function: Send {
    /// Reads its configuration space.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes it.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Another function of the same device, 1 to 7.
    fn sibling(&self, _number: u8) -> Option<SharedFunction> {
        None
    }
    /// Where its memory BAR is decoded now, and its size.
    fn bar(&self) -> Option<(u64, u64)> {
        None
    }
    /// Reads from the BAR.
    fn read_bar(&mut self, _offset: u64, _data: &mut [u8]) {}
    /// Writes to the BAR.
    fn write_bar(&mut self, _offset: u64, _data: &[u8]) {}
    /// Where its I/O BAR is decoded now, and its size.
    fn io_bar(&self) -> Option<(u16, u16)> {
        None
    }
    /// Reads from the I/O BAR.
    fn read_io(&mut self, _offset: u16, _data: &mut [u8]) {}
    /// Writes to the I/O BAR.
    fn write_io(&mut self, _offset: u16, _data: &[u8]) {}
}

/// A function as the bus holds it.
pub type SharedFunction = Arc<Mutex<dyn Function>>;

/// The most devices on a bus.
pub const MAX_DEVICES: usize = 32;

/// Bus 0: device NN is the function in slot NN, and device 0 the host bridge.
pub struct Root {
    slots: RwLock<[Option<SharedFunction>; MAX_DEVICES]>,
}

impl Root {
    /// A bus with `functions` from device 1 on. More than fit are left out.
    pub fn new(functions: Vec<SharedFunction>) -> Arc<Self> {
        Self::behind(Arc::new(Mutex::new(HostBridge::new())), functions)
    }

    /// The same behind a host bridge of one's own.
    pub fn behind(bridge: SharedFunction, functions: Vec<SharedFunction>) -> Arc<Self> {
        let mut all = std::iter::once(bridge).chain(functions);
        Arc::new(Self { slots: RwLock::new(std::array::from_fn(|_| all.next())) })
    }

    /// Puts a function into a slot; whether the slot exists and was empty.
    pub fn insert(&self, slot: usize, function: SharedFunction) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(slot) {
            Some(place @ None) => {
                *place = Some(function);
                true
            }
            _ => false,
        }
    }

    /// Takes the function out of a slot, but for the host bridge: from now on
    /// the guest finds nothing there.
    pub fn remove(&self, slot: usize) -> Option<SharedFunction> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(slot).filter(|_| slot != 0)?.take()
    }

    /// The first slot without a function, but for those that have a bit in
    /// `except`.
    pub fn free_slot(&self, except: u32) -> Option<usize> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().enumerate().filter(|(_, function)| function.is_none());
        free.map(|(slot, _)| slot).find(|slot| except >> slot & 1 == 0)
    }

    /// Function, offset: only bus 0 exists.
    fn select(&self, address: u32) -> Option<(SharedFunction, usize)> {
        let (bus, devfn) = (address >> 16 & 0xff, address >> 8 & 0xff);
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let device = slots.get(devfn as usize >> 3)?.clone()?;
        drop(slots);
        let function = match devfn as u8 & 7 {
            0 => device,
            number => lock(&device).sibling(number)?,
        };
        Some((function, address as usize & 0xfc))
    }

    fn io_decoder(&self, port: u16, size: u16) -> Option<(SharedFunction, u16)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().flatten().find_map(|function| {
            let (base, len) = lock(function).io_bar()?;
            let offset = port.checked_sub(base)?;
            (offset.checked_add(size)? <= len).then(|| (function.clone(), offset))
        })
    }

    fn decoder(&self, address: u64, size: u64) -> Option<(SharedFunction, u64)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().flatten().find_map(|function| {
            let (base, len) = lock(function).bar()?;
            let offset = address.checked_sub(base)?;
            (offset.checked_add(size)? <= len).then(|| (function.clone(), offset))
        })
    }
}

/// A bridge that does nothing: software expects one at 00:00.0.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic host bridge, which no driver wants to program.
        let identity = Identity { vendor: 0x1b36, device: 0x0008, class: 0x06_0000, revision: 0 };
        Self(ConfigSpace::new(identity))
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// `CONFIG_ADDRESS` and `CONFIG_DATA`.
pub struct ConfigPorts {
    root: Arc<Root>,
    address: u32,
}

impl ConfigPorts {
    /// The ports of `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root, address: 0 }
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(4) {
            // Only a whole word is the register; anything less is not ours.
            None if offset == 0 && data.len() == 4 => {
                data.copy_from_slice(&self.address.to_le_bytes());
            }
            None => {}
            Some(byte) => {
                if let Some((function, register)) = self.root.select(self.address) {
                    lock(&function).read_config(register + byte as usize, data);
                }
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset.checked_sub(4), <[u8; 4]>::try_from(data)) {
            (None, Ok(word)) if offset == 0 => {
                self.address = u32::from_le_bytes(word) & 0x80ff_fffc;
            }
            (None, _) => {}
            (Some(byte), _) => {
                if let Some((function, register)) = self.root.select(self.address) {
                    lock(&function).write_config(register + byte as usize, data);
                }
            }
        }
    }
}

/// The memory window: wherever in it a BAR is now.
pub struct Window {
    root: Arc<Root>,
    base: u64,
}

impl Window {
    /// The window of `root` that starts at `base`.
    pub fn new(root: Arc<Root>, base: u64) -> Self {
        Self { root, base }
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((function, at)) = self.root.decoder(self.base + offset, data.len() as u64) {
            lock(&function).read_bar(at, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((function, at)) = self.root.decoder(self.base + offset, data.len() as u64) {
            lock(&function).write_bar(at, data);
        }
    }
}

/// The ports where I/O BARs can be.
pub struct PortWindow {
    root: Arc<Root>,
    base: u16,
}

impl PortWindow {
    /// The ports of `root` from `base` on.
    pub fn new(root: Arc<Root>, base: u16) -> Self {
        Self { root, base }
    }

    fn decoder(&self, offset: u64, len: usize) -> Option<(SharedFunction, u16)> {
        let port = u16::try_from(u64::from(self.base) + offset).ok()?;
        self.root.io_decoder(port, len as u16)
    }
}

impl BusDevice for PortWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((function, at)) = self.decoder(offset, data.len()) {
            lock(&function).read_io(at, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((function, at)) = self.decoder(offset, data.len()) {
            lock(&function).write_io(at, data);
        }
    }
}
