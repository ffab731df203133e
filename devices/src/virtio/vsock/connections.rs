//! All connections of a device: which packet and which socket belong to which,
//! and whose turn it is.
//!
//! Nothing here grows with what a guest or a client does: there are at most
//! [`MAX_CONNECTIONS`], each with one place in the list of those that may have
//! something to send, and at most [`MAX_RESETS`] answers to packets of none.

use super::connection::{Connection, Fate, Greeting, Key, State};
use super::packet::{Header, TYPE_STREAM, VMADDR_CID_HOST, op};
use super::{CLIENTS, HostStream, Readiness, Room, VsockBackend};
use crate::virtio::queue::{IoVecStore, IoVecs, QueueError};
use std::collections::{HashMap, VecDeque};
use std::io;

/// Connections at a time, those that have not yet said where to among them.
pub const MAX_CONNECTIONS: usize = 4096;
/// Resets that wait for buffers of the guest. One that sends more packets to
/// nobody without giving buffers for the answers gets no more of them: to let
/// its packets wait instead could make both sides wait for each other.
const MAX_RESETS: usize = 4096;
/// Clients accepted before other devices have their turn.
const SHARE: usize = 256;
/// The first port of the host's side of a client's connection. Ports below are
/// for those that the guest connects to.
const FIRST_PORT: u32 = 1 << 30;

/// What has happened, since the machine started.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counters {
    /// Connections that were asked for and begun, by guest and host.
    pub guest_connections: u64,
    pub host_connections: u64,
    /// Those that the host did not want, and those that the guest did not want.
    pub refused_by_host: u64,
    pub refused_by_guest: u64,
    /// Resets sent to the guest, refusals among them, and resets that it sent.
    pub resets_sent: u64,
    pub resets_received: u64,
    /// Bytes that the host's sockets took, and that the guest was given.
    pub bytes_to_host: u64,
    pub bytes_to_guest: u64,
}

impl Counters {
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("guest_connections", self.guest_connections),
            ("host_connections", self.host_connections),
            ("refused_by_host", self.refused_by_host),
            ("refused_by_guest", self.refused_by_guest),
            ("resets_sent", self.resets_sent),
            ("resets_received", self.resets_received),
            ("bytes_to_host", self.bytes_to_host),
            ("bytes_to_guest", self.bytes_to_guest),
        ]
    }
}

pub(super) struct Connections {
    pub counters: Counters,
    backend: Box<dyn VsockBackend>,
    all: HashMap<u64, Connection>,
    /// Those that the guest knows.
    keys: HashMap<Key, u64>,
    /// Those that may have something for the guest, in turn.
    list: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
    /// There may be clients to accept.
    clients: bool,
    news: Vec<Readiness>,
    store: IoVecStore,
    /// The backend has failed, and that was said.
    failed: bool,
}

impl Connections {
    pub fn new(backend: Box<dyn VsockBackend>) -> Self {
        Self {
            counters: Counters::default(),
            backend,
            all: HashMap::new(),
            keys: HashMap::new(),
            list: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: CLIENTS + 1,
            next_port: FIRST_PORT,
            clients: true,
            news: Vec::new(),
            store: IoVecStore::new(),
            failed: false,
        }
    }

    pub fn backend(&self) -> &dyn VsockBackend {
        self.backend.as_ref()
    }

    /// Drops all of them. Clients that wait in the backend are looked for anew.
    pub fn clear(&mut self) {
        // The maps stay: a vCPU's thread, which resets devices, may not ask for
        // the random numbers that new ones start with.
        self.all.clear();
        self.keys.clear();
        self.list.clear();
        self.resets.clear();
        self.clients = true;
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether another [`Connections::poll`] is due without news: there is a
    /// descriptor for a client that could not be accepted before.
    pub fn may_accept(&self) -> bool {
        self.clients
    }

    /// Takes in what happened on the host. `true`: there is more.
    pub fn poll(&mut self) -> bool {
        let mut news = std::mem::take(&mut self.news);
        news.clear();
        let polled = self.backend.poll(&mut news);
        let more = polled.unwrap_or_else(|e| {
            self.complain("waiting", &e);
            false
        });
        for one in &news {
            match one.token {
                CLIENTS => self.clients = true,
                token => self.host_event(token, one),
            }
        }
        self.news = news;
        self.accept() || more
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            log::warn!("vsock: {what}: {error}");
        }
    }

