//! A drive: its registers, and where it is in a command.

use super::media::{Failure, Media, Work};
use crate::backend::disk::{Disk, SECTOR};
use crate::bus::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// `Status`: busy.
pub const BSY: u8 = 1 << 7;
/// `Status`: device ready.
pub const DRDY: u8 = 1 << 6;
/// `Status`: seek complete.
pub const DSC: u8 = 1 << 4;
/// `Status`: data request.
pub const DRQ: u8 = 1 << 3;
/// `Status`: error; for a packet device, `CHK`.
pub const ERR: u8 = 1 << 0;
/// A drive that waits for a command.
pub const READY: u8 = DRDY | DSC;

/// `Error`: command aborted.
pub const ABRT: u8 = 1 << 2;
/// `Error`: ID not found: no such sector.
pub const IDNF: u8 = 1 << 4;
/// `Error`: uncorrectable data.
pub const UNC: u8 = 1 << 6;
/// `Error` after a reset: device 0 passed, device 1 passed or is not there.
const DIAGNOSTIC_PASSED: u8 = 1;

/// `Device`: LBA addressing.
pub const LBA: u8 = 1 << 6;
/// `Device`: device 1 is selected.
pub const DEV: u8 = 1 << 4;

/// `Interrupt Reason` of a packet device: the transfer is a command.
pub const COMMAND: u8 = 1 << 0;
/// `Interrupt Reason`: the transfer is to the host.
pub const TO_HOST: u8 = 1 << 1;

/// The signature of a packet device in `LBA Mid` and `LBA High`.
pub const PACKET_SIGNATURE: [u8; 2] = [0x14, 0xeb];
/// Bytes that a data port's buffer holds at most.
pub const MAX_BUFFER: u32 = 128 << 10;
/// Bytes of a sector of a CD.
pub const CD_SECTOR: u32 = 2048;

/// What a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A disk.
    Disk,
    /// A CD-ROM with a disc.
    Cd,
}

/// Registers that a driver writes twice for 48-bit addresses: the last value and
/// the one before.
pub type Twice = [u8; 2];

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The driver's turn.
    Wait,
    /// The driver is interrupted.
    Interrupt,
    /// The image's turn.
    Do(Work),
    /// The same, as soon as the bus master is started.
    Dma(Work),
}

/// Where a drive is in a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No command, or one that the image is busy with.
    #[default]
    Idle,
    /// The driver reads the buffer.
    DataIn,
    /// The driver fills the buffer.
    DataOut,
    /// The driver writes the command packet.
    Packet,
    /// The bus master is to be started.
    Dma(Work),
}

/// What a drive saves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub kind: Kind,
    /// Bytes in the image.
    pub len: u64,
    pub features: Twice,
    pub count: Twice,
    /// `LBA Low`, `LBA Mid`, `LBA High`.
    pub lba: [Twice; 3],
    pub device: u8,
    pub status: u8,
    pub error: u8,
    /// Sectors of a block of READ MULTIPLE; 0: not set.
    pub multiple: u8,
    /// The multiword DMA mode that was chosen.
    pub dma_mode: Option<u8>,
    pub write_cache: bool,
    /// Heads and sectors of a track, for addresses without LBA.
    pub heads: u8,
    pub sectors: u8,
    pub phase: Phase,
    pub buffer: Vec<u8>,
    /// Bytes of the buffer that were moved.
    pub position: usize,
    /// Where the next interrupt is.
    pub block_end: usize,
    /// Bytes from one interrupt to the next.
    pub block: usize,
    /// The rest of the command: first byte, and bytes.
    pub at: u64,
    pub left: u64,
    /// Whether the packet's data goes by DMA.
    pub packet_dma: bool,
    /// Sense key, additional sense code and qualifier.
    pub sense: [u8; 3],
}

/// A drive.
pub struct Unit {
    pub(super) media: Arc<Mutex<Media>>,
    pub(super) serial: String,
    /// Whether it offers DMA.
    pub(super) dma: bool,
    pub(super) read_only: bool,
    pub(super) state: State,
    counts: Counts,
}

/// What a drive has done since it was made.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    flushes: u64,
    bytes_read: u64,
    bytes_written: u64,
    errors: u64,
}

impl Unit {
    /// A drive of an image. A disk without `dma` has its data moved by the
    /// processor.
    pub fn new(kind: Kind, disk: Box<dyn Disk>, serial: String, dma: bool) -> Self {
        let media = Media::new(disk);
        let state = State {
            kind,
            len: media.len(),
            features: [0; 2],
            count: [0; 2],
            lba: [[0; 2]; 3],
            device: 0,
            status: 0,
            error: 0,
            multiple: 0,
            dma_mode: None,
            write_cache: true,
            heads: super::identify::HEADS,
            sectors: super::identify::SECTORS,
            phase: Phase::Idle,
            buffer: Vec::new(),
            position: 0,
            block_end: 0,
            block: 0,
            at: 0,
            left: 0,
            packet_dma: false,
            sense: [0; 3],
        };
        let read_only = media.read_only();
        let (media, counts) = (Arc::new(Mutex::new(media)), Counts::default());
        let mut unit = Self { media, serial, dma, read_only, state, counts };
        unit.reset();
        unit
    }

