//! PID 1 of a job's guest.
//!
//! ```text
//!  kernel ─► /dev, vsock ─► Hello ─► Start ─► root, network, streams ─► the job
//!                                      Signal, Resize ─► │ ◄─ reaping
//!                                               Ended ◄──┘ ─► power off
//! ```
//!
//! That is done by init's only child: a job whose parent is init itself could not be
//! stopped from a terminal. Init takes care of processes that lose their parents.
//!
//! The host ends the machine when it has all that it wants to know; if it does
//! not, init does. Whatever can't be done is said to the host in one line.
//!
//! A program beside the job (`microvm exec`) has this program once more: the same
//! conversation over connections of its own, in the root file system that is there.

mod image;
mod measure;
mod process;
mod root;
mod session;
mod streams;
mod wire;

use guest::protocol::{Decoder, MAX_TO_GUEST, Spec, ToGuest, ToHost, VERSION, port};
use guest::system::{About, Fault, check, power_off};
use guest::{network, system};
use process::{Change, NoJob};
use session::Launcher;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The connection that everything but the job's streams goes over.
struct Control {
    socket: File,
    /// The same, for all who say something: a frame at a time.
    writer: Arc<Mutex<File>>,
    decoder: Decoder,
}

/// The job's pid as long as it may be signalled.
type Alive = Arc<Mutex<Option<libc::pid_t>>>;

fn main() {
    // SAFETY: both calls have no preconditions.
    let first = unsafe {
        libc::umask(0o022);
        libc::getpid() == 1
    };
    if !first {
        let Some(ports) = session::ports() else {
            eprintln!(
                "microvm-init: this is the init of a microvm guest; it is of no use elsewhere"
            );
            std::process::exit(2);
        };
        process::lead_session();
        if let Ok(control) = Control::open(ports) {
            run(control, &mut Scope::Beside(ports));
        }
        std::process::exit(0);
    }
    if let Ok(what) = std::env::var(guest::measure::VARIABLE) {
        match root::mount_first() {
            Ok(()) => measure::run(&what),
            Err(fault) => eprintln!("microvm-init: {fault}"),
        }
        power_off();
    }
    process::leave_orphans_to_init();
    let ready = Launcher::new().and_then(|launcher| {
        root::mount_first()?;
        Ok((launcher, Control::open(0)?))
    });
    match ready {
        Ok((launcher, control)) => run(control, &mut Scope::Whole(Some(launcher))),
        // Nobody can be told but those who read the kernel's messages.
        Err(fault) => eprintln!("microvm-init: {fault}"),
    }
    power_off();
}

/// What this process takes care of.
enum Scope {
    /// The machine and its job. The launcher is for sessions beside it.
    Whole(Option<Launcher>),
    /// A session beside the job, and where its ports begin.
    Beside(u32),
}

fn run(mut control: Control, scope: &mut Scope) {
    let Ok(spec) = control.greet() else { return };
    let spec = match scope {
        Scope::Whole(_) => spec,
        Scope::Beside(_) => session::with_environment(spec),
    };
    let (last, launcher) = match job(&spec, &mut control, scope) {
        Ok(ended) => ended,
        Err(NoJob { kind, text }) => (ToHost::Failed { kind, text: text.into_bytes() }, None),
    };
    if control.say_last(&last).is_err() {
        return;
    }
    if let Some(launcher) = launcher {
        launcher.wait_for_all();
        process::end_all();
        let _ = control.say_last(&ToHost::Vacant);
    }
    control.wait_for_end();
}

/// Returns what is to be said of its end; and who knows of the sessions that a
/// shared machine stays for.
fn job(
    spec: &Spec,
    control: &mut Control,
    scope: &mut Scope,
) -> Result<(ToHost, Option<Arc<Launcher>>), NoJob> {
    let (ports, launcher) = match scope {
        Scope::Whole(launcher) => {
            root::enter(spec)?;
            name(&spec.hostname)?;
            network::bring_up(&spec.networks)?;
            (0, launcher.take().map(|launcher| Arc::new(launcher.with(&spec.environment))))
        }
        Scope::Beside(ports) => (*ports, None),
    };
    let (stdio, mut relays) = streams::open(&spec.streams, &spec.identity, ports)?;
    let rank = wire::open(&spec.wire, ports)?.map(|(socket, line)| {
        relays.wire = Some(line);
        socket
    });
    let answers = match launcher {
        Some(_) => wire::listen(&spec.wire, &control.writer)?,
        None => None,
    };
    let terminal = relays.terminal.as_ref().map(File::try_clone).transpose();
    let terminal = terminal.about("terminal")?;
    let pid = process::start(spec, stdio, rank)?;

    let alive: Alive = Arc::new(Mutex::new(Some(pid)));
    let told = Told { alive: alive.clone(), terminal, launcher: launcher.clone(), answers };
    control.serve(told).about("control connection")?;
    let running = relays.start();
    let say = |message: &ToHost| send(&control.writer, message);
    say(&ToHost::Started).about("control connection")?;
    let how = loop {
        process::wait().about("wait")?;
        let mut alive = lock(&alive);
        match process::take_change(pid) {
            Change::Ended(how) => {
                *alive = None;
                break how;
            }
            Change::Stopped(signal) => {
                say(&ToHost::Stopped { signal }).about("control connection")?;
            }
            Change::Other => {}
        }
    };
    let shared = launcher.filter(|launcher| {
        if !spec.wire.shared {
            launcher.close();
            process::end_all();
        }
        spec.wire.shared
    });
    let usage = process::usage();
    Ok((ToHost::Ended { how, usage, input: running.finish() }, shared))
}

