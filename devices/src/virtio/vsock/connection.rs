//! One connection between a socket of the guest and one of the host.
//!
//! ```text
//!  Greeting ─CONNECT─► Requested ─RESPONSE─► Established ─SHUTDOWN─► Draining
//!  (host's client)                               ▲                     │
//!  (guest's REQUEST) ────────────────────────────┘             all written: gone
//! ```
//!
//! Credit (5.10.6.3) bounds both directions. Towards the guest nothing is kept
//! here: bytes stay in the host's socket until the guest has room for them.
//! From the guest at most [`BUF_ALLOC`] bytes wait for a host that does not read.

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{HostStream, Readiness};
use crate::virtio::queue::{IoVecStore, IoVecs};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;

/// Bytes of the guest that may wait for the host, for each connection.
pub const BUF_ALLOC: u32 = 64 << 10;
/// The guest hears of room when this much is new.
const UPDATE_AFTER: u32 = BUF_ALLOC / 4;
/// `CONNECT ` and the longest port, with its line feed.
const MAX_GREETING: usize = "CONNECT 4294967295\n".len();

/// How the guest knows a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A client of the host has not yet said where to; the guest knows nothing.
    Greeting,
    /// The guest has been asked, or will be.
    Requested,
    /// Bytes flow.
    Established,
    /// The guest is through with it; what it has sent is still being written.
    Draining,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// It is gone, and the guest knows.
    Gone,
    /// It is gone, and the guest is to be told.
    Reset,
}

/// A client's first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It is not whole yet.
    Unfinished,
    /// It asks for this port of the guest.
    Port(u32),
    /// It is none.
    Wrong,
}

pub(super) struct Connection {
    pub key: Key,
    pub state: State,
    /// Whether it is in the list of those that may have something to send.
    pub listed: bool,
    stream: Box<dyn HostStream>,
    /// Bytes that the host took and that nobody has counted yet.
    written: u64,
    greeting: Vec<u8>,
    /// Edges that came and were not used up.
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// Nothing more is read from the host.
    read_closed: bool,
    /// Nothing more can be written to the host.
    write_closed: bool,

    /// What the guest has sent and the host has not taken.
    buffer: VecDeque<u8>,
    rx_cnt: u32,
    fwd_cnt: u32,
    /// `fwd_cnt` as the guest knows it.
    told_fwd_cnt: u32,

    /// The guest's room, as it says, and what was sent there.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,

    /// An operation that is due: `REQUEST` or `RESPONSE`.
    due: Option<u16>,
    credit_update: bool,
    credit_requested: bool,
    /// `SHUTDOWN` flags: of the guest, of the host, and those it was told.
    guest_shutdown: u32,
    host_shutdown: u32,
    told_shutdown: u32,
}

impl Connection {
    /// A client of the host that has just connected.
    pub fn greeting(stream: Box<dyn HostStream>) -> Self {
        Self {
            key: Key::default(),
            state: State::Greeting,
            listed: false,
            stream,
            written: 0,
            greeting: Vec::new(),
            readable: true,
            writable: true,
            hung_up: false,
            read_closed: false,
            write_closed: false,
            buffer: VecDeque::new(),
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            due: None,
            credit_update: false,
            credit_requested: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
        }
    }

    /// The guest's `request`, which `stream` answers.
    pub fn accepted(stream: Box<dyn HostStream>, key: Key, request: &Header) -> Self {
        let mut new = Self::greeting(stream);
        (new.key, new.state, new.due) = (key, State::Established, Some(op::RESPONSE));
        new.take_credit(request);
        new
    }

    /// Asks the guest for a connection.
    pub fn request(&mut self, key: Key) {
        (self.key, self.state, self.due) = (key, State::Requested, Some(op::REQUEST));
    }

    /// Notes what the host's socket is ready for.
    pub fn ready(&mut self, news: &Readiness) {
        self.readable |= news.readable;
        self.writable |= news.writable;
        self.hung_up |= news.hung_up;
    }

