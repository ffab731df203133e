//! From standard input to the serial port.
//!
//! ```text
//!  stdin ─ readable ─► read once ─► escape ─► pending ─► port's FIFO
//!            ▲                                   │ full
//!            └────────── room in the FIFO ◄──────┘ (stdin is not watched)
//! ```
//!
//! No byte is lost or overtakes another: nothing is read while bytes wait, so
//! a fast writer is held back by its own pipe. The end of the input ends the
//! input and nothing else; the guest goes on.
//!
//! Standard input is shared with other processes, and so are its flags: it is
//! never made non-blocking, but read when it is readable, with `RWF_NOWAIT`
//! where the kind of file has it. A regular file and `/dev/null` can't be
//! watched (`EPERM`) and are always ready; they are read whenever the port has
//! room.

use super::escape::{Escape, HELP, Typed};
use super::signals::{self, Job, JobControl};
use super::terminal;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// Where the bytes go.
pub trait InputSink: Send {
    /// Takes what fits and returns how many bytes that was.
    fn enqueue(&mut self, bytes: &[u8]) -> usize;
    /// Becomes readable when there is room again after not all fitted.
    fn room(&self) -> &EventFd;
}

impl<S: InputSink + ?Sized> InputSink for Box<S> {
    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        (**self).enqueue(bytes)
    }

    fn room(&self) -> &EventFd {
        (**self).room()
    }
}

/// Standard input by its number: it is not ours to close.
#[derive(Debug, Clone, Copy)]
pub struct Stdin;

impl AsRawFd for Stdin {
    fn as_raw_fd(&self) -> RawFd {
        libc::STDIN_FILENO
    }
}

/// The most that is read at once.
const CHUNK: usize = 4096;
/// How often a background job looks whether it has the terminal now. A shell's
/// `fg` need not send a signal to a job that is running.
const BACKGROUND_POLL: Duration = Duration::from_millis(250);

/// What is to be done with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The event loop tells when it is readable.
    Watched,
    /// It can be watched, but not before there is room: a writer that hung up
    /// would be reported again and again.
    Held,
    /// It can't be watched and is always readable.
    Always,
    /// A terminal that belongs to another job.
    Background,
    /// It has ended.
    Ended,
}

/// Standard input on its way to the guest.
pub struct Input<S: InputSink = Box<dyn InputSink>, F: AsRawFd = Stdin> {
    source: F,
    sink: S,
    /// The source is the terminal.
    terminal: bool,
    escape: Escape,
    quit: Box<dyn FnMut() + Send>,
    state: State,
    /// Read, and not yet taken by the sink; `sent` of them are.
    pending: Vec<u8>,
    sent: usize,
    /// The source knows `RWF_NOWAIT`, as far as was tried.
    nowait: bool,
    background: Option<TimerFd>,
    job_control: Option<JobControl>,
}

impl<S: InputSink> Input<S> {
    /// From standard input to `sink`. With `terminal` (there is a
    /// [`terminal::RawTerminal`]) there is an escape key, and `quit` is called
    /// when the user leaves; anything else is passed byte by byte.
    ///
    /// The signals of job control must have been blocked for a terminal.
    pub fn stdin(sink: S, terminal: bool, quit: impl FnMut() + Send + 'static) -> Self {
        Self::new(Stdin, sink, terminal, Box::new(quit))
    }
}

impl<S: InputSink, F: AsRawFd> Input<S, F> {
    fn new(source: F, sink: S, terminal: bool, quit: Box<dyn FnMut() + Send>) -> Self {
        Self {
            source,
            sink,
            terminal,
            escape: Escape::default(),
            quit,
            state: State::Held,
            pending: Vec::new(),
            sent: 0,
            nowait: true,
            background: None,
            job_control: None,
        }
    }

