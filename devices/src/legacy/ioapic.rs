//! The Intel 82093AA I/O APIC (290566): 24 pins, each with an entry that says
//! which interrupt message it sends.
//!
//! ```text
//!  pin ─► redirection entry: masked? edge or level? ─► Message ─► local APIC
//!                    remote IRR ◄── end of interrupt (level) ──────────┘
//! ```
//!
//! | offset | register |
//! | --- | --- |
//! | 0x00 | IOREGSEL: which register is at 0x10 |
//! | 0x10 | IOWIN: 0 IOAPICID, 1 IOAPICVER, 2 IOAPICARB, 0x10 + 2n entry n |

use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// Bytes of its page that there are registers in.
pub const SIZE: u64 = 0x20;
/// Pins.
pub const PINS: usize = 24;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOAPICID: u8 = 0;
const IOAPICVER: u8 = 1;
const IOAPICARB: u8 = 2;
const REDIRECTION: u8 = 0x10;
const ID_MASK: u32 = 0x0f00_0000;
/// Version 0x11, and the number of the last entry.
const VERSION_REGISTER: u32 = (PINS as u32 - 1) << 16 | 0x11;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What software may change of an entry.
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !(DELIVERY_STATUS | REMOTE_IRR);

/// How a local APIC is to take a message (SDM 3A, 11.11.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// An interrupt with the vector.
    Fixed,
    /// The same, for the processor with the least to do.
    LowestPriority,
    /// System management.
    Smi,
    /// Not maskable.
    Nmi,
    /// INIT.
    Init,
    /// Start-up.
    Startup,
    /// The vector comes from an 8259.
    ExtInt,
}

impl Delivery {
    /// From three bits of a register; one code is reserved.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    fn bits(self) -> u32 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::Startup => 6,
            Self::ExtInt => 7,
        }
    }
}

/// An interrupt message on its way to a local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Vector.
    pub vector: u8,
    /// How it is to be taken.
    pub delivery: Delivery,
    /// Whether `destination` is a set and not a number.
    pub logical: bool,
    /// For which local APICs.
    pub destination: u8,
    /// Whether an end of interrupt is wanted.
    pub level: bool,
}

impl Message {
    /// The same as a write to memory (SDM 3A, 11.11): its address and its data.
    pub fn as_write(&self) -> (u64, u32) {
        const LOCAL_APICS: u64 = 0xfee0_0000;
        const ASSERT: u32 = 1 << 14;
        let address =
            LOCAL_APICS | u64::from(self.destination) << 12 | u64::from(self.logical) << 2;
        let level = u32::from(self.level) << 15;
        (address, u32::from(self.vector) | self.delivery.bits() << 8 | ASSERT | level)
    }
}

const VERSION: u32 = 1;

