//! Carries bytes between the command and the caller until the command ends.

use crate::child::Child;
use anyhow::{Context, Result, bail};
use rig::frame::{self, Decoder, Frame, Kind};
use rig::job::{Job, Line as Wire, PORT_NAME, Window};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long output is still collected after the command has ended: whatever it
/// left in the background may hold its streams open for ever.
const LINGER: Duration = Duration::from_millis(200);
/// The same for what keeps writing.
const LONGEST_LINGER: Duration = Duration::from_secs(5);

/// Our end of the line to the caller.
pub struct Line {
    file: File,
    two_way: bool,
    decoder: Decoder,
    outgoing: Vec<u8>,
}

impl Line {
    /// Opens the line the job names.
    pub fn open(job: &Job) -> Result<Self> {
        let file = match job.line {
            Wire::Port => open_port()?,
            Wire::Serial => open_serial()?,
        };
        Ok(Self {
            file,
            two_way: job.line == Wire::Port,
            decoder: Decoder::default(),
            outgoing: Vec::new(),
        })
    }

    /// Sends one frame.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.outgoing.clear();
        frame::encode(kind, payload, &mut self.outgoing);
        self.file.write_all(&self.outgoing).context("writing to the caller")
    }
}

/// The port appears a moment after the driver has bound: it is announced by a
/// message from the emulator.
fn open_port() -> Result<File> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let entry = entry?;
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() == PORT_NAME {
                let path = std::path::Path::new("/dev").join(entry.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .with_context(|| format!("opening {}", path.display()));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("no virtio port named {PORT_NAME}")
}

fn open_serial() -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .context("opening the second serial port")?;
    // SAFETY: `termios` is plain data for which all zeroes is a valid value.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: a valid descriptor and a valid structure, only touched during the
    // three calls.
    let failed = unsafe {
        libc::tcgetattr(file.as_raw_fd(), &mut settings) != 0 || {
            libc::cfmakeraw(&mut settings);
            // An emulator may take the speed at its word: at the default of
            // 9600, a kilobyte would last a second.
            settings.c_cflag = (settings.c_cflag & !libc::CBAUD) | libc::B115200;
            libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &settings) != 0
        }
    };
    if failed {
        return Err(io::Error::last_os_error()).context("setting up the serial port");
    }
    Ok(file)
}

/// Relays until the command ends; returns its status as a shell would say it.
pub fn run(mut child: Child, line: &mut Line) -> Result<u8> {
    let mut pending: Vec<u8> = Vec::new();
    let mut input_ended = false;
    let mut ended: Option<(u8, Instant)> = None;
    let mut idle = false;
    let mut buffer = vec![0; frame::MAX_PAYLOAD];
    if let Some(input) = &child.input {
        set_nonblocking(input);
    }
    loop {
        if let Some((status, at)) = ended {
            let closed = child.output.is_none() && child.error.is_none();
            let quiet = idle && at.elapsed() > LINGER;
            if closed || quiet || at.elapsed() > LONGEST_LINGER {
                return Ok(status);
            }
        }
        let unused = -1;
        let wants_input = child.input.is_some() && !pending.is_empty();
        let mut polled = [
            poll_entry(child.output.as_ref().map_or(unused, |f| f.as_raw_fd()), libc::POLLIN),
            poll_entry(child.error.as_ref().map_or(unused, |f| f.as_raw_fd()), libc::POLLIN),
            poll_entry(
                if ended.is_none() { child.ended.as_raw_fd() } else { unused },
                libc::POLLIN,
            ),
            poll_entry(if line.two_way { line.file.as_raw_fd() } else { unused }, libc::POLLIN),
            poll_entry(
                child.input.as_ref().filter(|_| wants_input).map_or(unused, |f| f.as_raw_fd()),
                libc::POLLOUT,
            ),
        ];
        let wait = if ended.is_some() { 20 } else { -1 };
        // SAFETY: the array is valid for its length throughout the call.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, wait) };
        if result < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            bail!("poll: {}", io::Error::last_os_error());
        }
        let ready = polled.map(|p| p.revents != 0);
        idle = !ready[0] && !ready[1];
        if ready[0] {
            carry(&mut child.output, Kind::Stdout, &mut buffer, line)?;
        }
        if ready[1] {
            carry(&mut child.error, Kind::Stderr, &mut buffer, line)?;
        }
        if ready[2]
            && let Some(status) = reap(child.pid)
        {
            ended = Some((status, Instant::now()));
            if child.terminal {
                // Our copy of the master keeps output readable; there is
                // nobody left to read input.
                child.input = None;
            }
        }
        if ready[3] {
            let count = line.file.read(&mut buffer).context("reading from the caller")?;
            if count == 0 {
                bail!("the caller has gone away");
            }
            line.decoder.push(&buffer[..count]);
            while let Some(frame) = line.decoder.next_frame()? {
                match accept(&child, frame) {
                    Some(bytes) if bytes.is_empty() => input_ended = true,
                    Some(bytes) => pending.extend_from_slice(&bytes),
                    None => {}
                }
            }
        }
        if let (true, Some(input)) = (wants_input && ready[4], &mut child.input) {
            match input.write(&pending) {
                Ok(count) => drop(pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It does not want to read on: not our concern.
                Err(_) => child.input = None,
            }
        }
        if input_ended && pending.is_empty() && child.input.is_some() {
            if child.terminal {
                // A terminal has no end of file but this character.
                pending.push(4);
                input_ended = false;
            } else {
                child.input = None;
            }
        }
    }
}

fn poll_entry(fd: libc::c_int, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Moves what is readable to the caller; closes the stream at its end.
fn carry(stream: &mut Option<File>, kind: Kind, buffer: &mut [u8], line: &mut Line) -> Result<()> {
    let Some(file) = stream else { return Ok(()) };
    match file.read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        // A terminal whose last user is gone reads as an error.
        Ok(0) | Err(_) => {
            *stream = None;
            Ok(())
        }
        Ok(count) => line.send(kind, &buffer[..count]),
    }
}

/// Acts on a frame from the caller; returns standard input, if that is what it is.
fn accept(child: &Child, frame: Frame) -> Option<Vec<u8>> {
    match (frame.kind, frame.payload.as_slice()) {
        (Kind::Stdin, _) => return Some(frame.payload),
        (Kind::Window, &[r0, r1, c0, c1]) => child.resize(Window {
            rows: u16::from_le_bytes([r0, r1]),
            columns: u16::from_le_bytes([c0, c1]),
        }),
        (Kind::Signal, &[signal]) => child.signal(libc::c_int::from(signal)),
        _ => {}
    }
    None
}

fn set_nonblocking(file: &File) {
    // SAFETY: only flags of an open descriptor of ours change.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
}

/// Collects every ended process (orphans come to PID 1); the status if `pid` is
/// among them.
fn reap(pid: libc::pid_t) -> Option<u8> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: one valid integer to write to.
        let reaped = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if reaped <= 0 {
            return found;
        }
        if reaped == pid {
            found = Some(if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status) as u8
            } else {
                (128 + libc::WTERMSIG(status)) as u8
            });
        }
    }
}
