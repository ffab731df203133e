//! What a guest does to its devices, access by access, for those who measure it.
//!
//! ```text
//!  vCPU ─► exit ─► device ─► Recorder ─┬─► how often, by register
//!                                      ├─► the accesses since the last mark, in order
//!          OUT 0x80, 32 bits ──────────┼─► Mark: time, KVM's statistics, all of the above
//!          OUT 0x84, 32 bits ──────────┴─► data: what the guest has to say
//! ```
//!
//! A machine without one pays a test of a pointer for each exit to user space.
//! What the recorder itself does at a mark lies between [`Mark::arrived`] and
//! [`Mark::left`], so that it is part of no interval.

use crate::metrics::kvm::Statistics;
use devices::bus::lock;
use devices::legacy::debug;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// Where a guest marks a point in time: the POST code port of PCs, which firmware
/// and kernels write bytes to and nobody else 32 bits.
pub const MARK_PORT: u16 = debug::PORT;
/// Where a guest tells something, four bytes at a time: a port that a PC's DMA
/// controller would have, and no machine here has.
pub const DATA_PORT: u16 = 0x84;

/// Marks, accesses of an interval and bytes that are kept: the guest decides how
/// many there would be.
const MAX_MARKS: usize = 256;
const MAX_TRACE: usize = 2048;
const MAX_DATA: usize = 1 << 20;
const MAX_CONSOLE: usize = 64 << 10;
const MAX_REGISTERS: usize = 16 << 10;

/// The kind of an exit to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// IN.
    PortRead,
    /// OUT.
    PortWrite,
    /// A load from a register.
    MemoryRead,
    /// A store to a register.
    MemoryWrite,
    /// HLT, where interrupts are the monitor's.
    Halt,
    /// The guest can take an interrupt now, where they are the monitor's.
    Window,
    /// The vCPU was called: for an interrupt of the monitor's.
    Called,
}

/// One exit to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Nanoseconds since the machine started.
    pub at: u64,
    /// What it was.
    pub kind: Kind,
    /// Port or address.
    pub address: u64,
    /// Bytes of an item.
    pub size: u8,
    /// Items: more than one in a string instruction.
    pub items: u32,
    /// The first item, read or written.
    pub value: u64,
}

/// A guest's mark, and all that has happened until then.
#[derive(Debug, Clone)]
pub struct Mark {
    /// What the guest wrote.
    pub word: u32,
    /// When the exit came and when the guest went on, in nanoseconds since the
    /// machine started.
    pub arrived: u64,
    /// See above.
    pub left: u64,
    /// Processor time of the vCPU's thread, likewise.
    pub cpu_arrived: u64,
    /// See above.
    pub cpu_left: u64,
    /// KVM's statistics, all vCPUs together; empty where KVM has none. Exits for
    /// marks and data are among them.
    pub statistics: BTreeMap<String, u64>,
    /// Exits to user space by kind and register since the start; those for marks
    /// and data are not among them.
    pub counts: BTreeMap<(Kind, u64), u64>,
    /// Exits for marks and data since the start, without this one.
    pub own: u64,
    /// The first accesses since the mark before.
    pub trace: Vec<Access>,
}

/// All that was recorded.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Marks in their order.
    pub marks: Vec<Mark>,
    /// What the guest told.
    pub data: Vec<u8>,
    /// The first bytes that it wrote to the serial port.
    pub console: Vec<u8>,
}

/// Records one machine.
pub struct Recorder {
    start: Instant,
    on_mark: Box<dyn Fn(u32) + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    statistics: Vec<Statistics>,
    counts: BTreeMap<(Kind, u64), u64>,
    trace: Vec<Access>,
    own: u64,
    /// Whether the serial port's first register is its divisor.
    divisor: bool,
    record: Record,
}

impl Recorder {
    /// A recorder that tells `on_mark` of marks, on the vCPU's thread. Time starts
    /// now.
    pub fn new(on_mark: impl Fn(u32) + Send + Sync + 'static) -> Self {
        let (start, state) = (Instant::now(), Mutex::default());
        Self { start, on_mark: Box::new(on_mark), state }
    }

    /// Takes over KVM's statistics of the machine's vCPUs.
    pub(crate) fn watch(&self, statistics: Vec<Statistics>) {
        lock(&self.state).statistics = statistics;
    }

    /// The guest is entered for the first time: the first mark, of word 0.
    pub(crate) fn entered(&self) {
        let at = self.now();
        lock(&self.state).mark(0, (at, 0), || (self.now(), 0));
    }

    /// An exit that concerned no register.
    pub(crate) fn other(&self, kind: Kind) {
        let at = self.now();
        lock(&self.state).count(Access { at, kind, address: 0, size: 0, items: 1, value: 0 });
    }

    /// An exit of `data`, items of `size` bytes, and what was read or written.
    pub(crate) fn access(&self, kind: Kind, address: u64, size: usize, data: &[u8]) {
        let at = self.now();
        let value = number(data.get(..size).unwrap_or(data));
        if kind == Kind::PortWrite && size == 4 {
            if address == u64::from(MARK_PORT) {
                let cpu = thread_time();
                let left = || (self.now(), thread_time());
                lock(&self.state).mark(value as u32, (at, cpu), left);
                return (self.on_mark)(value as u32);
            }
            if address == u64::from(DATA_PORT) {
                return lock(&self.state).tell(data);
            }
        }
        let items = (data.len() / size.max(1)) as u32;
        let mut state = lock(&self.state);
        state.listen(kind, address, data);
        state.count(Access { at, kind, address, size: size as u8, items, value });
    }

