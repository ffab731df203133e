//! One run of an emulator, from its start to the last frame.

use crate::frame::{self, Decoder, Frame, Kind};
use crate::job::Window;
use crate::terminal::{self, Signals};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Exit status of a run that took too long, as `timeout(1)` has it.
pub const TIMED_OUT: u8 = 124;

/// How often a file that an emulator writes is looked at.
const FILE_INTERVAL: Duration = Duration::from_millis(50);
/// How often the rig is sent an interrupt, see [`Kind::Beat`].
const BEAT: Duration = Duration::from_millis(250);
/// Standard input waiting for the rig beyond which no more is read.
const INPUT_LIMIT: usize = 256 * 1024;

/// Where frames come from.
pub enum Feed {
    /// A socket, both ways.
    Socket(UnixStream),
    /// A file the emulator appends to.
    File(PathBuf),
}

/// What a run is given besides its emulator.
pub struct Terms<'a> {
    /// Receives standard output.
    pub stdout: &'a mut dyn Write,
    /// Receives standard error.
    pub stderr: &'a mut dyn Write,
    /// Forward the caller's standard input.
    pub stdin: bool,
    /// The caller's terminal is the command's.
    pub terminal: bool,
    /// Longest time from start to end.
    pub limit: Option<Duration>,
    /// The kernel console of the rig, shown when something goes wrong.
    pub console: &'a Path,
}

/// The emulator's process, killed when dropped.
struct Emulator {
    child: Child,
    ended: OwnedFd,
}

impl Emulator {
    fn start(mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                // Should the caller be killed outright, no handler helps.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("watching the emulator");
        }
        // SAFETY: a fresh descriptor nobody else owns.
        let ended = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(Self { child, ended })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // The whole group: an emulator may have helpers.
        // SAFETY: no memory involved; the group is that of our own child.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// How a run ended.
pub struct Ended {
    /// The status of what ran inside.
    pub status: u8,
    /// What tracing saw; empty without tracing.
    pub report: String,
}

/// Runs `command` until its last frame.
pub fn run(command: Command, feed: Feed, terms: Terms<'_>) -> Result<Ended> {
    let signals = Signals::catch()?;
    let raw = terms.terminal.then(terminal::RawMode::enter).flatten();
    let console = terms.console;
    let emulator = Emulator::start(command)?;
    let mut session = Session {
        feed,
        terms,
        decoder: Decoder::default(),
        report: Vec::new(),
        outgoing: Vec::new(),
        reader: None,
        input_open: true,
        started: Instant::now(),
        last_beat: Instant::now(),
    };
    if let Feed::Socket(socket) = &session.feed {
        socket.set_nonblocking(true)?;
    }
    let outcome = session.serve(&emulator, signals.as_ref());
    drop(emulator);
    drop(raw);
    let report = String::from_utf8_lossy(&session.report).into_owned();
    let ended = |status| Ok(Ended { status, report });
    match outcome {
        Ok(End::Status(status)) => ended(status),
        Ok(End::Signal(signal)) => ended((128 + signal) as u8),
        Ok(End::TimedOut(limit)) => {
            eprintln!("rig: stopped after the time limit of {} s", limit.as_secs());
            show_console(console);
            ended(TIMED_OUT)
        }
        Err(error) => {
            show_console(console);
            Err(error)
        }
    }
}

enum End {
    Status(u8),
    Signal(libc::c_int),
    TimedOut(Duration),
}

struct Session<'a> {
    feed: Feed,
    terms: Terms<'a>,
    decoder: Decoder,
    report: Vec<u8>,
    outgoing: Vec<u8>,
    reader: Option<File>,
    input_open: bool,
    started: Instant,
    last_beat: Instant,
}

