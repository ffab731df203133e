//! The firmware configuration device, by which SeaBIOS learns what machine it is
//! on (QEMU `docs/specs/fw_cfg.rst`).
//!
//! | port | register | |
//! | --- | --- | --- |
//! | 0x510 | selector | 16 bits: which item; reading begins at its start |
//! | 0x511 | data | the item's next byte; zeros behind its end |
//! | 0x514 | DMA address | big-endian, the upper half first; the lower half starts it |
//!
//! Items are numbers for what every machine has, and files, which the directory
//! names. Nothing can be written to them.

use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use crate::virtio::Ram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestAddress};

/// The first port.
pub const BASE: u16 = 0x510;
/// Ports from there on.
pub const SIZE: u64 = 12;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

/// Items that every machine has.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// One byte: the timer's interrupt, 0, comes to pin 2 of the IOAPIC, which the
/// firmware's own tables then tell.
const IRQ0_OVERRIDE: u16 = 0x8002;
/// `ID`: the ports work, and DMA does.
const ID_DMA: u32 = 1 << 1 | 1;
/// What the DMA address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// A file's name in the directory, its NUL included.
const NAME: usize = 56;

// The control word of a DMA access.
const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;
/// A longer access is an error: no item is, and zeros take time.
const MAX_LENGTH: u32 = 16 << 20;

/// Names and contents of files.
#[derive(Debug, Clone, Default)]
pub struct Files(Vec<(&'static str, Vec<u8>)>);

impl Files {
    /// Adds one; names that don't fit are cut.
    pub fn add(&mut self, name: &'static str, content: impl Into<Vec<u8>>) {
        self.0.push((name, content.into()));
    }
}

const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    selector: u16,
    offset: u32,
    dma_high: u32,
}

/// The device. Its items are the machine's configuration and no state.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    ram: Ram,
    state: State,
}

