//! The host's side of virtio-vsock as Unix sockets, in Firecracker's convention.
//!
//! A client of the host connects to PATH, writes `CONNECT <port>\n` and, when the
//! guest accepts, reads `OK <port>\n`. A program of the guest that connects to
//! port P of the host reaches whoever listens at `PATH_P`.

use crate::virtio::queue::IoVecs;
use crate::virtio::vsock::{CLIENTS, HostStream, Readiness, VsockBackend};
use libc::{c_int, iovec};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The longest path that leaves room for `_4294967295` in a socket's address.
pub const MAX_PATH: usize = SUN_PATH - 1 - "_4294967295".len();
const SUN_PATH: usize = 108;

/// News taken at once.
const NEWS: usize = 64;

/// Why the sockets can't be there; each names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Something is there already.
    #[error("vsock {path}: exists already: remove it, if no other microvm uses it")]
    Exists {
        /// The path.
        path: String,
    },
    /// A socket's address can't hold it.
    #[error("vsock {path}: a path of 1 to {MAX_PATH} bytes is needed")]
    Path {
        /// The path.
        path: String,
    },
    /// Anything else.
    #[error("vsock {path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// What the host said.
        source: io::Error,
    },
}

/// A listening socket and all that is connected through it.
#[derive(Debug)]
pub struct UnixSockets {
    path: PathBuf,
    /// Device and inode, to remove nobody else's file at the end.
    identity: (u64, u64),
    listener: UnixListener,
    /// The listener and all streams, so that there is one descriptor to watch.
    epoll: Epoll,
}

impl UnixSockets {
    /// Listens at `path`, where there must be nothing.
    pub fn listen(path: &Path) -> Result<Self, VsockError> {
        let name = || path.display().to_string();
        let error = |source| VsockError::Io { path: name(), source };
        if !(1..=MAX_PATH).contains(&path.as_os_str().len()) {
            return Err(VsockError::Path { path: name() });
        }
        let epoll = Epoll::new().map_err(error)?;
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => VsockError::Exists { path: name() },
            _ => error(source),
        })?;
        let identity = identity(path).map_err(error)?;
        let new = Self { path: path.to_owned(), identity, listener, epoll };
        new.listener.set_nonblocking(true).map_err(error)?;
        watch(&new.epoll, new.listener.as_raw_fd(), CLIENTS).map_err(error)?;
        Ok(new)
    }
}

/// Edge-triggered: what stays ready is no news.
pub(super) fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, token))
}

/// Adds what is new. `true`: there is more.
pub(super) fn news(epoll: &Epoll, all: &mut Vec<Readiness>) -> io::Result<bool> {
    let mut events = [EpollEvent::default(); NEWS];
    let count = match epoll.wait(0, &mut events) {
        Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(true),
        other => other?,
    };
    all.extend(events.iter().take(count).map(|event| {
        let set = event.event_set();
        // Either end of a stream's life shows in reading and writing.
        let over = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        Readiness {
            token: event.data(),
            readable: over || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
            writable: over || set.contains(EventSet::OUT),
            hung_up: over,
        }
    }));
    Ok(count == NEWS)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nobody is left to be told of a failure who could do more.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl VsockBackend for UnixSockets {
    fn connect(&mut self, port: u32, token: u64) -> io::Result<Box<dyn HostStream>> {
        let mut path: OsString = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let stream = connect(Path::new(&path))?;
        watch(&self.epoll, stream.as_raw_fd(), token)?;
        Ok(Box::new(Stream(stream)))
    }

    fn accept(&mut self, token: u64) -> io::Result<Option<Box<dyn HostStream>>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    watch(&self.epoll, stream.as_raw_fd(), token)?;
                    return Ok(Some(Box::new(Stream(stream))));
                }
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    // Another client may be behind one that has gone.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => return Err(e),
                },
            }
        }
    }

    fn poll(&mut self, all: &mut Vec<Readiness>) -> io::Result<bool> {
        news(&self.epoll, all)
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

/// Connects without waiting: a server whose queue of clients is full refuses.
fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: socket takes numbers, and the descriptor is nobody else's.
    let stream = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let fd = libc::socket(libc::AF_UNIX, kind, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        UnixStream::from_raw_fd(fd)
    };
    // SAFETY: sockaddr_un is plain data for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address lives here and is `len` bytes long; its path ends in
    // a NUL.
    let done = unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(stream) }
}

/// A connected socket.
pub(super) struct Stream(pub(super) UnixStream);

/// As many pieces as one system call takes: the rest of a stream can wait.
fn pieces(list: &[iovec]) -> &[iovec] {
    list.get(..libc::UIO_MAXIOV as usize).unwrap_or(list)
}

fn transferred(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

impl HostStream for Stream {
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize> {
        let list = pieces(to.as_slice());
        // SAFETY: the entries point to memory that may be written and outlives
        // the call.
        transferred(unsafe { libc::readv(self.0.as_raw_fd(), list.as_ptr(), list.len() as c_int) })
    }

    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize> {
        let list = pieces(from.as_slice());
        // SAFETY: msghdr is plain data for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_ptr().cast_mut();
        message.msg_iovlen = list.len() as _;
        // A client that has gone is an error and no signal.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the message names nothing but the list, whose entries point to
        // memory that outlives the call; it is only read.
        transferred(unsafe { libc::sendmsg(self.0.as_raw_fd(), &message, flags) })
    }

    fn shutdown(&mut self, how: Shutdown) {
        // It fails where the other side is closed already.
        let _ = self.0.shutdown(how);
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
