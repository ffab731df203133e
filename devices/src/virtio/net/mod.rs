//! The network card (virtio 1.2, 5.1): pairs of queues between a driver and a
//! [`NetBackend`] for each pair.
//!
//! ```text
//!  transmitq ─► chain ─► iovecs ──────── writev, no copy ───────► backend
//!  receiveq  ◄─ chain ◄─ iovecs ◄──────── readv, no copy ──────── backend
//!            ◄─ more mergeable buffers ◄─ frame buffer ◄─ the rest ┘
//!  controlq  ─► command ─► pairs in use, address, offloads        (control)
//! ```
//!
//! Frames carry `struct virtio_net_hdr_v1` on both sides: what the driver says
//! of checksums and segmentation goes to the backend as it is, and back.
//!
//! While the driver has no buffers for it, what is received stays in the
//! backend. The backend's descriptor is watched edge-triggered, so the card
//! looks again at every doorbell of the receive queue and when it is activated.
//!
//! With [`Options::vhost`] the host's kernel moves the frames instead of us
//! ([`kernel`]), and only the control queue is served here.

mod control;
mod device;
mod kernel;
#[cfg(test)]
mod kernel_test;
#[cfg(test)]
mod multi_test;
mod pair;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

pub use control::{ERR, GUEST_OFFLOADS_SET, MAC_ADDR_SET, MQ_VQ_PAIRS_SET, OK};
pub use pair::NetCounters;

use super::queue::{Chain, IoVecs, Vq};
use super::{Activation, DeviceError, Interrupt, Ram};
use crate::backend::vhost::VhostNet;
use crate::rate::Limiter;
use control::Command;
use kernel::Kernel;
use pair::Pair;
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
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
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
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
    /// What a driver may switch while it runs (5.1.6.5.6.1).
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// Pairs of queues of a card, at most.
pub const MAX_PAIRS: usize = 16;
/// Entries of each queue, the control queue among them.
const QUEUE_SIZE: u16 = 256;
/// The least MTU that a driver can be told (5.1.4.1), and the largest that a TAP
/// can have.
pub const MTUS: std::ops::RangeInclusive<u16> = 68..=65521;

/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// The largest frame: 64 KiB of IP with an Ethernet header and a VLAN tag.
const MAX_FRAME: usize = HEADER + 18 + 65536;
/// Frames a queue moves before other devices have their turn.
const SHARE: usize = 256;
/// Entries of a scatter-gather list for one system call, one of them kept for
/// the rest of a frame.
const MAX_IOVECS: usize = libc::UIO_MAXIOV as usize - 1;

/// What a network card is connected to. Frames carry `struct virtio_net_hdr_v1`.
pub trait NetBackend: Send {
    /// Offloads that the backend does, as virtio-net feature bits.
    fn features(&self) -> u64;
    /// Another driver begins: what was done for the one before is over.
    fn restart(&mut self) {}
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
    /// Whether it is connected to anything.
    fn link(&self) -> bool {
        true
    }
    /// A descriptor that becomes readable when that may have changed.
    fn link_source(&self) -> Option<RawFd> {
        None
    }
    /// It has become readable.
    fn link_event(&mut self) {}
    /// Begins or ends to take part, where a card has several backends: frames
    /// go only to those that do. At first all of them do.
    fn enable(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }
    /// What the backend has counted itself.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// How a card is.
#[derive(Debug, Default)]
pub struct Options {
    /// Its address, until the driver sets another.
    pub mac: [u8; 6],
    /// The largest packet that the driver may send.
    pub mtu: Option<u16>,
    /// How much it may receive, frames and their bytes.
    pub receive: Option<Limiter>,
    /// How much it may send.
    pub transmit: Option<Limiter>,
    /// The kernel's data path for each pair of queues; empty: ours.
    pub vhost: Vec<VhostNet>,
}

/// A network card.
pub struct Net {
    options: Options,
    /// The address that the driver has now.
    mac: [u8; 6],
    pairs: Vec<Pair>,
    kernel: Option<Kernel>,
    queue_sizes: Vec<u16>,
    sources: Vec<(RawFd, Source)>,
    link_up: bool,
    /// The pair that goes first when a limit lets frames through again.
    turn: usize,
    /// What a restored driver had chosen, until it is activated.
    resume: Option<Choice>,
    active: Option<Active>,
}

/// What the card's sources are, in the order in which it shows them.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Frames for a pair.
    Pair(usize),
    /// What the pair's backend is connected to.
    Link(usize),
    ReceiveLimit,
    TransmitLimit,
    Kernel(kernel::Event),
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    features: u64,
    choice: Choice,
    /// The index of the control queue, if the driver wants one.
    control: Option<usize>,
    chain: Chain,
    /// The backends do not know of the driver's choice yet.
    news: bool,
}

