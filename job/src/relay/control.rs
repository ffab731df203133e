//! The conversation with the guest's init, and what signals mean in it.
//!
//! ```text
//!  Hello ─► Start ─► Started ─► ( Signal, Resize, Stopped )* ─► Ended
//!                       │                                         │
//!                       └─ input, raw terminal      outputs drained, machine ended
//! ```

use super::signals::{Signal, Signals};
use super::{Dialer, Others, Report, Shared, Station};
use crate::named::desk::Desk;
use devices::backend::port::terminal_size;
use guest::protocol::{Decoder, Failure, MAX_TO_HOST, Spec, ToGuest, ToHost, VERSION, Window};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use vmm::console::signals::stop_now;
use vmm::console::terminal::{self, RawTerminal};
use vmm_sys_util::eventfd::EventFd;

/// Bytes that may wait for a guest that does not read, beside the job itself.
const MAX_WAITING: usize = 64 << 10;

/// How far it has come.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not said hello.
    Booting,
    /// It knows the job.
    Starting,
    /// The job runs.
    Running,
    /// It has ended; its output may not be all here.
    Ended,
}

/// The runner's side.
pub struct Control {
    socket: UnixStream,
    signals: Signals,
    shared: Shared,
    /// Counts outputs that are drained.
    drained: EventFd,
    /// How many are not.
    outputs: u64,
    /// Lets input begin.
    begin: Option<SyncSender<()>>,
    spec: Option<Spec>,
    decoder: Decoder,
    waiting: VecDeque<u8>,
    phase: Phase,
    /// Visitors, of a job that has a name.
    desk: Option<Desk>,
    dialer: Option<Dialer>,
    /// Removed with this.
    _station: Option<Station>,
    /// Others of the machine may still run when the job has ended.
    occupied: bool,
    /// When the guest must have said hello.
    deadline: Option<Instant>,
    has_terminal: bool,
    terminal: Option<RawTerminal>,
}

impl Control {
    /// `socket` must be non-blocking.
    pub fn new(
        socket: UnixStream,
        signals: Signals,
        shared: Shared,
        outputs: (EventFd, u64),
        begin: SyncSender<()>,
        spec: Spec,
    ) -> Self {
        let (drained, outputs) = outputs;
        Self {
            socket,
            signals,
            shared,
            drained,
            outputs,
            begin: Some(begin),
            has_terminal: spec.streams.terminal.is_some(),
            dialer: None,
            _station: None,
            occupied: false,
            spec: Some(spec),
            decoder: Decoder::new(MAX_TO_HOST),
            waiting: VecDeque::new(),
            phase: Phase::Booting,
            desk: None,
            deadline: None,
            terminal: None,
        }
    }

    /// Lets others visit, and waits only so long for the guest's first word.
    pub fn with(mut self, others: Others) -> Self {
        self.occupied =
            !others.guest_of_another && self.spec.as_ref().is_some_and(|spec| spec.wire.shared);
        (self.desk, self.dialer, self.deadline) = (others.desk, others.dialer, others.deadline);
        self._station = others.station;
        self
    }

    /// Talks until the machine is to end, or has.
    pub fn run(mut self) {
        while let Ok(true) = self.turn() {}
        // The terminal is given back before anybody hears of the end.
        self.terminal = None;
        self.shared.ending.end(vmm::exit::Exit::Quit);
    }

