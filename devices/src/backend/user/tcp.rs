//! Connections: smoltcp is the far end of each for the guest, and a socket of
//! the host's carries it on.
//!
//! ```text
//!  guest ── segments ─► smoltcp ── bytes ─► socket ─► far end
//!        ◄─ segments ── smoltcp ◄─ bytes ── socket ◄─
//! ```
//!
//! Each connection has a set of sockets of its own, so that a segment finds its
//! connection by address and not by asking all of them. What one side does not
//! take stays in the buffer between them, which closes the window of the other.

use super::route::{GATEWAY, GUEST};
use super::wire::{Outbox, Wire};
use super::{Host, MAX_CONNECTIONS, TCP, token};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, TcpPacket};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

/// Bytes that wait in each direction: for the first connections as much as makes
/// them fast, for a crowd as much as it takes.
const LARGE: usize = 256 << 10;
const SMALL: usize = 32 << 10;
const LARGE_ONES: usize = 64;
/// Segments that a connection sends before others have their turn.
const TURN: usize = 16;
/// A guest that is silent is asked this often whether it is there, and given up
/// after so long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(600);
/// When to look again at a connection that says it could do something and then
/// does not.
const LATER: Duration = Duration::from_millis(20);
/// Local ports of connections to the guest.
const PORTS: std::ops::RangeInclusive<u16> = 32768..=65535;

/// The guest's end, and the far one as the guest knows it.
type Key = (SocketAddrV4, SocketAddrV4);

/// One connection.
struct Connection {
    key: Key,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    host: TcpStream,
    /// The host's socket is connected.
    connected: bool,
    readable: bool,
    writable: bool,
    /// The host's side has sent all.
    host_ended: bool,
    /// The host's side knows that the guest has sent all.
    guest_ended: bool,
    /// Nothing will be sent any more: the host's side is slow to take the rest.
    draining: bool,
    /// It is in the list of those with something to do.
    listed: bool,
    deadline: Option<Instant>,
}

impl Connection {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Whether the host's side has something for which there is room.
    fn can_read(&mut self) -> bool {
        self.readable && !self.host_ended && self.socket().can_send()
    }

    /// Moves bytes both ways, as far as both sides can.
    fn carry(&mut self) -> io::Result<()> {
        if !self.connected {
            return Ok(());
        }
        let Self { sockets, handle, host, readable, writable, .. } = self;
        let socket = sockets.get_mut::<Socket<'static>>(*handle);
        while *writable && socket.can_recv() {
            let done = socket.recv(|bytes| split(host.write(bytes)));
            *writable = done.map_err(io::Error::other)??;
        }
        let silent = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if silent && !socket.can_recv() && !self.guest_ended {
            self.guest_ended = true;
            // It fails where the other side is closed already.
            let _ = host.shutdown(Shutdown::Write);
        }
        while *readable && !self.host_ended && socket.can_send() {
            let mut ended = false;
            let done = socket.send(|room| {
                let wanted = !room.is_empty();
                let read = host.read(room);
                ended = wanted && matches!(read, Ok(0));
                split(read)
            });
            *readable = done.map_err(io::Error::other)??;
            if ended {
                self.host_ended = true;
                socket.close();
            }
        }
        Ok(())
    }
}

/// Sets when to look at `connection` again, if ever.
fn set_deadline(
    deadlines: &mut BTreeSet<(Instant, u64)>,
    connection: &mut Connection,
    id: u64,
    at: Option<Instant>,
) {
    if connection.deadline == at {
        return;
    }
    if let Some(old) = std::mem::replace(&mut connection.deadline, at) {
        deadlines.remove(&(old, id));
    }
    deadlines.extend(at.map(|at| (at, id)));
}

/// The far end hears that this one did not end in order.
fn reset_at_close(host: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(host, Some(std::time::Duration::ZERO));
}

