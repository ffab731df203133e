//! passt(1) as the network behind a card: a program of the user's own, which
//! does for a guest what [`super::user`] does, for IPv6 as well.
//!
//! Frames travel over a Unix stream, each behind its length in four bytes, as
//! QEMU sends them. There is no virtio header, and so there are no offloads.
//!
//! The child ends with the monitor: it is killed with it, and ends by itself
//! when the stream does.

use super::user::{MTU, Options, Protocol, route};
use crate::virtio::net::NetBackend;
use crate::virtio::queue::IoVecs;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// `struct virtio_net_hdr_v1`, which is all zeros here.
const HEADER: usize = 12;
/// The length before each frame.
const LENGTH: usize = 4;
/// The largest frame: 64 KiB of IP with an Ethernet header and a VLAN tag.
const MAX_FRAME: usize = 18 + 65536;
/// Bytes read at once: a few large frames.
const ROOM: usize = 4 * (LENGTH + MAX_FRAME);
/// How long passt may take to answer its first frame: how often it is asked, and
/// how long each answer is waited for.
const QUESTIONS: usize = 20;
const ANSWER: Duration = Duration::from_secs(1);

/// Why passt does not serve a card; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error("net user: passt: not found in PATH: install it, or give backend=internal")]
    Missing,
    /// It ended before it did anything.
    #[error(
        "net user: {path}: it ended at once: run it by hand to see why (passt -f), or give \
         backend=internal",
        path = path.display()
    )]
    Ended {
        /// The program.
        path: PathBuf,
    },
    /// Anything else.
    #[error("net user: passt: {what}: {source}: give backend=internal")]
    Io {
        /// The step.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// Where passt is installed.
pub fn find() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&paths).map(|dir| dir.join("passt"));
    found.filter(|path| path.is_absolute()).find(|path| path.is_file())
}

/// Where a passt is that can be relied on: one that tells its version. Debian
/// 12's (2023-03-09) tells none, and stalls, or repeats data, once its guest has
/// ended its half of a stream that still has something to receive.
pub fn find_sound() -> Option<PathBuf> {
    find().filter(|path| {
        let told = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        told.is_ok_and(|output| tells_version(&output.stdout))
    })
}

fn tells_version(told: &[u8]) -> bool {
    !told.is_empty() && !told.starts_with(b"passt unknown version")
}

/// A child and the stream to it.
pub struct Passt {
    stream: File,
    /// The stream, so that it is also news when frames can be sent again.
    epoll: Epoll,
    /// Kept, so that its number is nobody else's.
    _child: Option<Child>,
    /// What was read, of which `taken..` was not looked at.
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
    /// The rest of a frame that was sent in part.
    unsent: Vec<u8>,
    up: bool,
}

impl Passt {
    /// Starts the program at `path` for the card with the address `mac`.
    pub fn start(path: &Path, mac: [u8; 6], options: &Options) -> Result<Self, PasstError> {
        let error = |what| move |source| PasstError::Io { what, source };
        let (ours, theirs) = UnixStream::pair().map_err(error("socketpair"))?;
        let child = spawn(path, &theirs, options).map_err(error("starting it"))?;
        drop(theirs);
        greet(&ours, mac).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                PasstError::Ended { path: path.to_owned() }
            }
            _ => PasstError::Io { what: "no answer", source },
        })?;
        Self::over(ours, Some(child)).map_err(error("epoll"))
    }

    /// Serves a card over `stream`.
    fn over(stream: UnixStream, child: Option<Child>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(set, 0))?;
        Ok(Self {
            // A file: reading and writing are all that it needs.
            stream: OwnedFd::from(stream).into(),
            epoll,
            _child: child,
            buffer: vec![0; ROOM],
            taken: 0,
            filled: 0,
            unsent: Vec::new(),
            up: true,
        })
    }

    /// Sends what is left of a frame; whether nothing is left now.
    fn finish(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(self.lost(e)),
            }
        }
        Ok(true)
    }

    /// The child is gone, or speaks another language.
    fn lost(&mut self, e: io::Error) -> io::Error {
        if std::mem::replace(&mut self.up, false) {
            log::error!("net user: passt is gone: {e}: the card's link is down");
        }
        e
    }

    /// Where the next whole frame is, if there is one.
    fn next(&mut self) -> io::Result<Option<std::ops::Range<usize>>> {
        loop {
            let waiting = self.buffer.get(self.taken..self.filled).unwrap_or_default();
            if let Some((len, rest)) = waiting.split_first_chunk::<LENGTH>() {
                let len = u32::from_be_bytes(*len) as usize;
                if len > MAX_FRAME {
                    return Err(self.lost(ErrorKind::InvalidData.into()));
                }
                if rest.len() >= len {
                    let start = self.taken + LENGTH;
                    self.taken = start + len;
                    return Ok(Some(start..start + len));
                }
            }
            if self.taken > 0 {
                self.buffer.copy_within(self.taken..self.filled, 0);
                self.filled -= self.taken;
                self.taken = 0;
            }
            // Its edges are taken first, so that what comes now is news.
            let _ = self.epoll.wait(0, &mut [EpollEvent::default()]);
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err(self.lost(ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(self.lost(e)),
            }
        }
    }
}

