//! The socket device (virtio 1.2, 5.10): streams between programs of the guest
//! and programs of the host, without a network.
//!
//! ```text
//!  tx queue ─► Header ─► Connections ─► Connection ─► HostStream (a Unix socket)
//!  rx queue ◄─ Header ◄──── turns ◄──── Connection ◄─ readv, no copy ◄─┘
//!  event queue ◄─ TRANSPORT_RESET after a restoration
//! ```
//!
//! Whatever happens, a doorbell or news from the host, the same is done, in the
//! order of [`Vsock::serve`]; so no event can be the wrong one to have missed.

mod connection;
mod connections;
mod packet;
#[cfg(test)]
mod tests;

pub use connection::BUF_ALLOC;
pub use connections::MAX_CONNECTIONS;

use super::queue::{Chain, IoVecStore, IoVecs, QueueError, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::state::{Saved, StateError};
use connections::Connections;
use packet::{HEADER, Header};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::sync::Arc;

/// The context IDs that a guest may have (5.10.4).
pub const CIDS: RangeInclusive<u32> = 3..=u32::MAX - 1;

/// `VIRTIO_VSOCK_F_STREAM`.
pub const F_STREAM: u64 = 1 << 0;

/// Queue numbers (5.10.2).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 256];

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, as `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Packets in each direction before other devices have their turn.
const SHARE: usize = 256;

/// The token of the backend's own news: there are clients.
pub const CLIENTS: u64 = 0;

/// What became of a stream of the host, or of [`CLIENTS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whose news these are.
    pub token: u64,
    /// There is something to read, or the end.
    pub readable: bool,
    /// There is room to write, or nobody to read it.
    pub writable: bool,
    /// The other side is closed altogether.
    pub hung_up: bool,
}

/// The host's end of a connection. Nothing here waits: where it would, the
/// error is `WouldBlock`, and [`VsockBackend::poll`] tells when to try again.
pub trait HostStream: Send {
    /// Reads into the front of `to`; 0 is the end.
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize>;
    /// Writes the front of `from`, which is not advanced.
    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize>;
    /// Ends one direction.
    fn shutdown(&mut self, how: Shutdown);
}

/// The host as a guest's peer.
pub trait VsockBackend: Send {
    /// Connects to whoever serves `port`; `token` is the stream's in the news.
    fn connect(&mut self, port: u32, token: u64) -> io::Result<Box<dyn HostStream>>;
    /// The next client, if there is one.
    fn accept(&mut self, token: u64) -> io::Result<Option<Box<dyn HostStream>>>;
    /// Adds what is new since the last call. `true`: there is more.
    ///
    /// A stream starts out as ready for everything. It is in the news again
    /// after it was not.
    fn poll(&mut self, news: &mut Vec<Readiness>) -> io::Result<bool>;
    /// A descriptor that becomes readable when there are news.
    fn source(&self) -> Option<RawFd>;
}

/// The socket device.
pub struct Vsock {
    cid: u32,
    connections: Connections,
    /// The driver has connections of which we know nothing.
    transport_reset: bool,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    iovecs: IoVecStore,
}

const KIND: &str = "virtio-vsock";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    cid: u32,
}

impl Vsock {
    /// The device of a guest with the context ID `cid`.
    pub fn new(cid: u32, backend: Box<dyn VsockBackend>) -> Self {
        let connections = Connections::new(backend);
        Self { cid, connections, transport_reset: false, active: None }
    }

    /// Bytes of the guest that wait for the host, the most of any connection.
    #[cfg(any(test, feature = "testing"))]
    pub fn most_buffered(&self) -> usize {
        self.connections.most_buffered()
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Self { cid, connections, transport_reset, active } = self;
        let Some(active) = active else { return Ok(()) };
        let more = connections.poll();
        active.transmit((*cid).into(), connections)?;
        active.receive((*cid).into(), connections)?;
        if *transport_reset {
            *transport_reset = !active.tell_reset()?;
        }
        let more = more || connections.may_accept();
        if more && let Some(Some(queue)) = active.queues.get(RX) {
            queue.call_again();
        }
        active.interrupt()
    }
}

