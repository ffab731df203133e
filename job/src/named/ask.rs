//! The visitor's side: what is asked of jobs by their names.

use super::desk::{About, Request, VERSION, Wanted};
use super::{Name, all, connect};
use crate::Error;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long a job that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for one that is about to start.
const START: Duration = Duration::from_secs(60);
/// The same for one of many, which may be stopped.
const GLANCE: Duration = Duration::from_millis(500);
/// The longest answer.
const LONGEST: u64 = 64 << 10;

/// A job that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its runner.
    pub pid: u32,
    /// What it says of itself; nothing if it is stopped.
    pub about: Option<About>,
}

fn ask(
    mut stream: &UnixStream,
    request: Wanted,
    fds: &[RawFd],
    patience: Duration,
) -> Result<Value, String> {
    let told = |e: &io::Error| match e.kind() {
        io::ErrorKind::WouldBlock => "it does not answer: it may be stopped".to_owned(),
        _ => vmm::plain(e),
    };
    let request = serde_json::to_string(&Request { version: VERSION, request });
    let request = request.map_err(|e| e.to_string())? + "\n";
    stream.set_read_timeout(Some(patience)).map_err(|e| told(&e))?;
    let sent = stream.send_with_fds(&[request.as_bytes()], fds);
    sent.map_err(|e| told(&io::Error::from_raw_os_error(e.errno())))?;
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LONGEST));
    reader.read_line(&mut line).map_err(|e| told(&e))?;
    if line.is_empty() {
        return Err("it has ended".to_owned());
    }
    let mut answer: Value = serde_json::from_str(&line).map_err(|_| "not understood".to_owned())?;
    match answer.get("error") {
        Some(why) => Err(why.as_str().unwrap_or("refused").to_owned()),
        None => Ok(answer["ok"].take()),
    }
}

/// Whoever listens at the other end.
fn peer(stream: &UnixStream) -> io::Result<u32> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.pid.as_raw_nonzero().get() as u32)
}

/// All jobs of this user that have names.
pub fn list() -> Result<Vec<Found>, Error> {
    let one = |(name, stream): (Name, UnixStream)| {
        let about = ask(&stream, Wanted::Status, &[], GLANCE).ok();
        let about: Option<About> = about.and_then(|about| serde_json::from_value(about).ok());
        Some(Found { name: name.to_string(), pid: peer(&stream).ok()?, about })
    };
    Ok(all()?.into_iter().filter_map(one).collect())
}

/// Hands the guest's ends of a session's streams to a job, by their ports; `wait`: to
/// one that may not run yet.
pub fn attach(name: &Name, streams: &[(u32, UnixStream)], wait: bool) -> Result<(), Error> {
    let fds: Vec<RawFd> = streams.iter().map(|(_, stream)| stream.as_raw_fd()).collect();
    let ports = streams.iter().map(|(port, _)| *port).collect();
    let stream = connect(name)?;
    let patience = if wait { START } else { PATIENCE };
    let done = ask(&stream, Wanted::Attach { streams: ports, wait }, &fds, patience);
    done.map(drop).map_err(|reason| Error::Name { name: name.to_string(), reason })
}

/// Ends a job as `SIGTERM` does; after `patience`, as `SIGKILL` does. Returns when
/// it has ended: `false` if it had to be killed.
pub fn stop(name: &Name, patience: Duration) -> Result<bool, Error> {
    let error = |e: io::Error| Error::Name { name: name.to_string(), reason: vmm::plain(&e) };
    let stream = connect(name)?;
    let pid = peer(&stream).map_err(error)?;
    let runner = open_process(pid).map_err(error)?;
    // Somebody listens still, so the process is the one that we mean.
    drop(connect(name)?);
    send(&runner, libc::SIGTERM).map_err(error)?;
    // One that is stopped can't do what it is told.
    send(&runner, libc::SIGCONT).map_err(error)?;
    if ended(&runner, patience).map_err(error)? {
        return Ok(true);
    }
    send(&runner, libc::SIGKILL).map_err(error)?;
    ended(&runner, PATIENCE).map_err(error)?;
    // Its name is removed by whoever looks for it.
    let _ = connect(name);
    Ok(false)
}

fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers; the descriptor is nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

fn send(process: &OwnedFd, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes numbers, and no information beside.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, null, 0) };
    let error = io::Error::last_os_error();
    match sent {
        0 => Ok(()),
        _ if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        _ => Err(error),
    }
}

/// Waits until a process has ended, or as long as is said.
fn ended(process: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&mut poll, 1, left) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {}
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
