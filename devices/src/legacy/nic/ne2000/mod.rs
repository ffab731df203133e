//! NE2000 on PCI: an RTL8029AS (Realtek datasheet), which is a DP8390D (National
//! Semiconductor) with 16 KiB of its own memory. Every byte of every frame goes
//! through a port, which is what makes it dear to emulate.
//!
//! | offset | page 0, read | page 0, written | page 1 |
//! | --- | --- | --- | --- |
//! | 0x00 | `CR` | `CR` | `CR` |
//! | 0x01 | `CLDA0`, `CLDA1` | `PSTART`, `PSTOP` | `PAR0`–`PAR5` |
//! | 0x03 | `BNRY` | `BNRY` | |
//! | 0x04 | `TSR`, `NCR` | `TPSR`, `TBCR0`, `TBCR1` | |
//! | 0x07 | `ISR` | `ISR` | `CURR` |
//! | 0x08 | `CRDA0`, `CRDA1` | `RSAR0`, `RSAR1`, `RBCR0`, `RBCR1` | `MAR0`–`MAR7` |
//! | 0x0c | `RSR`, `CNTR0`–`CNTR2` | `RCR`, `TCR`, `DCR`, `IMR` | |
//! | 0x10 | data port | data port | the same |
//! | 0x18 | reset port | | the same |

#[cfg(test)]
mod tests;

use super::{Card, Destination, MAX_FRAME, Place, SHARE, Wire, destination};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::intx::Pin;
use crate::pci::root::Function;
use crate::state::{Saved, StateError};
use crate::virtio::net::NetBackend;
use serde::{Deserialize, Serialize};
use std::io;

/// Ports.
const SIZE: u16 = 32;
const DATA_PORT: u16 = 0x10;
const RESET_PORT: u16 = 0x18;

/// The station address PROM, each byte twice, at address 0.
const PROM_SIZE: usize = 32;
/// The card's memory.
const MEMORY: usize = 0x4000;
const MEMORY_SIZE: usize = 0x4000;
const PAGE: usize = 256;

/// `CR`.
const STP: u8 = 1 << 0;
const STA: u8 = 1 << 1;
const TXP: u8 = 1 << 2;
const REMOTE: u8 = 7 << 3;
const REMOTE_READ: u8 = 1 << 3;
const REMOTE_WRITE: u8 = 2 << 3;
const PAGE_SELECT: u8 = 3 << 6;

/// `ISR`, `IMR`.
const PRX: u8 = 1 << 0;
const PTX: u8 = 1 << 1;
const TXE: u8 = 1 << 3;
const RDC: u8 = 1 << 6;
const RST: u8 = 1 << 7;

/// `TSR`: sent; aborted.
const TSR_PTX: u8 = 1 << 0;
const TSR_ABT: u8 = 1 << 3;
/// `RSR`: received; for a group or everyone.
const RSR_PRX: u8 = 1 << 0;
const RSR_PHY: u8 = 1 << 5;
/// `RCR`.
const AB: u8 = 1 << 2;
const AM: u8 = 1 << 3;
const PRO: u8 = 1 << 4;
const MON: u8 = 1 << 5;
/// `TCR`: loopback.
const LOOPBACK: u8 = 3 << 1;
/// `DCR`: the data port moves words.
const WTS: u8 = 1 << 0;

/// What is in front of a received frame: status, next page, length.
const HEADER: usize = 4;
/// The frame's checksum counts, and isn't there.
const CHECK_SEQUENCE: usize = 4;

const KIND: &str = "ne2000";
const VERSION: u32 = 1;

/// The registers, by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    cr: u8,
    pstart: u8,
    pstop: u8,
    bnry: u8,
    curr: u8,
    tpsr: u8,
    tbcr: [u8; 2],
    tsr: u8,
    rsr: u8,
    isr: u8,
    imr: u8,
    rcr: u8,
    tcr: u8,
    dcr: u8,
    /// `RSAR`, which counts up as `CRDA`.
    rsar: u16,
    rbcr: u16,
    par: [u8; 6],
    mar: [u8; 8],
    prom: Vec<u8>,
    memory: Vec<u8>,
    config: Vec<u8>,
}