    /// Waits for something and does it. `false`: that was all.
    fn turn(&mut self) -> io::Result<bool> {
        if self.phase == Phase::Ended && self.outputs == 0 && !self.occupied {
            return Ok(false);
        }
        let out = if self.waiting.is_empty() { 0 } else { libc::POLLOUT };
        let watched = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut all = vec![
            watched(self.signals.as_raw_fd(), libc::POLLIN),
            watched(self.drained.as_raw_fd(), libc::POLLIN),
            watched(self.socket.as_raw_fd(), libc::POLLIN | out),
        ];
        let visitors = self.desk.as_ref().map(Desk::descriptors).unwrap_or_default();
        all.extend(visitors.into_iter().map(|fd| watched(fd, libc::POLLIN)));
        let left = match self.deadline.filter(|_| self.phase == Phase::Booting) {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(self.refuse("it does not answer".to_owned()));
                }
                i32::try_from(left.as_millis()).map_or(i32::MAX, |left| left.saturating_add(1))
            }
        };
        // SAFETY: the list outlives the call, and its length is given.
        if unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, left) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        }
        let ready: Vec<RawFd> =
            all.iter().filter(|one| one.revents != 0).map(|one| one.fd).collect();
        let is_ready = |fd: RawFd| ready.contains(&fd);
        let (signals, drained) =
            (is_ready(self.signals.as_raw_fd()), is_ready(self.drained.as_raw_fd()));
        let socket = is_ready(self.socket.as_raw_fd());
        self.receive_visitors(&ready);
        if drained && let Ok(count) = self.drained.read() {
            self.outputs = self.outputs.saturating_sub(count);
        }
        if signals {
            while let Some(signal) = self.signals.next() {
                if !self.signal(signal) {
                    return Ok(false);
                }
            }
        }
        if socket {
            self.send_waiting()?;
            return self.receive();
        }
        Ok(true)
    }

    fn receive_visitors(&mut self, ready: &[RawFd]) {
        let state = match self.phase {
            Phase::Booting | Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Ended => "ended",
        };
        let wanted = self.desk.as_mut().map(|desk| desk.serve(ready, state));
        for ports in wanted.unwrap_or_default() {
            self.say(&ToGuest::Attach { ports });
        }
    }

    /// A signal has come. `false`: it ends the runner.
    fn signal(&mut self, signal: Signal) -> bool {
        match (&self.phase, signal.number) {
            (_, libc::SIGWINCH) if self.has_terminal => {
                if let Some((columns, rows)) = terminal_size(libc::STDIN_FILENO) {
                    self.say(&ToGuest::Resize(Window { columns, rows }));
                }
            }
            (_, libc::SIGCONT) if self.has_terminal && self.phase == Phase::Running => {
                terminal::resume();
                self.hand_on(Signal { group: true, ..signal });
            }
            (Phase::Running, _) => self.hand_on(signal),
            (_, libc::SIGWINCH | libc::SIGCONT) => {}
            (_, libc::SIGTSTP) => stop_now(),
            // There is no job that could take it, or none any more.
            (_, number) => {
                self.shared.report(Report::Killed(number as u8));
                return false;
            }
        }
        true
    }

    fn hand_on(&mut self, Signal { number, group }: Signal) {
        self.say(&ToGuest::Signal { number: number as u8, group });
    }

    /// What the guest says. `false`: it says no more.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        loop {
            let message = match ToHost::next(&mut self.decoder) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(true),
                Err(error) => return Ok(self.refuse(error.to_string())),
            };
            if !self.message(message) {
                return Ok(false);
            }
        }
    }

    fn refuse(&self, why: String) -> bool {
        self.shared.report(Report::Wrong(why));
        false
    }

    fn message(&mut self, message: ToHost) -> bool {
        match (&self.phase, message) {
            (Phase::Booting, ToHost::Hello { version: VERSION }) => {
                self.phase = Phase::Starting;
                crate::mark("init is there");
                if let Some(spec) = self.spec.take() {
                    self.waiting.extend(ToGuest::Start(Box::new(spec)).encode());
                }
            }
            (Phase::Booting, ToHost::Hello { version }) => {
                return self.refuse(format!("it speaks version {version}, not {VERSION}"));
            }
            (Phase::Starting, ToHost::Started) => self.started(),
            (Phase::Starting, ToHost::Failed { kind, text }) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.shared.report(Report::Failed(kind, text));
                return false;
            }
            (Phase::Running, ToHost::Failed { text, .. }) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.shared.report(Report::Failed(Failure::Setup, text));
                return false;
            }
            (Phase::Running, ToHost::Stopped { signal }) => self.stop(signal),
            (Phase::Starting | Phase::Running | Phase::Ended, ToHost::Dial)
                if self.dialer.is_some() =>
            {
                let port = self.dialer.as_mut().map_or(0, Dialer::dial);
                self.waiting.extend(ToGuest::Dialed { port }.encode());
            }
            (Phase::Ended, ToHost::Vacant) => self.occupied = false,
            (Phase::Running, ToHost::Ended { how, usage, input }) => {
                self.phase = Phase::Ended;
                crate::mark("job has ended");
                self.shared.report(Report::Ended { how, usage, input });
            }
            (phase, other) => return self.refuse(format!("{other:?} while {phase:?}")),
        }
        true
    }

    fn started(&mut self) {
        self.phase = Phase::Running;
        self.shared.started.store(true, Ordering::SeqCst);
        for ports in self.desk.as_mut().map(Desk::take_early).unwrap_or_default() {
            self.say(&ToGuest::Attach { ports });
        }
        crate::mark("job has started");
        if self.has_terminal {
            self.terminal = RawTerminal::stdin();
        }
        // Input may be closed: then nobody waits for this.
        if let Some(begin) = self.begin.take() {
            let _ = begin.send(());
        }
    }

    /// The job was stopped, and so is the runner, until somebody continues it.
    fn stop(&mut self, signal: u8) {
        terminal::restore_now();
        match signal.into() {
            // SAFETY: has no preconditions.
            libc::SIGSTOP => drop(unsafe { libc::raise(libc::SIGSTOP) }),
            _ => stop_now(),
        }
        // Where no shell could continue it, nothing has stopped, and no signal says
        // that it goes on.
        let mut pending = false;
        while let Some(signal) = self.signals.next() {
            pending |= signal.number == libc::SIGCONT;
            self.signal(signal);
        }
        if !pending {
            self.signal(Signal { number: libc::SIGCONT, group: true });
        }
    }

    /// Says something, if the guest listens at all.
    fn say(&mut self, message: &ToGuest) {
        if self.phase == Phase::Running && self.waiting.len() < MAX_WAITING {
            self.waiting.extend(message.encode());
        }
    }

    fn send_waiting(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match self.socket.write(self.waiting.as_slices().0) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
