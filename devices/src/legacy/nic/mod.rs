//! Network cards of real machines: [`Rtl8139`], whose driver hands it whole frames
//! in memory, and [`Ne2000`], into which every byte goes through a port.
//!
//! ```text
//!  guest ─ registers ─► Rtl8139, Ne2000 ─ kick ─► Worker (event loop) ─► Wire ─► backend
//!    ▲                        │   ▲                                        │
//!    └── INTx ◄── Pin ◄───────┘   └────────── received frames ◄────────────┘
//! ```
//!
//! Frames are sent and received on the event loop. While a card has no room for a
//! frame, it waits here and the others in the backend: no overflow is ever told.

mod ne2000;
mod rtl8139;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use ne2000::Ne2000;
pub use rtl8139::Rtl8139;

use crate::bus::lock;
use crate::virtio::net::NetBackend;
use crate::virtio::queue::{IoVecStore, IoVecs};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The longest frame without its checksum: with a VLAN tag.
pub const MAX_FRAME: usize = 1518;
/// The shortest one.
const MIN_FRAME: usize = 60;
/// `struct virtio_net_hdr_v1`, which backends have in front of each frame: zero,
/// as these cards have no offloads.
const HEADER: usize = 12;
/// Frames that are moved before other devices have their turn.
const SHARE: usize = 64;

/// The bus position of a card, and what it needs of the machine.
pub struct Place {
    /// Where its memory BAR is first.
    pub memory: u32,
    /// Where its I/O BAR is first.
    pub ports: u16,
    /// Its interrupt pin.
    pub pin: crate::pci::intx::Pin,
    /// The interrupt that the pin leads to, for the driver.
    pub irq: u8,
    /// Its address.
    pub mac: [u8; 6],
}

/// A card on an event loop.
pub trait Card: Send {
    /// What connects it.
    fn wire(&mut self) -> &mut Wire;
    /// Sends what waits.
    fn transmit(&mut self);
    /// Receives what there is room for.
    fn receive(&mut self);
    /// Sends and receives what can be.
    fn work(&mut self) {
        self.transmit();
        self.wire().flush();
        self.receive();
    }
}

/// A card's connection.
pub struct Wire {
    backend: Box<dyn NetBackend>,
    store: IoVecStore,
    kick: EventFd,
    /// A frame that the card had no room for.
    waiting: Option<Vec<u8>>,
    counts: Counts,
}

/// What went over a connection since it was made.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    tx_dropped: u64,
}

impl Wire {
    fn new(mut backend: Box<dyn NetBackend>) -> io::Result<Self> {
        backend.set_features(0)?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let (store, counts) = (IoVecStore::new(), Counts::default());
        Ok(Self { backend, store, kick, waiting: None, counts })
    }

    /// Has the event loop look at the card.
    fn kick(&self) {
        // A counter that is full has woken it already.
        let _ = self.kick.write(1);
    }

    /// Sends a frame. A full backend drops it, as networks do.
    fn send(&mut self, frame: &[u8]) {
        let mut whole = vec![0; HEADER];
        whole.extend(frame);
        let sent = self.backend.send(&mut IoVecs::from_slice(&mut self.store, &mut whole));
        if sent.is_err() {
            self.counts.tx_dropped += 1;
            return;
        }
        self.counts.tx_frames += 1;
        self.counts.tx_bytes += frame.len() as u64;
    }