/// An NE2000.
pub struct Ne2000 {
    config: ConfigSpace,
    pin: Pin,
    wire: Wire,
    state: State,
}

impl Ne2000 {
    /// A card after power-on.
    pub fn new(place: Place, backend: Box<dyn NetBackend>) -> io::Result<Self> {
        let identity = Identity { vendor: 0x10ec, device: 0x8029, class: 0x02_0000, revision: 0 };
        let mut config = ConfigSpace::new(identity);
        config.set_io_bar(0, place.ports, SIZE);
        config.set_interrupt(1, place.irq);
        // The address, and the mark of a card of 16 bits: "WW".
        let mut station = [0; PROM_SIZE / 2];
        station[..6].copy_from_slice(&place.mac);
        station[14..].copy_from_slice(b"WW");
        let state = State {
            cr: STP,
            isr: RST,
            prom: station.iter().flat_map(|byte| [*byte, *byte]).collect(),
            memory: vec![0; MEMORY_SIZE],
            ..State::default()
        };
        let (pin, wire) = (place.pin, Wire::new(backend)?);
        Ok(Self { config, pin, wire, state })
    }

    fn update(&mut self) {
        self.pin.enable(!self.config.interrupt_disabled());
        self.pin.set(self.state.isr & self.state.imr & !RST != 0);
    }

    fn raise(&mut self, cause: u8) {
        self.state.isr |= cause;
        self.update();
    }

    /// The byte of the card's at an address of its bus.
    fn byte(&mut self, address: usize) -> Option<&mut u8> {
        match address {
            MEMORY.. => self.state.memory.get_mut(address - MEMORY),
            _ => None,
        }
    }

    fn load(&mut self, address: usize) -> u8 {
        match self.state.prom.get(address) {
            Some(byte) => *byte,
            None => self.byte(address).map_or(0xff, |byte| *byte),
        }
    }

    /// Moves the remote address on, round the ring; ends the transfer with its
    /// last byte.
    fn remote_step(&mut self, bytes: u16) {
        let s = &mut self.state;
        if s.rbcr == 0 {
            return;
        }
        s.rsar = s.rsar.wrapping_add(bytes);
        if s.rsar == u16::from(s.pstop) << 8 {
            s.rsar = u16::from(s.pstart) << 8;
        }
        s.rbcr = s.rbcr.saturating_sub(bytes);
        if s.rbcr == 0 {
            self.raise(RDC);
        }
    }

    /// Bytes that an access of the data port moves at once, and how many: a card
    /// of words moves a word even for a byte.
    fn step(&self) -> u16 {
        if self.state.dcr & WTS != 0 { 2 } else { 1 }
    }

    fn read_data(&mut self, data: &mut [u8]) {
        if self.state.cr & REMOTE != REMOTE_READ {
            return;
        }
        let step = self.step();
        for part in data.chunks_mut(step.into()) {
            let from = usize::from(self.state.rsar);
            for (i, to) in part.iter_mut().enumerate() {
                *to = self.load(from + i);
            }
            self.remote_step(step);
        }
    }

    fn write_data(&mut self, data: &[u8]) {
        if self.state.cr & REMOTE != REMOTE_WRITE {
            return;
        }
        let step = self.step();
        for part in data.chunks(step.into()) {
            if self.state.rbcr == 0 {
                return;
            }
            let at = usize::from(self.state.rsar);
            for (i, from) in part.iter().enumerate() {
                if let Some(to) = self.byte(at + i) {
                    *to = *from;
                }
            }
            self.remote_step(step);
        }
    }

