//! Between the runner's own streams and signals and the init of its guest: threads
//! of the runner, each under a system call filter.
//!
//! ```text
//!  stdin  ─► input thread   ─► socket ─┐
//!  stdout ◄─ output thread  ◄─ socket ─┤ vsock device (event loop) ◄─► init
//!  stderr ◄─ output thread  ◄─ socket ─┤
//!  signals ► control thread ◄► socket ─┘
//! ```

mod control;
mod dial;
pub mod signals;
mod streams;

use crate::Error;
use crate::named::desk::Desk;
use control::Control;
pub use dial::Dialer;
use guest::protocol::{Failure, How, Spec, Streams, Usage, port};
use signals::Signals;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use vmm::ending::Ending;
use vmm::sandbox;
use vmm_sys_util::eventfd::EventFd;

/// What has become of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It ended, and took so much of its input.
    Ended {
        /// How.
        how: How,
        /// What it used.
        usage: Usage,
        /// Bytes of standard input that it read.
        input: u64,
    },
    /// There was none.
    Failed(Failure, String),
    /// The runner got this signal when there was no job for it.
    Killed(u8),
    /// The guest does not keep to the protocol.
    Wrong(String),
}

/// What the threads share with whoever runs the machine.
#[derive(Clone)]
pub struct Shared {
    ending: Ending,
    report: Arc<Mutex<Option<Report>>>,
    started: Arc<AtomicBool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Report>> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first report counts, but a signal after the job's end counts more.
    fn report(&self, report: Report) {
        let mut slot = self.lock();
        if slot.is_none() || matches!(report, Report::Killed(_)) {
            *slot = Some(report);
        }
    }
}

/// The threads.
pub struct Relay {
    shared: Shared,
    control: JoinHandle<()>,
    outputs: Vec<(&'static str, JoinHandle<io::Result<()>>)>,
    has_machine: bool,
}

/// What the job has said and done.
pub struct Finished {
    /// What became of it.
    pub report: Option<Report>,
    /// Output that was lost.
    pub lost: Option<Error>,
    /// Whether it ran at all.
    pub started: bool,
}

/// A socket by its path, which is removed in the end.
pub struct Station(pub PathBuf);

impl Drop for Station {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Who else there is beside the job.
#[derive(Default)]
pub struct Others {
    /// Those who come to a job with a name.
    pub desk: Option<Desk>,
    /// Who connects ranks to their PMIx server.
    pub dialer: Option<Dialer>,
    /// The socket of the machine's station in a segment, which goes with it.
    pub station: Option<Station>,
    /// The machine is another's.
    pub guest_of_another: bool,
    /// When its guest must have answered.
    pub deadline: Option<Instant>,
}

impl Relay {
    /// Starts the threads. Returns the guest's ends of their sockets, too, by port.
    pub fn start(
        spec: Spec,
        signals: Signals,
        ending: Ending,
        others: Others,
    ) -> Result<(Self, Vec<(u32, UnixStream)>), Error> {
        let shared = Shared { ending, report: Arc::default(), started: Arc::default() };
        let has_machine = !others.guest_of_another;
        let mut ports = Vec::new();
        let mut socket = |port| -> Result<UnixStream, Error> {
            let (ours, theirs) = UnixStream::pair().map_err(Error::host("socket"))?;
            ports.push((port, theirs));
            Ok(ours)
        };
        let conversation = socket(port::CONTROL)?;
        conversation.set_nonblocking(true).map_err(Error::host("socket"))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = Arc::new(null.map_err(Error::host("/dev/null"))?);
        let drained = EventFd::new(libc::EFD_NONBLOCK).map_err(Error::host("eventfd"))?;

        let (begin, wait) = sync_channel(1);
        let streams = &spec.streams;
        if streams.terminal.is_some() || !streams.closed[0] {
            let (raw, to) = (streams.terminal.is_some(), socket(port::STDIN)?);
            spawn("input", sandbox::relay(), input(to, raw, wait, null.clone()))?;
        }
        let mut outputs = Vec::new();
        for (fd, port, name) in wanted(streams) {
            let (from, null) = (socket(port)?, null.clone());
            let drained = drained.try_clone().map_err(Error::host("eventfd"))?;
            let thread = spawn(name, sandbox::relay(), move || {
                let result = streams::output(from, fd, &null);
                // It can fail only when it is full, and then it is readable.
                let _ = drained.write(1);
                result
            })?;
            outputs.push((name, thread));
        }
        let counted = (drained, outputs.len() as u64);
        let control = Control::new(conversation, signals, shared.clone(), counted, begin, spec);
        let files = others.desk.is_some() || others.station.is_some();
        let filter = sandbox::control(files, others.dialer.is_some());
        let control = control.with(others);
        let control = spawn("control", filter, move || control.run())?;
        Ok((Self { shared, control, outputs, has_machine }, ports))
    }

    /// Waits until all that came of the guest is written. The machine has ended, and
    /// with it the guest's ends of the sockets. A runner that was told to end does
    /// not wait for readers of its output.
    ///
    /// Outputs of a session beside a job end only if its guest has told its end.
    pub fn finish(self) -> Finished {
        // A thread that panics ends this process.
        let Self { shared, control, outputs, has_machine } = self;
        let _ = control.join();
        let mut lost = None;
        let report = shared.lock().take();
        let all_comes = match report {
            Some(Report::Killed(_)) => false,
            Some(Report::Ended { .. }) => true,
            // With a machine all its streams end.
            _ => has_machine,
        };
        if all_comes {
            for (stream, thread) in outputs {
                if let Ok(Err(source)) = thread.join() {
                    lost.get_or_insert(Error::Output { stream, source });
                }
            }
        }
        Finished { report, lost, started: shared.started.load(Ordering::SeqCst) }
    }
}

/// Which outputs there are.
fn wanted(streams: &Streams) -> Vec<(RawFd, u32, &'static str)> {
    let terminal = streams.terminal.is_some();
    let output = terminal || !streams.closed[1];
    let error = !terminal && !streams.closed[2] && !streams.merged;
    let all = [
        (output, (libc::STDOUT_FILENO, port::STDOUT, "output")),
        (error, (libc::STDERR_FILENO, port::STDERR, "error")),
    ];
    all.into_iter().filter(|(there, _)| *there).map(|(_, one)| one).collect()
}

/// Input is read only once there is a job for it: of one that can't be started,
/// others may want it.
fn input(
    to: UnixStream,
    raw: bool,
    wait: Receiver<()>,
    null: Arc<File>,
) -> impl FnOnce() + Send + 'static {
    move || {
        if wait.recv().is_ok() {
            streams::input(to, raw, &null);
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    filter: sandbox::Filter,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        filter.install().expect("the filters of other threads can be installed");
        body()
    });
    thread.map_err(Error::host("thread"))
}
