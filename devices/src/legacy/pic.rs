//! Two Intel 8259A interrupt controllers (231468), cascaded as in a PC AT, and
//! the edge/level control registers of the PCI bridge (82371AB, 3.2.4).
//!
//! ```text
//!  IRQ 8–15 ─► slave ──► IRQ 2 ┐
//!  IRQ 0, 1, 3–7 ──────────────┴► master ─► INTR; INTA ─► vector
//! ```
//!
//! | port | |
//! | --- | --- |
//! | 0x20, 0x21 | master: ICW1, OCW2, OCW3; ICW2–4, OCW1 (the mask) |
//! | 0xa0, 0xa1 | slave |
//! | 0x4d0, 0x4d1 | ELCR: a 1 makes the line level-triggered |

use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// Ports of the master; of the slave.
pub const MASTER: u16 = 0x20;
/// Ports of the slave.
pub const SLAVE: u16 = 0xa0;
/// Ports of each.
pub const SIZE: u64 = 2;
/// The first edge/level register.
pub const ELCR: u16 = 0x4d0;
/// Lines that can't be made level-triggered: timer, keyboard, cascade; clock
/// and coprocessor.
const ALWAYS_EDGE: [u8; 2] = [0b0000_0111, 0b0010_0001];
/// The master's line that the slave is on.
const CASCADE: u8 = 2;
/// What a controller gives that is asked without cause (231468, "interrupt
/// sequence", step 5).
const SPURIOUS: u8 = 7;

const ICW1_INIT: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_FULLY_NESTED: u8 = 1 << 4;
const OCW3: u8 = 1 << 3;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_READ: u8 = 1 << 1;
const OCW3_READ_ISR: u8 = 1;
const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;
const OCW3_SPECIAL_MASK: u8 = 1 << 5;

/// Which initialization word comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Nothing,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    irr: u8,
    isr: u8,
    imr: u8,
    /// Lines as they are.
    lines: u8,
    elcr: u8,
    /// ICW2: the vector of line 0.
    base: u8,
    expect: Expect,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
    /// The line of the lowest priority.
    lowest: u8,
}

