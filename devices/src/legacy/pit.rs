//! The Intel 8254 programmable interval timer (231164), with the parts of system
//! control port B (0x61) that drive its third counter.
//!
//! | port | |
//! | --- | --- |
//! | 0x40–0x42 | counters 0 to 2 |
//! | 0x43 | control word |
//! | 0x61 | gate of counter 2, speaker, refresh; output of counter 2 |
//!
//! A counter is what was loaded and when: its value and its output follow from
//! the time, which every call is given in nanoseconds.

use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// The first counter's port.
pub const BASE: u16 = 0x40;
/// Ports from there on.
pub const SIZE: u64 = 4;
/// System control port B.
pub const PORT_B: u16 = 0x61;

/// The crystal of every PC: a third of the colour subcarrier, over four.
const HZ: u128 = 1_193_182;
const NS: u128 = 1_000_000_000;

const COUNTERS: usize = 3;
const SPEAKER: usize = 2;

/// How a counter is read and written, control word bits 4 and 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// What was loaded, 1 to 65,536; none until then.
    count: Option<u32>,
    /// When it began to count, or was triggered.
    start: u64,
    gate: bool,
    /// Modes 1 and 5 count only once the gate has risen.
    triggered: bool,
    /// The first of two bytes to be written.
    write_low: Option<u8>,
    /// The second of two bytes is read next.
    read_high: bool,
    /// Latched value, and status.
    latch: Option<u16>,
    status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::Both,
            count: None,
            start: 0,
            gate,
            triggered: false,
            write_low: None,
            read_high: false,
            latch: None,
            status: None,
        }
    }

    /// Ticks since it began to count.
    fn ticks(&self, now: u64) -> u64 {
        (u128::from(now.saturating_sub(self.start)) * HZ / NS) as u64
    }

    /// When the tick comes, rounded up so that it has come then.
    fn time_of(&self, tick: u64) -> u64 {
        let after = (u128::from(tick) * NS).div_ceil(HZ);
        self.start.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    fn counts(&self) -> bool {
        match self.mode {
            1 | 5 => self.triggered,
            _ => self.gate,
        }
    }

    /// The counting element.
    fn value(&self, now: u64) -> u16 {
        let Some(count) = self.count else { return 0 };
        let count = u64::from(count);
        if !self.counts() {
            return self.encode(count as u32);
        }
        let ticks = self.ticks(now);
        let value = match self.mode {
            2 => count - ticks % count,
            // It falls by two, twice a period.
            3 => count - ticks * 2 % count,
            // It goes on through zero, from the highest number.
            _ => count.wrapping_sub(ticks) % self.modulus(),
        };
        self.encode(value as u32)
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn encode(&self, value: u32) -> u16 {
        let value = (u64::from(value) % self.modulus()) as u16;
        if !self.bcd {
            return value;
        }
        [1000, 100, 10, 1].iter().fold(0, |bcd, unit| (bcd << 4) | (value / unit % 10))
    }

    fn decode(&self, value: u16) -> u32 {
        let number = match self.bcd {
            false => u32::from(value),
            true => (0..4).rev().fold(0, |n, i| n * 10 + u32::from(value >> (4 * i) & 15).min(9)),
        };
        if number == 0 { self.modulus() as u32 } else { number }
    }

    /// The OUT pin.
    fn output(&self, now: u64) -> bool {
        let Some(count) = self.count else { return self.mode != 0 };
        let (count, ticks) = (u64::from(count), self.ticks(now));
        if !self.counts() {
            return self.mode != 0;
        }
        match self.mode {
            0 | 1 => ticks >= count,
            2 => ticks % count != count - 1,
            3 => ticks % count < count.div_ceil(2),
            _ => ticks != count,
        }
    }

    /// The first tick after `tick` at which OUT rises.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let count = u64::from(self.count?);
        if !self.counts() {
            return None;
        }
        match self.mode {
            0 | 1 => (tick < count).then_some(count),
            2 | 3 => Some((tick / count + 1) * count),
            _ => (tick < count + 1).then_some(count + 1),
        }
    }

    fn load(&mut self, value: u16, now: u64) {
        self.count = Some(self.decode(value));
        self.start = now;
        self.triggered = false;
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate && !self.gate {
            match self.mode {
                1 | 5 => (self.start, self.triggered) = (now, true),
                2 | 3 => self.start = now,
                _ => {}
            }
        }
        // Modes 0 and 4 stand still meanwhile; the count starts over after a
        // pause, which no software has been seen to notice.
        if gate && !self.gate && matches!(self.mode, 0 | 4) {
            self.start = now;
        }
        self.gate = gate;
    }

    fn control(&mut self, value: u8, now: u64) {
        match value >> 4 & 3 {
            0 => return self.latch_value(now),
            1 => self.access = Access::Low,
            2 => self.access = Access::High,
            _ => self.access = Access::Both,
        }
        // 6 and 7 are 2 and 3.
        self.mode = match value >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        self.count = None;
        self.triggered = false;
        (self.write_low, self.read_high, self.latch, self.status) = (None, false, None, None);
    }

    fn latch_value(&mut self, now: u64) {
        if self.latch.is_none() {
            self.latch = Some(self.value(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status.is_none() {
            let access = match self.access {
                Access::Low => 1 << 4,
                Access::High => 2 << 4,
                Access::Both => 3 << 4,
            };
            let null_count = u8::from(self.count.is_none()) << 6;
            let output = u8::from(self.output(now)) << 7;
            self.status = Some(output | null_count | access | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latch.unwrap_or_else(|| self.value(now));
        let [low, high] = value.to_le_bytes();
        match self.access {
            Access::Low => {
                self.latch = None;
                low
            }
            Access::High => {
                self.latch = None;
                high
            }
            Access::Both if self.read_high => {
                (self.latch, self.read_high) = (None, false);
                high
            }
            Access::Both => {
                self.read_high = true;
                low
            }
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.write_low.take()) {
            (Access::Low, _) => self.load(value.into(), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Both, None) => {
                self.write_low = Some(value);
                // In mode 0 the first byte stops the counter.
                if self.mode == 0 {
                    self.count = None;
                }
            }
            (Access::Both, Some(low)) => self.load(u16::from_le_bytes([low, value]), now),
        }
    }
}

const VERSION: u32 = 1;

/// The timer, and port B.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    counters: [Counter; COUNTERS],
    /// Until when rises of counter 0's output have been told.
    told: u64,
    port_b: u8,
    refresh: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

/// Port B: what can be written; the refresh toggle; output of counter 2.
const PORT_B_WRITABLE: u8 = 0x0f;
const PORT_B_GATE: u8 = 1;
const PORT_B_REFRESH: u8 = 1 << 4;
const PORT_B_OUT2: u8 = 1 << 5;

impl Pit {
    /// Nothing counts yet.
    pub fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            told: 0,
            port_b: 0,
            refresh: false,
        }
    }

    /// Whether counter 0's output, which is IRQ 0, has risen since the last
    /// call. Rises that nobody looked for meanwhile are one: so it is with an
    /// edge that waits at the interrupt controller.
    pub fn rose(&mut self, now: u64) -> bool {
        let rise = self.next_rise();
        self.told = self.told.max(now);
        rise.is_some_and(|at| at <= now)
    }

    /// When counter 0's output rises next, which may have been.
    pub fn next_rise(&self) -> Option<u64> {
        let counter = &self.counters[0];
        let told = if self.told < counter.start { 0 } else { counter.ticks(self.told) };
        Some(counter.time_of(counter.next_rise(told)?))
    }

    /// A read of one of the ports.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x42 => self.counters[usize::from(port - BASE)].read(now),
            PORT_B => {
                self.refresh = !self.refresh;
                let flag = |on, bit| if on { bit } else { 0 };
                self.port_b
                    | flag(self.refresh, PORT_B_REFRESH)
                    | flag(self.counters[SPEAKER].output(now), PORT_B_OUT2)
            }
            _ => 0xff,
        }
    }

    /// A write to one of the ports.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..=0x42 => self.counters[usize::from(port - BASE)].write(value, now),
            0x43 => self.control(value, now),
            PORT_B => {
                self.port_b = value & PORT_B_WRITABLE;
                self.counters[SPEAKER].set_gate(value & PORT_B_GATE != 0, now);
            }
            _ => {}
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        match self.counters.get_mut(usize::from(value >> 6)) {
            Some(counter) => counter.control(value, now),
            // Read-back: a zero asks for the value, and for the status.
            None => {
                for (i, counter) in self.counters.iter_mut().enumerate() {
                    if value & 2 << i != 0 {
                        if value & 1 << 5 == 0 {
                            counter.latch_value(now);
                        }
                        if value & 1 << 4 == 0 {
                            counter.latch_status(now);
                        }
                    }
                }
            }
        }
    }

    /// Its state.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("pit", VERSION, self)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: Self = saved.open("pit", VERSION)?;
        for counter in &state.counters {
            if counter.mode > 5 || counter.count.is_some_and(|n| !(1..=0x1_0000).contains(&n)) {
                let reason = format!("mode {}, count {:?}", counter.mode, counter.count);
                return Err(StateError::Invalid { kind: "pit", reason });
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

    /// A time with some ticks of the crystal, and half of one, behind it.
    fn at(ticks: u64) -> u64 {
        ((u128::from(ticks) * 2 + 1) * NS / HZ / 2) as u64
    }

    fn load(pit: &mut Pit, counter: u16, mode: u8, count: u16) {
        let [low, high] = count.to_le_bytes();
        pit.write(0x43, (counter as u8) << 6 | 3 << 4 | mode << 1, 0);
        pit.write(BASE + counter, low, 0);
        pit.write(BASE + counter, high, 0);
    }

    fn value(pit: &mut Pit, counter: u16, now: u64) -> u16 {
        pit.write(0x43, (counter as u8) << 6, now);
        u16::from_le_bytes([pit.read(BASE + counter, now), pit.read(BASE + counter, now)])
    }

    #[test]
    fn a_rate_generator_rises_every_period() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 2, 1000);
        assert!(!pit.rose(at(999)));
        assert!(pit.rose(at(1000)) && !pit.rose(at(1001)));
        assert!(pit.next_rise().unwrap() > at(1999) && pit.next_rise().unwrap() <= at(2000));
        assert!(pit.rose(at(10_500)), "many are one");
        assert!(!pit.rose(at(10_999)) && pit.rose(at(11_000)));
        assert_eq!(value(&mut pit, 0, at(11_001)), 999);
    }

    #[test]
    fn a_square_wave_is_high_for_the_first_half() {
        let mut pit = Pit::new();
        load(&mut pit, 2, 3, 10);
        pit.write(PORT_B, 1, 0);
        let high = |pit: &mut Pit, tick| pit.read(PORT_B, at(tick)) & PORT_B_OUT2 != 0;
        let wave: Vec<bool> = (0..20).map(|tick| high(&mut pit, tick)).collect();
        let half = [true, true, true, true, true, false, false, false, false, false];
        assert_eq!(wave, [half, half].concat());
    }

    #[test]
    fn terminal_count_rises_once_and_counts_on() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0, 500);
        assert!(!pit.rose(at(499)) && pit.rose(at(500)) && !pit.rose(at(100_000)));
        assert_eq!(pit.next_rise(), None);
        assert_eq!(value(&mut pit, 0, at(501)), 0xffff);
        // The first byte of a new count stops it.
        pit.write(BASE, 10, at(501));
        assert_eq!(pit.next_rise(), None);
    }

    /// As Linux measures its TSC: the gate of counter 2, mode 0, and bit 5.
    #[test]
    fn port_b_shows_the_end_of_counter_2() {
        let mut pit = Pit::new();
        pit.write(PORT_B, 0, 0);
        load(&mut pit, 2, 0, 11_931);
        assert_eq!(pit.read(PORT_B, at(20_000)) & PORT_B_OUT2, 0, "the gate is closed");
        pit.write(PORT_B, 1, 0);
        assert_eq!(pit.read(PORT_B, at(11_930)) & PORT_B_OUT2, 0);
        assert_eq!(pit.read(PORT_B, at(11_931)) & PORT_B_OUT2, PORT_B_OUT2);
        let (a, b) = (pit.read(PORT_B, 0), pit.read(PORT_B, 0));
        assert_eq!((a ^ b) & PORT_B_REFRESH, PORT_B_REFRESH);
    }

    #[test]
    fn read_back_gives_status_before_value() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x34, 0);
        pit.write(0x43, 0xc2, 0); // status and value of counter 0
        assert_eq!(pit.read(BASE, 0), 0xf4, "high, no count, both bytes, mode 2");
        load(&mut pit, 0, 2, 0);
        pit.write(0x43, 0xc2, at(2));
        assert_eq!(pit.read(BASE, at(9)), 0xb4);
        assert_eq!((pit.read(BASE, at(9)), pit.read(BASE, at(9))), (0xfe, 0xff));
    }

    #[test]
    fn bcd_counts_in_tens() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x35, 0); // both bytes, mode 2, BCD
        pit.write(BASE, 0x00, 0);
        pit.write(BASE, 0x10, 0);
        assert!(pit.rose(at(1000)));
        assert_eq!(value(&mut pit, 0, at(1001)), 0x0999);
    }

    proptest! {
        #[test]
        fn no_accesses_break_it(
            steps in vec((any::<bool>(), 0u8..5, any::<u8>(), 0u64..1 << 40), 0..200)
        ) {
            let mut pit = Pit::new();
            let mut now = 0u64;
            for (write, port, value, pass) in steps {
                let port = if port == 4 { PORT_B } else { BASE + u16::from(port) };
                now += pass;
                if write { pit.write(port, value, now) } else { pit.read(port, now); }
                let next = pit.next_rise();
                let rose = pit.rose(now);
                prop_assert_eq!(rose, next.is_some_and(|at| at <= now));
                prop_assert!(!pit.rose(now), "told once");
            }
            let mut other = Pit::new();
            other.restore(&pit.save().unwrap()).unwrap();
            prop_assert_eq!(other, pit);
        }
    }
}