    fn read_register(&self, offset: u16) -> u8 {
        let s = &self.state;
        let at = usize::from(offset);
        match (s.cr & PAGE_SELECT, offset) {
            (_, 0x00) => s.cr,
            (0x00, 0x01..=0x0f) => match offset {
                0x01 | 0x02 => 0,
                0x03 => s.bnry,
                0x04 => s.tsr,
                0x07 => s.isr,
                0x08 => s.rsar as u8,
                0x09 => (s.rsar >> 8) as u8,
                // The chip's name: 8029ID0 and 8029ID1.
                0x0a => b'P',
                0x0b => b'C',
                0x0c => s.rsr,
                // No collisions, no errors.
                _ => 0,
            },
            (0x40, 0x01..=0x06) => s.par[at - 1],
            (0x40, 0x07) => s.curr,
            (0x40, 0x08..=0x0f) => s.mar[at - 8],
            (0x80, 0x01..=0x0f) => match offset {
                0x01 => s.pstart,
                0x02 => s.pstop,
                0x04 => s.tpsr,
                0x0c => s.rcr,
                0x0d => s.tcr,
                0x0e => s.dcr,
                0x0f => s.imr,
                _ => 0,
            },
            // Page 3 has the configuration: half duplex, whatever is plugged in.
            (_, 0x01..=0x0f) => 0,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u16, value: u8) {
        let s = &mut self.state;
        let at = usize::from(offset);
        match (s.cr & PAGE_SELECT, offset) {
            (_, 0x00) => return self.command(value),
            (0x00, _) => match offset {
                0x01 => s.pstart = value,
                0x02 => s.pstop = value,
                0x03 => {
                    s.bnry = value;
                    if self.wire.is_waiting() {
                        self.wire.kick();
                    }
                }
                0x04 => s.tpsr = value,
                0x05 | 0x06 => s.tbcr[at - 5] = value,
                // The reset bit is the card's own.
                0x07 => s.isr &= !(value & !RST),
                0x08 => s.rsar = s.rsar & 0xff00 | u16::from(value),
                0x09 => s.rsar = s.rsar & 0x00ff | u16::from(value) << 8,
                0x0a => s.rbcr = s.rbcr & 0xff00 | u16::from(value),
                0x0b => s.rbcr = s.rbcr & 0x00ff | u16::from(value) << 8,
                0x0c => s.rcr = value & 0x3f,
                0x0d => s.tcr = value & 0x1f,
                0x0e => s.dcr = value & 0x7f,
                0x0f => s.imr = value & 0x7f,
                _ => {}
            },
            (0x40, 0x01..=0x06) => s.par[at - 1] = value,
            (0x40, 0x07) => s.curr = value,
            (0x40, 0x08..=0x0f) => s.mar[at - 8] = value,
            _ => {}
        }
        self.update();
    }

    fn command(&mut self, value: u8) {
        let s = &mut self.state;
        // A frame that is being sent is sent before anything else.
        s.cr = value | s.cr & TXP;
        if value & STP != 0 {
            s.cr &= !TXP;
            s.isr |= RST;
        } else if value & STA != 0 {
            s.isr &= !RST;
            if matches!(value & REMOTE, REMOTE_READ | REMOTE_WRITE) && s.rbcr == 0 {
                s.isr |= RDC;
            }
            self.wire.kick();
        }
        self.update();
    }

    fn is_on(&self) -> bool {
        self.state.cr & (STP | STA) == STA
    }

    /// The ring in pages of the card's memory, if it is one.
    fn ring(&self) -> Option<std::ops::Range<usize>> {
        let pages = |page: u8| usize::from(page).checked_sub(MEMORY / PAGE);
        let (start, stop) = (pages(self.state.pstart)?, pages(self.state.pstop)?);
        (start < stop && stop <= MEMORY_SIZE / PAGE).then_some(start..stop)
    }

    fn accepts(&self, frame: &[u8]) -> Option<u8> {
        let s = &self.state;
        if s.rcr & MON != 0 {
            return None;
        }
        let (wanted, status) = match destination(frame, &s.par, &s.mar) {
            Destination::Broadcast => (s.rcr & AB != 0, RSR_PHY),
            Destination::Multicast => (s.rcr & AM != 0, RSR_PHY),
            Destination::Us => (true, 0),
            Destination::Other => (false, 0),
        };
        (wanted || s.rcr & PRO != 0).then_some(RSR_PRX | status)
    }

    /// Puts a frame into pages `next` and on.
    fn store(
        &mut self,
        ring: &std::ops::Range<usize>,
        next: usize,
        need: usize,
        frame: &[u8],
        status: u8,
    ) {
        let after = ring.start + (next - ring.start + need) % ring.len();
        let after = (after + MEMORY / PAGE) as u8;
        let [low, high] = ((frame.len() + CHECK_SEQUENCE) as u16).to_le_bytes();
        let record = [status, after, low, high].into_iter().chain(frame.iter().copied());
        let (start, len) = (ring.start * PAGE, ring.len() * PAGE);
        let first = next * PAGE - start;
        for (i, from) in record.enumerate() {
            if let Some(to) = self.state.memory.get_mut(start + (first + i) % len) {
                *to = from;
            }
        }
        self.state.curr = after;
        self.state.rsr = status;
        self.raise(PRX);
    }

    /// The card's state.
    pub fn save(&self) -> Result<Saved, StateError> {
        let config = self.config.bytes().to_vec();
        Saved::new(KIND, VERSION, &State { config, ..self.state.clone() })
    }

    /// Takes over a saved state. A frame that waits is not part of it: it is
    /// dropped, as networks do.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        if state.memory.len() != MEMORY_SIZE || state.prom.len() != PROM_SIZE {
            let reason = "memory of another size".to_owned();
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.config.restore(&state.config);
        self.state = State { config: Vec::new(), ..state };
        self.wire.kick();
        self.update();
        Ok(())
    }
}