    /// What went over it, by the names that other cards have for it.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        vec![
            ("rx_frames", counts.rx_frames),
            ("rx_bytes", counts.rx_bytes),
            ("tx_frames", counts.tx_frames),
            ("tx_bytes", counts.tx_bytes),
            ("tx_dropped", counts.tx_dropped),
        ]
    }

    /// The card has sent what it had, for now.
    fn flush(&mut self) {
        // What the backend answers by itself is received right afterwards.
        self.backend.flush();
    }

    /// The next frame, at least as long as it may be; one that is too long is
    /// nobody's.
    fn receive(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.waiting.take() {
            return Some(frame);
        }
        for _ in 0..SHARE {
            let mut whole = vec![0; HEADER + MAX_FRAME];
            let mut rest = [0; 64];
            let mut vecs = IoVecs::from_slice(&mut self.store, &mut whole);
            let len = match self.backend.receive(&mut vecs, &mut rest) {
                Ok(len) => len?,
                Err(error) => {
                    log::info!("net: {error}");
                    return None;
                }
            };
            if (HEADER + 14..=HEADER + MAX_FRAME).contains(&len) {
                whole.truncate(len);
                let mut frame = whole.split_off(HEADER);
                self.counts.rx_frames += 1;
                self.counts.rx_bytes += frame.len() as u64;
                frame.resize(frame.len().max(MIN_FRAME), 0);
                return Some(frame);
            }
        }
        self.kick();
        None
    }

    /// Keeps a frame for which there was no room.
    fn keep(&mut self, frame: Vec<u8>) {
        self.waiting = Some(frame);
    }

    /// Whether a frame waits for room.
    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }
}

/// Serves one card on the event loop that it is added to.
pub struct Worker {
    card: Arc<Mutex<dyn Card>>,
}

impl Worker {
    /// A worker for `card`.
    pub fn new(card: Arc<Mutex<dyn Card>>) -> Self {
        Self { card }
    }

    /// The card.
    pub fn card(&self) -> Arc<Mutex<dyn Card>> {
        self.card.clone()
    }

    fn descriptors(&self) -> [Option<RawFd>; 2] {
        let mut card = lock(&self.card);
        let wire = card.wire();
        [Some(wire.kick.as_raw_fd()), wire.backend.source()]
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in self.descriptors().into_iter().flatten() {
            let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(e) = ops.add(Events::with_data_raw(fd, 0, set)) {
                log::error!("net: can't watch fd {fd}: {e}");
            }
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        lock(&self.card).work();
    }
}

/// CRC-32 of IEEE 802.3, least significant bit first, before its inversion.
fn crc(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = value >> 1 ^ if value & 1 != 0 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// The frame check sequence, as it follows a frame.
fn check_sequence(frame: &[u8]) -> [u8; 4] {
    (!crc(frame)).to_le_bytes()
}

/// Whom a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Broadcast,
    /// A group that the filter lets through.
    Multicast,
    Us,
    /// Somebody else, or another group.
    Other,
}

/// Looks at a frame's destination. Multicast is filtered by the upper six bits of
/// the address's CRC, as both cards do.
fn destination(frame: &[u8], mac: &[u8], groups: &[u8]) -> Destination {
    let address = frame.get(..6).unwrap_or_default();
    if address == [0xff; 6] {
        return Destination::Broadcast;
    }
    if address == mac {
        return Destination::Us;
    }
    let bit = crc(address).reverse_bits() >> 26;
    let listed = groups.get(bit as usize / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
    let group = address.first().is_some_and(|byte| byte & 1 != 0);
    if group && listed { Destination::Multicast } else { Destination::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standards() {
        assert_eq!(check_sequence(b"123456789"), 0xcbf4_3926u32.to_le_bytes());
    }

    #[test]
    fn groups_are_found_by_their_hash() {
        // 224.0.0.1, whose bit Linux's ether_crc() >> 26 tells.
        let group = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x01];
        let mac = [2, 0, 0, 0, 0, 1];
        let found: Vec<u8> = (0..64u8)
            .filter(|bit| {
                let mut groups = [0; 8];
                groups[usize::from(bit / 8)] = 1 << (bit % 8);
                destination(&group, &mac, &groups) == Destination::Multicast
            })
            .collect();
        assert_eq!(found, [31]);
        assert_eq!(destination(&mac, &mac, &[0; 8]), Destination::Us);
        assert_eq!(destination(&[0xff; 6], &mac, &[0; 8]), Destination::Broadcast);
        assert_eq!(destination(&[4, 0, 0, 0, 0, 1], &mac, &[0xff; 8]), Destination::Other);
    }
}