    /// What was recorded.
    pub fn take(&self) -> Record {
        std::mem::take(&mut lock(&self.state).record)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

impl State {
    fn count(&mut self, access: Access) {
        let known = self.counts.len() < MAX_REGISTERS;
        let key = (access.kind, access.address);
        // A guest may touch any address; those beyond the limit are one.
        let key = if known || self.counts.contains_key(&key) { key } else { (access.kind, 0) };
        *self.counts.entry(key).or_default() += 1;
        if self.trace.len() < MAX_TRACE {
            self.trace.push(access);
        }
    }

    fn mark(&mut self, word: u32, arrived: (u64, u64), left: impl Fn() -> (u64, u64)) {
        let mut statistics = BTreeMap::new();
        for (name, value) in self.statistics.iter().flat_map(Statistics::read) {
            *statistics.entry(name).or_default() += value;
        }
        let trace = std::mem::take(&mut self.trace);
        let (counts, own) = (self.counts.clone(), self.own);
        self.own += 1;
        let (left, cpu_left) = left();
        let (arrived, cpu_arrived) = arrived;
        if self.record.marks.len() < MAX_MARKS {
            self.record.marks.push(Mark {
                word,
                arrived,
                left,
                cpu_arrived,
                cpu_left,
                statistics,
                counts,
                own,
                trace,
            });
        }
    }

    fn tell(&mut self, data: &[u8]) {
        self.own += 1;
        if self.record.data.len() + data.len() <= MAX_DATA {
            self.record.data.extend_from_slice(data);
        }
    }

    /// Takes what goes to the serial port, for a guest that does not come to tell
    /// anything.
    fn listen(&mut self, kind: Kind, address: u64, data: &[u8]) {
        const COM1: u64 = arch::layout::COM1 as u64;
        const LINE_CONTROL: u64 = COM1 + 3;
        match (kind, address) {
            (Kind::PortWrite, LINE_CONTROL) => {
                self.divisor = data.first().is_some_and(|byte| byte & 0x80 != 0);
            }
            (Kind::PortWrite, COM1)
                if !self.divisor && self.record.console.len() + data.len() <= MAX_CONSOLE =>
            {
                self.record.console.extend_from_slice(data);
            }
            _ => {}
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Processor time of this thread in nanoseconds.
fn thread_time() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock always exists, and the pointer is to a live local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn out(recorder: &Recorder, port: u16, bytes: &[u8]) {
        recorder.access(Kind::PortWrite, port.into(), bytes.len(), bytes);
    }

    #[test]
    fn intervals_hold_what_happened_between_their_marks() {
        let last = Arc::new(AtomicU32::new(0));
        let seen = last.clone();
        let recorder = Recorder::new(move |word| seen.store(word, Ordering::Relaxed));
        recorder.entered();
        recorder.access(Kind::PortRead, 0x1f7, 1, &[0x50]);
        out(&recorder, MARK_PORT, &0x4d01_0000u32.to_le_bytes());
        assert_eq!(last.load(Ordering::Relaxed), 0x4d01_0000);
        // An item of two bytes, three times.
        recorder.access(Kind::PortRead, 0x1f0, 2, &[1, 2, 3, 4, 5, 6]);
        recorder.other(Kind::Halt);
        out(&recorder, MARK_PORT, &[0x12]);
        out(&recorder, DATA_PORT, b"text");
        out(&recorder, MARK_PORT, &0x4d01_0001u32.to_le_bytes());
        let record = recorder.take();
        let [entered, begin, end] = record.marks.as_slice() else { panic!("{record:?}") };
        assert_eq!((entered.word, begin.word, end.word), (0, 0x4d01_0000, 0x4d01_0001));
        assert!(begin.arrived <= begin.left && begin.left <= end.arrived);
        assert_eq!(begin.trace.len(), 1);
        assert_eq!((begin.trace[0].address, begin.trace[0].value), (0x1f7, 0x50));
        assert_eq!(end.trace.len(), 3);
        assert_eq!((end.trace[0].items, end.trace[0].value), (3, 0x0201));
        assert_eq!(end.counts[&(Kind::PortRead, 0x1f7)], 1, "counts are since the start");
        assert_eq!(end.counts[&(Kind::PortWrite, MARK_PORT.into())], 1, "a byte is no mark");
        assert_eq!((end.own - begin.own, record.data.as_slice()), (2, b"text".as_slice()));
    }

    #[test]
    fn the_console_is_what_the_serial_port_sends() {
        let recorder = Recorder::new(|_| {});
        for (port, byte) in [(0x3fb, 0x83), (0x3f8, 1), (0x3fb, 3), (0x3f8, b'o'), (0x3f8, b'k')] {
            out(&recorder, port, &[byte]);
        }
        assert_eq!(recorder.take().console, b"ok");
    }

    #[test]
    fn a_guest_can_not_make_it_grow_without_end() {
        let recorder = Recorder::new(|_| {});
        for address in 0..2 * MAX_REGISTERS as u64 {
            recorder.access(Kind::MemoryWrite, address, 4, &[0; 4]);
        }
        let data = vec![0; 4096];
        (0..2 * MAX_DATA / data.len())
            .for_each(|_| recorder.access(Kind::PortWrite, DATA_PORT.into(), 4, &data));
        (0..2 * MAX_MARKS).for_each(|_| out(&recorder, MARK_PORT, &[0; 4]));
        let record = recorder.take();
        assert_eq!(record.marks.len(), MAX_MARKS);
        assert!(record.data.len() <= MAX_DATA);
        assert_eq!(record.marks[0].trace.len(), MAX_TRACE);
        assert!(record.marks[0].counts.len() <= MAX_REGISTERS + 1);
        let counted: u64 = record.marks[0].counts.values().sum();
        assert_eq!(counted, 2 * MAX_REGISTERS as u64, "none is lost");
    }
}