fn name(hostname: &[u8]) -> Result<(), Fault> {
    // SAFETY: the bytes outlive the call, and their number is given.
    check(unsafe { libc::sethostname(hostname.as_ptr().cast(), hostname.len()) })
        .map(drop)
        .about("host name")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(writer: &Mutex<File>, message: &ToHost) -> io::Result<()> {
    lock(writer).write_all(&message.encode())
}

/// Whom and what the host's messages are for.
struct Told {
    alive: Alive,
    terminal: Option<File>,
    launcher: Option<Arc<Launcher>>,
    answers: Option<wire::Answers>,
}

impl Control {
    fn open(ports: u32) -> Result<Self, Fault> {
        let socket = system::connect(ports.saturating_add(port::CONTROL)).about("vsock")?;
        let socket = File::from(socket);
        let writer = Arc::new(Mutex::new(socket.try_clone().about("vsock")?));
        Ok(Self { socket, writer, decoder: Decoder::new(MAX_TO_GUEST) })
    }

    /// Says hello and hears of the job.
    fn greet(&mut self) -> io::Result<Spec> {
        send(&self.writer, &ToHost::Hello { version: VERSION })?;
        match self.receive()? {
            ToGuest::Start(spec) => Ok(*spec),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn receive(&mut self) -> io::Result<ToGuest> {
        let mut buffer = [0; 4096];
        loop {
            let message = ToGuest::next(&mut self.decoder);
            if let Some(message) = message.map_err(|_| io::ErrorKind::InvalidData)? {
                return Ok(message);
            }
            match self.socket.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.decoder.push(buffer.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Does what the host says, on a thread of its own. When the host has gone, so
    /// has everything; when a session's side has, so has its program.
    fn serve(&mut self, told: Told) -> io::Result<()> {
        let Told { alive, terminal, launcher, mut answers } = told;
        let decoder = std::mem::replace(&mut self.decoder, Decoder::new(MAX_TO_GUEST));
        let writer = self.writer.clone();
        let mut control = Self { socket: self.socket.try_clone()?, writer, decoder };
        thread::Builder::new().spawn(move || {
            while let Ok(message) = control.receive() {
                match message {
                    ToGuest::Signal { number, group } => signal(&alive, number, group),
                    ToGuest::Resize(window) => {
                        if let Some(terminal) = &terminal {
                            streams::resize(terminal, window);
                        }
                    }
                    ToGuest::Attach { ports } => {
                        if let Some(launcher) = &launcher {
                            launcher.start(ports);
                        }
                    }
                    ToGuest::Dialed { port } => {
                        if let Some(answers) = &mut answers {
                            answers.put(port);
                        }
                    }
                    ToGuest::Start(_) => {}
                }
            }
            if launcher.is_some() {
                power_off();
            }
            signal(&alive, libc::SIGKILL as u8, true);
            std::process::exit(0);
        })?;
        Ok(())
    }

    /// Says something after which nothing is written any more.
    fn say_last(&self, message: &ToHost) -> io::Result<()> {
        // SAFETY: sync has no preconditions. What was written to disks and shares is
        // there before anybody hears of the end.
        unsafe { libc::sync() };
        send(&self.writer, message)
    }

    /// The host ends the machine; or it closes the connection, and init does.
    fn wait_for_end(&mut self) {
        let mut buffer = [0; 64];
        while let Ok(1..) = self.socket.read(&mut buffer) {}
    }
}

fn signal(alive: &Alive, number: u8, group: bool) {
    if let Some(pid) = *lock(alive) {
        let target = if group { -pid } else { pid };
        // SAFETY: kill takes numbers; the pid is the job's as long as the lock is
        // held.
        unsafe { libc::kill(target, number.into()) };
    }
}
