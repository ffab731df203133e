//! The job's streams: pipes or a terminal on its side, connections on the host's.
//!
//! ```text
//!  vsock 2 ─► pipe ─► job ─► pipe ─► vsock 3        or   vsock 2 ─► terminal ─► job
//!                      └───► pipe ─► vsock 4             vsock 3 ◄─┘
//! ```
//!
//! A thread for each direction, which waits wherever the other side is slow. The
//! end of one side becomes the end of the other: a job that closes its input
//! stops whoever sends it, and one whose reader has gone gets `SIGPIPE`.

use crate::wire::Line;
use guest::protocol::{Identity, Streams, Window, port};
use guest::system::{About, Fault, check, connect, give_to, pipe, shutdown};
use std::ffi::CStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What is moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// What the job gets as its first three descriptors; `None` is closed.
pub type Stdio = [Option<OwnedFd>; 3];

/// The host's side of them, and what lies between.
pub struct Relays {
    input: Option<(File, File)>,
    /// From the job, to the host, and whether that is a terminal.
    outputs: Vec<(File, File)>,
    rewinds: bool,
    /// Of a rank: its way to its launcher.
    pub wire: Option<Line>,
    /// The terminal, for its size.
    pub terminal: Option<File>,
}

/// What the relays are doing.
pub struct Running {
    outputs: Vec<JoinHandle<()>>,
    input: Arc<Input>,
}

/// What has become of the input.
#[derive(Default)]
struct Input {
    written: AtomicU64,
    /// What nobody has read of that, once the pipe is closed.
    unread: AtomicU64,
    /// The pipe into the job, as long as there is one to look at.
    pipe: Mutex<Option<Arc<File>>>,
    /// The job has ended.
    over: AtomicBool,
}

/// Makes both sides; `ports` is where the session's begin.
pub fn open(streams: &Streams, identity: &Identity, ports: u32) -> Result<(Stdio, Relays), Fault> {
    match streams.terminal {
        Some(window) => open_terminal(window, identity, ports),
        None => open_pipes(streams, identity, ports),
    }
}

/// Connects to a port of this session.
pub fn host(ports: u32, port: u32) -> Result<File, Fault> {
    let port = ports.saturating_add(port);
    connect(port).map(File::from).about(format_args!("vsock port {port}"))
}

fn open_pipes(
    streams: &Streams,
    identity: &Identity,
    ports: u32,
) -> Result<(Stdio, Relays), Fault> {
    let Identity { uid, gid, .. } = *identity;
    let mut stdio: Stdio = [const { None }; 3];
    let mut relays = Relays {
        input: None,
        outputs: Vec::new(),
        rewinds: streams.rewinds,
        wire: None,
        terminal: None,
    };
    if !streams.closed[0] {
        let (read, write) = pipe().about("pipe")?;
        give_to(&read, uid, gid).about("pipe")?;
        stdio[0] = Some(read);
        relays.input = Some((host(ports, port::STDIN)?, File::from(write)));
    }
    for (fd, port) in [(1, port::STDOUT), (2, port::STDERR)] {
        if streams.closed[fd] {
            continue;
        }
        if fd == 2 && streams.merged {
            stdio[2] = stdio[1].as_ref().map(OwnedFd::try_clone).transpose().about("pipe")?;
            continue;
        }
        let (read, write) = pipe().about("pipe")?;
        give_to(&write, uid, gid).about("pipe")?;
        stdio[fd] = Some(write);
        relays.outputs.push((File::from(read), host(ports, port)?));
    }
    Ok((stdio, relays))
}

fn open_terminal(
    window: Window,
    identity: &Identity,
    ports: u32,
) -> Result<(Stdio, Relays), Fault> {
    let master = open_device(c"/dev/ptmx").about("/dev/ptmx")?;
    // SAFETY: unlockpt and TIOCGPTPEER take numbers; the new descriptor is
    // nobody else's.
    let slave = unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let opened = check(libc::unlockpt(master.as_raw_fd()))
            .and_then(|_| check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)));
        OwnedFd::from_raw_fd(opened.about("pseudo-terminal")?)
    };
    give_to(&slave, identity.uid, 5).about("pseudo-terminal")?;
    resize(&master, window);
    // SAFETY: the ioctl takes numbers.
    unsafe {
        check(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0)).about("controlling terminal")?;
    }
    let twin = || slave.try_clone().about("pseudo-terminal");
    let stdio = [Some(twin()?), Some(twin()?), Some(slave)];
    let twin = || master.try_clone().about("pseudo-terminal");
    let relays = Relays {
        input: Some((host(ports, port::STDIN)?, twin()?)),
        outputs: vec![(twin()?, host(ports, port::STDOUT)?)],
        rewinds: false,
        wire: None,
        terminal: Some(master),
    };
    Ok((stdio, relays))
}