/// Starts passt with the other end of the stream.
fn spawn(path: &Path, stream: &UnixStream, options: &Options) -> io::Result<Child> {
    let fd = stream.as_raw_fd();
    let mut command = Command::new(path);
    command.args(arguments(fd, options));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: getpid has no preconditions.
    let parent = unsafe { libc::getpid() };
    let prepare = move || {
        // SAFETY: these take numbers. The descriptor is open, and this child's
        // copy of it is to stay so.
        let ready = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                && libc::getppid() == parent
                && libc::fcntl(fd, libc::F_SETFD, 0) == 0
        };
        if ready { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls and nothing else.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// The same network as the monitor's own.
fn arguments(fd: RawFd, options: &Options) -> Vec<String> {
    let mut words: Vec<String> = vec!["--foreground".into(), "--quiet".into()];
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("--fd", fd.to_string());
    add("--address", route::GUEST.to_string());
    add("--netmask", "24".into());
    add("--gateway", route::GATEWAY.to_string());
    add("--dns", route::NAMES.to_string());
    add("--dns-forward", route::NAMES.to_string());
    add("--mtu", MTU.to_string());
    for forward in &options.forwards {
        let option = match forward.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        add(option, format!("{}/{}:{}", forward.host.ip(), forward.host.port(), forward.guest));
    }
    if !options.host_loopback {
        words.push("--no-map-gw".into());
    }
    words
}

/// Asks for the gateway's hardware address, as the guest will: the answer says
/// that passt works here.
fn greet(mut stream: &UnixStream, mac: [u8; 6]) -> io::Result<()> {
    let ends = |address: Ipv4Addr| address.octets();
    let mut question = vec![0; LENGTH];
    question.extend([0xff; 6]);
    question.extend(mac);
    question.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(mac);
    question.extend(ends(route::GUEST));
    question.extend([0; 6]);
    question.extend(ends(route::GATEWAY));
    let len = (question.len() - LENGTH) as u32;
    question[..LENGTH].copy_from_slice(&len.to_be_bytes());
    stream.set_read_timeout(Some(ANSWER))?;
    let mut length = [0; LENGTH];
    let mut asked = 0;
    loop {
        asked += 1;
        stream.write_all(&question)?;
        match stream.read_exact(&mut length) {
            // On a busy host it may be a while before it listens.
            Err(e) if e.kind() == ErrorKind::WouldBlock && asked < QUESTIONS => {}
            other => break other?,
        }
    }
    let len = u32::from_be_bytes(length) as usize;
    if len > MAX_FRAME {
        return Err(ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut vec![0; len])
}

impl NetBackend for Passt {
    fn features(&self) -> u64 {
        0
    }

    fn set_features(&mut self, _negotiated: u64) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX).saturating_sub(HEADER);
        if !self.up || !self.finish()? || !(1..=MAX_FRAME).contains(&len) {
            return Err(ErrorKind::WouldBlock.into());
        }
        frame.advance(HEADER as u64);
        self.unsent.resize(LENGTH + len, 0);
        let (length, bytes) = self.unsent.split_at_mut(LENGTH);
        length.copy_from_slice(&(len as u32).to_be_bytes());
        frame.copy_out(bytes);
        self.finish().map(drop)
    }

    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.up {
            return Ok(None);
        }
        self.finish()?;
        let Some(bytes) = self.next()? else { return Ok(None) };
        let bytes = self.buffer.get(bytes).unwrap_or_default();
        let (mut len, mut over) = (0, rest.iter_mut());
        for part in [&[0; HEADER], bytes] {
            let fits = frame.copy_in(part);
            let rest = part.get(fits..).unwrap_or_default();
            len += fits + rest.iter().zip(&mut over).map(|(from, to)| *to = *from).count();
        }
        Ok(Some(len))
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn link(&self) -> bool {
        self.up
    }
}

#[cfg(test)]
#[path = "passt_test.rs"]
mod tests;
