//! Cards without a guest and without a network, for unit tests, property tests
//! and fuzzers.

use super::{Card, Ne2000, Place, Rtl8139};
use crate::bus::lock;
use crate::pci::intx::Router;
use crate::pci::intx::testing::Recorder;
use crate::pci::root::Function;
use crate::virtio::Ram;
use crate::virtio::net::NetBackend;
use crate::virtio::queue::IoVecs;
use crate::virtio::testing::ram;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

/// The address of every card here.
pub const MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];

/// What was sent, and what is to be received; both without their headers.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Sent by the card.
    pub sent: Arc<Mutex<Vec<Vec<u8>>>>,
    /// For the card.
    pub coming: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl NetBackend for Network {
    fn features(&self) -> u64 {
        0
    }
    fn set_features(&mut self, _negotiated: u64) -> io::Result<()> {
        Ok(())
    }
    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let mut whole = vec![0xff; frame.len() as usize];
        frame.copy_out(&mut whole);
        assert!(whole.iter().take(12).all(|byte| *byte == 0), "a header without offloads");
        lock(&self.sent).push(whole.split_off(12));
        Ok(())
    }
    fn receive(&mut self, frame: &mut IoVecs<'_>, _rest: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(next) = lock(&self.coming).pop_front() else { return Ok(None) };
        frame.copy_in(&[0; 12]);
        frame.copy_in(&next);
        Ok(Some(12 + next.len()))
    }
    fn source(&self) -> Option<RawFd> {
        None
    }
}

/// A card with a driver's view of it.
pub struct Bench<C> {
    /// Guest memory.
    pub mem: Ram,
    /// The card.
    pub card: C,
    /// Its network.
    pub network: Network,
    inputs: Arc<Recorder>,
    level: bool,
}

fn place() -> (Place, Arc<Recorder>) {
    let inputs = Arc::new(Recorder::default());
    let pin = Router::new(inputs.clone()).pin(1, 1);
    (Place { memory: 0xd010_0000, ports: 0xc000, pin, irq: 10, mac: MAC }, inputs)
}

impl Bench<Rtl8139> {
    /// A card after power-on.
    ///
    /// # Panics
    ///
    /// When there are no descriptors left.
    pub fn rtl8139() -> Self {
        let ((place, inputs), mem, network) = (place(), ram(), Network::default());
        let card = Rtl8139::new(place, mem.clone(), Box::new(network.clone()));
        Self { mem, card: card.expect("an eventfd"), network, inputs, level: false }
    }
}

impl Bench<Ne2000> {
    /// A card after power-on.
    ///
    /// # Panics
    ///
    /// When there are no descriptors left.
    pub fn ne2000() -> Self {
        let ((place, inputs), mem, network) = (place(), ram(), Network::default());
        let card = Ne2000::new(place, Box::new(network.clone()));
        Self { mem, card: card.expect("an eventfd"), network, inputs, level: false }
    }
}

impl<C: Card + Function> Bench<C> {
    /// Reads a register of one, two or four bytes.
    pub fn read(&mut self, offset: u16, size: usize) -> u32 {
        let mut data = [0; 4];
        self.card.read_io(offset, &mut data[..size]);
        u32::from_le_bytes(data)
    }

    /// Writes one.
    pub fn write(&mut self, offset: u16, value: u32, size: usize) {
        self.card.write_io(offset, &value.to_le_bytes()[..size]);
    }

    /// The event loop's turn.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            self.card.work();
            if self.card.wire().kick.read().is_err() {
                return;
            }
        }
        panic!("the card spins");
    }

    /// The level of its interrupt.
    pub fn interrupt(&mut self) -> bool {
        if let Some((_, level)) = self.inputs.take().last() {
            self.level = *level;
        }
        self.level
    }

    /// A frame for the card from the network.
    pub fn arrive(&self, frame: &[u8]) {
        lock(&self.network.coming).push_back(frame.to_vec());
    }
}

/// A frame of `len` bytes to `destination`, with something in it.
pub fn frame(destination: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend((6..len).map(|i| (i * 7) as u8));
    frame
}

/// Lets a driver that knows no protocol loose on a card: every four bytes are an
/// access, a frame or the event loop's turn.
fn hostile<C: Card + Function>(bench: &mut Bench<C>, program: &[u8]) {
    for step in program.chunks_exact(4) {
        let [kind, a, b, c] = [step[0], step[1], step[2], step[3]];
        let size = [1, 2, 4][usize::from(kind >> 4) % 3];
        match kind % 8 {
            0..=2 => bench.write(a.into(), u32::from_le_bytes([b, c, b, 0]), size),
            3 => drop(bench.read(a.into(), size)),
            4 => bench.arrive(&frame(MAC, usize::from(a) * 8)),
            5 => bench.arrive(&frame([0xff; 6], usize::from(a) * 8)),
            6 => bench.card.write_config(usize::from(a), &[b, c]),
            _ => bench.run(),
        }
    }
    bench.run();
}

/// [`Rtl8139`] under [`hostile`] use.
///
/// # Panics
///
/// When its state can't be restored.
pub fn hostile_rtl8139(program: &[u8]) {
    let mut bench = Bench::rtl8139();
    hostile(&mut bench, program);
    let saved = bench.card.save().expect("a state");
    Bench::rtl8139().card.restore(&saved).expect("what can be saved can be restored");
}

/// [`Ne2000`] under [`hostile`] use.
///
/// # Panics
///
/// When its state can't be restored.
pub fn hostile_ne2000(program: &[u8]) {
    let mut bench = Bench::ne2000();
    hostile(&mut bench, program);
    let saved = bench.card.save().expect("a state");
    Bench::ne2000().card.restore(&saved).expect("what can be saved can be restored");
}
