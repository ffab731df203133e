//! RTL8139 (Realtek RTL8139C(L) datasheet and RTL8139 Programming Guide),
//! revision 0x10, which Linux's 8139too drives: four frames to send at addresses
//! of the driver's, one ring in memory for those received, and no offloads.
//!
//! | offset | register | |
//! | --- | --- | --- |
//! | 0x00 | `IDR`, `MAR` | address, multicast filter |
//! | 0x10 | `TSD0`–`TSD3`, `TSAD0`–`TSAD3` | frames to send: size and status; address |
//! | 0x30 | `RBSTART` | the ring |
//! | 0x37 | `CR` | reset, receiver and transmitter on, ring empty |
//! | 0x38 | `CAPR`, `CBR` | how far the driver has read less 16; how far the card has written |
//! | 0x3c | `IMR`, `ISR` | interrupts |
//! | 0x40 | `TCR`, `RCR` | transmitter (and version), receiver |
//! | 0x50 | `9346CR`, `CONFIG`… | EEPROM ([`eeprom`]), configuration |
//! | 0x62 | `BMCR`… | the transceiver: 100 Mbit/s, full duplex, always up |
//!
//! The timer's interrupt is not there; its counter is.

mod eeprom;
#[cfg(test)]
mod tests;

use super::{Card, Destination, MAX_FRAME, Place, SHARE, Wire, check_sequence, destination};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::intx::Pin;
use crate::pci::root::Function;
use crate::state::{Saved, StateError};
use crate::virtio::Ram;
use crate::virtio::net::NetBackend;
use eeprom::{Eeprom, WORDS};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

/// Registers.
const SIZE: usize = 256;

const IDR: usize = 0x00;
const MAR: usize = 0x08;
const TSD: usize = 0x10;
const TSAD: usize = 0x20;
const RBSTART: usize = 0x30;
const CR: usize = 0x37;
const CAPR: usize = 0x38;
const CBR: usize = 0x3a;
const IMR: usize = 0x3c;
const ISR: usize = 0x3e;
const TCR: usize = 0x40;
const RCR: usize = 0x44;
const TCTR: usize = 0x48;
const MPC: usize = 0x4c;
const CR9346: usize = 0x50;
const CONFIG0: usize = 0x51;
const CONFIG1: usize = 0x52;
const TIMER_INT: usize = 0x54;
const MSR: usize = 0x58;
const CONFIG3: usize = 0x59;
const CONFIG4: usize = 0x5a;
const HLTCLK: usize = 0x5b;
const MULINT: usize = 0x5c;
const BMCR: usize = 0x62;
const BMSR: usize = 0x64;
const ANAR: usize = 0x66;
const ANLPAR: usize = 0x68;
const CSCR: usize = 0x74;
const CONFIG5: usize = 0xd8;

/// Frames that can be sent at once.
const SLOTS: usize = 4;
/// `TSD`: what the driver writes: size and early threshold.
const TSD_WRITABLE: u32 = 0x003f_1fff;
const TSD_SIZE: u32 = 0x1fff;
/// `TSD`: the frame's data was read; it may be used again.
const OWN: u32 = 1 << 13;
/// `TSD`: sent.
const TOK: u32 = 1 << 15;
/// `TSD`: aborted.
const TABT: u32 = 1 << 30;
/// The largest frame that fits a slot.
const MAX_TRANSMIT: usize = 1792;

/// `CR`.
const RST: u8 = 1 << 4;
const RE: u8 = 1 << 3;
const TE: u8 = 1 << 2;
const BUFE: u8 = 1 << 0;

/// `ISR`, `IMR`.
const ISR_ROK: u16 = 1 << 0;
const ISR_TOK: u16 = 1 << 2;
const ISR_TER: u16 = 1 << 3;
const ISR_ALL: u16 = 0xe07f;

/// `TCR`: the version of an RTL8139C.
const VERSION_8139C: u32 = 0x7400_0000;
const TCR_WRITABLE: u32 = 0x0306_07f1;
/// `TCR`: loopback.
const LOOPBACK: u32 = 3 << 17;

/// `RCR`: all, our address, groups, everyone.
const AAP: u32 = 1 << 0;
const APM: u32 = 1 << 1;
const AM: u32 = 1 << 2;
const AB: u32 = 1 << 3;
/// `RCR`: a frame at the end of the ring goes on behind it.
const WRAP: u32 = 1 << 7;
const RBLEN_SHIFT: u32 = 11;
/// The largest ring, which can't be run past.
const LARGEST: u32 = 64 << 10;