    /// Starts watching a source that is not watched.
    fn watch(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.source, EventSet::IN);
        self.state = match ops.add(events) {
            Ok(()) => State::Watched,
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EPERM => State::Always,
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EBADF => State::Ended,
            Err(error) => {
                log::error!("standard input: {error}: the guest gets no input");
                State::Ended
            }
        };
        if self.state == State::Always {
            self.read_while_there_is_room(ops);
        }
    }

    /// Changes the state, and stops watching if that is what it was.
    fn leave_watch(&mut self, ops: &mut EventOps, state: State) {
        if self.state == State::Watched
            && let Err(error) = ops.remove(Events::empty(&self.source))
        {
            log::error!("standard input: {error}");
        }
        self.state = state;
    }

    /// The source is readable, or was left alone until now.
    fn on_readable(&mut self, ops: &mut EventOps) {
        if self.state != State::Watched {
            return;
        }
        if self.terminal && !terminal::engage() {
            // A read would stop the process (SIGTTIN).
            return self.go_to_background(ops);
        }
        self.read_once(ops);
        if self.state == State::Watched && !self.push() {
            self.leave_watch(ops, State::Held);
        }
    }

    fn read_while_there_is_room(&mut self, ops: &mut EventOps) {
        while self.state == State::Always && self.push() {
            self.read_once(ops);
        }
    }

    /// Waits for the terminal to be ours.
    fn go_to_background(&mut self, ops: &mut EventOps) {
        self.leave_watch(ops, State::Background);
        let timer = TimerFd::new().and_then(|mut timer| {
            timer.reset(BACKGROUND_POLL, Some(BACKGROUND_POLL))?;
            Ok(timer)
        });
        match timer {
            Ok(timer) => {
                if let Err(error) = ops.add(Events::new(&timer, EventSet::IN)) {
                    log::error!("terminal: {error}: the guest gets no input");
                }
                self.background = Some(timer);
            }
            Err(error) => log::error!("terminal: {error}: the guest gets no input"),
        }
    }

    fn on_timer(&mut self, ops: &mut EventOps) {
        let Some(timer) = &mut self.background else { return };
        // Already known to be readable; the count doesn't matter.
        let _ = timer.wait();
        if terminal::engage() {
            if let Err(error) = ops.remove(Events::empty(timer)) {
                log::error!("terminal: {error}");
            }
            self.background = None;
            self.watch(ops);
        }
    }

    /// Reads one chunk into `pending`, which is empty.
    fn read_once(&mut self, ops: &mut EventOps) {
        let mut chunk = [0; CHUNK];
        match self.read(&mut chunk) {
            Ok(0) => {
                log::info!("standard input has ended");
                self.leave_watch(ops, State::Ended);
            }
            Ok(n) => self.take(&chunk[..n], ops),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // A terminal that went away says EIO.
                log::info!("standard input: {error}: the guest gets no more input");
                self.leave_watch(ops, State::Ended);
            }
        }
    }

    /// One read that does not wait, as far as the file allows it.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let fd = self.source.as_raw_fd();
        if self.nowait && self.state == State::Watched {
            let vector = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            // SAFETY: the vector describes `chunk`; offset -1 is the file's own.
            match unsafe { libc::preadv2(fd, &vector, 1, -1, libc::RWF_NOWAIT) } {
                n @ 0.. => return Ok(n as usize),
                _ => match io::Error::last_os_error() {
                    // Terminals, and kernels before 4.14.
                    e if matches!(
                        e.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ESPIPE)
                    ) =>
                    {
                        self.nowait = false;
                    }
                    e => return Err(e),
                },
            }
        }
        // SAFETY: read writes at most the chunk's length to the chunk.
        match unsafe { libc::read(fd, chunk.as_mut_ptr().cast(), chunk.len()) } {
            n @ 0.. => Ok(n as usize),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the user's keys out and keeps the guest's bytes.
    fn take(&mut self, mut bytes: &[u8], ops: &mut EventOps) {
        if !self.terminal {
            return self.pending.extend_from_slice(bytes);
        }
        while let Some(typed) = self.escape.next(&mut bytes) {
            match typed {
                Typed::Bytes(bytes) => self.pending.extend_from_slice(bytes),
                Typed::Help => terminal::tell(HELP),
                Typed::Leave => {
                    (self.quit)();
                    return self.leave_watch(ops, State::Ended);
                }
            }
        }
    }

    /// Hands on what waits. Returns whether all of it was taken.
    fn push(&mut self) -> bool {
        while self.sent < self.pending.len() {
            match self.sink.enqueue(&self.pending[self.sent..]) {
                0 => return false,
                n => self.sent += n,
            }
        }
        self.pending.clear();
        self.sent = 0;
        true
    }

    /// The guest has made room.
    fn on_room(&mut self, ops: &mut EventOps) {
        // An eventfd that is readable; the count doesn't matter.
        let _ = self.sink.room().read();
        // Bytes may wait in every state, also from before the end.
        let empty = self.push();
        match self.state {
            State::Always => self.read_while_there_is_room(ops),
            State::Held if empty => self.watch(ops),
            _ => {}
        }
    }

    /// Stops and goes on as a shell's job.
    fn on_job_control(&mut self) {
        let Some(job_control) = &self.job_control else { return };
        match job_control.read() {
            Some(Job::Suspend) => {
                terminal::restore_now();
                signals::stop_now();
                // Also when nothing stopped us: the terminal is ours again.
                terminal::resume();
            }
            Some(Job::Continue) => terminal::resume(),
            None => {}
        }
    }

    fn watch_job_control(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let job_control = JobControl::new()?;
        ops.add(Events::new(&job_control, EventSet::IN)).map_err(io::Error::other)?;
        self.job_control = Some(job_control);
        Ok(())
    }

    fn is_job_control(&self, fd: RawFd) -> bool {
        self.job_control.as_ref().is_some_and(|job| job.as_raw_fd() == fd)
    }
}

impl<S: InputSink, F: AsRawFd> MutEventSubscriber for Input<S, F> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.fd() {
            fd if fd == self.sink.room().as_raw_fd() => self.on_room(ops),
            // A hang-up or an error is found by reading, after what is left.
            fd if fd == self.source.as_raw_fd() => self.on_readable(ops),
            fd if self.is_job_control(fd) => self.on_job_control(),
            _ => self.on_timer(ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.sink.room(), EventSet::IN)) {
            log::error!("serial input: {error}: the guest gets no input");
            return;
        }
        if self.terminal
            && let Err(error) = self.watch_job_control(ops)
        {
            log::warn!("job control: {error}: don't stop the monitor");
        }
        if self.terminal && !terminal::engage() {
            self.go_to_background(ops);
        } else {
            self.watch(ops);
        }
    }
}

#[cfg(test)]
#[path = "input_test.rs"]
mod tests;
