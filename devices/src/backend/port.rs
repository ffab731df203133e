//! What stands behind the ports of a console device: a Unix socket with one
//! client at a time, a pseudo-terminal, or the monitor's own streams and files
//! through [`ConsoleOutput`].

use super::console::ConsoleOutput;
use crate::bus::lock;
use crate::virtio::console::PortBackend;
use crate::virtio::queue::IoVecs;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// News taken at once; what matters is looked at anyway.
const NEWS: usize = 16;
/// Bytes of input that wait for the guest.
const INPUT: usize = 4096;

/// Why a port can't be there; each names the path.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Something is there already.
    #[error("port {path}: exists already: remove it, if no other microvm uses it")]
    Exists {
        /// The path.
        path: String,
    },
    /// Anything else.
    #[error("port {path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// What the host said.
        source: io::Error,
    },
}

fn error(path: &Path) -> impl Fn(io::Error) -> PortError {
    let path = path.display().to_string();
    move |source| PortError::Io { path: path.clone(), source }
}

fn watch(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, 0))
}

/// Takes the news away, so that the next one is an edge again.
fn drain(epoll: &Epoll) {
    let mut events = [EpollEvent::default(); NEWS];
    // Without news there are none, whatever the reason.
    let _ = epoll.wait(0, &mut events);
}