/// Status of a received frame: good, and whom it was for.
const ROK: u16 = 1 << 0;
const BAR: u16 = 1 << 13;
const PAM: u16 = 1 << 14;
const MULTICAST: u16 = 1 << 15;

/// `CAPR` after a reset: the ring is empty.
const CAPR_EMPTY: u16 = 0xfff0;
/// How far `CAPR` is behind what was read.
const CAPR_LAG: u16 = 16;

/// `9346CR`: the mode.
const EEM: u8 = 0xc0;
/// `9346CR`: `CONFIG` registers and the address can be written.
const UNLOCKED: u8 = 0xc0;
/// `9346CR`: the pins are the EEPROM's.
const PROGRAM: u8 = 0x80;

/// `TCTR` counts these a second: the PCI clock.
const CLOCK_HZ: u128 = 33_000_000;

const KIND: &str = "rtl8139";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    registers: Vec<u8>,
    eeprom: Eeprom,
    /// Slots that wait to be sent, and the one whose turn it is.
    ready: [bool; SLOTS],
    turn: usize,
    config: Vec<u8>,
}

/// An RTL8139.
pub struct Rtl8139 {
    config: ConfigSpace,
    pin: Pin,
    mem: Ram,
    wire: Wire,
    words: [u16; WORDS],
    state: State,
    timer: Instant,
}

