//! The real-time clock and its RAM (Motorola MC146818A), in UTC.
//!
//! The registers are computed from the host's clock when they are read, so an
//! update is never in progress (UIP stays clear: a kernel that saw it stuck
//! would poll for a second).

use crate::bus::BusDevice;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Index port; the data port follows.
pub const BASE: u16 = 0x70;
/// Ports.
pub const SIZE: u64 = 2;

const INDEX: u64 = 0;
const DATA: u64 = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// Where PCs keep the century (ACPI FADT `CENTURY`).
const CENTURY: u8 = 0x32;

/// Register A: 32,768 Hz time base, 1,024 Hz periodic rate.
const A_DEFAULT: u8 = 0x26;
/// Register B: 24-hour mode.
const B_24H: u8 = 1 << 1;
/// Register B: binary instead of BCD.
const B_BINARY: u8 = 1 << 2;
/// Register B: updates are halted while the time is being set.
const B_SET: u8 = 1 << 7;
/// Register D: RAM and time are valid.
const D_VALID: u8 = 1 << 7;
/// Hours: afternoon, in 12-hour mode.
const PM: u8 = 1 << 7;

/// Bytes of RAM, the clock's registers included.
const RAM_SIZE: usize = 128;
/// Years that two registers of one byte can be made to show.
const YEARS: std::ops::Range<i64> = 0..20_000;

const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    index: u8,
    a: u8,
    b: u8,
    /// Seconds that the guest's clock is ahead of the host's.
    offset: i64,
    /// The date as it is being set, while `B_SET` holds: the guest writes one
    /// field after the other, and on the way there the date may not exist.
    frozen: Option<Date>,
    ram: Vec<u8>,
}

/// An MC146818 with 128 bytes of RAM.
pub struct Rtc {
    state: State,
    now: fn() -> i64,
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

/// Seconds since 1970 on the host.
fn host_time() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(host_time)
    }

    /// Sets a byte of the RAM, as firmware would find it. The clock's registers
    /// are not RAM.
    pub fn preset(&mut self, index: u8, value: u8) {
        if !matches!(index, SECONDS..=REG_D | CENTURY)
            && let Some(byte) = self.state.ram.get_mut(usize::from(index))
        {
            *byte = value;
        }
    }

    fn with_clock(now: fn() -> i64) -> Self {
        let state = State {
            index: 0,
            a: A_DEFAULT,
            b: B_24H,
            offset: 0,
            frozen: None,
            ram: vec![0; RAM_SIZE],
        };
        Self { state, now }
    }

    /// The clock's state: the guest's time is kept as a distance from the host's.
    pub fn save(&self) -> Result<Saved, StateError> {
        Saved::new("rtc", VERSION, &self.state)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open("rtc", VERSION)?;
        let invalid = |reason| Err(StateError::Invalid { kind: "rtc", reason });
        if state.ram.len() != RAM_SIZE {
            return invalid(format!("{} bytes of RAM, not {RAM_SIZE}", state.ram.len()));
        }
        if usize::from(state.index) >= RAM_SIZE {
            return invalid(format!("register {:#x} is selected", state.index));
        }
        if let Some(date) = state.frozen
            && !YEARS.contains(&date.year)
        {
            return invalid(format!("the year {}", date.year));
        }
        self.state = state;
        Ok(())
    }

    /// What the registers show.
    fn date(&self) -> Date {
        self.state
            .frozen
            .unwrap_or_else(|| Date::from_unix((self.now)().saturating_add(self.state.offset)))
    }

    /// From now on the clock shows `date`.
    fn set_date(&mut self, date: Date) {
        self.state.offset = date.to_unix().saturating_sub((self.now)());
    }

    /// Binary to the format that register B asks for.
    fn encode(&self, value: u8) -> u8 {
        if self.state.b & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.state.b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    }

    fn get(&self, index: u8) -> u8 {
        let date = self.date();
        match index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.hours(date.hour),
            DAY_OF_WEEK => self.encode(date.weekday),
            DAY_OF_MONTH => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year.rem_euclid(100) as u8),
            CENTURY => self.encode((date.year / 100).clamp(0, 99) as u8),
            REG_A => self.state.a,
            REG_B => self.state.b,
            // No interrupt is ever pending: none is wired.
            REG_C => 0,
            REG_D => D_VALID,
            _ => self.state.ram[usize::from(index & 0x7f)],
        }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.state.b & B_24H != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn set(&mut self, index: u8, value: u8) {
        let mut date = self.date();
        let plain = self.decode(value);
        match index {
            SECONDS => date.second = plain,
            MINUTES => date.minute = plain,
            HOURS if self.state.b & B_24H != 0 => date.hour = plain,
            HOURS => {
                date.hour = self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
            }
            DAY_OF_MONTH => date.day = plain,
            MONTH => date.month = plain,
            YEAR => date.year = date.year.div_euclid(100) * 100 + i64::from(plain),
            CENTURY => date.year = i64::from(plain) * 100 + date.year.rem_euclid(100),
            // It follows from the date.
            DAY_OF_WEEK => return,
            REG_A => return self.state.a = value & 0x7f,
            REG_B => return self.control(value),
            REG_C | REG_D => return,
            _ => return self.state.ram[usize::from(index & 0x7f)] = value,
        }
        match &mut self.state.frozen {
            Some(frozen) => *frozen = date,
            None => self.set_date(date),
        }
    }

    /// Register B: halting updates freezes the time, ending that sets it.
    fn control(&mut self, value: u8) {
        if value & B_SET != 0 {
            self.state.frozen = Some(self.date());
        } else if let Some(date) = self.state.frozen.take() {
            self.set_date(date);
        }
        self.state.b = value;
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (DATA, [byte]) = (offset, data) {
            *byte = self.get(self.state.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Bit 7 masks NMI and is not part of the index.
            (INDEX, [byte]) => self.state.index = byte & 0x7f,
            // A 16-bit write carries index and data at once.
            (INDEX, [index, value]) => {
                self.state.index = index & 0x7f;
                self.set(index & 0x7f, *value);
            }
            (DATA, [byte]) => self.set(self.state.index, *byte),
            _ => {}
        }
    }
}

