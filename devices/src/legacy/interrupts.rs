//! The interrupt controllers and the timer of a PC, wired together as on its board:
//! with the local APIC of its one processor, or without any, where those are
//! somebody else's and messages are handed out.
//!
//! ```text
//!  PIT counter 0 ─► IRQ 0 ─┐              ┌─► 8259 pair ─► LINT0 ─┐
//!  devices' lines ─────────┴─ IRQ 0…23 ───┤                       ├─► processor
//!                              (0: pin 2) └─► I/O APIC ─► local APIC (and its timer)
//! ```
//!
//! Plain state: time is passed in, and nothing here knows of threads.

use super::ioapic::{self, IoApic, Message};
use super::lapic::LocalApic;
use super::pic::Pic;
use super::pit::Pit;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// Lines of the board.
pub const LINES: u32 = ioapic::PINS as u32;
/// Where the timer's line is on the I/O APIC.
const TIMER_PIN: usize = 2;

const VERSION: u32 = 2;

/// All four chips.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    pic: Pic,
    ioapic: IoApic,
    /// None where it is not ours.
    lapic: Option<LocalApic>,
    pit: Pit,
    /// `IA32_APIC_BASE`: without a local APIC the 8259's line is the processor's.
    apic_enabled: bool,
    /// For local APICs that are not ours: at most a few for each access, and taken
    /// after it.
    #[serde(skip)]
    sent: Vec<Message>,
}

impl Default for Interrupts {
    fn default() -> Self {
        Self::new()
    }
}

impl Interrupts {
    /// As a BIOS leaves them.
    pub fn new() -> Self {
        Self {
            pic: Pic::new(),
            ioapic: IoApic::new(),
            lapic: Some(LocalApic::new(0)),
            pit: Pit::new(),
            apic_enabled: true,
            sent: Vec::new(),
        }
    }

    /// The same for local APICs that are not ours.
    pub fn without_local_apic() -> Self {
        Self { lapic: None, ..Self::new() }
    }