/// The registers after a reset by `CR`, which leaves the address and the pins.
fn initial() -> Vec<u8> {
    let mut registers = vec![0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| registers[at..at + bytes.len()].copy_from_slice(bytes);
    for slot in 0..SLOTS {
        put(TSD + 4 * slot, &OWN.to_le_bytes());
    }
    put(CAPR, &CAPR_EMPTY.to_le_bytes());
    // Driver loaded; memory and I/O; no link changes.
    put(CONFIG1, &[0x0c]);
    put(CONFIG3, &[0x01]);
    // Speed bit clear: 100 Mbit/s. Link bit clear: up.
    put(MSR, &[0x10]);
    // Autonegotiation on; done, with a partner that can do everything.
    put(BMCR, &0x3100u16.to_le_bytes());
    put(BMSR, &0x782du16.to_le_bytes());
    put(ANAR, &0x05e1u16.to_le_bytes());
    put(ANLPAR, &0x45e1u16.to_le_bytes());
    put(CSCR, &0x03c0u16.to_le_bytes());
    registers
}

impl Rtl8139 {
    /// A card after power-on.
    pub fn new(place: Place, mem: Ram, backend: Box<dyn NetBackend>) -> io::Result<Self> {
        let identity =
            Identity { vendor: 0x10ec, device: 0x8139, class: 0x02_0000, revision: 0x10 };
        let mut config = ConfigSpace::new(identity);
        config.set_io_bar(0, place.ports, SIZE as u16);
        config.set_memory_bar(1, place.memory, SIZE as u32);
        config.set_interrupt(1, place.irq);
        let mut words = [0; WORDS];
        words[..5].copy_from_slice(&[0x8129, 0x10ec, 0x8139, 0x10ec, 0x8139]);
        for (word, pair) in words[7..].iter_mut().zip(place.mac.chunks_exact(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        let mut registers = initial();
        registers[IDR..IDR + 6].copy_from_slice(&place.mac);
        let (eeprom, ready, turn) = (Eeprom::default(), [false; SLOTS], 0);
        let state = State { registers, eeprom, ready, turn, config: Vec::new() };
        let (pin, wire, timer) = (place.pin, Wire::new(backend)?, Instant::now());
        Ok(Self { config, pin, mem, wire, words, state, timer })
    }

    fn word(&self, at: usize) -> u16 {
        let r = &self.state.registers;
        u16::from_le_bytes([r[at], r[at + 1]])
    }

    fn long(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.state.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn reset(&mut self) {
        let kept: Vec<u8> = self.state.registers[IDR..TSD].to_vec();
        self.state.registers = initial();
        self.put(IDR, &kept);
        (self.state.ready, self.state.turn) = ([false; SLOTS], 0);
        self.update();
    }

    fn raise(&mut self, causes: u16) {
        let isr = self.word(ISR) | causes;
        self.put(ISR, &isr.to_le_bytes());
        self.update();
    }

    fn update(&mut self) {
        self.pin.enable(!self.config.interrupt_disabled());
        self.pin.set(self.word(ISR) & self.word(IMR) & ISR_ALL != 0);
    }

    /// Bytes of the ring.
    fn ring(&self) -> u32 {
        (8 << 10) << (self.long(RCR) >> RBLEN_SHIFT & 3)
    }

    /// Bytes of the ring that the driver has not read.
    fn unread(&self) -> u32 {
        let read = u32::from(self.word(CAPR).wrapping_add(CAPR_LAG));
        let written = u32::from(self.word(CBR));
        written.wrapping_sub(read) & (self.ring() - 1)
    }

    fn read_registers(&mut self, offset: usize, data: &mut [u8]) {
        let ticks = (self.timer.elapsed().as_nanos() * CLOCK_HZ / 1_000_000_000) as u32;
        self.put(TCTR, &ticks.to_le_bytes());
        for (at, to) in (offset..).zip(data) {
            let value = self.state.registers.get(at).copied().unwrap_or(0xff);
            *to = match at {
                CR if self.unread() == 0 => value | BUFE,
                CR9346 => value & !eeprom::EEDO | self.state.eeprom.output(),
                _ if at == TCR + 3 => value | (VERSION_8139C >> 24) as u8,
                _ => value,
            };
        }
    }

    /// Which bits of a register can be written.
    fn writable(&self, at: usize) -> u8 {
        let unlocked = self.state.registers[CR9346] & EEM == UNLOCKED;
        let byte = |mask: u32, from: usize| mask.to_le_bytes()[at - from];
        match at {
            IDR..6 if unlocked => 0xff,
            MAR..TSD => 0xff,
            TSD..TSAD => TSD_WRITABLE.to_le_bytes()[at % 4],
            TSAD..0x34 => 0xff,
            CR => RE | TE,
            CAPR..CBR | IMR..ISR => 0xff,
            TCR..RCR => byte(TCR_WRITABLE, TCR),
            RCR..TCTR => 0xff,
            CR9346 => 0xfe,
            TIMER_INT..=0x57 | MULINT..=0x5d => 0xff,
            CONFIG0..=0x53 | CONFIG3 | CONFIG4 | CONFIG5 if unlocked => 0xff,
            HLTCLK => 0xff,
            BMCR..BMSR | ANAR..ANLPAR | CSCR..0x76 => 0xff,
            _ => 0,
        }
    }

    fn write_registers(&mut self, offset: usize, data: &[u8]) {
        let end = (offset + data.len()).min(SIZE);
        let touches = |at: usize| (offset..end).contains(&at);
        let was = self.state.registers[CR];
        for (at, byte) in (offset..end).zip(data) {
            let mask = self.writable(at);
            let register = &mut self.state.registers[at];
            match at {
                // Ones clear.
                ISR | 0x3f => *register &= !byte,
                _ => *register = *register & !mask | byte & mask,
            }
            if at == CR && byte & RST != 0 {
                self.reset();
                return;
            }
        }
        if touches(CR) {
            self.receiver_switched(was);
        }
        if touches(CR9346) && self.state.registers[CR9346] & EEM == PROGRAM {
            self.state.eeprom.write(self.state.registers[CR9346], &self.words);
        }
        if touches(TCTR) {
            self.timer = Instant::now();
        }
        if touches(MPC) {
            self.put(MPC, &[0; 3]);
        }
        if touches(BMCR + 1) {
            // A reset and a new negotiation are over at once.
            self.state.registers[BMCR + 1] &= !0x82;
        }
        for slot in 0..SLOTS {
            // The byte with `OWN`.
            if touches(TSD + 4 * slot + 1) {
                self.state.ready[slot] = true;
                self.wire.kick();
            }
        }
        if touches(CAPR) && self.wire.is_waiting() {
            self.wire.kick();
        }
        self.update();
    }

    fn receiver_switched(&mut self, was: u8) {
        let now = self.state.registers[CR];
        if was & RE == 0 && now & RE != 0 {
            // It begins at the start of the ring.
            self.put(CAPR, &CAPR_EMPTY.to_le_bytes());
            self.put(CBR, &[0; 2]);
        }
        if was & TE == 0 && now & TE != 0 {
            self.state.turn = 0;
        }
        self.wire.kick();
    }

    fn accepts(&self, frame: &[u8]) -> Option<u16> {
        let rcr = self.long(RCR);
        let registers = &self.state.registers;
        let to = destination(frame, &registers[IDR..IDR + 6], &registers[MAR..TSD]);
        let (wanted, status) = match to {
            Destination::Broadcast => (rcr & AB != 0, BAR),
            Destination::Multicast => (rcr & AM != 0, MULTICAST),
            Destination::Us => (rcr & APM != 0, PAM),
            Destination::Other => (false, 0),
        };
        (wanted || rcr & AAP != 0).then_some(ROK | status)
    }

    /// Puts a frame into the ring. What lies outside of memory is lost, as the
    /// bus would lose it.
    fn store(&mut self, frame: &[u8], status: u16, need: u32) {
        debug_assert!(frame.len() <= MAX_FRAME);
        let mut record = Vec::with_capacity(need as usize);
        record.extend(status.to_le_bytes());
        record.extend((frame.len() as u16 + 4).to_le_bytes());
        record.extend(frame);
        record.extend(check_sequence(frame));
        let (ring, start) = (self.ring(), u64::from(self.long(RBSTART)));
        let at = u32::from(self.word(CBR)) & (ring - 1);
        let runs_on = self.long(RCR) & WRAP != 0 && ring < LARGEST;
        let first = if runs_on { record.len() } else { record.len().min((ring - at) as usize) };
        let (head, tail) = record.split_at(first);
        let _ = self.mem.write_slice(head, GuestAddress(start + u64::from(at)));
        let _ = self.mem.write_slice(tail, GuestAddress(start));
        let next = (at + need) & (ring - 1);
        self.put(CBR, &(next as u16).to_le_bytes());
        self.raise(ISR_ROK);
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
        if state.registers.len() != SIZE {
            let reason = format!("{} registers", state.registers.len());
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.config.restore(&state.config);
        self.state = State { config: Vec::new(), ..state };
        self.wire.kick();
        self.update();
        Ok(())
    }
}

impl Card for Rtl8139 {
    fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    fn transmit(&mut self) {
        for _ in 0..SLOTS {
            let slot = self.state.turn % SLOTS;
            let on = self.state.registers[CR] & TE != 0 && self.config.bus_master();
            if !on || !std::mem::take(&mut self.state.ready[slot]) {
                return;
            }
            self.state.turn = (slot + 1) % SLOTS;
            let (at, address) = (TSD + 4 * slot, self.long(TSAD + 4 * slot));
            let status = self.long(at);
            let mut frame = vec![0; (status & TSD_SIZE) as usize];
            let good = frame.len() <= MAX_TRANSMIT
                && self.mem.read_slice(&mut frame, GuestAddress(address.into())).is_ok();
            if good && self.long(TCR) & LOOPBACK == 0 {
                self.wire.send(&frame);
            }
            let end = if good { TOK } else { TABT };
            self.put(at, &(status & TSD_WRITABLE | OWN | end).to_le_bytes());
            self.raise(if good { ISR_TOK } else { ISR_TER });
        }
    }

    fn receive(&mut self) {
        for _ in 0..SHARE {
            if self.state.registers[CR] & RE == 0 || !self.config.bus_master() {
                return;
            }
            let Some(frame) = self.wire.receive() else { return };
            let Some(status) = self.accepts(&frame) else { continue };
            // Header and checksum; the ring is never filled up, or it would look
            // empty.
            let need = (frame.len() as u32 + 8).next_multiple_of(4);
            if self.unread() + need >= self.ring() {
                self.wire.keep(frame);
                return;
            }
            self.store(&frame, status, need);
        }
        self.wire.kick();
    }
}

impl Function for Rtl8139 {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.update();
        self.wire.kick();
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.config.memory_bar(1).map(|base| (base, SIZE as u64))
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        self.read_registers(offset as usize, data);
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        self.write_registers(offset as usize, data);
    }

    fn io_bar(&self) -> Option<(u16, u16)> {
        self.config.io_bar(0).map(|base| (base, SIZE as u16))
    }

    fn read_io(&mut self, offset: u16, data: &mut [u8]) {
        self.read_registers(offset.into(), data);
    }

    fn write_io(&mut self, offset: u16, data: &[u8]) {
        self.write_registers(offset.into(), data);
    }
}