impl Active {
    /// What the guest has sent.
    fn transmit(&mut self, cid: u64, connections: &mut Connections) -> Result<(), DeviceError> {
        let Self { mem, queues, chain, iovecs, .. } = self;
        let Some(Some(queue)) = queues.get_mut(TX) else { return Ok(()) };
        queue.suppress_notifications(mem)?;
        for _ in 0..SHARE {
            if !queue.pop(mem, chain)? {
                break;
            }
            // Less than a header is nobody's packet, and there is no one to
            // answer.
            if let Some(rest) = chain.readable_len().checked_sub(HEADER as u64) {
                let mut bytes = [0; HEADER];
                chain.read_at(mem, 0, &mut bytes)?;
                let header = Header::parse(&bytes);
                let len = rest.min(header.len.into());
                let mut payload = chain.readable_iovecs(mem, iovecs, HEADER as u64, len)?;
                connections.take(cid, &header, &mut payload);
            }
            queue.push_used(mem, chain.head, 0)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        Ok(())
    }

    /// What there is for the guest.
    fn receive(&mut self, cid: u64, connections: &mut Connections) -> Result<(), DeviceError> {
        let Self { mem, queues, chain, iovecs, .. } = self;
        let Some(Some(queue)) = queues.get_mut(RX) else { return Ok(()) };
        queue.suppress_notifications(mem)?;
        for _ in 0..SHARE {
            if !connections.has_news() || !pop(mem, queue, chain)? {
                return Ok(());
            }
            if chain.writable_len() < HEADER as u64 {
                // A buffer for no header can't be used for anything.
                queue.push_used(mem, chain.head, 0)?;
                continue;
            }
            let mut room = Room { mem, chain, store: iovecs };
            match connections.next_packet(&mut room)? {
                Some(header) => {
                    let header = Header { dst_cid: cid, ..header };
                    chain.write_at(mem, 0, &header.bytes())?;
                    queue.push_used(mem, chain.head, HEADER as u32 + header.len)?;
                }
                None => {
                    queue.undo_pop();
                    return Ok(());
                }
            }
        }
        queue.call_again();
        Ok(())
    }

    /// Tells the driver that its connections are gone. `false`: it has given no
    /// buffer for that yet.
    fn tell_reset(&mut self) -> Result<bool, DeviceError> {
        let Self { mem, queues, chain, .. } = self;
        let Some(Some(queue)) = queues.get_mut(EVENT) else { return Ok(true) };
        while pop(mem, queue, chain)? {
            let fits = chain.writable_len() >= TRANSPORT_RESET.len() as u64;
            if fits {
                chain.write_at(mem, 0, &TRANSPORT_RESET)?;
                queue.push_used(mem, chain.head, TRANSPORT_RESET.len() as u32)?;
                return Ok(true);
            }
            queue.push_used(mem, chain.head, 0)?;
        }
        Ok(false)
    }

    fn interrupt(&mut self) -> Result<(), DeviceError> {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && queue.needs_interrupt(&self.mem)?
            {
                self.interrupt.queue(index);
            }
        }
        Ok(())
    }
}

/// A buffer of the driver for a packet.
struct Room<'a> {
    mem: &'a Ram,
    chain: &'a Chain,
    store: &'a mut IoVecStore,
}

impl Room<'_> {
    /// Its part behind the header, at most `max` bytes of it.
    fn payload(&mut self, max: u32) -> Result<IoVecs<'_>, QueueError> {
        let len = self.chain.writable_len().saturating_sub(HEADER as u64).min(max.into());
        self.chain.writable_iovecs(self.mem, self.store, HEADER as u64, len)
    }
}

/// Takes the next chain. If there is none, asks for a doorbell and looks once
/// more, because one may have come in between.
fn pop(mem: &Ram, queue: &mut Vq, chain: &mut Chain) -> Result<bool, QueueError> {
    if queue.pop(mem, chain)? {
        return Ok(true);
    }
    if !queue.enable_notifications(mem)? {
        return Ok(false);
    }
    queue.suppress_notifications(mem)?;
    queue.pop(mem, chain)
}

impl VirtioDevice for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | F_STREAM
    }

    /// `struct virtio_vsock_config`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.cid).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
            *byte = at.and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, interrupt, .. } = activation;
        for queue in [RX, TX] {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        // Clients may have come before the driver, and their edge is gone; after
        // a restoration the doorbells are, too.
        queues.iter().flatten().for_each(Vq::call_again);
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.transport_reset = false;
        self.connections.clear();
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, _queue: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.connections.backend().source().into_iter().collect()
    }

    fn source_event(&mut self, _source: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = vec![("connections", self.connections.len() as u64)];
        all.extend(self.connections.counters.all());
        all
    }

    /// Connections are not part of the state: their other ends are sockets of
    /// this host.
    fn save(&self) -> Result<Saved, StateError> {
        Saved::new(KIND, VERSION, &State { cid: self.cid })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { cid } = saved.open(KIND, VERSION)?;
        if !CIDS.contains(&cid) {
            let reason = format!("context ID {cid} can't be a guest's");
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.connections.clear();
        self.cid = cid;
        self.transport_reset = true;
        Ok(())
    }
}