    /// Messages for local APICs that are not ours, since the last time.
    pub fn take_sent(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.sent)
    }

    /// What the I/O APIC's pins can send as they are set up.
    pub fn messages(&self) -> impl Iterator<Item = (usize, Message)> {
        self.ioapic.messages()
    }

    /// A local APIC that is not ours has ended an interrupt with this vector.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        let messages = self.ioapic.end_of_interrupt(vector);
        self.deliver(messages);
    }

    /// Drives a line.
    pub fn set_line(&mut self, irq: u32, high: bool) {
        if irq < 16 {
            self.pic.set_line(irq as u8, high);
        }
        let pin = match irq {
            0 => TIMER_PIN,
            2 => return,
            irq => irq as usize,
        };
        let message = self.ioapic.set_pin(pin, high);
        self.deliver(message);
    }

    /// A rising edge on a line.
    pub fn pulse(&mut self, irq: u32) {
        self.set_line(irq, false);
        self.set_line(irq, true);
    }

    fn deliver(&mut self, messages: impl IntoIterator<Item = Message>) {
        match &mut self.lapic {
            Some(lapic) => messages.into_iter().for_each(|message| lapic.deliver(message)),
            None => self.sent.extend(messages),
        }
    }

    /// Brings both timers up to `now`.
    pub fn advance(&mut self, now: u64) {
        if self.pit.rose(now) {
            self.pulse(0);
        }
        if let Some(lapic) = &mut self.lapic {
            lapic.advance(now);
        }
    }

    /// When a timer ends next.
    pub fn next_event(&self) -> Option<u64> {
        let times = [self.pit.next_rise(), self.lapic.as_ref().and_then(LocalApic::next_timer)];
        times.into_iter().flatten().min()
    }

    /// The processor's `IA32_APIC_BASE`, bit 11.
    pub fn enable_apic(&mut self, enabled: bool) {
        self.apic_enabled = enabled;
    }

    fn external_is_pending(&self) -> bool {
        let accepted = match &self.lapic {
            Some(lapic) => !self.apic_enabled || lapic.accepts_external(),
            // Its owner knows.
            None => true,
        };
        accepted && self.pic.is_pending()
    }

    fn internal_is_pending(&self) -> bool {
        self.apic_enabled && self.lapic.as_ref().is_some_and(|lapic| lapic.pending().is_some())
    }

    /// Whether the processor is interrupted, if it lets itself be.
    pub fn is_pending(&self) -> bool {
        self.external_is_pending() || self.internal_is_pending()
    }

    /// The processor takes the interrupt: its vector.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if self.external_is_pending() {
            return Some(self.pic.acknowledge());
        }
        self.lapic.as_mut().filter(|_| self.apic_enabled)?.acknowledge()
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&mut self) -> bool {
        self.lapic.as_mut().is_some_and(LocalApic::take_nmi)
    }

    /// What CR8 shows.
    pub fn cr8(&self) -> u8 {
        self.lapic.as_ref().map_or(0, LocalApic::cr8)
    }

    /// What the processor has in CR8.
    pub fn set_cr8(&mut self, cr8: u8) {
        if let Some(lapic) = &mut self.lapic {
            lapic.set_cr8(cr8);
        }
    }

    /// A read of a port of the 8259s, the 8254 or port B.
    pub fn read_port(&mut self, port: u16, now: u64) -> u8 {
        self.advance(now);
        match port {
            0x40..=0x43 | super::pit::PORT_B => self.pit.read(port, now),
            _ => self.pic.read(port),
        }
    }

    /// A write to one of them.
    pub fn write_port(&mut self, port: u16, value: u8, now: u64) {
        self.advance(now);
        match port {
            0x40..=0x43 | super::pit::PORT_B => self.pit.write(port, value, now),
            _ => self.pic.write(port, value),
        }
    }

    /// A read of the I/O APIC.
    pub fn read_ioapic(&mut self, offset: u64) -> u32 {
        self.ioapic.read(offset)
    }

    /// A write to the I/O APIC.
    pub fn write_ioapic(&mut self, offset: u64, value: u32) {
        let message = self.ioapic.write(offset, value);
        self.deliver(message);
    }

    /// A read of the local APIC.
    pub fn read_lapic(&mut self, offset: u64, now: u64) -> u32 {
        self.advance(now);
        self.lapic.as_mut().map_or(0, |lapic| lapic.read(offset, now))
    }

    /// A write to the local APIC.
    pub fn write_lapic(&mut self, offset: u64, value: u32, now: u64) {
        self.advance(now);
        let ended = self.lapic.as_mut().and_then(|lapic| lapic.write(offset, value, now));
        if let Some(vector) = ended {
            self.end_of_interrupt(vector);
        }
    }

    /// Their state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("interrupts", VERSION, self)
    }

    /// Takes over a saved state. Whose the local APIC is stays as it was built.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: Self = saved.open("interrupts", VERSION)?;
        if state.lapic.is_some() != self.lapic.is_some() {
            let reason = "a local APIC is there or is not, unlike here".to_owned();
            return Err(StateError::Invalid { kind: "interrupts", reason });
        }
        // Each chip looks for itself whether it makes sense.
        self.pic.restore(&state.pic.save()?)?;
        self.pit.restore(&state.pit.save()?)?;
        let Self { ioapic, lapic, apic_enabled, .. } = state;
        (self.ioapic, self.lapic, self.apic_enabled) = (ioapic, lapic, apic_enabled);
        Ok(())
    }
}

/// Runs a program of accesses: what a fuzzer finds must not panic or spin.
#[cfg(any(test, feature = "testing"))]
pub fn exercise(program: &[u8]) {
    exercise_with(Interrupts::new(), program);
    exercise_with(Interrupts::without_local_apic(), program);
}