/// What a driver chooses while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Choice {
    /// Pairs of queues in use.
    pairs: usize,
    /// Offloads of what is received, as feature bits.
    offloads: u64,
}

impl Active {
    /// Tells the backends the driver's choice. Not at activation, because the
    /// host may make us wait, and a vCPU with us.
    fn tell(&mut self, pairs: &mut [Pair]) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.news) {
            return Ok(());
        }
        let error = |what| move |source| DeviceError::Host { what, source };
        pairs.iter_mut().for_each(|pair| pair.backend.restart());
        self.set_offloads(pairs).map_err(error("net: offloads"))?;
        enable(pairs, self.choice.pairs).map_err(error("net: queues"))
    }

    /// All backends of a card share their offloads.
    fn set_offloads(&self, pairs: &mut [Pair]) -> io::Result<()> {
        let negotiated = self.features & !features::GUEST_OFFLOADS | self.choice.offloads;
        let first = pairs.first_mut();
        first.map_or(Ok(()), |pair| pair.backend.set_features(negotiated))
    }

    /// Whether the driver has set up both queues of each of so many pairs.
    fn has_pairs(&self, count: usize) -> bool {
        let queues = self.queues.get(..2 * count).unwrap_or_default();
        queues.len() == 2 * count && queues.iter().all(Option::is_some)
    }
}