    /// Reads the client's first line, one byte at a time: what follows it is
    /// the guest's.
    pub fn read_greeting(&mut self, store: &mut IoVecStore) -> Greeting {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut IoVecs::from_slice(store, &mut byte)) {
                Ok(0) => return Greeting::Wrong,
                Ok(_) => self.greeting.push(byte[0]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Greeting::Unfinished;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Greeting::Wrong,
            }
            if byte[0] == b'\n' {
                return port(&self.greeting).map_or(Greeting::Wrong, Greeting::Port);
            }
            if self.greeting.len() >= MAX_GREETING {
                return Greeting::Wrong;
            }
        }
    }

    /// A packet of the guest for this connection; `payload` has at most
    /// `header.len` bytes.
    pub fn packet(&mut self, header: &Header, payload: &mut IoVecs<'_>) -> Fate {
        self.take_credit(header);
        match (self.state, header.op) {
            (_, op::RST) => Fate::Gone,
            (State::Requested, op::RESPONSE) => self.established(),
            (State::Established, op::RW) => self.take(payload),
            (State::Established, op::SHUTDOWN) => self.guest_shuts_down(header.flags),
            (State::Requested | State::Established, op::CREDIT_UPDATE) => Fate::Stays,
            (State::Requested | State::Established, op::CREDIT_REQUEST) => {
                self.credit_update = true;
                Fate::Stays
            }
            _ => Fate::Reset,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// What the guest has room for. One that claims to have forwarded more than
    /// it got has none.
    pub fn credit(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt))
    }

    fn established(&mut self) -> Fate {
        self.state = State::Established;
        let mut line = format!("OK {}\n", self.key.host_port).into_bytes();
        let mut store = IoVecStore::new();
        let len = line.len();
        // Nothing was written there before, so there is room; a client without
        // any has closed its side.
        match self.stream.write(&IoVecs::from_slice(&mut store, &mut line)) {
            Ok(n) if n == len => Fate::Stays,
            _ => Fate::Reset,
        }
    }

    /// The guest's bytes: to the host as far as it takes them now.
    fn take(&mut self, payload: &mut IoVecs<'_>) -> Fate {
        let waiting = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        let room = BUF_ALLOC.saturating_sub(waiting);
        let Some(len) = u32::try_from(payload.len()).ok().filter(|len| *len <= room) else {
            return Fate::Reset;
        };
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Fate::Reset;
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        while self.buffer.is_empty() && self.writable && !self.write_closed && !payload.is_empty() {
            match self.stream.write(payload) {
                Ok(0) => self.writable = false,
                Ok(n) => {
                    self.written += n as u64;
                    payload.advance(n as u64);
                    self.forwarded(n.min(len as usize) as u32);
                }
                Err(e) => self.write_failed(&e),
            }
        }
        if self.write_closed {
            // Nobody will ever read it. The guest is told by SHUTDOWN.
            self.forwarded(payload.len().min(len.into()) as u32);
            return Fate::Stays;
        }
        let mut rest = vec![0; payload.len() as usize];
        payload.copy_out(&mut rest);
        self.buffer.extend(rest);
        Fate::Stays
    }

    fn forwarded(&mut self, n: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(n);
        if self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= UPDATE_AFTER {
            self.credit_update = true;
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            ErrorKind::WouldBlock => self.writable = false,
            ErrorKind::Interrupted => {}
            _ => {
                self.write_closed = true;
                self.host_shutdown |= SHUTDOWN_RECEIVE;
                let lost = std::mem::take(&mut self.buffer).len();
                self.forwarded(lost as u32);
            }
        }
    }

    /// Writes to the host what waits for it. `Gone`: that was the last of a
    /// connection that the guest has closed.
    pub fn flush(&mut self, store: &mut IoVecStore) -> Fate {
        while self.writable && !self.write_closed && !self.buffer.is_empty() {
            let written = {
                // A ring's contents lie in two pieces; the second has its turn.
                let (first, second) = self.buffer.as_mut_slices();
                let piece = if first.is_empty() { second } else { first };
                self.stream.write(&IoVecs::from_slice(store, piece))
            };
            match written {
                Ok(0) => self.writable = false,
                Ok(n) => {
                    let n = n.min(self.buffer.len());
                    self.written += n as u64;
                    self.buffer.drain(..n);
                    self.forwarded(n as u32);
                }
                Err(e) => self.write_failed(&e),
            }
        }
        if !self.buffer.is_empty() {
            return Fate::Stays;
        }
        // The memory of a burst is not kept for the life of the connection.
        self.buffer = VecDeque::new();
        if self.state == State::Draining {
            return Fate::Gone;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.write_closed {
            self.write_closed = true;
            self.stream.shutdown(Shutdown::Write);
        }
        Fate::Stays
    }

    fn guest_shuts_down(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The orderly end (5.10.6.5): the guest gets its RST at once, the
            // host what was sent before.
            self.state = State::Draining;
        }
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && !self.read_closed {
            self.read_closed = true;
            self.stream.shutdown(Shutdown::Read);
        }
        Fate::Stays
    }

    /// The client of a connection that the guest has not answered went away.
    pub fn abandoned(&self) -> bool {
        self.hung_up && matches!(self.state, State::Greeting | State::Requested)
    }

    fn may_read(&self) -> bool {
        self.state == State::Established && self.readable && !self.read_closed
    }

    /// Whether [`Connection::next`] may have a packet for the guest.
    pub fn has_news(&self) -> bool {
        let starved = self.credit() == 0 && self.credit_requested;
        self.due.is_some()
            || self.credit_update
            || self.host_shutdown != self.told_shutdown
            || self.may_read() && !starved
            || self.hangs()
    }

    /// The host is gone and there is nothing more of it to read.
    fn hangs(&self) -> bool {
        let told = self.host_shutdown == SHUTDOWN_BOTH;
        self.state == State::Established && self.hung_up && self.read_closed && !told
    }

    /// The next packet for the guest. Its payload is read right into `room`,
    /// where the guest has put a buffer for it.
    pub fn next(&mut self, room: &mut IoVecs<'_>) -> Option<Header> {
        if let Some(op) = self.due.take() {
            return Some(self.header(op));
        }
        if self.may_read() && self.credit() > 0 && !room.is_empty() {
            debug_assert!(room.len() <= u64::from(self.credit()));
            if let Some(len) = self.read(room) {
                self.tx_cnt = self.tx_cnt.wrapping_add(len);
                return Some(Header { len, ..self.header(op::RW) });
            }
        }
        if self.hangs() {
            self.host_shutdown = SHUTDOWN_BOTH;
        }
        if self.host_shutdown != self.told_shutdown {
            self.told_shutdown = self.host_shutdown;
            return Some(Header { flags: self.host_shutdown, ..self.header(op::SHUTDOWN) });
        }
        if self.credit_update {
            return Some(self.header(op::CREDIT_UPDATE));
        }
        if self.may_read() && self.credit() == 0 && !self.credit_requested {
            self.credit_requested = true;
            return Some(self.header(op::CREDIT_REQUEST));
        }
        None
    }

    fn read(&mut self, room: &mut IoVecs<'_>) -> Option<u32> {
        let most = room.len();
        loop {
            match self.stream.read(room) {
                Ok(n @ 1..) => return Some((n as u64).min(most) as u32),
                Ok(0) => self.host_shutdown |= SHUTDOWN_SEND,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                // The client has closed with bytes unread: nothing goes on.
                Err(_) => self.host_shutdown = SHUTDOWN_BOTH,
            }
            self.read_closed = true;
            return None;
        }
    }

    /// A header of this connection, with the credit that goes along.
    fn header(&mut self, op: u16) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        self.credit_update = false;
        Header {
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
            ..Default::default()
        }
    }

    /// Bytes that the host took since the last call.
    pub fn take_written(&mut self) -> u64 {
        std::mem::take(&mut self.written)
    }

    /// Bytes of the guest that wait for the host.
    #[cfg(any(test, feature = "testing"))]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

/// The port in `CONNECT <port>\n`.
fn port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let digits = line.strip_prefix("CONNECT ")?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::port;

    #[test]
    fn a_greeting_names_a_port() {
        assert_eq!(port(b"CONNECT 52\n"), Some(52));
        assert_eq!(port(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for wrong in [
            "CONNECT 4294967296\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT -1\n",
            "CONNECT 1 \n",
            "connect 1\n",
            "CONNECT 1",
            "OK 1\n",
            "\n",
        ] {
            assert_eq!(port(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