impl Chip {
    fn new() -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0,
            lines: 0,
            elcr: 0,
            base: 0,
            expect: Expect::Nothing,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
            lowest: 7,
        }
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if self.elcr & bit != 0 {
            self.irr = if high { self.irr | bit } else { self.irr & !bit };
        } else if high && self.lines & bit == 0 {
            self.irr |= bit;
        } else if !high {
            // A request must stay until it is acknowledged (figure 9).
            self.irr &= !bit;
        }
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
    }

    /// Lines from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> {
        let first = self.lowest.wrapping_add(1);
        (0..8).map(move |i| first.wrapping_add(i) & 7)
    }

    /// The line that would interrupt now.
    fn pending(&self) -> Option<u8> {
        let requests = self.irr & !self.imr;
        // In service, and masked in special mask mode: no longer in the way.
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        for line in self.by_priority() {
            let bit = 1 << line;
            let nested = self.fully_nested && line == CASCADE;
            if in_service & bit != 0 && !nested {
                return None;
            }
            if requests & bit != 0 {
                return Some(line);
            }
        }
        None
    }

    /// The processor takes `line`.
    fn take(&mut self, line: u8) {
        let bit = 1 << line;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = line;
            }
        } else {
            self.isr |= bit;
        }
    }

    /// INTA: the line, or the spurious one.
    fn acknowledge(&mut self) -> u8 {
        match self.pending() {
            Some(line) => {
                self.take(line);
                line
            }
            None => SPURIOUS,
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1_INIT != 0 {
            let (elcr, lines) = (self.elcr, self.lines);
            *self = Self { elcr, lines, ..Self::new() };
            // Level-triggered lines that are high ask again at once.
            self.irr = lines & elcr;
            self.expect = Expect::Icw2;
            self.needs_icw4 = value & ICW1_NEEDS_ICW4 != 0;
            self.single = value & ICW1_SINGLE != 0;
        } else if value & OCW3 != 0 {
            self.poll = value & OCW3_POLL != 0;
            if value & OCW3_READ != 0 {
                self.read_isr = value & OCW3_READ_ISR != 0;
            }
            if value & OCW3_SET_SPECIAL_MASK != 0 {
                self.special_mask = value & OCW3_SPECIAL_MASK != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let level = value & 7;
        match (eoi, specific) {
            (true, specific) => {
                let served = match specific {
                    true => Some(level),
                    false => self.by_priority().find(|line| self.isr & 1 << line != 0),
                };
                if let Some(line) = served {
                    self.isr &= !(1 << line);
                    if rotate {
                        self.lowest = line;
                    }
                }
            }
            (false, true) if rotate => self.lowest = level,
            (false, true) => {}
            (false, false) => self.rotate_on_auto_eoi = rotate,
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Nothing => {
                self.imr = value;
                Expect::Nothing
            }
            Expect::Icw2 => {
                self.base = value & 0xf8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Nothing,
                }
            }
            // Where the cascade is has been soldered.
            Expect::Icw3 if self.needs_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Nothing,
            Expect::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.fully_nested = value & ICW4_FULLY_NESTED != 0;
                Expect::Nothing
            }
        };
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(line) => {
                    self.take(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (data_port, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

const VERSION: u32 = 1;

/// The pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Both as they are after power-on: nothing is masked, and nothing asked.
    pub fn new() -> Self {
        Self { master: Chip::new(), slave: Chip::new() }
    }

    /// Drives IRQ `irq`, 0 to 15.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            0..=7 if irq != CASCADE => self.master.set_line(irq, high),
            8..=15 => self.slave.set_line(irq - 8, high),
            _ => {}
        }
        self.cascade();
    }

    /// The slave's INTR is the master's line 2, and follows it as it is.
    fn cascade(&mut self) {
        let pending = self.slave.pending().is_some();
        // The slave drops it between two interrupts, which is an edge.
        self.master.set_line(CASCADE, false);
        self.master.set_line(CASCADE, pending);
    }

    /// Whether INTR is high.
    pub fn is_pending(&self) -> bool {
        self.master.pending().is_some()
    }

    /// INTA from the processor: the vector.
    pub fn acknowledge(&mut self) -> u8 {
        let line = self.master.acknowledge();
        let vector = match line {
            CASCADE => self.slave.base | self.slave.acknowledge(),
            line => self.master.base | line,
        };
        self.cascade();
        vector
    }

    /// A read of one of the ports.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            MASTER | 0x21 => self.master.read(port & 1 != 0),
            SLAVE | 0xa1 => self.slave.read(port & 1 != 0),
            ELCR => self.master.elcr,
            0x4d1 => self.slave.elcr,
            _ => 0xff,
        };
        self.cascade();
        value
    }

    /// A write to one of the ports.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            MASTER => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            SLAVE => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            ELCR => self.master.elcr = value & !ALWAYS_EDGE[0],
            0x4d1 => self.slave.elcr = value & !ALWAYS_EDGE[1],
            _ => {}
        }
        self.cascade();
    }

    /// Their state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("pic", VERSION, self)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: Self = saved.open("pic", VERSION)?;
        for chip in [&state.master, &state.slave] {
            if chip.lowest > 7 || chip.base & 7 != 0 {
                let reason = format!("priority {}, base {:#x}", chip.lowest, chip.base);
                return Err(StateError::Invalid { kind: "pic", reason });
            }
        }
        *self = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// As a PC's BIOS and Linux set it up, all lines open.
    fn pic() -> Pic {
        let mut pic = Pic::new();
        for (port, base, icw3) in [(MASTER, 0x30, 4), (SLAVE, 0x38, 2)] {
            pic.write(port, 0x11);
            pic.write(port + 1, base);
            pic.write(port + 1, icw3);
            pic.write(port + 1, 1);
            assert_eq!(pic.read(port + 1), 0, "nothing is masked");
        }
        pic
    }

    #[test]
    fn an_edge_interrupts_once() {
        let mut pic = pic();
        pic.set_line(4, true);
        assert!(pic.is_pending());
        assert_eq!(pic.acknowledge(), 0x34);
        assert!(!pic.is_pending());
        pic.write(MASTER, 0x20);
        assert!(!pic.is_pending(), "the line is still high, and no edge");
        pic.set_line(4, false);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn a_level_interrupts_until_it_falls() {
        let mut pic = pic();
        pic.write(ELCR, 0xff);
        pic.write(ELCR + 1, 0xff);
        assert_eq!((pic.read(ELCR), pic.read(ELCR + 1)), (0xf8, 0xde));
        pic.set_line(11, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), 0x3b);
            pic.write(SLAVE, 0x20);
            pic.write(MASTER, 0x20);
            assert!(pic.is_pending());
        }
        pic.set_line(11, false);
        assert!(!pic.is_pending());
    }

    #[test]
    fn priorities_nest() {
        let mut pic = pic();
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.set_line(5, true);
        assert!(!pic.is_pending(), "5 waits for 4");
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31, "1 goes before");
        pic.write(MASTER, 0x20); // of 1, the highest in service
        assert!(!pic.is_pending());
        pic.write(MASTER, 0x64); // specific, of 4
        assert_eq!(pic.acknowledge(), 0x35);
    }

    #[test]
    fn the_slave_comes_between_1_and_3() {
        let mut pic = pic();
        pic.set_line(3, true);
        pic.set_line(14, true);
        assert_eq!(pic.acknowledge(), 0x3e);
        assert!(!pic.is_pending());
        // Another of the slave's, of higher priority, waits for the master.
        pic.set_line(8, true);
        assert!(!pic.is_pending());
        pic.write(SLAVE, 0x20);
        pic.write(MASTER, 0x20);
        assert_eq!(pic.acknowledge(), 0x38);
    }

    #[test]
    fn masks_hold_requests_back() {
        let mut pic = pic();
        pic.write(0x21, 0xff);
        pic.set_line(4, true);
        assert!(!pic.is_pending());
        pic.write(0x21, 0xef);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn without_a_cause_it_is_spurious() {
        let mut pic = pic();
        assert_eq!(pic.acknowledge(), 0x37);
        pic.set_line(9, true);
        pic.set_line(9, false);
        assert!(!pic.is_pending());
    }

    #[test]
    fn rotation_and_polling() {
        let mut pic = pic();
        pic.write(MASTER, 0xc3); // 3 is the lowest
        pic.set_line(3, true);
        pic.set_line(4, true);
        pic.write(MASTER, 0x0c); // poll
        assert_eq!(pic.read(MASTER), 0x84);
        pic.write(MASTER, 0x0b);
        assert_eq!(pic.read(MASTER), 0x10, "in service");
        pic.write(MASTER, 0xa0); // rotate on EOI: now 4 is the lowest
        pic.write(MASTER, 0x0a);
        assert_eq!(pic.read(MASTER), 0x08, "requested");
        assert_eq!(pic.acknowledge(), 0x33);
    }

    proptest! {
        #[test]
        fn no_accesses_break_it(
            steps in vec((0u8..3, any::<u8>(), any::<u8>()), 0..200)
        ) {
            const PORTS: [u16; 6] = [MASTER, 0x21, SLAVE, 0xa1, ELCR, 0x4d1];
            let mut pic = Pic::new();
            for (what, a, b) in steps {
                match what {
                    0 => pic.write(PORTS[usize::from(a) % 6], b),
                    1 => { pic.read(PORTS[usize::from(a) % 6]); }
                    _ => pic.set_line(a % 20, b & 1 != 0),
                }
                if b & 0x10 != 0 && pic.is_pending() {
                    pic.acknowledge();
                }
            }
            let mut other = Pic::new();
            other.restore(&pic.save().unwrap()).unwrap();
            prop_assert_eq!(other, pic);
        }
    }
}