    /// Accepts clients. `true`: there may be more.
    fn accept(&mut self) -> bool {
        for _ in 0..SHARE {
            if !self.clients {
                return false;
            }
            let token = self.take_token();
            match self.backend.accept(token) {
                // The client sees its connection closed.
                Ok(Some(_)) if self.all.len() >= MAX_CONNECTIONS => {}
                Ok(Some(stream)) => {
                    self.all.insert(token, Connection::greeting(stream));
                    self.greet(token);
                }
                Ok(None) => self.clients = false,
                Err(e) => {
                    // Mostly there are no descriptors left: tried again when a
                    // connection is gone, or when another client comes.
                    self.clients = false;
                    self.complain("accepting a client", &e);
                }
            }
        }
        self.clients
    }

    fn take_token(&mut self) -> u64 {
        // Never used twice, so that late news of a closed socket reach nobody.
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    fn host_event(&mut self, token: u64, news: &Readiness) {
        let Some(connection) = self.all.get_mut(&token) else { return };
        connection.ready(news);
        let (state, abandoned) = (connection.state, connection.abandoned());
        match state {
            State::Greeting => self.greet(token),
            State::Requested if abandoned => self.end(token, Fate::Reset),
            _ => {
                let fate = connection.flush(&mut self.store);
                self.counters.bytes_to_host += connection.take_written();
                self.end(token, fate);
                self.enlist(token);
            }
        }
    }

    /// Reads a client's first line, and asks the guest for what it says.
    fn greet(&mut self, token: u64) {
        let Some(connection) = self.all.get_mut(&token) else { return };
        let guest_port = match connection.read_greeting(&mut self.store) {
            Greeting::Unfinished if !connection.abandoned() => return,
            Greeting::Port(port) => port,
            _ => return self.end(token, Fate::Gone),
        };
        let key =
            Key { host_port: free_port(&self.keys, &mut self.next_port, guest_port), guest_port };
        connection.request(key);
        self.counters.host_connections += 1;
        self.keys.insert(key, token);
        self.enlist(token);
    }

    /// Lets a connection have its turn, if it has news.
    fn enlist(&mut self, token: u64) {
        let Some(connection) = self.all.get_mut(&token) else { return };
        if connection.listed || !connection.has_news() {
            return;
        }
        connection.listed = true;
        // Those that are gone stay in the list until their turn would come.
        if self.list.len() >= 2 * MAX_CONNECTIONS {
            let all = &self.all;
            self.list.retain(|token| all.contains_key(token));
        }
        self.list.push_back(token);
    }

    fn end(&mut self, token: u64, fate: Fate) {
        if fate == Fate::Stays {
            return;
        }
        let Some(mut connection) = self.all.remove(&token) else { return };
        self.counters.bytes_to_host += connection.take_written();
        // One that is draining has lost its key, which may be another's by now.
        if connection.state != State::Greeting && self.keys.get(&connection.key) == Some(&token) {
            self.keys.remove(&connection.key);
        }
        if fate == Fate::Reset {
            let Key { host_port, guest_port } = connection.key;
            self.reset(host_port, guest_port);
        }
        // There is a descriptor more for a client that could not be accepted.
        self.clients = true;
    }

    fn reset(&mut self, host_port: u32, guest_port: u32) {
        self.push_reset(Header {
            src_cid: VMADDR_CID_HOST,
            src_port: host_port,
            dst_port: guest_port,
            kind: TYPE_STREAM,
            op: op::RST,
            ..Default::default()
        });
    }

    fn push_reset(&mut self, header: Header) {
        if self.resets.len() < MAX_RESETS {
            self.counters.resets_sent += 1;
            self.resets.push_back(header);
        }
    }

    /// A packet of the guest, which has the context ID `cid`.
    pub fn take(&mut self, cid: u64, header: &Header, payload: &mut IoVecs<'_>) {
        let whole = payload.len() == u64::from(header.len);
        self.counters.resets_received += u64::from(header.op == op::RST);
        let ours = header.dst_cid == VMADDR_CID_HOST && header.src_cid == cid;
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let token = self.keys.get(&key).copied().filter(|_| ours && header.kind == TYPE_STREAM);
        match token {
            Some(token) if whole => self.deliver(token, header, payload),
            Some(token) => self.end(token, Fate::Reset),
            // No answer to an answer, or there would be no end of it.
            None if header.op == op::RST => {}
            None if ours && header.kind == TYPE_STREAM && header.op == op::REQUEST => {
                self.connect(key, header)
            }
            None => self.push_reset(header.reset()),
        }
    }

    fn deliver(&mut self, token: u64, header: &Header, payload: &mut IoVecs<'_>) {
        let Some(connection) = self.all.get_mut(&token) else { return };
        let refused = connection.state == State::Requested && header.op == op::RST;
        self.counters.refused_by_guest += u64::from(refused);
        let fate = connection.packet(header, payload);
        if fate != Fate::Stays {
            return self.end(token, fate);
        }
        if connection.state == State::Draining {
            let Key { host_port, guest_port } = connection.key;
            self.keys.remove(&connection.key);
            self.reset(host_port, guest_port);
        }
        if let Some(connection) = self.all.get_mut(&token) {
            let fate = connection.flush(&mut self.store);
            self.counters.bytes_to_host += connection.take_written();
            self.end(token, fate);
            self.enlist(token);
        }
    }

    /// The guest wants a connection to a port of the host.
    fn connect(&mut self, key: Key, request: &Header) {
        let token = self.take_token();
        let stream: Option<Box<dyn HostStream>> = match self.all.len() < MAX_CONNECTIONS {
            true => self.backend.connect(key.host_port, token).ok(),
            false => None,
        };
        let Some(stream) = stream else {
            self.counters.refused_by_host += 1;
            return self.push_reset(request.reset());
        };
        self.counters.guest_connections += 1;
        self.all.insert(token, Connection::accepted(stream, key, request));
        self.keys.insert(key, token);
        self.enlist(token);
    }

    /// Whether [`Connections::next_packet`] is worth a buffer.
    pub fn has_news(&self) -> bool {
        !self.resets.is_empty() || !self.list.is_empty()
    }

    /// The next packet for the guest, its payload in `room`.
    pub fn next_packet(&mut self, room: &mut Room<'_>) -> Result<Option<Header>, QueueError> {
        if let Some(reset) = self.resets.pop_front() {
            return Ok(Some(reset));
        }
        // Each has one turn: with a buffer that has no room for a payload, one
        // that wants to send some would have another for ever.
        for _ in 0..self.list.len() {
            let Some(token) = self.list.pop_front() else { break };
            let Some(connection) = self.all.get_mut(&token) else { continue };
            connection.listed = false;
            let header = connection.next(&mut room.payload(connection.credit())?);
            self.enlist(token);
            if let Some(header) = header {
                self.counters.bytes_to_guest += u64::from(header.len);
                return Ok(Some(Header { src_cid: VMADDR_CID_HOST, ..header }));
            }
        }
        Ok(None)
    }

    /// Bytes of the guest that wait for the host, the most of any connection.
    #[cfg(any(test, feature = "testing"))]
    pub fn most_buffered(&self) -> usize {
        self.all.values().map(Connection::buffered).max().unwrap_or(0)
    }
}

/// A port of the host's side that is free towards `guest_port`. There are more
/// of them than connections.
fn free_port(keys: &HashMap<Key, u64>, next: &mut u32, guest_port: u32) -> u32 {
    loop {
        let host_port = *next;
        // The last one is VMADDR_PORT_ANY.
        *next = if host_port >= u32::MAX - 1 { FIRST_PORT } else { host_port + 1 };
        if !keys.contains_key(&Key { host_port, guest_port }) {
            return host_port;
        }
    }
}
