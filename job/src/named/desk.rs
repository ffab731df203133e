//! The runner's side of a name: visitors come one request at a time, are answered,
//! and leave.
//!
//! A request is a line of JSON, and so is the answer. With `attach` come the
//! guest's ends of the visitor's streams: they are prepared for the guest, and its
//! init is told. Nothing of the session goes through the runner.

use super::Entry;
use devices::backend::prepared::Later;
use guest::protocol::port;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// What is spoken here.
pub const VERSION: u32 = 2;
/// The longest request.
const LONGEST: usize = 256;
/// Visitors at a time: more wait with the kernel.
const MOST: usize = 16;
/// The ports of the first session beside the job.
const FIRST: u32 = 1 << 16;

/// What a visitor asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is wanted.
    pub request: Wanted,
}

/// What a visitor wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// To know the job.
    Status,
    /// To run a program beside it.
    Attach {
        /// Of which ports ([`port`]) there are streams, in the order in which they come.
        streams: Vec<u32>,
        /// Whether to wait until the job runs.
        wait: bool,
    },
}

/// A job, as visitors are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The runner's process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// What it runs on.
    pub image: String,
    /// The program and its arguments, the beginning of them.
    pub command: String,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// `starting`, `running` or `ended`.
    pub state: String,
}

/// The runner's side.
pub struct Desk {
    entry: Entry,
    about: About,
    later: Later,
    visitors: Vec<UnixStream>,
    next: u32,
    /// Ports of sessions that wait until the job runs.
    early: Vec<u32>,
}

impl Desk {
    /// For a job that can be found.
    pub fn new(entry: Entry, about: About, later: Later) -> Self {
        Self { entry, about, later, visitors: Vec::new(), next: FIRST, early: Vec::new() }
    }

    /// The job runs: the ports of the sessions that have waited for it.
    pub fn take_early(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.early)
    }

    /// What to wait for.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let listener = (self.visitors.len() < MOST).then(|| self.entry.listener.as_raw_fd());
        self.visitors.iter().map(AsRawFd::as_raw_fd).chain(listener).collect()
    }

    /// Something has come on these of [`Self::descriptors`]. Returns the ports of the
    /// sessions that are wanted.
    pub fn serve(&mut self, ready: &[RawFd], state: &str) -> Vec<u32> {
        state.clone_into(&mut self.about.state);
        let mut wanted = Vec::new();
        let is_ready = |fd: RawFd| ready.contains(&fd);
        let visitors = std::mem::take(&mut self.visitors);
        for visitor in visitors {
            if is_ready(visitor.as_raw_fd()) {
                wanted.extend(self.answer(&visitor));
            } else {
                self.visitors.push(visitor);
            }
        }
        if is_ready(self.entry.listener.as_raw_fd())
            && let Ok((visitor, _)) = self.entry.listener.accept()
        {
            self.visitors.push(visitor);
        }
        wanted
    }

    /// Answers a visitor, who then leaves.
    fn answer(&mut self, mut visitor: &UnixStream) -> Option<u32> {
        let (answer, ports) = match receive(visitor) {
            Some((request, streams)) => self.consider(&request, streams),
            None => (json!({ "error": "not understood" }), None),
        };
        let line = format!("{answer}\n");
        // There is room for one answer in an empty socket; a visitor who has gone
        // wants none.
        match visitor.write(line.as_bytes()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => None,
            _ => ports,
        }
    }

    fn consider(&mut self, request: &Request, streams: Vec<UnixStream>) -> (Value, Option<u32>) {
        let refused = |why: &str| (json!({ "error": why }), None);
        if request.version != VERSION {
            return refused(&format!("this job speaks version {VERSION}"));
        }
        let early = self.about.state == "starting";
        match &request.request {
            Wanted::Status => (json!({ "ok": self.about }), None),
            Wanted::Attach { wait, .. } if !(self.about.state == "running" || early && *wait) => {
                refused(&format!("the job is {}", self.about.state))
            }
            Wanted::Attach { streams: named, .. } if !fits(named, streams.len()) => {
                refused("not understood")
            }
            Wanted::Attach { streams: named, .. } => {
                let ports = self.next;
                // So many sessions that this comes round are not alive at once.
                self.next = ports.checked_add(port::COUNT).unwrap_or(FIRST);
                for (number, stream) in named.iter().zip(streams) {
                    self.later.add(ports.saturating_add(*number), stream);
                }
                if early {
                    self.early.push(ports);
                }
                (json!({ "ok": null }), Some(ports).filter(|_| !early))
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.entry.remove();
    }
}

/// Whether that is what a session needs: a conversation, and each stream once.
fn fits(named: &[u32], count: usize) -> bool {
    let known = |number: &u32| (port::CONTROL..=port::COUNT).contains(number);
    let once = named.iter().collect::<std::collections::BTreeSet<_>>().len() == named.len();
    named.first() == Some(&port::CONTROL) && once && named.len() == count && named.iter().all(known)
}

/// A request and what came with it, all at once.
fn receive(visitor: &UnixStream) -> Option<(Request, Vec<UnixStream>)> {
    let mut bytes = [0u8; LONGEST];
    let mut fds = [-1; port::COUNT as usize];
    let mut place = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    // SAFETY: the one place is the buffer, which outlives the call.
    let received = unsafe { visitor.recv_with_fds(&mut place, &mut fds) };
    let (len, count) = received.ok()?;
    // SAFETY: the kernel has made these descriptors for this process.
    let streams = fds.get(..count)?.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
    let streams: Vec<UnixStream> = streams.map(UnixStream::from).collect();
    Some((serde_json::from_slice(bytes.get(..len)?).ok()?, streams))
}
