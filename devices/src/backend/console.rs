//! Where serial output goes: a bounded buffer that vCPUs fill without ever
//! blocking, and one thread that empties it into a file descriptor.
//!
//! ```text
//!  vCPU ─ push ─► buffer ─ taken whole ─► batch ─ write(2) ─► terminal, file, pipe
//!                   └──── pending bytes ────┘
//! ```
//!
//! When the reader is slow the pending bytes grow to [`HIGH_WATER`] and the
//! serial port stops telling its driver that it may send; nothing is lost. The
//! headroom behind it takes what drivers send without asking. Only output that
//! can't be written at all (a closed pipe, a full disk) is dropped, and counted.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Pending bytes at which the sender is asked to wait.
pub const HIGH_WATER: usize = 1 << 20;
/// Pending bytes at which it may go on.
const LOW_WATER: usize = HIGH_WATER / 2;
/// All that is ever kept.
const CAPACITY: usize = HIGH_WATER + (64 << 10);

/// A UART sends byte by byte; the writer gathers them for so long, or until
/// they are [`ENOUGH`], before it makes a system call.
const LINGER: Duration = Duration::from_millis(1);
const ENOUGH: usize = 4096;
/// The most that is written at once, so that a slow reader's progress shows.
const CHUNK: usize = 64 << 10;
/// What a buffer keeps of its memory when it was emptied.
const KEEP: usize = 16 << 10;

/// The sending side, shared by the port and whoever shuts the machine down.
#[derive(Clone)]
pub struct ConsoleOutput(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Changed only under the lock of `state`; read without it.
    held_back: AtomicBool,
    /// Signalled when there is something to write, or no more will come.
    more: Condvar,
    /// Signalled when everything has been written.
    idle: Condvar,
}

/// What the writer does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// There is none: the output stays in memory.
    Absent,
    /// Waits for the first byte.
    Asleep,
    /// Waits for some more.
    Lingering,
    /// Writes.
    Busy,
}

struct State {
    buffer: Vec<u8>,
    /// Bytes of the batch that are not written yet.
    in_flight: usize,
    writer: Writer,
    stopped: bool,
    resume: Option<Arc<dyn Fn() + Send + Sync>>,
    lost: u64,
    error: Option<io::Error>,
}

impl State {
    fn pending(&self) -> usize {
        self.buffer.len() + self.in_flight
    }
}

/// What became of the output.
#[derive(Debug)]
pub struct Loss {
    /// Bytes that were dropped.
    pub bytes: u64,
    /// Why.
    pub error: String,
}

impl ConsoleOutput {
    /// Output into nothing: for a port that leads nowhere.
    pub fn discard() -> Self {
        Self::with(Writer::Absent, true)
    }

    /// Output that stays in memory until [`ConsoleOutput::take`]: for tests.
    pub fn memory() -> Self {
        Self::with(Writer::Absent, false)
    }