impl Card for Ne2000 {
    fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    fn transmit(&mut self) {
        if !self.is_on() || self.state.cr & TXP == 0 {
            return;
        }
        self.state.cr &= !TXP;
        let len = usize::from(u16::from_le_bytes(self.state.tbcr));
        let start = (usize::from(self.state.tpsr) * PAGE).checked_sub(MEMORY);
        let frame = start.and_then(|start| self.state.memory.get(start..start + len));
        match frame.filter(|frame| frame.len() <= MAX_FRAME) {
            Some(frame) => {
                if self.state.tcr & LOOPBACK == 0 {
                    self.wire.send(frame);
                }
                self.state.tsr = TSR_PTX;
                self.raise(PTX);
            }
            None => {
                self.state.tsr = TSR_ABT;
                self.raise(TXE);
            }
        }
    }

    fn receive(&mut self) {
        for _ in 0..SHARE {
            let Some(ring) = self.ring().filter(|_| self.is_on()) else { return };
            // Where the next frame goes, and where the driver reads.
            let page = |page: u8| usize::from(page).wrapping_sub(MEMORY / PAGE);
            let (next, read) = (page(self.state.curr), page(self.state.bnry));
            if !ring.contains(&next) {
                return;
            }
            let Some(frame) = self.wire.receive() else { return };
            let Some(status) = self.accepts(&frame) else { continue };
            let need = (HEADER + frame.len() + CHECK_SEQUENCE).div_ceil(PAGE);
            let free = match read.checked_sub(next) {
                Some(free @ 1..) => free,
                _ => ring.len().saturating_sub(next.saturating_sub(read)),
            };
            if need >= free.min(ring.len()) {
                self.wire.keep(frame);
                return;
            }
            self.store(&ring, next, need, &frame, status);
        }
        self.wire.kick();
    }
}

impl Function for Ne2000 {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.update();
    }

    fn io_bar(&self) -> Option<(u16, u16)> {
        self.config.io_bar(0).map(|base| (base, SIZE))
    }

    fn read_io(&mut self, offset: u16, data: &mut [u8]) {
        match offset {
            DATA_PORT..RESET_PORT => self.read_data(data),
            RESET_PORT.. => {
                self.state.isr |= RST;
                data.fill(0);
            }
            _ => {
                for (at, to) in (offset..).zip(data) {
                    *to = self.read_register(at);
                }
            }
        }
    }

    fn write_io(&mut self, offset: u16, data: &[u8]) {
        match offset {
            DATA_PORT..RESET_PORT => self.write_data(data),
            RESET_PORT.. => {}
            _ => {
                for (at, from) in (offset..DATA_PORT).zip(data) {
                    self.write_register(at, *from);
                }
            }
        }
    }
}