fn open_device(path: &CStr) -> std::io::Result<File> {
    // SAFETY: the path ends with NUL; the descriptor is nobody else's.
    unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        check(libc::open(path.as_ptr(), flags)).map(|fd| File::from_raw_fd(fd))
    }
}

/// Gives a terminal another size; whoever runs in it gets `SIGWINCH`.
pub fn resize(terminal: &File, window: Window) {
    let size =
        libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct lives across the call, which only reads it.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

impl Relays {
    /// Starts moving bytes.
    pub fn start(self) -> Running {
        let input = Arc::new(Input::default());
        if let Some((from, to)) = self.input {
            let to = Arc::new(to);
            if self.rewinds {
                *lock(&input.pipe) = Some(to.clone());
            }
            let state = input.clone();
            thread::spawn(move || feed(from, to, &state));
        }
        let wire = self.wire.map(|line| thread::spawn(move || line.carry()));
        let outputs = self.outputs.into_iter();
        let outputs = outputs.map(|(from, to)| thread::spawn(move || drain(from, to)));
        // What a rank says last is on its way, too, before its end is told.
        let outputs = outputs.chain(wire).collect();
        Running { outputs, input }
    }
}

impl Running {
    /// Waits until all output is on its way to the host. Nobody is left who could
    /// write any. Returns how much of the input was read.
    pub fn finish(self) -> u64 {
        self.input.over.store(true, Ordering::SeqCst);
        for output in self.outputs {
            // A thread that panicked has ended this program.
            let _ = output.join();
        }
        let unread = match &*lock(&self.input.pipe) {
            Some(pipe) => unread(pipe),
            None => self.input.unread.load(Ordering::SeqCst),
        };
        self.input.written.load(Ordering::SeqCst).saturating_sub(unread)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From the host to the job.
fn feed(mut from: File, to: Arc<File>, state: &Input) {
    let mut buffer = vec![0; CHUNK];
    while let Some(n @ 1..) = read(&mut from, &mut buffer) {
        let mut bytes = buffer.get(..n).unwrap_or_default();
        while let Ok(n @ 1..) = (&*to).write(bytes) {
            state.written.fetch_add(n as u64, Ordering::SeqCst);
            bytes = bytes.get(n..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            break;
        }
    }
    // What nobody has read can be told as long as the pipe is there, and the
    // job's end of file is its end.
    let mut pause = Duration::from_micros(200);
    let watched = lock(&state.pipe).is_some();
    while watched && unread(&to) > 0 && !state.over.load(Ordering::SeqCst) && has_reader(&to) {
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let mut pipe = lock(&state.pipe);
    state.unread.store(unread(&to), Ordering::SeqCst);
    *pipe = None;
    drop(to);
    // In both directions: only so does the host's end hang up, which is what its
    // reader of the runner's input waits for.
    shutdown(&from, libc::SHUT_RDWR);
}

/// How much lies in a pipe.
fn unread(pipe: &File) -> u64 {
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut unread) };
    u64::try_from(unread).unwrap_or(0)
}

fn has_reader(pipe: &File) -> bool {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    unsafe { libc::poll(&mut poll, 1, 0) };
    poll.revents & libc::POLLERR == 0
}

/// From the job to the host.
pub fn drain(mut from: File, mut to: File) {
    let mut buffer = vec![0; CHUNK];
    // A terminal that nobody has open any more is an error (EIO), and the end.
    while let Some(n @ 1..) = read(&mut from, &mut buffer) {
        match buffer.get(..n).map(|bytes| to.write_all(bytes)) {
            Some(Ok(())) => {}
            _ => return,
        }
    }
    shutdown(&to, libc::SHUT_WR);
}

fn read(from: &mut File, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other.ok(),
        }
    }
}