    /// Sectors of a disk.
    pub(super) fn sectors(&self) -> u64 {
        self.state.len / SECTOR
    }

    /// The state after power-on, a software reset or DEVICE RESET: the signature
    /// is in the registers (ATA/ATAPI-7, 5.2 volume 2).
    pub(super) fn reset(&mut self) {
        self.forget();
        let s = &mut self.state;
        s.error = DIAGNOSTIC_PASSED;
        s.device &= DEV;
        s.sense = [0; 3];
        self.sign();
        self.state.status = match self.state.kind {
            Kind::Disk => READY,
            Kind::Cd => 0,
        };
    }

    /// Ends whatever data is being moved.
    pub(super) fn forget(&mut self) {
        let s = &mut self.state;
        s.phase = Phase::Idle;
        s.buffer.clear();
        (s.position, s.block_end, s.left) = (0, 0, 0);
    }

    /// Puts the signature into the registers.
    pub(super) fn sign(&mut self) {
        let [middle, high] = match self.state.kind {
            Kind::Disk => [0, 0],
            Kind::Cd => PACKET_SIGNATURE,
        };
        self.state.count = [1, 0];
        self.state.lba = [[1, 0], [middle, 0], [high, 0]];
    }

    /// Waits until nobody uses the image for this drive any more.
    pub(super) fn wait_for_media(&self) {
        drop(lock(&self.media));
    }

    /// Begins a command.
    pub(super) fn command(&mut self, command: u8) -> Next {
        self.forget();
        self.state.error = 0;
        self.state.status = READY;
        match self.state.kind {
            Kind::Disk => self.disk_command(command),
            Kind::Cd => self.packet_device_command(command),
        }
    }

    /// Ends a command well.
    pub(super) fn done(&mut self) -> Next {
        self.state.phase = Phase::Idle;
        self.state.status = READY;
        if self.state.kind == Kind::Cd {
            self.state.count[0] = COMMAND | TO_HOST;
        }
        Next::Interrupt
    }

    /// Ends a command with an error.
    pub(super) fn fail(&mut self, error: u8) -> Next {
        self.forget();
        self.state.status = READY | ERR;
        self.state.error = error;
        Next::Interrupt
    }

    /// Has the image do something.
    pub(super) fn work(&mut self, work: Work) -> Next {
        self.state.phase = Phase::Idle;
        self.state.status = BSY;
        Next::Do(work)
    }

    /// The same through the bus master.
    pub(super) fn dma(&mut self, work: Work) -> Next {
        self.state.phase = Phase::Dma(work);
        self.state.status = BSY;
        Next::Dma(work)
    }

    /// Offers the buffer to the driver, in blocks.
    pub(super) fn offer(&mut self, block: usize) -> Next {
        let s = &mut self.state;
        if s.buffer.is_empty() {
            return self.done();
        }
        (s.phase, s.position, s.block) = (Phase::DataIn, 0, block.max(2));
        self.next_block();
        Next::Interrupt
    }

    /// Asks the driver for all that the buffer has room for.
    pub(super) fn ask(&mut self, len: u32, block: usize) {
        let s = &mut self.state;
        s.buffer.clear();
        s.buffer.resize(len as usize, 0);
        (s.phase, s.position, s.block) = (Phase::DataOut, 0, block.max(2));
        self.next_block();
    }

    fn next_block(&mut self) {
        let s = &mut self.state;
        s.block_end = s.buffer.len().min(s.position + s.block);
        s.status = READY | DRQ;
        if s.kind == Kind::Cd {
            let [low, high, ..] = ((s.block_end - s.position) as u32).to_le_bytes();
            (s.lba[1][0], s.lba[2][0]) = (low, high);
            s.count[0] = match s.phase {
                Phase::Packet => COMMAND,
                _ => TO_HOST,
            };
        }
    }

    /// The driver reads the data port.
    pub(super) fn read_data(&mut self, data: &mut [u8]) -> Next {
        let s = &mut self.state;
        if s.phase != Phase::DataIn {
            return Next::Wait;
        }
        let block = s.buffer.get(s.position..s.block_end).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(block) {
            *to = *from;
        }
        s.position += data.len().min(block.len());
        if s.position < s.block_end {
            return Next::Wait;
        }
        if s.position < s.buffer.len() {
            self.next_block();
            return Next::Interrupt;
        }
        if s.left > 0 {
            return self.fill();
        }
        let end = self.done();
        // A disk's last interrupt was for its last block.
        if self.state.kind == Kind::Disk { Next::Wait } else { end }
    }