impl FwCfg {
    /// A device for a machine with `cpus` processors.
    pub fn new(ram: Ram, cpus: u16, files: Files) -> Self {
        let mut items = BTreeMap::new();
        items.insert(SIGNATURE, b"QEMU".to_vec());
        items.insert(ID, ID_DMA.to_le_bytes().to_vec());
        items.insert(CPUS, cpus.to_le_bytes().to_vec());
        items.insert(MAX_CPUS, cpus.to_le_bytes().to_vec());
        items.insert(IRQ0_OVERRIDE, vec![1]);
        let mut directory = (files.0.len() as u32).to_be_bytes().to_vec();
        for (selector, (name, content)) in (FIRST_FILE..).zip(files.0) {
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(selector.to_be_bytes());
            directory.extend([0; 2]);
            let mut field: Vec<u8> = name.bytes().take(NAME - 1).collect();
            field.resize(NAME, 0);
            directory.extend(field);
            items.insert(selector, content);
        }
        items.insert(DIRECTORY, directory);
        Self { items, ram, state: State::default() }
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.state.selector).map(Vec::as_slice).unwrap_or_default();
        item.get(self.state.offset as usize..).unwrap_or_default()
    }

    fn select(&mut self, selector: u16) {
        self.state.selector = selector;
        self.state.offset = 0;
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.state.offset = self.state.offset.saturating_add(1);
        byte
    }

    /// Carries out the access that the structure at `at` describes.
    fn dma(&mut self, at: u64) {
        let Ok([control, length, high, low]) = self.ram.read_obj::<[u32; 4]>(GuestAddress(at))
        else {
            return;
        };
        let (control, length) = (u32::from_be(control), u32::from_be(length));
        let address = u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low));
        let result = match self.transfer(control, length, address) {
            Some(()) => 0,
            None => CONTROL_ERROR,
        };
        // Where it was read from it can be written to.
        let _ = self.ram.write_obj(result.to_be(), GuestAddress(at));
    }

    fn transfer(&mut self, control: u32, length: u32, address: u64) -> Option<()> {
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & CONTROL_READ != 0 {
            if length > MAX_LENGTH {
                return None;
            }
            let rest = self.rest();
            let len = rest.len().min(length as usize);
            self.ram.write_slice(&rest[..len], GuestAddress(address)).ok()?;
            let zeros = vec![0; length as usize - len];
            if !zeros.is_empty() {
                let behind = GuestAddress(address.checked_add(len as u64)?);
                self.ram.write_slice(&zeros, behind).ok()?;
            }
        } else if control & CONTROL_WRITE != 0 {
            return None;
        } else if control & CONTROL_SKIP == 0 {
            return Some(());
        }
        self.state.offset = self.state.offset.saturating_add(length);
        Some(())
    }

    /// Its state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("fw_cfg", VERSION, &self.state)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        self.state = saved.open("fw_cfg", VERSION)?;
        Ok(())
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            // A string instruction comes byte by byte.
            DATA => data.iter_mut().for_each(|byte| *byte = self.next_byte()),
            DMA_HIGH..SIZE => {
                let from = (offset - DMA_HIGH) as usize;
                let part = DMA_SIGNATURE.get(from..from + data.len());
                part.into_iter().for_each(|part| data.copy_from_slice(part));
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECTOR, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (DMA_HIGH, [a, b, c, d]) => self.state.dma_high = u32::from_be_bytes([*a, *b, *c, *d]),
            (DMA_LOW, [a, b, c, d]) => {
                let high = std::mem::take(&mut self.state.dma_high);
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                self.dma(u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MEMORY: u64 = 1 << 20;

    fn device() -> FwCfg {
        let ram = Ram::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let mut files = Files::default();
        files.add("bootorder", "disk\0");
        files.add("etc/e820", vec![1, 2, 3]);
        FwCfg::new(ram, 3, files)
    }

    fn select(device: &mut FwCfg, item: u16) {
        device.write(SELECTOR, &item.to_le_bytes());
    }

    fn bytes(device: &mut FwCfg, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                let mut byte = [0xff];
                device.read(DATA, &mut byte);
                byte[0]
            })
            .collect()
    }

    fn dma(device: &mut FwCfg, control: u32, length: u32, address: u64) -> u32 {
        let words = [control, length, (address >> 32) as u32, address as u32].map(u32::to_be);
        device.ram.write_obj(words, GuestAddress(0x100)).unwrap();
        device.write(DMA_HIGH, &[0; 4]);
        device.write(DMA_LOW, &0x100u32.to_be_bytes());
        u32::from_be(device.ram.read_obj(GuestAddress(0x100)).unwrap())
    }

    #[test]
    fn items_are_read_from_their_start_and_end_in_zeros() {
        let mut device = device();
        assert_eq!(bytes(&mut device, 6), b"QEMU\0\0");
        select(&mut device, CPUS);
        assert_eq!(bytes(&mut device, 3), [3, 0, 0]);
        select(&mut device, 0x7777);
        assert_eq!(bytes(&mut device, 2), [0, 0]);
        let mut signature = [0; 4];
        device.read(DMA_HIGH, &mut signature);
        assert_eq!(&signature, b"QEMU");
    }

    #[test]
    fn the_directory_leads_to_files() {
        let mut device = device();
        select(&mut device, DIRECTORY);
        assert_eq!(bytes(&mut device, 4), [0, 0, 0, 2]);
        let entry = bytes(&mut device, 64);
        assert_eq!((&entry[..4], &entry[8..17]), (&[0, 0, 0, 5][..], &b"bootorder"[..]));
        let entry = bytes(&mut device, 64);
        assert_eq!((&entry[..4], &entry[8..16]), (&[0, 0, 0, 3][..], &b"etc/e820"[..]));
        select(&mut device, u16::from_be_bytes([entry[4], entry[5]]));
        assert_eq!(bytes(&mut device, 4), [1, 2, 3, 0]);
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let mut device = device();
        let file = u32::from(FIRST_FILE) << 16;
        device.ram.write_slice(&[0xee; 8], GuestAddress(0x200)).unwrap();
        assert_eq!(dma(&mut device, file | CONTROL_SELECT | CONTROL_SKIP, 1, 0), 0);
        assert_eq!(dma(&mut device, CONTROL_READ, 6, 0x200), 0);
        let read: [u8; 8] = device.ram.read_obj(GuestAddress(0x200)).unwrap();
        assert_eq!(&read, b"isk\0\0\0\xee\xee");
        assert_eq!(dma(&mut device, CONTROL_WRITE, 1, 0x200), CONTROL_ERROR);
        assert_eq!(dma(&mut device, CONTROL_READ, 8, MEMORY - 4), CONTROL_ERROR);
        assert_eq!(dma(&mut device, CONTROL_READ, u32::MAX, 0), CONTROL_ERROR);
        assert_eq!(dma(&mut device, CONTROL_READ, 1, u64::MAX), CONTROL_ERROR);
    }

    #[test]
    fn a_position_survives_a_restoration() {
        let mut a = device();
        bytes(&mut a, 2);
        let mut b = device();
        b.restore(&a.save().unwrap()).unwrap();
        assert_eq!(bytes(&mut b, 2), b"MU");
    }

    proptest! {
        #[test]
        fn no_accesses_make_it_panic(
            accesses in vec((any::<bool>(), 0..SIZE, vec(any::<u8>(), 1..5)), 0..100),
            memory in vec(any::<u8>(), 256),
        ) {
            let mut device = device();
            device.ram.write_slice(&memory, GuestAddress(0)).unwrap();
            for (write, offset, mut data) in accesses {
                if write { device.write(offset, &data) } else { device.read(offset, &mut data) }
            }
        }
    }
}
