//! The server's side: clients, their lines, and the answers.

use super::lines::Lines;
use super::request::{Refusal, Request, answer};
use super::{MAX_CLIENTS, MAX_FILES, MAX_LINE, MAX_WAITING, VERSION};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::timerfd::TimerFd;

/// What is read at once.
const PIECE: usize = 4096;
/// Connections that the kernel keeps for us.
const BACKLOG: libc::c_int = 16;

/// What an event is of; clients are numbered from `FIRST` on.
const LISTENER: u32 = 0;
const TIMER: u32 = 1;
const WAKE: u32 = 2;
const FIRST: u32 = 3;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Something is there already.
    #[error("control {}: exists already: remove it, if no other microvm uses it", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("control {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A request, whose it is, and what came along.
#[derive(Debug)]
pub struct Job {
    /// Whose.
    pub client: u32,
    /// What is asked.
    pub request: Request,
    /// As many descriptors as the command takes, or fewer.
    pub files: Vec<File>,
}

/// The control socket on the event loop. What comes in is kept for whoever can
/// carry it out.
pub struct Server {
    path: PathBuf,
    /// Device and inode, to remove nobody else's file at the end.
    identity: (u64, u64),
    listener: UnixListener,
    timer: TimerFd,
    wake: Option<EventFd>,
    clients: BTreeMap<u32, Client>,
    next: u32,
    jobs: VecDeque<Job>,
}

struct Client {
    stream: UnixStream,
    lines: Lines,
    files: VecDeque<File>,
    waiting: usize,
}

impl Server {
    /// Listens at `path`, where there must be nothing. Nobody but its user can
    /// connect.
    pub fn listen(path: &Path) -> Result<Self, ControlError> {
        let error = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => ControlError::Exists { path: path.to_owned() },
            _ => ControlError::Io { path: path.to_owned(), source },
        };
        let listener = bind(path).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path).map_err(error)?,
            listener,
            timer: TimerFd::new().map_err(|e| error(e.into()))?,
            wake: None,
            clients: BTreeMap::new(),
            next: FIRST,
            jobs: VecDeque::new(),
        })
    }

    /// Before it is on the event loop: one more event that brings it round.
    pub fn wake_by(&mut self, event: EventFd) {
        self.wake = Some(event);
    }

    /// Brings the event loop round at this time, too; only once, and instead of
    /// what was set before.
    pub fn wake_at(&mut self, time: Option<Instant>) {
        let set = match time {
            // Zero would be never.
            Some(time) => {
                let left = time.saturating_duration_since(Instant::now());
                self.timer.reset(left.max(Duration::from_millis(1)), None)
            }
            None => self.timer.clear(),
        };
        if let Err(e) = set {
            log::error!("control: timer: {e}");
        }
    }

    /// The next request.
    pub fn next_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Answers a request. Who has gone needs none; who does not read what it is
    /// told is sent away.
    pub fn answer(&mut self, client: u32, id: &Value, result: Result<Value, String>) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        client.waiting = client.waiting.saturating_sub(1);
        client.say(&answer(id, result));
    }

    /// All that have connected, until there is nobody left.
    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return log::warn!("control: {e}"),
            };
            if let Err(e) = self.welcome(stream, ops) {
                log::warn!("control: {e}");
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream, ops: &mut EventOps) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let (lines, files) = Default::default();
        let mut client = Client { stream, lines, files, waiting: 0 };
        if self.clients.len() >= MAX_CLIENTS {
            let why = format!("{MAX_CLIENTS} clients are connected: try again later");
            client.say(&answer(&Value::Null, Err(why)));
            return Ok(());
        }
        client.say(&format!("{}\n", json!({"version": VERSION})));
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(FIRST);
        ops.add(Events::with_data(&client.stream, number, EventSet::IN))
            .map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.clients.insert(number, client);
        Ok(())
    }

    /// A client has said something, or gone.
    fn hear(&mut self, number: u32, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.receive() && client.take(number, &mut self.jobs) {
            return;
        }
        // Before its descriptor is closed and becomes another's.
        let _ = ops.remove(Events::empty(&client.stream));
        self.clients.remove(&number);
    }
}