    /// Has the buffer filled with the next part of the command.
    pub(super) fn fill(&mut self) -> Next {
        let (at, len) = self.take(MAX_BUFFER);
        self.work(Work::Fill { at, len })
    }

    /// Takes at most `most` bytes off the rest of the command.
    pub(super) fn take(&mut self, most: u32) -> (u64, u32) {
        let s = &mut self.state;
        let (at, len) = (s.at, s.left.min(most.into()));
        (s.at, s.left) = (at.saturating_add(len), s.left - len);
        (at, len as u32)
    }

    /// The driver writes the data port.
    pub(super) fn write_data(&mut self, data: &[u8]) -> Next {
        let s = &mut self.state;
        if !matches!(s.phase, Phase::DataOut | Phase::Packet) {
            return Next::Wait;
        }
        let block = s.buffer.get_mut(s.position..s.block_end).unwrap_or_default();
        for (to, from) in block.iter_mut().zip(data) {
            *to = *from;
        }
        s.position += data.len().min(block.len());
        if s.position < s.block_end {
            return Next::Wait;
        }
        if s.phase == Phase::Packet {
            return self.packet();
        }
        if s.position < s.buffer.len() {
            self.next_block();
            return Next::Interrupt;
        }
        let len = s.buffer.len() as u64;
        let at = s.at;
        (s.at, s.left) = (at.saturating_add(len), s.left.saturating_sub(len));
        self.work(Work::Store { at })
    }

    /// Asks for a command packet.
    pub(super) fn ask_packet(&mut self, len: usize) {
        self.ask(len as u32, len);
        self.state.phase = Phase::Packet;
        self.state.count[0] = COMMAND;
    }

    /// The image is done.
    pub(super) fn finish(&mut self, work: Work, result: Result<(), Failure>) -> Next {
        self.count(work, result.is_ok());
        if let Err(failure) = result {
            return match self.state.kind {
                Kind::Disk => self.fail(match (work, failure) {
                    (Work::Fill { .. } | Work::Read { .. }, Failure::Image(_)) => UNC,
                    _ => ABRT,
                }),
                Kind::Cd => self.medium_error(),
            };
        }
        match work {
            Work::Fill { .. } => self.offer(self.state.block),
            Work::Store { .. } if self.state.left > 0 => {
                let len = self.state.left.min(MAX_BUFFER.into()) as u32;
                self.ask(len, self.state.block);
                Next::Interrupt
            }
            _ => self.done(),
        }
    }
}

impl Unit {
    /// Requests of the image, by the names that other disks have for them.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        vec![
            ("reads", counts.reads),
            ("writes", counts.writes),
            ("flushes", counts.flushes),
            ("bytes_read", counts.bytes_read),
            ("bytes_written", counts.bytes_written),
            ("errors", counts.errors),
        ]
    }

    fn count(&mut self, work: Work, done: bool) {
        let counts = &mut self.counts;
        let (requests, bytes, len) = match work {
            Work::Fill { len, .. } | Work::Read { len, .. } => {
                (&mut counts.reads, &mut counts.bytes_read, len.into())
            }
            Work::Write { len, .. } => (&mut counts.writes, &mut counts.bytes_written, len.into()),
            Work::Store { .. } => {
                let len = self.state.buffer.len() as u64;
                (&mut counts.writes, &mut counts.bytes_written, len)
            }
            Work::Flush => (&mut counts.flushes, &mut counts.bytes_written, 0),
            // From memory, of what is no data of the image.
            Work::Send => return,
        };
        *requests += 1;
        if done {
            *bytes += len;
        } else {
            counts.errors += 1;
        }
    }

    /// Whether a saved state is one of this drive, and consistent.
    pub(super) fn fits(&self, state: &State) -> bool {
        let phase = match state.phase {
            Phase::Dma(work) => self.holds(work, state.buffer.len()),
            _ => true,
        };
        state.kind == self.state.kind
            && state.len == self.state.len
            && state.buffer.len() <= MAX_BUFFER as usize
            && state.position <= state.block_end
            && state.block_end <= state.buffer.len()
            && state.at.checked_add(state.left).is_some_and(|end| end <= state.len)
            && state.heads > 0
            && state.sectors > 0
            && phase
    }

    /// Whether work with a buffer of `buffer` bytes stays inside of the image.
    pub(super) fn holds(&self, work: Work, buffer: usize) -> bool {
        let (at, len) = match work {
            Work::Fill { at, len } if len <= MAX_BUFFER => (at, len),
            Work::Read { at, len } => (at, len),
            Work::Write { at, len } if !self.read_only => (at, len),
            Work::Store { at } if !self.read_only => (at, buffer as u32),
            Work::Send | Work::Flush => (0, 0),
            _ => return false,
        };
        at.checked_add(len.into()).is_some_and(|end| end <= self.state.len)
    }
}