/// A calendar date and time of day, proleptic Gregorian, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Date {
    year: i64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

const DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// Days of 400 years.
const ERA: i64 = 146_097;

impl Date {
    /// Years are counted from March, so that the leap day is a year's last.
    fn from_unix(time: i64) -> Self {
        let (days, second) = (time.div_euclid(DAY), time.rem_euclid(DAY));
        let shifted = days.saturating_add(EPOCH);
        let (era, doe) = (shifted.div_euclid(ERA), shifted.rem_euclid(ERA));
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let march = (5 * doy + 2) / 153;
        let month = if march < 10 { march + 3 } else { march - 9 };
        Self {
            year: yoe + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (doy - (153 * march + 2) / 5 + 1) as u8,
            // 1970-01-01 was a Thursday.
            weekday: ((days.rem_euclid(7) + 4) % 7) as u8 + 1,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Fields that a guest set out of range carry over, as in `mktime`.
    fn to_unix(self) -> i64 {
        let month = i64::from(self.month);
        let year = self.year - i64::from(month <= 2);
        let (era, yoe) = (year.div_euclid(400), year.rem_euclid(400));
        let doy = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        let days = era * ERA + doe - EPOCH;
        let second = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60;
        days.saturating_mul(DAY).saturating_add(second + i64::from(self.second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(INDEX, &[index]);
        let mut b = [0xff];
        rtc.read(DATA, &mut b);
        b[0]
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8) {
        rtc.write(INDEX, &[index]);
        rtc.write(DATA, &[value]);
    }

    #[test]
    fn the_time_is_told_in_bcd_and_binary() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let mut rtc = Rtc::with_clock(|| 1_709_251_198);
        let all = |rtc: &mut Rtc| {
            [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS]
                .map(|i| read(rtc, i))
        };
        assert_eq!(all(&mut rtc), [0x20, 0x24, 2, 0x29, 5, 0x23, 0x59, 0x58]);
        write(&mut rtc, REG_B, B_BINARY);
        assert_eq!(all(&mut rtc), [20, 24, 2, 29, 5, 11 | PM, 59, 58]);
        assert_eq!(read(&mut rtc, REG_A) & 0x80, 0, "no update is ever in progress");
        assert_eq!(read(&mut rtc, REG_D), D_VALID);
    }

    #[test]
    fn the_guest_sets_its_own_time() {
        let mut rtc = Rtc::with_clock(|| 1_000_000_000);
        write(&mut rtc, REG_B, B_SET | B_24H);
        for (index, value) in [
            (CENTURY, 0x19),
            (YEAR, 0x99),
            (MONTH, 0x12),
            (DAY_OF_MONTH, 0x31),
            (HOURS, 0x23),
            (MINUTES, 0x59),
            (SECONDS, 0x59),
        ] {
            write(&mut rtc, index, value);
        }
        write(&mut rtc, REG_B, B_24H);
        assert_eq!(rtc.date().to_unix(), 946_684_799);
        let mut other = Rtc::with_clock(|| 1_000_000_001);
        other.restore(&rtc.save().unwrap()).unwrap();
        assert_eq!(other.date().to_unix(), 946_684_800, "the restored clock goes on");
        assert_eq!((read(&mut other, CENTURY), read(&mut other, YEAR)), (0x20, 0));
    }

    /// Linux writes year, month and day in this order.
    #[test]
    fn a_date_is_set_field_by_field() {
        // 2024-01-31: on the way to February 10th lies February 31st.
        let mut rtc = Rtc::with_clock(|| 1_706_659_200);
        write(&mut rtc, REG_B, B_SET | B_24H);
        write(&mut rtc, MONTH, 0x02);
        assert_eq!((read(&mut rtc, MONTH), read(&mut rtc, DAY_OF_MONTH)), (0x02, 0x31));
        let mut other = Rtc::with_clock(|| 1_706_659_200);
        other.restore(&rtc.save().unwrap()).unwrap();
        write(&mut other, DAY_OF_MONTH, 0x10);
        write(&mut other, REG_B, B_24H);
        let shown = [MONTH, DAY_OF_MONTH, DAY_OF_WEEK].map(|i| read(&mut other, i));
        assert_eq!(shown, [0x02, 0x10, 0x07]);
    }

    #[test]
    fn a_broken_state_is_refused() {
        let mut rtc = Rtc::new();
        let saved = rtc.save().unwrap();
        let mut refuse = |field: &str, value: serde_json::Value| {
            let mut broken = saved.clone();
            broken.data[field] = value;
            assert!(rtc.restore(&broken).is_err(), "{field}");
        };
        refuse("ram", vec![0u8; 127].into());
        refuse("index", 0x80.into());
        let mut date = serde_json::to_value(Date::from_unix(0)).unwrap();
        date["year"] = i64::MAX.into();
        refuse("frozen", date);
    }

    #[test]
    fn ram_keeps_what_is_written() {
        let mut rtc = Rtc::new();
        write(&mut rtc, 0x0f, 0x0a);
        write(&mut rtc, 0x7f, 0x55);
        assert_eq!((read(&mut rtc, 0x0f), read(&mut rtc, 0xff)), (0x0a, 0x55));
    }

    proptest! {
        #[test]
        fn dates_agree_with_the_c_library(time in -62_000_000_000i64..200_000_000_000) {
            // SAFETY: gmtime_r writes the struct that it is given.
            let tm = unsafe {
                let mut tm = std::mem::zeroed();
                libc::gmtime_r(&time, &mut tm);
                tm
            };
            let date = Date::from_unix(time);
            prop_assert_eq!(date.year, i64::from(tm.tm_year) + 1900);
            prop_assert_eq!(i32::from(date.month), tm.tm_mon + 1);
            prop_assert_eq!(i32::from(date.day), tm.tm_mday);
            prop_assert_eq!(i32::from(date.weekday), tm.tm_wday + 1);
            prop_assert_eq!(date.to_unix(), time);
        }

        #[test]
        fn no_accesses_make_it_panic(
            accesses in proptest::collection::vec((any::<bool>(), 0u64..2, proptest::collection::vec(any::<u8>(), 1..5)), 0..200)
        ) {
            let mut rtc = Rtc::new();
            for (write, offset, mut data) in accesses {
                if write { rtc.write(offset, &data) } else { rtc.read(offset, &mut data) }
            }
            rtc.save().unwrap();
        }
    }
}