impl Session<'_> {
    fn serve(&mut self, emulator: &Emulator, signals: Option<&Signals>) -> Result<End> {
        self.input_open = self.terms.stdin;
        loop {
            let remaining = match self.terms.limit {
                Some(limit) => match limit.checked_sub(self.started.elapsed()) {
                    Some(rest) => rest,
                    None => return Ok(End::TimedOut(limit)),
                },
                None => Duration::from_secs(3600),
            };
            let socket = match &self.feed {
                Feed::Socket(socket) => socket.as_raw_fd(),
                Feed::File(_) => -1,
            };
            let wait = remaining.min(if socket < 0 { FILE_INTERVAL } else { BEAT });
            if self.last_beat.elapsed() >= BEAT && self.outgoing.is_empty() {
                self.last_beat = Instant::now();
                frame::encode(Kind::Beat, b"", &mut self.outgoing);
            }
            let wants_input = self.input_open && self.outgoing.len() < INPUT_LIMIT;
            let events =
                if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
            let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
            let mut polled = [
                entry(socket, events),
                entry(signals.map_or(-1, Signals::fd), libc::POLLIN),
                entry(emulator.ended.as_raw_fd(), libc::POLLIN),
                entry(if wants_input { libc::STDIN_FILENO } else { -1 }, libc::POLLIN),
            ];
            // Round up, or the last millisecond would be spent spinning.
            let wait = wait.as_millis() as libc::c_int + 1;
            // SAFETY: the array is valid for its length throughout the call.
            let result =
                unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, wait) };
            if result < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Err(io::Error::last_os_error()).context("poll");
            }
            while let Some(signal) = signals.and_then(Signals::next) {
                if signal == libc::SIGWINCH {
                    self.send_window();
                } else {
                    return Ok(End::Signal(signal));
                }
            }
            if polled[3].revents != 0 {
                self.read_input();
            }
            self.write_outgoing()?;
            let over = polled[2].revents != 0;
            if let Some(status) = self.read_frames()? {
                return Ok(End::Status(status));
            }
            if over {
                bail!("the rig's emulator ended before the command did");
            }
        }
    }

    fn send_window(&mut self) {
        if self.terms.terminal {
            let Window { rows, columns } = terminal::window();
            let [r0, r1] = rows.to_le_bytes();
            let [c0, c1] = columns.to_le_bytes();
            frame::encode(Kind::Window, &[r0, r1, c0, c1], &mut self.outgoing);
        }
    }

    fn read_input(&mut self) {
        let mut buffer = [0; 16 * 1024];
        // Straight from the descriptor: `Stdin` would read ahead and keep it.
        // SAFETY: the buffer is valid for its length.
        let count =
            unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
        let bytes = &buffer[..usize::try_from(count).unwrap_or(0)];
        self.input_open = !bytes.is_empty();
        frame::encode(Kind::Stdin, bytes, &mut self.outgoing);
    }

    fn write_outgoing(&mut self) -> Result<()> {
        let Feed::Socket(socket) = &mut self.feed else {
            self.outgoing.clear();
            return Ok(());
        };
        while !self.outgoing.is_empty() {
            match socket.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("writing to the rig"),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived; the status if the command has ended.
    fn read_frames(&mut self) -> Result<Option<u8>> {
        let mut buffer = [0; 64 * 1024];
        loop {
            let read = match &mut self.feed {
                Feed::Socket(socket) => socket.read(&mut buffer),
                Feed::File(path) => match &mut self.reader {
                    Some(file) => file.read(&mut buffer),
                    // Not there yet: the emulator makes it.
                    None => match File::open(path) {
                        Ok(file) => self.reader.insert(file).read(&mut buffer),
                        Err(_) => return Ok(None),
                    },
                },
            };
            let count = match read {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("reading from the rig"),
            };
            self.decoder.push(&buffer[..count]);
            while let Some(frame) = self.decoder.next_frame()? {
                if let Some(status) = self.accept(frame)? {
                    return Ok(Some(status));
                }
            }
        }
    }

    fn accept(&mut self, frame: Frame) -> Result<Option<u8>> {
        let put = |sink: &mut dyn Write, bytes: &[u8]| {
            sink.write_all(bytes)
                .and_then(|()| sink.flush())
                .context("passing on the command's output")
        };
        match frame.kind {
            Kind::Stdout => put(self.terms.stdout, &frame.payload)?,
            Kind::Stderr => put(self.terms.stderr, &frame.payload)?,
            Kind::Exit => match frame.payload.as_slice() {
                &[status] => return Ok(Some(status)),
                _ => bail!("the rig reported no exit status"),
            },
            Kind::Failure => {
                bail!("in the rig: {}", String::from_utf8_lossy(&frame.payload))
            }
            Kind::Report => self.report.extend_from_slice(&frame.payload),
            Kind::Started => {
                if std::env::var_os("MICROVM_RIG_VERBOSE").is_some() {
                    eprintln!("rig: up after {:.1} s", self.started.elapsed().as_secs_f64());
                }
                // The window may have changed since the job was written.
                self.send_window();
            }
            Kind::Stdin | Kind::Window | Kind::Signal | Kind::Beat => {
                bail!("the rig sent input")
            }
        }
        Ok(None)
    }
}

fn show_console(path: &Path) {
    const LINES: usize = 30;
    let Ok(bytes) = std::fs::read(path) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    if lines.is_empty() {
        eprintln!("rig: its kernel console is empty");
        return;
    }
    eprintln!("rig: the end of its kernel console:");
    for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
        eprintln!("  | {line}");
    }
}