/// The I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Pins as they are.
    pins: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// All pins masked.
    pub fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], pins: 0 }
    }

    /// Drives a pin; returns what is to be sent.
    pub fn set_pin(&mut self, pin: usize, high: bool) -> Option<Message> {
        let bit = 1u32.checked_shl(pin as u32).filter(|_| pin < PINS)?;
        let rose = high && self.pins & bit == 0;
        self.pins = if high { self.pins | bit } else { self.pins & !bit };
        let level = self.entries[pin] & LEVEL != 0;
        if rose && !level { self.send(pin) } else { self.ask(pin) }
    }

    /// Sends what a level-triggered pin asks for, unless it is being served.
    fn ask(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        let asks = self.pins >> pin & 1 != 0;
        if entry & LEVEL == 0 || entry & REMOTE_IRR != 0 || !asks {
            return None;
        }
        self.send(pin)
    }

    fn send(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        let delivery = Delivery::from_bits((entry >> 8) as u32)?;
        if entry & MASKED != 0 {
            return None;
        }
        let level = entry & LEVEL != 0;
        let accepted = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if level && accepted {
            self.entries[pin] |= REMOTE_IRR;
        }
        Some(Message {
            vector: entry as u8,
            delivery,
            logical: entry & 1 << 11 != 0,
            destination: (entry >> 56) as u8,
            level,
        })
    }

    /// A local APIC has ended an interrupt with this vector: what is to be sent
    /// of pins that still ask. A pin is returned at most once.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry as u8 == vector && *entry & LEVEL != 0 && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                again.extend(self.ask(pin));
            }
        }
        again
    }

    /// Whether a pin is level-triggered with this vector: its end is wanted.
    pub fn has_level(&self, vector: u8) -> bool {
        self.entries.iter().any(|entry| *entry as u8 == vector && *entry & LEVEL != 0)
    }

    /// All messages that unmasked entries can send, for whoever has to know them
    /// in advance.
    pub fn messages(&self) -> impl Iterator<Item = (usize, Message)> {
        let mut copy = self.clone();
        (0..PINS).filter_map(move |pin| Some((pin, copy.send(pin)?)))
    }

    /// A read of 32 bits.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => self.select.into(),
            IOWIN => match self.select {
                IOAPICID | IOAPICARB => self.id,
                IOAPICVER => VERSION_REGISTER,
                select => match self.entry(select) {
                    Some((pin, high)) => (self.entries[pin] >> if high { 32 } else { 0 }) as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// A write of 32 bits; returns what is to be sent of a pin that was let go.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN if self.select == IOAPICID => self.id = value & ID_MASK,
            IOWIN => {
                let (pin, high) = self.entry(self.select)?;
                let (shift, half) = if high { (32, 0xffff_ffff << 32) } else { (0, 0xffff_ffff) };
                let mask = WRITABLE & half;
                let entry = &mut self.entries[pin];
                *entry = *entry & !mask | (u64::from(value) << shift) & mask;
                // An edge-triggered entry has nobody to wait for.
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                return self.ask(pin);
            }
            _ => {}
        }
        None
    }

    /// Which entry, and which half of it, a register is.
    fn entry(&self, select: u8) -> Option<(usize, bool)> {
        let index = select.checked_sub(REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index & 1 != 0))
    }

    /// Its state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("ioapic", VERSION, self)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        *self = saved.open("ioapic", VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn set(ioapic: &mut IoApic, pin: u8, entry: u64) -> Option<Message> {
        ioapic.write(IOREGSEL, u32::from(REDIRECTION + 2 * pin + 1));
        ioapic.write(IOWIN, (entry >> 32) as u32);
        ioapic.write(IOREGSEL, u32::from(REDIRECTION + 2 * pin));
        ioapic.write(IOWIN, entry as u32)
    }

    fn get(ioapic: &mut IoApic, pin: u8) -> u64 {
        let mut half = |high| {
            ioapic.write(IOREGSEL, u32::from(REDIRECTION + 2 * pin + high));
            u64::from(ioapic.read(IOWIN))
        };
        half(0) | half(1) << 32
    }

    #[test]
    fn an_edge_is_sent_once() {
        let mut ioapic = IoApic::new();
        set(&mut ioapic, 4, 0x0300_0000_0000_0931);
        let message = ioapic.set_pin(4, true).unwrap();
        assert_eq!((message.vector, message.destination), (0x31, 3));
        assert_eq!(message.delivery, Delivery::LowestPriority);
        assert!(message.logical && !message.level);
        assert_eq!(ioapic.set_pin(4, true), None);
        assert_eq!(ioapic.set_pin(4, false), None);
        assert!(ioapic.set_pin(4, true).is_some());
    }

    #[test]
    fn a_message_is_a_write() {
        let mut ioapic = IoApic::new();
        set(&mut ioapic, 4, 0x0300_0000_0000_0931);
        set(&mut ioapic, 9, 0x0100_0000_0000_8042);
        let writes = ioapic.messages().map(|(pin, message)| (pin, message.as_write()));
        let expected = [(4, (0xfee0_3004, 0x4131)), (9, (0xfee0_1000, 0xc042))];
        assert!(writes.eq(expected));
    }

    #[test]
    fn a_level_waits_for_the_end_of_interrupt() {
        let mut ioapic = IoApic::new();
        set(&mut ioapic, 10, 0x41 | LEVEL);
        assert!(ioapic.set_pin(10, true).unwrap().level);
        assert_eq!(ioapic.set_pin(10, true), None);
        assert_eq!(get(&mut ioapic, 10) & REMOTE_IRR, REMOTE_IRR);
        assert!(ioapic.end_of_interrupt(0x40).is_empty());
        assert_eq!(ioapic.end_of_interrupt(0x41).len(), 1, "it still asks");
        ioapic.set_pin(10, false);
        assert!(ioapic.end_of_interrupt(0x41).is_empty());
        assert_eq!(get(&mut ioapic, 10), 0x41 | LEVEL);
    }

    #[test]
    fn masked_levels_wait_and_masked_edges_are_lost() {
        let mut ioapic = IoApic::new();
        assert_eq!(ioapic.set_pin(5, true), None);
        assert_eq!(ioapic.set_pin(6, true), None);
        assert!(set(&mut ioapic, 5, 0x50 | LEVEL).is_some());
        assert_eq!(set(&mut ioapic, 6, 0x51), None);
    }

    #[test]
    fn registers_are_as_in_the_data_sheet() {
        let mut ioapic = IoApic::new();
        let mut read = |select| {
            ioapic.write(IOREGSEL, select);
            ioapic.read(IOWIN)
        };
        assert_eq!(read(1), 0x0017_0011);
        assert_eq!(read(0x10), 0x1_0000, "masked after reset");
        assert_eq!(read(0x40), 0, "no such register");
        ioapic.write(IOREGSEL, 0);
        ioapic.write(IOWIN, 0xffff_ffff);
        assert_eq!(ioapic.read(IOWIN), 0x0f00_0000);
        set(&mut ioapic, 0, u64::MAX);
        assert_eq!(get(&mut ioapic, 0), WRITABLE, "read-only bits stay");
    }

    proptest! {
        #[test]
        fn no_accesses_break_it(
            steps in vec((0u8..4, any::<u8>(), any::<u32>()), 0..200)
        ) {
            let mut ioapic = IoApic::new();
            for (what, a, b) in steps {
                match what {
                    0 => { ioapic.write(IOREGSEL, (a & 0x3f).into()); ioapic.write(IOWIN, b); }
                    1 => { ioapic.read(u64::from(a & 0x1f)); }
                    2 => { ioapic.set_pin(usize::from(a % 30), b & 1 != 0); }
                    _ => prop_assert!(ioapic.end_of_interrupt(a).len() <= PINS),
                }
                prop_assert!(ioapic.messages().count() <= PINS);
            }
            let mut other = IoApic::new();
            other.restore(&ioapic.save().unwrap()).unwrap();
            prop_assert_eq!(other, ioapic);
        }
    }
}