/// How many bytes went, and whether more could go.
fn split(done: io::Result<usize>) -> (usize, io::Result<bool>) {
    match done {
        Ok(n) => (n, Ok(true)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => (0, Ok(false)),
        Err(e) if e.kind() == ErrorKind::Interrupted => (0, Ok(true)),
        Err(e) => (0, Err(e)),
    }
}

/// All connections.
pub struct Connections {
    interface: Interface,
    all: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    next: u64,
    next_port: u16,
    /// Those with something to do, in turn.
    ready: VecDeque<u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Answers what belongs to no connection.
    nobody: SocketSet<'static>,
}

impl Connections {
    pub fn new(seed: u64, now: Instant, outbox: &mut Outbox) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Wire { incoming: None, outbox }, now);
        // Every address that the guest sends to is one of ours.
        interface.set_any_ip(true);
        Self {
            interface,
            all: HashMap::new(),
            by_key: HashMap::new(),
            next: 0,
            next_port: *PORTS.start(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            nobody: SocketSet::new(Vec::new()),
        }
    }

    /// How many there are.
    #[cfg(any(test, feature = "testing"))]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether one could go on at once, had the guest room.
    pub fn is_busy(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the first of their timers runs out.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Ends all of them.
    pub fn clear(&mut self) {
        for connection in self.all.values() {
            reset_at_close(&connection.host);
        }
        self.all.clear();
        self.by_key.clear();
        self.ready.clear();
        self.deadlines.clear();
    }

    /// A segment of the guest: `packet` with its IP header, `segment` without.
    pub fn input(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        packet: &[u8],
        segment: &[u8],
        now: Instant,
        outbox: &mut Outbox,
        host: &mut Host,
    ) {
        let Ok(tcp) = TcpPacket::new_checked(segment) else { return };
        let key = (SocketAddrV4::new(from, tcp.src_port()), SocketAddrV4::new(to, tcp.dst_port()));
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst();
        let id = match self.by_key.get(&key) {
            Some(id) => Some(*id),
            None if opens => self.open(key, host),
            None => None,
        };
        let mut wire = Wire { incoming: Some(packet), outbox };
        let connection = id.and_then(|id| self.all.get_mut(&id));
        let sockets = connection.map_or(&mut self.nobody, |connection| &mut connection.sockets);
        self.interface.poll_ingress_single(now, &mut wire, sockets);
        if let Some(id) = id {
            self.list(id);
        }
    }

    /// Starts to connect to where `key` leads; `None`: refused.
    fn open(&mut self, key: Key, host: &mut Host) -> Option<u64> {
        let to = host.routes.host(key.1, 0).filter(|_| self.all.len() < MAX_CONNECTIONS);
        let stream = to.and_then(|to| super::socket::connect_stream(to).ok());
        let opened = stream.and_then(|stream| {
            let id = self.add(key, stream, host).ok()?;
            let connection = self.all.get_mut(&id)?;
            let (ip, port) = (*key.1.ip(), key.1.port());
            let socket = connection.socket();
            // The guest hears that it is connected when the host's socket is.
            socket.pause_synack(true);
            socket.listen((ip, port)).ok()?;
            Some(id)
        });
        let count = if opened.is_some() { &mut host.counts.tcp } else { &mut host.counts.refused };
        *count += 1;
        opened
    }

    /// Connects a client of the host to `port` of the guest.
    pub fn forward(&mut self, stream: TcpStream, port: u16, host: &mut Host) -> io::Result<()> {
        let full = || io::Error::other("too many connections");
        if self.all.len() >= MAX_CONNECTIONS {
            return Err(full());
        }
        let guest = SocketAddrV4::new(GUEST, port);
        let local = SocketAddrV4::new(GATEWAY, self.free_port(guest).ok_or_else(full)?);
        let id = self.add((guest, local), stream, host)?;
        let Some(connection) = self.all.get_mut(&id) else { return Ok(()) };
        connection.connected = true;
        (connection.readable, connection.writable) = (true, true);
        let socket = connection.sockets.get_mut::<Socket<'static>>(connection.handle);
        let connecting =
            socket.connect(self.interface.context(), (GUEST, port), (GATEWAY, local.port()));
        if connecting.is_err() {
            self.remove(id);
            return Err(ErrorKind::InvalidInput.into());
        }
        host.counts.tcp += 1;
        self.list(id);
        Ok(())
    }

    /// A port that no connection to `guest` comes from. There are far more of
    /// them than connections, and so there is one within as many steps.
    fn free_port(&mut self, guest: SocketAddrV4) -> Option<u16> {
        for _ in 0..=MAX_CONNECTIONS {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*PORTS.start());
            if !self.by_key.contains_key(&(guest, SocketAddrV4::new(GATEWAY, port))) {
                return Some(port);
            }
        }
        None
    }

    fn add(&mut self, key: Key, host: TcpStream, watcher: &Host) -> io::Result<u64> {
        let id = self.next;
        watcher.watch(host.as_raw_fd(), token(TCP, id))?;
        // Whether to wait for more is the guest's own choice.
        let _ = host.set_nodelay(true);
        self.next += 1;
        let size = if self.all.len() < LARGE_ONES { LARGE } else { SMALL };
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(PATIENCE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let connection = Connection {
            key,
            sockets,
            handle,
            host,
            connected: false,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
            draining: false,
            listed: false,
            deadline: None,
        };
        self.all.insert(id, connection);
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// News of a host's socket.
    pub fn event(&mut self, id: u64, readable: bool, writable: bool) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        connection.readable |= readable;
        connection.writable |= writable;
        if !connection.connected && (readable || writable) {
            match connection.host.take_error() {
                Ok(None) => {
                    connection.connected = true;
                    connection.socket().pause_synack(false);
                }
                _ => connection.socket().abort(),
            }
        }
        self.list(id);
    }

    fn list(&mut self, id: u64) {
        if let Some(connection) = self.all.get_mut(&id)
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Gives each of them that has something to do its turn, `turns` at most,
    /// until the guest has enough to do.
    pub fn run(&mut self, now: Instant, turns: usize, outbox: &mut Outbox) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            if let Some(connection) = self.all.get_mut(&id) {
                connection.deadline = None;
            }
            self.list(id);
        }
        for _ in 0..turns.min(self.ready.len()) {
            if outbox.is_full() {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            self.turn(id, now, outbox);
        }
    }

    fn turn(&mut self, id: u64, now: Instant, outbox: &mut Outbox) {
        let Some(connection) = self.all.get_mut(&id) else { return };
        connection.listed = false;
        if connection.carry().is_err() {
            connection.socket().abort();
        }
        let mut wire = Wire { incoming: None, outbox };
        let mut sent = PollResult::None;
        for _ in 0..TURN {
            if connection.draining {
                break;
            }
            sent = self.interface.poll_egress(now, &mut wire, &mut connection.sockets);
            if sent == PollResult::None {
                break;
            }
        }
        let next = self.interface.poll_at(now, &connection.sockets);
        let stuck = sent == PollResult::None && !outbox.is_full();
        let socket = connection.sockets.get_mut::<Socket<'static>>(connection.handle);
        let over = match socket.state() {
            // A last segment, if there has to be one, is out.
            State::Closed => socket.remote_endpoint().is_none(),
            // So is the answer to the guest's last one. Were it repeated, it
            // would be answered as for any connection that is not there.
            State::TimeWait if stuck => {
                connection.draining = true;
                connection.guest_ended
            }
            // The guest's first segment was none.
            State::Listen => true,
            _ => false,
        };
        if over {
            return self.remove(id);
        }
        // While the host's socket connects there is nothing to do, whatever
        // smoltcp says, and a timer of its own would end the rest of a stream.
        let waits = !connection.connected || connection.draining;
        let more = !waits && (!stuck || connection.can_read());
        let next = next.filter(|_| !more && !waits);
        let next = next.map(|at| if at <= now { now + LATER } else { at });
        set_deadline(&mut self.deadlines, connection, id, next);
        if more || (!stuck && !connection.connected) {
            self.list(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(mut connection) = self.all.remove(&id) else { return };
        self.by_key.remove(&connection.key);
        set_deadline(&mut self.deadlines, &mut connection, id, None);
        if !(connection.guest_ended && connection.host_ended) {
            reset_at_close(&connection.host);
        }
    }
}