/// Lets the first `count` backends take part, and the others not.
fn enable(pairs: &mut [Pair], count: usize) -> io::Result<()> {
    for (index, pair) in pairs.iter_mut().enumerate() {
        pair.backend.enable(index < count)?;
        if index >= count {
            pair.receiver.forget();
        }
    }
    Ok(())
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

/// The receive queue of a pair, and the transmit queue behind it (5.1.2).
fn receive_queue(pair: usize) -> usize {
    2 * pair
}

fn transmit_queue(pair: usize) -> usize {
    2 * pair + 1
}

impl Net {
    /// A card with a pair of queues for each of `backends`. Fails when the host
    /// is out of file descriptors.
    ///
    /// # Panics
    ///
    /// Without a backend, with more than [`MAX_PAIRS`], or with a data path of
    /// the kernel for some pairs and not for others: a mistake of the caller's.
    pub fn new(mut options: Options, backends: Vec<Box<dyn NetBackend>>) -> io::Result<Self> {
        assert!((1..=MAX_PAIRS).contains(&backends.len()), "{} pairs", backends.len());
        let pairs: Vec<Pair> = backends.into_iter().map(Pair::new).collect();
        let kernel = match std::mem::take(&mut options.vhost) {
            none if none.is_empty() => None,
            vhost => {
                assert_eq!(vhost.len(), pairs.len(), "one each");
                Some(Kernel::new(vhost)?)
            }
        };
        let mut sources = Vec::new();
        match &kernel {
            Some(kernel) => {
                sources.extend(kernel.sources().map(|(fd, event)| (fd, Source::Kernel(event))));
            }
            None => {
                let fds = pairs.iter().map(|pair| pair.backend.source()).enumerate();
                sources.extend(fds.filter_map(|(i, fd)| Some((fd?, Source::Pair(i)))));
            }
        }
        let links = pairs.iter().map(|pair| pair.backend.link_source()).enumerate();
        sources.extend(links.filter_map(|(i, fd)| Some((fd?, Source::Link(i)))));
        let limits =
            [(&options.receive, Source::ReceiveLimit), (&options.transmit, Source::TransmitLimit)];
        sources.extend(limits.into_iter().filter_map(|(l, s)| Some((l.as_ref()?.source(), s))));
        let link_up = pairs.iter().all(|pair| pair.backend.link());
        Ok(Self {
            mac: options.mac,
            queue_sizes: vec![QUEUE_SIZE; 2 * pairs.len() + 1],
            options,
            pairs,
            kernel,
            sources,
            link_up,
            turn: 0,
            resume: None,
            active: None,
        })
    }

    /// What a pair of queues has moved; `None` where the kernel does it, which
    /// counts at its own interface.
    pub fn counters(&self, pair: usize) -> Option<Arc<NetCounters>> {
        let pair = self.pairs.get(pair).filter(|_| self.kernel.is_none());
        pair.map(|pair| pair.counters.clone())
    }

    /// Plugs the cable in or pulls it out, and tells the driver.
    pub fn set_link(&mut self, up: bool) {
        let changed = std::mem::replace(&mut self.link_up, up) != up;
        if let (true, Some(active)) = (changed, &self.active) {
            active.interrupt.config();
        }
    }

    /// The link is as the backend of a pair says, where it says anything.
    fn follow_link(&mut self, pair: usize) {
        let Some(pair) = self.pairs.get_mut(pair) else { return };
        if pair.backend.link_source().is_some() {
            pair.backend.link_event();
            let up = pair.backend.link();
            self.set_link(up);
        }
    }

    /// `struct virtio_net_config`.
    fn config(&self) -> [u8; 12] {
        /// `VIRTIO_NET_S_LINK_UP`.
        const LINK_UP: u16 = 1;
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&(if self.link_up { LINK_UP } else { 0 }).to_le_bytes());
        config[8..10].copy_from_slice(&(self.pairs.len() as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.options.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    /// Moves frames of a pair to the driver.
    fn receive(&mut self, pair: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.tell(&mut self.pairs)?;
        if pair >= active.choice.pairs {
            return Ok(());
        }
        let index = receive_queue(pair);
        let (Some(Some(queue)), Some(pair)) =
            (active.queues.get_mut(index), self.pairs.get_mut(pair))
        else {
            return Ok(());
        };
        let Pair { backend, counters, receiver, .. } = pair;
        let limit = &mut self.options.receive;
        receiver.run(&active.mem, queue, backend.as_mut(), counters, limit)?;
        if queue.needs_interrupt(&active.mem)? {
            active.interrupt.queue(index);
        }
        if !backend.link() {
            self.set_link(false);
        }
        Ok(())
    }

    /// Moves frames of a pair to the backend.
    fn transmit(&mut self, pair: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.tell(&mut self.pairs)?;
        if pair >= active.choice.pairs {
            return Ok(());
        }
        let index = transmit_queue(pair);
        let (Some(Some(queue)), Some(of_pair)) =
            (active.queues.get_mut(index), self.pairs.get_mut(pair))
        else {
            return Ok(());
        };
        let Pair { backend, counters, transmitter, .. } = of_pair;
        let limit = &mut self.options.transmit;
        transmitter.run(&active.mem, queue, backend.as_mut(), counters, limit)?;
        if queue.needs_interrupt(&active.mem)? {
            active.interrupt.queue(index);
        }
        match backend.flush() {
            true => self.receive(pair),
            false => Ok(()),
        }
    }

    /// A limit lets something through again. It may be little, so that each time
    /// another pair goes first.
    fn again(
        &mut self,
        one: fn(&mut Self, usize) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let count = self.pairs.len();
        self.turn = (self.turn + 1) % count;
        (self.turn..self.turn + count).try_for_each(|pair| one(self, pair % count))
    }

    /// Does what the driver asks in the control queue.
    fn control(&mut self, index: usize) -> Result<(), DeviceError> {
        for _ in 0..control::SHARE {
            let Some(active) = &mut self.active else { return Ok(()) };
            active.tell(&mut self.pairs)?;
            let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(()) };
            if !queue.pop(&active.mem, &mut active.chain)? {
                if queue.enable_notifications(&active.mem)? {
                    queue.call_again();
                }
                return self.control_done(index);
            }
            let command = control::parse(&active.mem, &active.chain, active.features)?;
            let done = command.is_some_and(|command| self.obey(command));
            let Some(Active { mem, queues, chain, .. }) = &mut self.active else { return Ok(()) };
            control::answer(mem, chain, if done { OK } else { ERR })?;
            if let Some(Some(queue)) = queues.get_mut(index) {
                queue.push_used(mem, chain.head, 1)?;
            }
        }
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.skip(index).take(1).flatten().for_each(Vq::call_again);
        self.control_done(index)
    }

    fn control_done(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(()) };
        if queue.needs_interrupt(&active.mem)? {
            active.interrupt.queue(index);
        }
        Ok(())
    }

    /// Does what a command says; whether it could.
    fn obey(&mut self, command: Command) -> bool {
        let Some(active) = &mut self.active else { return false };
        match command {
            Command::Pairs(count) => {
                if count == 0 || !active.has_pairs(count) || count > self.pairs.len() {
                    return false;
                }
                let before = std::mem::replace(&mut active.choice.pairs, count);
                if let Err(e) = enable(&mut self.pairs, count) {
                    log::warn!("net: {count} pairs of queues: {e}");
                    active.choice.pairs = before;
                    // As it was: what took part before still can.
                    let _ = enable(&mut self.pairs, before);
                    return false;
                }
                // Their doorbells rang before anyone listened.
                let queues = active.queues.iter().take(2 * count).skip(2 * before);
                queues.flatten().filter(|_| self.kernel.is_none()).for_each(Vq::call_again);
                true
            }
            Command::Mac(mac) => {
                let unicast = mac[0] & 1 == 0 && mac != [0; 6];
                if unicast {
                    self.mac = mac;
                }
                unicast
            }
            Command::Offloads(offloads) => {
                if offloads & !(active.features & features::GUEST_OFFLOADS) != 0 {
                    return false;
                }
                let before = std::mem::replace(&mut active.choice.offloads, offloads);
                let done = active.set_offloads(&mut self.pairs);
                if let Err(e) = &done {
                    log::warn!("net: offloads {offloads:#x}: {e}");
                    active.choice.offloads = before;
                }
                done.is_ok()
            }
        }
    }
}
