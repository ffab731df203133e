//! What a rank of a parallel program has from its launcher, inside the machine.
//!
//! ```text
//!  PMI   rank ◄─► socket at the descriptor that PMI_FD names ◄─► vsock 5 ◄─► launcher
//!  PMIx  rank ─► 127.0.0.1:PORT, this program ─► Dial ─► vsock N ◄─► its server
//! ```
//!
//! Bytes go through as they are: what they mean is between the rank and its
//! launcher.

use crate::streams::{drain, host};
use guest::protocol::{self, ToHost, port};
use guest::system::{About, Fault, check, connect, pipe};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::thread;

/// The rank's end of its socket, and where it wants it.
pub struct Socket {
    /// The end.
    pub end: OwnedFd,
    /// The descriptor.
    pub number: RawFd,
}

/// The other end, and where the session's ports begin.
pub struct Line {
    end: File,
    ports: u32,
}

/// Makes the rank's socket, if it has one.
pub fn open(wire: &protocol::Wire, ports: u32) -> Result<Option<(Socket, Line)>, Fault> {
    let Some(number) = wire.descriptor else { return Ok(None) };
    let number = RawFd::try_from(number).map_err(|_| Fault("PMI descriptor".to_owned()))?;
    let mut ends = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair fills in two descriptors, which are nobody else's.
    let (end, ours) = unsafe {
        let made = check(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()));
        made.about("PMI socket")?;
        (OwnedFd::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    };
    Ok(Some((Socket { end, number }, Line { end: ours, ports })))
}

impl Line {
    /// Carries what the rank and its launcher say, until the rank's end.
    ///
    /// The launcher's socket is touched once a rank speaks, which it does first: a
    /// program that does not leaves it to the next one.
    pub fn carry(self) {
        let mut first = 0u8;
        // SAFETY: recv writes at most the one byte.
        let n = unsafe {
            let to = (&raw mut first).cast();
            libc::recv(self.end.as_raw_fd(), to, 1, libc::MSG_PEEK)
        };
        if n <= 0 {
            return;
        }
        let there = host(self.ports, port::WIRE);
        let Some((there, back)) = there.ok().and_then(|t| Some((t.try_clone().ok()?, t))) else {
            return;
        };
        let Ok(end) = self.end.try_clone() else { return };
        thread::spawn(move || drain(back, end));
        drain(self.end, there);
    }
}

/// Listens where the ranks look for their PMIx server. The host is asked over
/// `control`; its answers are to be put into what is returned.
pub fn listen(wire: &protocol::Wire, control: &Arc<Mutex<File>>) -> Result<Option<Answers>, Fault> {
    let Some(port) = wire.listener else { return Ok(None) };
    let what = || format!("PMIx: port {port}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).about(what())?;
    let (answers, to) = pipe().about(what())?;
    let (control, mut answers) = (control.clone(), File::from(answers));
    thread::spawn(move || {
        for rank in listener.incoming() {
            // One that is refused sees its connection end, as of a server that ends.
            let _ = rank.and_then(|rank| forward(rank, &control, &mut answers));
        }
    });
    Ok(Some(Answers(File::from(to))))
}

/// Where answers to [`ToHost::Dial`] are put.
pub struct Answers(File);

impl Answers {
    /// The host's answer. One write a number: a pipe keeps them whole.
    pub fn put(&mut self, port: u32) {
        let _ = self.0.write_all(&port.to_le_bytes());
    }
}

/// A connection to the host for a connection of a rank.
fn forward(rank: TcpStream, control: &Mutex<File>, answers: &mut File) -> io::Result<()> {
    crate::send(control, &ToHost::Dial)?;
    let mut port = [0; 4];
    answers.read_exact(&mut port)?;
    let port = u32::from_le_bytes(port);
    if port == 0 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // What is said here is short and waited for.
    rank.set_nodelay(true)?;
    let (rank, there) = (File::from(OwnedFd::from(rank)), File::from(connect(port)?));
    let (rank_too, there_too) = (rank.try_clone()?, there.try_clone()?);
    thread::spawn(move || drain(rank, there));
    thread::spawn(move || drain(there_too, rank_too));
    Ok(())
}
