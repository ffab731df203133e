//! The network card (virtio 1.2, 5.1): two queues between a driver and a
//! [`NetBackend`].
//!
//! ```text
//!  transmitq ─► chain ─► iovecs ──────── writev, no copy ───────► backend
//!  receiveq  ◄─ chain ◄─ iovecs ◄──────── readv, no copy ──────── backend
//!            ◄─ more mergeable buffers ◄─ frame buffer ◄─ the rest ┘
//! ```
//!
//! Frames carry `struct virtio_net_hdr_v1` on both sides: what the driver says
//! of checksums and segmentation goes to the backend as it is, and back.
//!
//! While the driver has no buffers for it, what is received stays in the
//! backend. The backend's descriptor is watched edge-triggered, so the card
//! looks again at every doorbell of the receive queue and when it is activated.

mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use super::queue::{IoVecs, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::state::{Saved, StateError};
use receive::Receiver;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use transmit::Transmitter;

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
/// The largest frame: 64 KiB of IP with an Ethernet header and a VLAN tag.
const MAX_FRAME: usize = HEADER + 18 + 65536;
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;
/// Frames a queue moves before other devices have their turn.
const SHARE: usize = 256;
/// Entries of a scatter-gather list for one system call, one of them kept for
/// the rest of a frame.
const MAX_IOVECS: usize = libc::UIO_MAXIOV as usize - 1;

/// What a network card is connected to. Frames carry `struct virtio_net_hdr_v1`.
pub trait NetBackend: Send {
    /// Offloads that the backend does, as virtio-net feature bits.
    fn features(&self) -> u64;
    /// The driver's choice of them.
    fn set_features(&mut self, negotiated: u64) -> io::Result<()>;
    /// Sends one frame, of at most `UIO_MAXIOV` pieces. A full backend drops
    /// it, as networks do.
    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()>;
    /// The driver has sent what it had, for now. A backend that answers by itself
    /// says whether there are frames.
    fn flush(&mut self) -> bool {
        false
    }
    /// Receives one frame into `frame`, of fewer than `UIO_MAXIOV` pieces, and
    /// what does not fit there into `rest`. Returns the length of both; `None`:
    /// there is no frame.
    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>>;
    /// A descriptor that becomes readable when there are frames.
    fn source(&self) -> Option<RawFd>;
    /// Whether it is connected to anything still.
    fn link(&self) -> bool {
        true
    }
    /// What the backend has counted itself.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What a card has moved.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames sent.
    pub tx_frames: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// Frames that were malformed or that the backend did not take.
    pub tx_dropped: AtomicU64,
    /// Frames received.
    pub rx_frames: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Frames that fitted no buffer that the driver gives.
    pub rx_dropped: AtomicU64,
    /// Buffers that the driver got back empty because they hold no header.
    pub rx_bad_buffers: AtomicU64,
}

impl NetCounters {
    fn all(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("tx_frames", get(&self.tx_frames)),
            ("tx_bytes", get(&self.tx_bytes)),
            ("tx_dropped", get(&self.tx_dropped)),
            ("rx_frames", get(&self.rx_frames)),
            ("rx_bytes", get(&self.rx_bytes)),
            ("rx_dropped", get(&self.rx_dropped)),
            ("rx_bad_buffers", get(&self.rx_bad_buffers)),
        ]
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A network card.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    backend: Box<dyn NetBackend>,
    counters: Arc<NetCounters>,
    /// What the driver was told of the link.
    link: bool,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    /// The driver's choice of features, until the backend has been told.
    news: Option<u64>,
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Active {
    /// Tells the backend the driver's choice of offloads. Not at activation,
    /// because the host may make us wait, and a vCPU with us.
    fn tell(&mut self, backend: &mut dyn NetBackend) -> Result<(), DeviceError> {
        let Some(negotiated) = self.news.take() else { return Ok(()) };
        let error = |source| DeviceError::Host { what: "net: offloads", source };
        backend.set_features(negotiated).map_err(error)
    }
}

const KIND: &str = "virtio-net";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    mac: [u8; 6],
    mtu: Option<u16>,
    /// What was offered to the driver.
    features: u64,
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
        Self { mac, mtu, backend, counters: Default::default(), link: true, active: None }
    }

    /// What the card has moved.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    /// `struct virtio_net_config`, without its multiqueue part.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        let status = if self.link { LINK_UP } else { 0 };
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.tell(self.backend.as_mut())?;
        let Active { mem, queues, interrupt, receiver, .. } = active;
        let Some(Some(queue)) = queues.get_mut(RECEIVE) else { return Ok(()) };
        receiver.run(mem, queue, self.backend.as_mut(), &self.counters)?;
        if queue.needs_interrupt(mem)? {
            interrupt.queue(RECEIVE);
        }
        if std::mem::replace(&mut self.link, self.backend.link()) != self.link {
            interrupt.config();
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.tell(self.backend.as_mut())?;
        let Active { mem, queues, interrupt, transmitter, .. } = active;
        let Some(Some(queue)) = queues.get_mut(TRANSMIT) else { return Ok(()) };
        transmitter.run(mem, queue, self.backend.as_mut(), &self.counters)?;
        if queue.needs_interrupt(mem)? {
            interrupt.queue(TRANSMIT);
        }
        match self.backend.flush() {
            true => self.receive(),
            false => Ok(()),
        }
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
        // Frames may have come before the driver, and their edge is gone; after
        // a restoration the doorbells are, too.
        queues.iter().flatten().for_each(Vq::call_again);
        self.active = Some(Active {
            mem,
            queues,
            interrupt,
            news: Some(features),
            receiver: Receiver::new(features & features::MRG_RXBUF != 0),
            transmitter: Transmitter::default(),
        });
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

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.all().into_iter().chain(self.backend.counters()).collect()
    }

    /// A frame that waits for buffers is not part of the state: it is dropped,
    /// as networks do.
    fn save(&self) -> Result<Saved, StateError> {
        let state = State { mac: self.mac, mtu: self.mtu, features: self.features() };
        Saved::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let State { mac, mtu, features } = saved.open(KIND, VERSION)?;
        let (had, has) = (self.mtu, self.features());
        self.mtu = mtu;
        let missing = features & !self.features();
        if missing != 0 {
            self.mtu = had;
            let reason = format!("its driver may use {missing:#x}, this host's card has {has:#x}");
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.mac = mac;
        Ok(())
    }
}
