//! The local APIC of a machine with one processor, in xAPIC mode (Intel SDM 3A,
//! chapter 11).
//!
//! ```text
//!  messages (I/O APIC, MSI, itself) ─► IRR ─┐ higher than what is served?
//!  timer ─► LVT timer ──────────────────────┴─► vector ─► ISR ─► EOI ─► I/O APIC
//!  8259 ─► LINT0 as ExtINT ────────────────────► vector of the 8259's
//! ```
//!
//! Registers are 32 bits wide, 16 bytes apart. Time is passed in, in
//! nanoseconds; the timer's input clock is one a nanosecond.

use super::ioapic::{Delivery, Message};
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// Its page.
pub const SIZE: u64 = 0x1000;

// Registers (table 11-1).
const ID: u64 = 0x020;
const VERSION_REGISTER: u64 = 0x030;
const TPR: u64 = 0x080;
const PPR: u64 = 0x0a0;
const EOI: u64 = 0x0b0;
const LDR: u64 = 0x0d0;
const DFR: u64 = 0x0e0;
const SVR: u64 = 0x0f0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LAST: u64 = 0x370;
const LVT_LINT0: u64 = 0x350;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

/// An integrated APIC with six entries of the local vector table.
const VERSION_VALUE: u32 = 0x0005_0014;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
/// What can be written of each entry: timer, thermal, performance, LINT0, LINT1,
/// error.
const LVT_WRITABLE: [u32; 6] = [0x3_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// ESR: a vector below 16 was received; no such register.
const ERROR_ILLEGAL_VECTOR: u32 = 1 << 6;
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// 256 bits, as the registers have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        self.0[word] = if on { self.0[word] | bit } else { self.0[word] & !bit };
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        Some((word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}

const VERSION: u32 = 1;

/// The local APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApic {
    id: u8,
    tpr: u8,
    ldr: u8,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// Errors so far, and as they were told last.
    errors: u32,
    esr: u32,
    icr: u64,
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// When the timer began.
    start: u64,
    /// Until when its ends have been told.
    told: u64,
    nmi: bool,
}

impl LocalApic {
    /// As a BIOS leaves it: enabled, LINT0 for the 8259, LINT1 for NMI (MPS 1.4,
    /// 3.6.2.2, virtual wire mode).
    pub fn new(id: u8) -> Self {
        let masked = LVT_MASKED;
        Self {
            id,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff | SOFTWARE_ENABLE,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            errors: 0,
            esr: 0,
            icr: 0,
            lvt: [masked, masked, masked, 7 << 8, 4 << 8, masked],
            initial_count: 0,
            divide: 0,
            start: 0,
            told: 0,
            nmi: false,
        }
    }

    fn is_enabled(&self) -> bool {
        self.svr & SOFTWARE_ENABLE != 0
    }

    /// Takes a message, if it is for this processor.
    pub fn deliver(&mut self, message: Message) {
        if self.is_meant(message.logical, message.destination) {
            self.take(message);
        }
    }

    fn is_meant(&self, logical: bool, destination: u8) -> bool {
        match logical {
            false => destination == self.id || destination == 0xff,
            // Flat: a bit a processor. Cluster: a cluster, and bits in it.
            true if self.dfr >> 28 == 0xf => destination & self.ldr != 0,
            true => {
                let cluster = destination >> 4 == self.ldr >> 4 || destination >> 4 == 0xf;
                cluster && destination & self.ldr & 0xf != 0
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if message.vector < 16 {
                    self.errors |= ERROR_ILLEGAL_VECTOR;
                } else if self.is_enabled() {
                    self.irr.set(message.vector, true);
                    self.tmr.set(message.vector, message.level);
                }
            }
            Delivery::Nmi => self.nmi = true,
            // ExtINT comes by LINT0. There is no SMM and no other processor.
            Delivery::ExtInt | Delivery::Smi | Delivery::Init | Delivery::Startup => {}
        }
    }

    /// Whether an 8259 at LINT0 gets through.
    pub fn accepts_external(&self) -> bool {
        let lint0 = self.lvt[((LVT_LINT0 - LVT_TIMER) >> 4) as usize];
        lint0 & LVT_MASKED == 0 && lint0 >> 8 & 7 == 7
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Processor priority (11.8.3.1).
    fn ppr(&self) -> u8 {
        let served = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= served >> 4 { self.tpr } else { served & 0xf0 }
    }

    /// The vector that would interrupt now.
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// The processor takes the pending interrupt.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    /// The task priority, for CR8: the upper four bits.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// The processor has written CR8.
    pub fn set_cr8(&mut self, cr8: u8) {
        if cr8 & 15 != self.tpr >> 4 {
            self.tpr = cr8 << 4;
        }
    }

    /// Nanoseconds of one count of the timer (11.5.4).
    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial_count) * self.divisor()
    }

    fn timer(&self) -> u32 {
        self.lvt[0]
    }

    /// When the timer ends next, or ended without having been told.
    pub fn next_timer(&self) -> Option<u64> {
        let period = self.period();
        if period == 0 {
            return None;
        }
        let told = self.told.checked_sub(self.start);
        let periods = match self.timer() & LVT_PERIODIC {
            0 if told.is_some_and(|told| told >= period) => return None,
            0 => 1,
            _ => told.map_or(1, |told| told / period + 1),
        };
        self.start.checked_add(period.checked_mul(periods)?)
    }

    /// Brings the timer up to `now`.
    pub fn advance(&mut self, now: u64) {
        let ended = self.next_timer().is_some_and(|at| at <= now);
        self.told = self.told.max(now);
        if ended && self.timer() & LVT_MASKED == 0 {
            self.take(Message {
                vector: self.timer() as u8,
                delivery: Delivery::Fixed,
                logical: false,
                destination: self.id,
                level: false,
            });
        }
    }

    fn current_count(&self, now: u64) -> u32 {
        let period = self.period();
        let Some(passed) = now.checked_sub(self.start).filter(|_| period > 0) else {
            return self.initial_count;
        };
        let left = match self.timer() & LVT_PERIODIC {
            0 => period.saturating_sub(passed),
            _ => period - passed % period,
        };
        left.div_ceil(self.divisor()) as u32
    }

    /// A read of 32 bits.
    pub fn read(&mut self, offset: u64, now: u64) -> u32 {
        let word = |vectors: &Vectors, base| vectors.0[((offset - base) >> 4) as usize & 7];
        match offset & !0xf {
            ID => u32::from(self.id) << 24,
            VERSION_REGISTER => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.ppr().into(),
            LDR => u32::from(self.ldr) << 24,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => word(&self.isr, ISR),
            TMR..IRR => word(&self.tmr, TMR),
            IRR..ESR => word(&self.irr, IRR),
            ESR => self.esr,
            ICR_LOW => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            lvt @ LVT_TIMER..=LVT_LAST => self.lvt[((lvt - LVT_TIMER) >> 4) as usize],
            INITIAL_COUNT => self.initial_count,
            CURRENT_COUNT => self.current_count(now),
            DIVIDE => self.divide,
            EOI => 0,
            _ => {
                self.errors |= ERROR_ILLEGAL_REGISTER;
                0
            }
        }
    }

    /// A write of 32 bits; returns the vector of a level-triggered interrupt
    /// that ended with it, for the I/O APIC.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) -> Option<u8> {
        match offset & !0xf {
            ID => self.id = (value >> 24) as u8,
            TPR => self.tpr = value as u8,
            EOI => return self.end_of_interrupt(),
            LDR => self.ldr = (value >> 24) as u8,
            DFR => self.dfr = value | 0x0fff_ffff,
            SVR => {
                self.svr = value & 0x1ff;
                if !self.is_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            ESR => self.esr = std::mem::take(&mut self.errors),
            ICR_LOW => {
                // The delivery status reads as idle: nothing takes time.
                self.icr = self.icr & !0xffff_ffff | u64::from(value & !(1 << 12));
                self.send();
            }
            ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            lvt @ LVT_TIMER..=LVT_LAST => {
                let index = ((lvt - LVT_TIMER) >> 4) as usize;
                let mask = if self.is_enabled() { 0 } else { LVT_MASKED };
                self.lvt[index] = value & LVT_WRITABLE[index] | mask;
            }
            INITIAL_COUNT => {
                self.initial_count = value;
                (self.start, self.told) = (now, now);
            }
            DIVIDE => self.divide = value & 0xb,
            _ => {}
        }
        None
    }

    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.set(vector, false);
        self.tmr.has(vector).then_some(vector)
    }

    /// The interrupt command register: with one processor, only what reaches
    /// itself counts.
    fn send(&mut self) {
        let command = self.icr as u32;
        let Some(delivery) = Delivery::from_bits(command >> 8) else { return };
        let destination = (self.icr >> 56) as u8;
        let to_itself = match command >> 18 & 3 {
            0 => self.is_meant(command & 1 << 11 != 0, destination),
            1 | 2 => true,
            _ => false,
        };
        if to_itself {
            let vector = command as u8;
            self.take(Message { vector, delivery, logical: false, destination, level: false });
        }
    }

    /// Its state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("local apic", VERSION, self)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        *self = saved.open("local apic", VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn fixed(vector: u8, level: bool) -> Message {
        Message { vector, delivery: Delivery::Fixed, logical: false, destination: 0, level }
    }

    #[test]
    fn higher_vectors_go_before_lower_ones() {
        let mut apic = LocalApic::new(0);
        apic.deliver(fixed(0x41, false));
        apic.deliver(fixed(0x52, true));
        assert_eq!(apic.acknowledge(), Some(0x52));
        assert_eq!(apic.acknowledge(), None, "0x41 waits");
        assert_eq!(apic.read(PPR, 0), 0x50);
        assert_eq!(apic.write(EOI, 0, 0), Some(0x52), "a level: the I/O APIC is told");
        assert_eq!(apic.acknowledge(), Some(0x41));
        assert_eq!(apic.write(EOI, 0, 0), None);
        assert_eq!(apic.write(EOI, 0, 0), None, "nothing is served");
    }

    #[test]
    fn the_task_priority_holds_interrupts_back() {
        let mut apic = LocalApic::new(0);
        apic.write(TPR, 0x40, 0);
        apic.deliver(fixed(0x4f, false));
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.cr8(), 4);
        apic.set_cr8(3);
        assert_eq!((apic.pending(), apic.read(TPR, 0)), (Some(0x4f), 0x30));
    }

    #[test]
    fn destinations_are_numbers_or_sets() {
        let mut apic = LocalApic::new(2);
        apic.write(LDR, 0x04 << 24, 0);
        let mut reaches = |logical, destination| {
            apic.deliver(Message { logical, destination, ..fixed(0x99, false) });
            apic.acknowledge().is_some() && apic.write(EOI, 0, 0).is_none()
        };
        assert!(reaches(false, 2) && reaches(false, 0xff) && !reaches(false, 0));
        assert!(reaches(true, 0x0c) && !reaches(true, 0x03));
        apic.write(DFR, 0, 0); // clusters
        apic.write(LDR, 0x12 << 24, 0);
        let mut reaches = |destination| {
            apic.deliver(Message { logical: true, destination, ..fixed(0x99, false) });
            apic.acknowledge().is_some() && apic.write(EOI, 0, 0).is_none()
        };
        assert!(reaches(0x12) && reaches(0xf2) && !reaches(0x22) && !reaches(0x11));
    }

    #[test]
    fn a_periodic_timer_and_one_shot() {
        let mut apic = LocalApic::new(0);
        apic.write(LVT_TIMER, LVT_PERIODIC | 0xef, 0);
        apic.write(DIVIDE, 0b1011, 0); // by 1
        apic.write(INITIAL_COUNT, 1000, 500);
        assert_eq!(apic.next_timer(), Some(1500));
        assert_eq!(apic.read(CURRENT_COUNT, 700), 800);
        apic.advance(1499);
        assert_eq!(apic.pending(), None);
        apic.advance(1500);
        assert_eq!((apic.acknowledge(), apic.next_timer()), (Some(0xef), Some(2500)));
        apic.write(EOI, 0, 0);
        apic.advance(9000);
        assert_eq!(apic.next_timer(), Some(9500), "many ends are one");

        apic.write(LVT_TIMER, 0xee, 0);
        apic.write(DIVIDE, 0b0011, 0); // by 16
        apic.write(INITIAL_COUNT, 10, 10_000);
        assert_eq!(apic.next_timer(), Some(10_160));
        apic.advance(20_000);
        assert_eq!((apic.next_timer(), apic.read(CURRENT_COUNT, 20_000)), (None, 0));
        apic.write(INITIAL_COUNT, 0, 30_000);
        assert_eq!(apic.next_timer(), None, "stopped");
    }

    #[test]
    fn the_8259_gets_through_in_virtual_wire_mode() {
        let mut apic = LocalApic::new(0);
        assert!(apic.accepts_external());
        apic.write(LVT_LINT0, LVT_MASKED | 7 << 8, 0);
        assert!(!apic.accepts_external());
        apic.write(LVT_LINT0, 0x30, 0); // fixed
        assert!(!apic.accepts_external());
    }

    #[test]
    fn it_interrupts_itself_and_nobody_else() {
        let mut apic = LocalApic::new(0);
        apic.write(ICR_LOW, 1 << 18 | 0x77, 0);
        assert_eq!(apic.acknowledge(), Some(0x77));
        apic.write(ICR_LOW, 3 << 18 | 0x78, 0); // all but itself
        apic.write(ICR_HIGH, 5 << 24, 0);
        apic.write(ICR_LOW, 0x79, 0);
        assert_eq!((apic.read(ICR_LOW, 0), apic.pending()), (0x79, None));
        apic.write(ICR_HIGH, 0, 0);
        apic.write(ICR_LOW, 4 << 8, 0);
        assert!(apic.take_nmi() && !apic.take_nmi());
    }

    #[test]
    fn errors_are_latched_by_a_write() {
        let mut apic = LocalApic::new(0);
        apic.deliver(fixed(3, false));
        apic.read(0x3f0, 0);
        assert_eq!(apic.read(ESR, 0), 0);
        apic.write(ESR, 0, 0);
        assert_eq!(apic.read(ESR, 0), ERROR_ILLEGAL_VECTOR | ERROR_ILLEGAL_REGISTER);
        apic.write(ESR, 0, 0);
        assert_eq!(apic.read(ESR, 0), 0);
    }

    #[test]
    fn switched_off_by_software_it_masks_all() {
        let mut apic = LocalApic::new(0);
        apic.write(SVR, 0xff, 0);
        apic.deliver(fixed(0x99, false));
        assert_eq!(apic.pending(), None);
        apic.write(LVT_TIMER, 0x20, 0);
        assert_eq!(apic.read(LVT_TIMER, 0), LVT_MASKED | 0x20);
    }

    proptest! {
        #[test]
        fn no_accesses_break_it(
            steps in vec((0u8..4, 0u64..SIZE, any::<u32>(), 0u64..1 << 40), 0..200)
        ) {
            let mut apic = LocalApic::new(0);
            let mut now = 0;
            for (what, offset, value, pass) in steps {
                now += pass;
                match what {
                    0 => { apic.read(offset, now); }
                    1 => { apic.write(offset, value, now); }
                    2 => apic.deliver(fixed(value as u8, value & 0x100 != 0)),
                    _ => { apic.acknowledge(); }
                }
                apic.advance(now);
                prop_assert!(apic.next_timer().is_none_or(|at| at > now));
            }
            let mut other = LocalApic::new(0);
            other.restore(&apic.save().unwrap()).unwrap();
            prop_assert_eq!(other, apic);
        }
    }
}
