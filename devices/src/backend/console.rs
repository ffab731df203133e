//! Where serial output goes: a bounded buffer that vCPUs fill without ever
//! blocking, and one thread that empties it into a file descriptor.
//!
//! When the reader is slow the buffer fills up to [`HIGH_WATER`] and the serial
//! port stops telling its driver that it may send; nothing is lost. The
//! headroom behind it takes what drivers send without asking. Only output that
//! can't be written at all (a closed pipe, a full disk) is dropped, and counted.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes at which the sender is asked to wait.
pub const HIGH_WATER: usize = 1 << 20;
/// Bytes at which it may go on.
const LOW_WATER: usize = HIGH_WATER / 2;
/// All that is ever kept.
const CAPACITY: usize = HIGH_WATER + (64 << 10);

/// The sending side, shared by the port and whoever shuts the machine down.
#[derive(Clone)]
pub struct ConsoleOutput(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Signalled when there is something to write, or no more will come.
    more: Condvar,
    /// Signalled when everything has been written.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    writing: bool,
    stopped: bool,
    held_back: bool,
    resume: Option<Arc<dyn Fn() + Send + Sync>>,
    lost: u64,
    error: Option<io::Error>,
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
        let state = State { stopped: true, ..Default::default() };
        Self::with(state)
    }

    fn with(state: State) -> Self {
        let (more, idle) = (Condvar::new(), Condvar::new());
        Self(Arc::new(Shared { state: Mutex::new(state), more, idle }))
    }

    /// Output into `fd`, written by a thread of its own, on which `before` runs
    /// first: the place for its system call filter.
    pub fn to(fd: OwnedFd, before: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let output = Self::with(State::default());
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
        if state.buffer.len() >= CAPACITY || state.error.is_some() {
            state.lost += 1;
            return state.error.is_some();
        }
        state.buffer.push(byte);
        if state.buffer.len() == 1 && !state.writing {
            self.0.more.notify_one();
        }
        state.held_back |= state.buffer.len() >= HIGH_WATER;
        !state.held_back
    }

    /// Whether the sender has been asked to wait.
    pub fn is_held_back(&self) -> bool {
        self.lock().held_back
    }

    /// The writer: takes all there is, writes it, and starts again.
    fn write_all_to(&self, mut file: File) {
        let mut batch = Vec::new();
        let mut state = self.lock();
        loop {
            while state.buffer.is_empty() {
                state.writing = false;
                self.0.idle.notify_all();
                if state.stopped {
                    return;
                }
                state = self.0.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            batch.clear();
            std::mem::swap(&mut state.buffer, &mut batch);
            let resume = match state.held_back {
                true => state.resume.clone(),
                false => None,
            };
            // Everything that was held is in `batch` now: the buffer is empty,
            // but the sender goes on only when the batch is nearly out.
            drop(state);
            let outcome = write_out(&mut file, &batch, || {
                self.lock().held_back = false;
                if let Some(resume) = &resume {
                    resume();
                }
            });
            state = self.lock();
            if let Err((lost, error)) = outcome {
                state.lost += lost as u64 + state.buffer.len() as u64;
                state.buffer.clear();
                state.error.get_or_insert(error);
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
            while !state.buffer.is_empty() || state.writing {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let bytes = state.lost + state.buffer.len() as u64;
                    return Some(Loss { bytes, error: "the reader is stuck".to_owned() });
                }
                let waited = self.0.idle.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let error = match (&state.error, state.lost) {
            (Some(error), _) => error.to_string(),
            (None, 0) => return None,
            (None, _) => "the reader was too slow".to_owned(),
        };
        Some(Loss { bytes: state.lost, error })
    }
}

/// Writes `batch`, calling `nearly` once no more than the low water mark is
/// left; on failure says how much was not written.
fn write_out(
    file: &mut File,
    batch: &[u8],
    nearly: impl FnOnce(),
) -> Result<(), (usize, io::Error)> {
    let mut nearly = Some(nearly);
    let mut done = 0;
    loop {
        if batch.len() - done <= LOW_WATER {
            if let Some(nearly) = nearly.take() {
                nearly();
            }
        }
        if done == batch.len() {
            return Ok(());
        }
        match file.write(&batch[done..]) {
            Ok(0) => return Err((batch.len() - done, ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Somebody else made the terminal or pipe non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait_writable(file),
            Err(e) => {
                if let Some(nearly) = nearly.take() {
                    nearly();
                }
                return Err((batch.len() - done, e));
            }
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
    use std::sync::atomic::{AtomicU32, Ordering};

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), writer.into())
    }

    #[test]
    fn everything_comes_out_in_order() {
        let (mut reader, writer) = pipe();
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

    #[test]
    fn a_slow_reader_holds_the_sender_back_and_nothing_is_lost() {
        let (mut reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        let resumed = Arc::new(AtomicU32::new(0));
        let counter = resumed.clone();
        output.on_room(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
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
        assert!(resumed.load(Ordering::SeqCst) >= 1);
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
    fn a_stuck_reader_does_not_keep_the_machine() {
        let (_reader, writer) = pipe();
        let output = ConsoleOutput::to(writer, || ()).unwrap();
        (0..300_000).for_each(|_| {
            output.push(b'x');
        });
        assert!(output.finish(Duration::from_millis(50)).is_some());
    }
}