    fn with(writer: Writer, stopped: bool) -> Self {
        let state = State {
            buffer: Vec::new(),
            in_flight: 0,
            writer,
            stopped,
            resume: None,
            lost: 0,
            error: None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            held_back: AtomicBool::new(false),
            more: Condvar::new(),
            idle: Condvar::new(),
        }))
    }

    /// Output into `fd`, written by a thread of its own, on which `before` runs
    /// first: the place for its system call filter.
    pub fn to(fd: OwnedFd, before: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let output = Self::with(Writer::Busy, false);
        let shared = output.clone();
        thread::Builder::new().name("console".to_owned()).stack_size(64 << 10).spawn(
            move || {
                before();
                shared.write_all_to(File::from(fd));
            },
        )?;
        Ok(output)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to call, on the writer's thread, when there is room again after
    /// [`ConsoleOutput::push`] asked the sender to wait.
    pub fn on_room(&self, resume: impl Fn() + Send + Sync + 'static) {
        self.lock().resume = Some(Arc::new(resume));
    }

    /// Takes one byte. Returns whether the sender may go on at once.
    pub fn push(&self, byte: u8) -> bool {
        let mut state = self.lock();
        if state.stopped {
            return true;
        }
        if state.error.is_some() {
            state.lost += 1;
            return true;
        }
        if state.pending() >= CAPACITY {
            state.lost += 1;
            return false;
        }
        state.buffer.push(byte);
        // Notifying is a system call, so only where somebody waits for it.
        let enough = state.buffer.len() == ENOUGH;
        if state.writer == Writer::Asleep || (state.writer == Writer::Lingering && enough) {
            state.writer = Writer::Busy;
            self.0.more.notify_one();
        }
        if state.pending() >= HIGH_WATER {
            self.0.held_back.store(true, Ordering::SeqCst);
        }
        !self.is_held_back()
    }

    /// Whether the sender has been asked to wait.
    pub fn is_held_back(&self) -> bool {
        self.0.held_back.load(Ordering::SeqCst)
    }

    /// Takes what an output in memory has got.
    pub fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        let bytes = std::mem::take(&mut state.buffer);
        drop(self.let_go(state));
        bytes
    }

    /// Lets a sender that was asked to wait go on if there is room. The lock is
    /// open while it is told, because it may look at the console at once.
    fn let_go<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.pending() > LOW_WATER || !self.is_held_back() {
            return state;
        }
        self.0.held_back.store(false, Ordering::SeqCst);
        let Some(resume) = state.resume.clone() else { return state };
        drop(state);
        resume();
        self.lock()
    }

    /// The writer: takes all there is, writes it, and starts again.
    fn write_all_to(&self, mut file: File) {
        let mut batch = Vec::new();
        let mut state = self.lock();
        loop {
            while state.buffer.is_empty() {
                state.writer = Writer::Asleep;
                self.0.idle.notify_all();
                if state.stopped {
                    return;
                }
                state = self.0.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writer = Writer::Lingering;
            let waits = |s: &mut State| s.buffer.len() < ENOUGH && !s.stopped;
            let waited = self.0.more.wait_timeout_while(state, LINGER, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.writer = Writer::Busy;

            batch.clear();
            batch.shrink_to(KEEP);
            std::mem::swap(&mut state.buffer, &mut batch);
            state.in_flight = batch.len();
            while state.in_flight > 0 {
                let rest = &batch[batch.len() - state.in_flight..];
                drop(state);
                let outcome = write_some(&mut file, rest);
                state = self.lock();
                match outcome {
                    Ok(n) => state.in_flight = state.in_flight.saturating_sub(n),
                    Err(e) => {
                        state.lost += state.pending() as u64;
                        state.buffer.clear();
                        state.in_flight = 0;
                        state.error.get_or_insert(e);
                    }
                }
                state = self.let_go(state);
            }
        }
    }

    /// Writes what is left and ends the thread; gives up after `limit` if the
    /// reader is stuck. Says what was lost, if anything.
    pub fn finish(&self, limit: Duration) -> Option<Loss> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        if !state.stopped {
            state.stopped = true;
            self.0.more.notify_one();
        }
        while state.writer != Writer::Absent && (state.pending() > 0 || !asleep(&state)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let bytes = state.lost + state.pending() as u64;
                return Some(Loss { bytes, error: "the reader is stuck".to_owned() });
            }
            let waited = self.0.idle.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let error = match (&state.error, state.lost) {
            (Some(error), _) => error.to_string(),
            (None, 0) => return None,
            (None, _) => "the reader was too slow".to_owned(),
        };
        Some(Loss { bytes: state.lost, error })
    }
}

fn asleep(state: &State) -> bool {
    state.writer == Writer::Asleep
}

/// Writes a part of `bytes` and says how much.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(&bytes[..bytes.len().min(CHUNK)]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Somebody else made the terminal or pipe non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait_writable(file),
            Err(e) => return Err(e),
        }
    }
}