impl Client {
    /// Takes what has come; whether there may come more.
    fn receive(&mut self) -> bool {
        let mut piece = [0u8; PIECE];
        let mut fds: [RawFd; MAX_FILES] = [-1; MAX_FILES];
        let mut to = [libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: PIECE }];
        // SAFETY: the entry describes `piece`, which may be written and outlives
        // the call.
        let received = unsafe { self.stream.recv_with_fds(&mut to, &mut fds) };
        let (count, descriptors) = match received {
            Ok(received) => received,
            Err(e) => return matches!(e.errno(), libc::EAGAIN | libc::EINTR),
        };
        for fd in fds.iter().take(descriptors) {
            // SAFETY: the kernel has just made this descriptor for us, and
            // nobody else knows of it.
            self.files.push_back(unsafe { File::from_raw_fd(*fd) });
        }
        self.lines.push(piece.get(..count).unwrap_or_default());
        count > 0 && self.files.len() <= MAX_FILES
    }

    /// Makes requests of whole lines; whether the client may stay.
    fn take(&mut self, number: u32, jobs: &mut VecDeque<Job>) -> bool {
        loop {
            let line = match self.lines.take_line() {
                Ok(Some(line)) => line,
                Ok(None) => return true,
                Err(_) => {
                    let why = format!("a line has more than {MAX_LINE} bytes");
                    self.say(&answer(&Value::Null, Err(why)));
                    return false;
                }
            };
            match Request::parse(&line) {
                Ok(request) => {
                    let count = request.command.files().min(self.files.len());
                    let files = self.files.drain(..count).collect();
                    if self.waiting >= MAX_WAITING {
                        let why = format!("{MAX_WAITING} requests are not answered yet");
                        self.say(&answer(&request.id, Err(why)));
                        continue;
                    }
                    self.waiting += 1;
                    jobs.push_back(Job { client: number, request, files });
                }
                Err(Refusal { id, why }) => {
                    // Whose they were is not known.
                    self.files.clear();
                    self.say(&answer(&id, Err(why)));
                }
            }
        }
    }

    /// Writes a line. Where there is no room for it, the client has not read
    /// hundreds of others: it is sent away.
    fn say(&mut self, line: &str) {
        let told = self.stream.write(line.as_bytes());
        if !matches!(told, Ok(n) if n == line.len()) {
            // What has come from it is still read, and then its end.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(ops),
            TIMER => drop(self.timer.wait()),
            // Whoever looks after it reads it.
            WAKE => {}
            client => self.hear(client, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered: were there no descriptor for a connection, it would
        // bring us round for ever.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let mut watch = vec![(self.listener.as_raw_fd(), LISTENER, edge)];
        watch.push((self.timer.as_raw_fd(), TIMER, EventSet::IN));
        watch.extend(self.wake.as_ref().map(|wake| (wake.as_raw_fd(), WAKE, edge)));
        for (fd, data, set) in watch {
            if let Err(e) = ops.add(Events::with_data_raw(fd, data, set)) {
                log::error!("control: {e:?}");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nobody is left to be told of a failure who could do more.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// A listening socket with mode 0600 from its first moment: a socket's own mode
/// becomes that of the file (`unix_bind_bsd`).
fn bind(path: &Path) -> io::Result<UnixListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_un is plain data for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    if path.is_empty() || path.len() >= address.sun_path.len() || path.contains(&0) {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: fchmod and listen take numbers; the address lives here, is `len`
    // bytes long, and its path ends in a NUL.
    unsafe {
        check(libc::fchmod(fd.as_raw_fd(), 0o600))?;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len))?;
        check(libc::listen(fd.as_raw_fd(), BACKLOG))?;
    }
    Ok(fd.into())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