fn transferred(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn readv(fd: RawFd, to: &IoVecs<'_>) -> io::Result<usize> {
    let list = to.as_slice().get(..libc::UIO_MAXIOV as usize).unwrap_or(to.as_slice());
    // SAFETY: the entries point to memory that may be written and outlives the
    // call.
    transferred(unsafe { libc::readv(fd, list.as_ptr(), list.len() as i32) })
}

fn writev(fd: RawFd, from: &IoVecs<'_>) -> io::Result<usize> {
    let list = from.as_slice().get(..libc::UIO_MAXIOV as usize).unwrap_or(from.as_slice());
    // SAFETY: the entries point to memory that outlives the call; it is only
    // read. SIGPIPE is ignored in this process, so it is an error.
    transferred(unsafe { libc::writev(fd, list.as_ptr(), list.len() as i32) })
}

/// A Unix socket that listens, for one client at a time. Others wait.
#[derive(Debug)]
pub struct SocketPort {
    path: PathBuf,
    /// Device and inode, to remove nobody else's file at the end.
    identity: (u64, u64),
    listener: UnixListener,
    client: Option<UnixStream>,
    epoll: Epoll,
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

impl SocketPort {
    /// Listens at `path`, where there must be nothing.
    pub fn listen(path: &Path) -> Result<Self, PortError> {
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => PortError::Exists { path: path.display().to_string() },
            _ => error(path)(source),
        })?;
        let identity = identity(path).map_err(error(path))?;
        let epoll = Epoll::new().map_err(error(path))?;
        listener.set_nonblocking(true).map_err(error(path))?;
        watch(&epoll, listener.as_raw_fd()).map_err(error(path))?;
        Ok(Self { path: path.to_owned(), identity, listener, client: None, epoll })
    }

    fn accept(&mut self) {
        while self.client.is_none() {
            match self.listener.accept() {
                Ok((client, _)) => {
                    let ready = client
                        .set_nonblocking(true)
                        .and_then(|()| watch(&self.epoll, client.as_raw_fd()));
                    // One that can't be watched sees its connection closed.
                    self.client = ready.is_ok().then_some(client);
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for SocketPort {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nobody is left to be told of a failure who could do more.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl PortBackend for SocketPort {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        self.client.as_ref().map_or(Ok(0), |client| readv(client.as_raw_fd(), to))
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let gone = Err(ErrorKind::NotConnected.into());
        self.client.as_ref().map_or(gone, |client| writev(client.as_raw_fd(), from))
    }

    fn poll(&mut self) -> bool {
        drain(&self.epoll);
        self.accept();
        self.client.is_some()
    }

    fn leave(&mut self) {
        self.client = None;
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

/// A pseudo-terminal. What the guest writes while nobody has it open is dropped.
#[derive(Debug)]
pub struct PtyPort {
    master: File,
    epoll: Epoll,
    /// What a user opens.
    pub path: PathBuf,
}

impl PtyPort {
    /// A new one, raw, as the guest does the editing of lines.
    pub fn open() -> io::Result<Self> {
        let (mut master, mut slave) = (-1, -1);
        let mut name = [0u8; 128];
        // SAFETY: openpty fills in two descriptors and a name that is shorter
        // than the buffer (`/dev/pts/` and a number); the rest may be null.
        let done = unsafe {
            let null = std::ptr::null_mut::<u8>();
            libc::openpty(
                &mut master,
                &mut slave,
                name.as_mut_ptr().cast(),
                null.cast(),
                null.cast(),
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both are new, and owned by nobody else. The slave is closed
        // again: from then on a hang-up tells that no user has it open.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // SAFETY: a termios is plain data; the calls fill it in and read it.
        unsafe {
            let mut modes: libc::termios = std::mem::zeroed();
            libc::tcgetattr(slave.as_raw_fd(), &mut modes);
            libc::cfmakeraw(&mut modes);
            libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &modes);
            libc::fcntl(master.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
            libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        }
        let epoll = Epoll::new()?;
        watch(&epoll, master.as_raw_fd())?;
        let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let path = PathBuf::from(String::from_utf8_lossy(&name[..len]).into_owned());
        Ok(Self { master, epoll, path })
    }

    /// Whether no user has it open.
    fn hung_up(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.master.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 && poll.revents & libc::POLLHUP != 0 }
    }
}

impl PortBackend for PtyPort {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        match readv(self.master.as_raw_fd(), to) {
            // EIO: nobody has it open. Somebody else may, later.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Err(ErrorKind::WouldBlock.into()),
            Ok(0) => Err(ErrorKind::WouldBlock.into()),
            other => other,
        }
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        if self.hung_up() {
            return Ok(from.len() as usize);
        }
        writev(self.master.as_raw_fd(), from)
    }

    fn poll(&mut self) -> bool {
        drain(&self.epoll);
        true
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn size(&self) -> Option<(u16, u16)> {
        terminal_size(self.master.as_raw_fd())
    }
}

/// Columns and rows of a terminal, unless nobody has told them.
pub fn terminal_size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills the struct in.
    let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
    (done == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Output that a thread writes, and input that someone else reads.
pub struct StreamPort {
    shared: Arc<Streams>,
    size_of: Option<RawFd>,
}

/// What a [`StreamPort`] shares with those at its other end.
struct Streams {
    output: ConsoleOutput,
    input: Mutex<VecDeque<u8>>,
    /// There is input, or room for output.
    news: EventFd,
    /// There is room for input.
    room: EventFd,
}

/// Where input for a [`StreamPort`] goes.
#[derive(Clone)]
pub struct StreamInput(Arc<Streams>);

impl StreamPort {
    /// A port into `output`. If `size_of` is a terminal, its size is the port's.
    pub fn new(output: ConsoleOutput, size_of: Option<RawFd>) -> io::Result<Self> {
        let (news, room) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        let wake = news.try_clone()?;
        // It can fail only when it is full, and then it is readable.
        output.on_room(move || drop(wake.write(1)));
        let input = Mutex::default();
        Ok(Self { shared: Arc::new(Streams { output, input, news, room }), size_of })
    }

    /// Where its input goes.
    pub fn input(&self) -> StreamInput {
        StreamInput(self.shared.clone())
    }
}

impl StreamInput {
    /// Takes what fits and returns how many bytes that was.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.0.input);
        let n = bytes.len().min(INPUT.saturating_sub(input.len()));
        input.extend(bytes.iter().take(n));
        // As above.
        let _ = self.0.news.write(1);
        n
    }

    /// Becomes readable when there is room again after not all fitted.
    pub fn room(&self) -> &EventFd {
        &self.0.room
    }
}

impl PortBackend for StreamPort {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        let mut input = lock(&self.shared.input);
        if input.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = to.copy_in(input.make_contiguous());
        input.drain(..n);
        // As above.
        let _ = self.shared.room.write(1);
        Ok(n)
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let mut done = 0;
        for piece in from.as_slice() {
            for i in 0..piece.iov_len {
                if self.shared.output.is_held_back() {
                    return if done > 0 { Ok(done) } else { Err(ErrorKind::WouldBlock.into()) };
                }
                // SAFETY: the entry points to `iov_len` bytes that live as long
                // as `from`; a guest that races changes the byte, no more.
                let byte = unsafe { piece.iov_base.cast::<u8>().add(i).read_volatile() };
                self.shared.output.push(byte);
                done += 1;
            }
        }
        Ok(done)
    }

    fn poll(&mut self) -> bool {
        true
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.shared.news.as_raw_fd())
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.size_of.and_then(terminal_size)
    }
}