fn wait_writable(file: &File) {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    unsafe { libc::poll(&mut poll, 1, -1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::atomic::AtomicU32;

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), writer.into())
    }

    fn counting(output: &ConsoleOutput) -> Arc<AtomicU32> {
        let resumed = Arc::new(AtomicU32::new(0));
        let counter = resumed.clone();
        output.on_room(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        resumed
    }

    fn non_blocking(file: &impl AsRawFd) {
        // SAFETY: F_SETFL takes a number.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    }

    #[test]
    fn everything_comes_out_in_order() {
        for block in [true, false] {
            let (mut reader, writer) = pipe();
            if !block {
                non_blocking(&writer);
            }
            let output = ConsoleOutput::to(writer, || ()).unwrap();
            let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
            let read = thread::spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).unwrap();
                all
            });
            bytes.iter().for_each(|b| assert!(output.push(*b)));
            assert!(output.finish(Duration::from_secs(10)).is_none());
            drop(output);
            assert_eq!(read.join().unwrap(), bytes);
        }
    }

    #[test]
    fn a_lone_byte_comes_out_without_another() {
        let (mut reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        for byte in *b"abc" {
            output.push(byte);
            let mut got = [0];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got, [byte]);
        }
    }

    #[test]
    fn a_slow_reader_holds_the_sender_back_and_nothing_is_lost() {
        let (mut reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        let resumed = counting(&output);
        let mut sent = 0;
        while output.push(b'x') {
            sent += 1;
            assert!(sent < 4 * HIGH_WATER, "it never holds back");
        }
        sent += 1;
        assert!(output.is_held_back());
        let mut all = vec![0; sent];
        reader.read_exact(&mut all).unwrap();
        while output.is_held_back() {
            thread::yield_now();
        }
        assert!(output.push(b'y'));
        assert!(output.finish(Duration::from_secs(10)).is_none());
        assert_eq!(resumed.load(Ordering::SeqCst), 1);
    }

    /// The sender is held back while a batch that began before is written: it
    /// must be told all the same.
    #[test]
    fn whoever_is_held_back_is_told_to_go_on() {
        let output = ConsoleOutput::memory();
        let resumed = counting(&output);
        for round in 1..=3 {
            while output.push(b'x') {}
            assert_eq!(resumed.load(Ordering::SeqCst), round - 1);
            assert_eq!(output.take().len(), HIGH_WATER);
            assert_eq!(resumed.load(Ordering::SeqCst), round);
            assert!(!output.is_held_back());
        }
        let (mut reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        let resumed = counting(&output);
        let mut buffer = vec![0; 300_000];
        for _ in 0..20 {
            while output.push(b'x') {}
            // Some room, somewhere in the middle of a batch.
            reader.read_exact(&mut buffer).unwrap();
            reader.read_exact(&mut buffer).unwrap();
            reader.read_exact(&mut buffer).unwrap();
            while output.is_held_back() {
                thread::yield_now();
            }
        }
        // The flag falls just before the call.
        while resumed.load(Ordering::SeqCst) < 20 {
            thread::yield_now();
        }
    }

    #[test]
    fn the_headroom_ends() {
        let output = ConsoleOutput::memory();
        (0..CAPACITY + 10).for_each(|_| {
            output.push(b'x');
        });
        assert_eq!(output.take().len(), CAPACITY);
        let loss = output.finish(Duration::ZERO).unwrap();
        assert_eq!(loss.bytes, 10);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = ConsoleOutput::to(full.into(), || ()).unwrap();
        (0..100).for_each(|_| assert!(output.push(b'x')));
        let loss = output.finish(Duration::from_secs(10)).unwrap();
        assert_eq!(loss.bytes, 100);
        assert!(loss.error.contains("No space"), "{}", loss.error);
    }

    #[test]
    fn a_reader_that_left_lets_the_sender_go_on() {
        let (reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        let resumed = counting(&output);
        while output.push(b'x') {}
        drop(reader);
        while output.is_held_back() || resumed.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        (0..2 * CAPACITY).for_each(|_| assert!(output.push(b'x')));
        let loss = output.finish(Duration::from_secs(10)).unwrap();
        assert!(loss.error.contains("Broken pipe"), "{}", loss.error);
        assert!(loss.bytes > 2 * CAPACITY as u64);
    }

    #[test]
    fn a_stuck_reader_does_not_keep_the_machine() {
        let (_reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        (0..300_000).for_each(|_| {
            output.push(b'x');
        });
        let loss = output.finish(Duration::from_millis(50)).unwrap();
        assert!(loss.bytes > 200_000, "{}", loss.bytes);
    }
}