#[cfg(any(test, feature = "testing"))]
fn exercise_with(mut chips: Interrupts, program: &[u8]) {
    let mut other = chips.clone();
    let mut now = 0u64;
    for step in program.chunks_exact(8) {
        let [what, a, b, c, v0, v1, v2, v3] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| step[i]);
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let offset = u64::from(u16::from_le_bytes([a, b]));
        now = now.saturating_add(u64::from(c) << (what >> 3));
        const PORTS: [u16; 12] =
            [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60];
        let port = PORTS[usize::from(a) % PORTS.len()];
        match what & 7 {
            0 => chips.write_port(port, v0, now),
            1 => drop(chips.read_port(port, now)),
            2 => chips.write_ioapic(u64::from(a & 0x1f), value),
            3 => chips.write_lapic(offset & 0xfff, value, now),
            4 => drop(chips.read_lapic(offset & 0xfff, now)),
            5 => chips.set_line(u32::from(a) % 40, v0 & 1 != 0),
            6 => {
                chips.set_cr8(v0);
                chips.enable_apic(v1 & 1 != 0);
                chips.take_nmi();
                chips.end_of_interrupt(v2);
            }
            _ => {
                let pending = chips.is_pending();
                assert_eq!(chips.acknowledge().is_some(), pending);
            }
        }
        chips.advance(now);
        assert!(chips.take_sent().len() <= 3 * ioapic::PINS, "more messages than there are pins");
        assert!(chips.next_event().is_none_or(|at| at > now), "a timer that does not move on");
    }
    other.restore(&chips.save().expect("a state")).expect("what was saved");
    assert_eq!(other, chips);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// The 8259s as Linux leaves them, all lines open.
    fn with_pic() -> Interrupts {
        let mut chips = Interrupts::new();
        for (port, base, icw3) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            for (port, value) in [(port, 0x11), (port + 1, base), (port + 1, icw3), (port + 1, 1)] {
                chips.write_port(port, value, 0);
            }
        }
        chips
    }

    fn route(chips: &mut Interrupts, pin: u32, entry: u32) {
        chips.write_ioapic(0, 0x10 + 2 * pin);
        chips.write_ioapic(0x10, entry);
    }

    #[test]
    fn the_timer_ticks_through_the_8259() {
        let mut chips = with_pic();
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            chips.write_port(port, value, 0); // 1,193 ticks, about a millisecond
        }
        let mut now = 0;
        for _ in 0..3 {
            assert!(!chips.is_pending());
            now = chips.next_event().unwrap();
            chips.advance(now);
            assert_eq!(chips.acknowledge(), Some(0x30));
            chips.write_port(0x20, 0x20, now);
        }
        assert!((2_990_000..3_010_000).contains(&now), "{now}");
    }

    #[test]
    fn the_timer_ticks_through_pin_2() {
        let mut chips = with_pic();
        chips.write_lapic(0x350, 1 << 16, 0); // LINT0 masked
        route(&mut chips, 2, 0x40);
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            chips.write_port(port, value, 0);
        }
        let now = chips.next_event().unwrap();
        chips.advance(now);
        assert_eq!(chips.acknowledge(), Some(0x40));
    }

    #[test]
    fn a_shared_level_comes_again_until_it_falls() {
        let mut chips = Interrupts::new();
        route(&mut chips, 11, 0x55 | 1 << 15);
        chips.set_line(11, true);
        for _ in 0..2 {
            assert_eq!(chips.acknowledge(), Some(0x55));
            assert!(!chips.is_pending());
            chips.write_lapic(0xb0, 0, 0);
        }
        chips.set_line(11, false);
        assert_eq!(chips.acknowledge(), Some(0x55), "it had been sent");
        chips.write_lapic(0xb0, 0, 0);
        assert!(!chips.is_pending());
    }

    #[test]
    fn without_a_local_apic_the_8259_is_the_processors() {
        let mut chips = with_pic();
        chips.write_lapic(0x350, 1 << 16, 0);
        chips.pulse(4);
        assert!(!chips.is_pending());
        chips.enable_apic(false);
        assert_eq!(chips.acknowledge(), Some(0x34));
    }

    #[test]
    fn local_apics_of_others_get_messages() {
        let mut chips = Interrupts::without_local_apic();
        route(&mut chips, 11, 0x55 | 1 << 15);
        chips.set_line(11, true);
        let sent = |chips: &mut Interrupts| chips.take_sent().len();
        assert_eq!((sent(&mut chips), sent(&mut chips)), (1, 0));
        chips.end_of_interrupt(0x55);
        assert_eq!(sent(&mut chips), 1, "it still asks");
        chips.set_line(11, false);
        chips.end_of_interrupt(0x55);
        assert_eq!(sent(&mut chips), 0);
        assert!(!chips.is_pending(), "nothing is for the processor itself");
        assert!(Interrupts::new().restore(&chips.save().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_program_breaks_it(program in vec(any::<u8>(), 0..2000)) {
            exercise(&program);
        }
    }
}
