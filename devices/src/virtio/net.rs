//! The network card (virtio 1.2, 5.1): two queues between a driver and a
//! [`NetBackend`].
//!
//! ```text
//!  transmitq ─► chain ─► iovecs ─────────────────► backend (writev: no copy)
//!  receiveq  ◄─ one large buffer ◄── (readv: no copy) ── backend
//!            ◄─ mergeable buffers ◄─ frame buffer ◄───── backend
//! ```

use super::queue::{Chain, IoVecStore, IoVecs, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::state::{Saved, StateError};
use libc::iovec;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Feature bits (5.1.3).
#[allow(missing_docs)] // The names are the specification's.
pub mod features {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

/// Queue numbers without multiqueue (5.1.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Offset of `num_buffers` in it.
const NUM_BUFFERS: u64 = 10;
/// The largest frame: 64 KiB of IP with an Ethernet header and a VLAN tag.
const MAX_FRAME: usize = HEADER + 18 + 65536;
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;
/// Frames a queue moves before other devices have their turn.
const SHARE: usize = 256;

/// What a network card is connected to. Frames carry `struct virtio_net_hdr_v1`.
pub trait NetBackend: Send {
    /// Offloads that the backend does, as virtio-net feature bits.
    fn features(&self) -> u64;
    /// The driver's choice of them.
    fn set_features(&mut self, negotiated: u64) -> io::Result<()>;
    /// Sends one frame. A full backend drops it, as networks do.
    fn send(&mut self, frame: &[iovec]) -> io::Result<()>;
    /// Receives one frame, cut to the room there is; `None`: there is none.
    fn receive(&mut self, frame: &[iovec]) -> io::Result<Option<usize>>;
    /// A descriptor that becomes readable when there are frames.
    fn source(&self) -> Option<RawFd>;
}

/// What a card has moved.
#[derive(Debug, Default)]
#[allow(missing_docs)] // The names say it.
pub struct NetCounters {
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    pub tx_dropped: AtomicU64,
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub rx_dropped: AtomicU64,
}

/// A network card.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    backend: Box<dyn NetBackend>,
    counters: Arc<NetCounters>,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    mergeable: bool,
    chain: Chain,
    iovecs: IoVecStore,
    /// A received frame that waits for buffers, and how long it is.
    frame: Vec<u8>,
    waiting: Option<usize>,
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    mac: [u8; 6],
    mtu: Option<u16>,
}

/// The address of the card on `tap`: locally administered, and always the same
/// for the same name (FNV-1a).
pub fn derived_mac(tap: &str) -> [u8; 6] {
    let hash = tap
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let h = hash.to_be_bytes();
    [0x02, h[1], h[2], h[3], h[4], h[5]]
}

impl Net {
    /// A card with the address `mac` on `backend`.
    pub fn new(mac: [u8; 6], mtu: Option<u16>, backend: Box<dyn NetBackend>) -> Self {
        Self { mac, mtu, backend, counters: Default::default(), active: None }
    }

    /// What the card has moved.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    /// `struct virtio_net_config`, without its multiqueue part.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let (Some(active), backend) = (&mut self.active, &mut self.backend) else { return Ok(()) };
        let Active { mem, queues, interrupt, chain, iovecs, .. } = active;
        let Some(Some(queue)) = queues.get_mut(TRANSMIT) else { return Ok(()) };
        queue.suppress_notifications(mem)?;
        let mut moved = 0;
        loop {
            while moved < SHARE && queue.pop(mem, chain)? {
                let len = chain.readable_len();
                let sent = (HEADER as u64 + 1..=MAX_FRAME as u64).contains(&len)
                    && chain
                        .readable_iovecs(mem, iovecs, 0, len)
                        .is_ok_and(|frame| backend.send(frame.as_slice()).is_ok());
                if sent {
                    add(&self.counters.tx_frames, 1);
                    add(&self.counters.tx_bytes, len - HEADER as u64);
                } else {
                    add(&self.counters.tx_dropped, 1);
                }
                queue.push_used(mem, chain.head, 0)?;
                moved += 1;
            }
            if moved >= SHARE {
                queue.call_again();
                break;
            }
            if !queue.enable_notifications(mem)? {
                break;
            }
        }
        if queue.needs_interrupt(mem)? {
            interrupt.queue();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let moved = active.receive(self.backend.as_mut(), &self.counters);
        let Some(Some(queue)) = active.queues.get_mut(RECEIVE) else { return Ok(()) };
        if moved? >= SHARE {
            queue.call_again();
        }
        if queue.needs_interrupt(&active.mem)? {
            active.interrupt.queue();
        }
        Ok(())
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What became of a frame.
enum Placed {
    Yes,
    /// There is no buffer for it now.
    NoBuffers,
    /// It fits no buffer that this driver gives.
    Dropped,
}

impl Active {
    /// Moves frames from the backend to the driver; returns how many.
    fn receive(
        &mut self,
        backend: &mut dyn NetBackend,
        counters: &NetCounters,
    ) -> Result<usize, DeviceError> {
        for moved in 0..SHARE {
            let len = match self.waiting.take() {
                Some(len) => len,
                None => match self.fetch(backend) {
                    Some(len) => len,
                    None => return Ok(moved),
                },
            };
            match self.place(len)? {
                Placed::Yes => {
                    add(&counters.rx_frames, 1);
                    add(&counters.rx_bytes, len.saturating_sub(HEADER) as u64);
                }
                Placed::NoBuffers => {
                    self.waiting = Some(len);
                    return Ok(moved);
                }
                Placed::Dropped => add(&counters.rx_dropped, 1),
            }
        }
        Ok(SHARE)
    }

    /// One frame from the backend into the frame buffer.
    fn fetch(&mut self, backend: &mut dyn NetBackend) -> Option<usize> {
        let iovecs = IoVecs::from_slice(&mut self.iovecs, &mut self.frame);
        match backend.receive(iovecs.as_slice()) {
            Ok(Some(len)) if len > HEADER => Some(len),
            Ok(_) => None,
            Err(e) => {
                // The interface was taken down or away: the card goes deaf.
                log::warn!("net: receiving: {e}");
                None
            }
        }
    }

    /// The frame of `len` bytes into as many buffers as it takes.
    fn place(&mut self, len: usize) -> Result<Placed, DeviceError> {
        let Self { mem, queues, mergeable, chain, frame, .. } = self;
        let Some(Some(queue)) = queues.get_mut(RECEIVE) else { return Ok(Placed::Dropped) };
        let frame = &frame[..len.min(frame.len())];
        // Chains taken so far; a mergeable frame is published as a whole, so
        // the header's count is written before any of them is given back.
        let mut taken: Vec<(u16, u32)> = Vec::new();
        let mut first = Chain::new();
        let mut done = 0;
        while done < frame.len() {
            if !queue.pop(mem, chain)? {
                // Ask for a doorbell, then look once more: buffers may have
                // come in between.
                if queue.enable_notifications(mem)? && queue.pop(mem, chain)? {
                } else {
                    taken.iter().for_each(|_| queue.undo_pop());
                    return Ok(Placed::NoBuffers);
                }
            }
            let room = chain.writable_len().min((frame.len() - done) as u64) as usize;
            let too_small = if taken.is_empty() { room < HEADER } else { room == 0 };
            let whole = *mergeable || room == frame.len();
            if too_small || !whole || taken.len() >= usize::from(u16::MAX) {
                // The driver must give buffers that are large enough (5.1.6.3.1).
                for (head, _) in taken.iter().chain([&(chain.head, 0)]) {
                    queue.push_used(mem, *head, 0)?;
                }
                return Ok(Placed::Dropped);
            }
            chain.write_at(mem, 0, &frame[done..done + room])?;
            if taken.is_empty() {
                std::mem::swap(&mut first, chain);
                taken.push((first.head, room as u32));
            } else {
                taken.push((chain.head, room as u32));
            }
            done += room;
        }
        let count = taken.len() as u16;
        first.write_at(mem, NUM_BUFFERS, &count.to_le_bytes())?;
        for (head, written) in taken {
            queue.push_used(mem, head, written)?;
        }
        Ok(Placed::Yes)
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { features::MTU } else { 0 };
        let own = features::MAC | features::STATUS | features::MRG_RXBUF | mtu;
        COMMON_FEATURES | own | self.backend.features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
            *byte = at.and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        for queue in [RECEIVE, TRANSMIT] {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        self.backend
            .set_features(features)
            .map_err(|source| DeviceError::Host { what: "net: offloads", source })?;
        self.active = Some(Active {
            mem,
            queues,
            interrupt,
            mergeable: features & features::MRG_RXBUF != 0,
            chain: Chain::new(),
            iovecs: IoVecStore::new(),
            frame: vec![0; MAX_FRAME],
            waiting: None,
        });
        // Frames may have come before the driver: their edge is gone.
        if let Some(Active { queues, .. }) = &self.active {
            if let Some(Some(queue)) = queues.get(RECEIVE) {
                queue.call_again();
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        match queue {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => Ok(()),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        self.backend.source().into_iter().collect()
    }

    fn source_event(&mut self, _source: usize) -> Result<(), DeviceError> {
        self.receive()
    }

    fn save(&self) -> Result<Saved, StateError> {
        Saved::new("net", VERSION, &State { mac: self.mac, mtu: self.mtu })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { mac, mtu } = saved.open("net", VERSION)?;
        (self.mac, self.mtu) = (mac, mtu);
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
