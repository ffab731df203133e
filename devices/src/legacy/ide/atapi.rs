//! The commands of a CD-ROM: those of a packet device (ATA/ATAPI-7 volume 1, 6),
//! and in packets of 12 bytes those of MMC-3 and SPC-3 that a system needs to
//! read a disc.

use super::disk::SET_FEATURES;
use super::media::Work;
use super::unit::{ABRT, CD_SECTOR, ERR, Kind, Next, READY, Unit};

const NOP: u8 = 0x00;
const PACKET: u8 = 0xa0;
const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
const STANDBY_IMMEDIATE: u8 = 0xe0;
const IDLE_IMMEDIATE: u8 = 0xe1;
const CHECK_POWER_MODE: u8 = 0xe5;
const FLUSH_CACHE: u8 = 0xe7;
const READ_SECTORS: u8 = 0x20;
const IDENTIFY_DEVICE: u8 = 0xec;

/// `Features` of PACKET: the data goes by DMA.
const DMA: u8 = 1 << 0;
/// Bytes of a packet.
pub const PACKET_SIZE: usize = 12;
/// The byte count that stands for one that is missing or too large.
const MAX_BYTE_COUNT: u16 = 0xfffe;

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const START_STOP_UNIT: u8 = 0x1b;
const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
const SEEK_10: u8 = 0x2b;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT_STATUS: u8 = 0x4a;
const MODE_SENSE_10: u8 = 0x5a;
const READ_12: u8 = 0xa8;
const SET_CD_SPEED: u8 = 0xbb;

/// Sense keys and codes (SPC-3, 4.5.6).
const MEDIUM_ERROR: [u8; 3] = [0x03, 0x11, 0x00];
const INVALID_COMMAND: [u8; 3] = [0x05, 0x20, 0x00];
const NO_SUCH_BLOCK: [u8; 3] = [0x05, 0x21, 0x00];
const INVALID_FIELD: [u8; 3] = [0x05, 0x24, 0x00];

/// The lead-out track.
const LEAD_OUT: u8 = 0xaa;
/// A track of data that may not be copied digitally.
const DATA_TRACK: u8 = 0x14;
/// Blocks of a second, and those before block 0.
const FRAMES: u32 = 75;
const PREGAP: u32 = 150;
/// Bytes beyond which a disc is a DVD.
const CD_BYTES: u64 = 900 << 20;

fn be16(bytes: &[u8]) -> usize {
    bytes.iter().take(2).fold(0, |n, b| n << 8 | usize::from(*b))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b))
}

impl Unit {
    pub(super) fn packet_device_command(&mut self, command: u8) -> Next {
        match command {
            PACKET => {
                self.state.packet_dma = self.state.features[0] & DMA != 0;
                let [low, high] = [self.state.lba[1][0], self.state.lba[2][0]];
                let limit = match u16::from_le_bytes([low, high]) & !1 {
                    0 => MAX_BYTE_COUNT,
                    limit => limit,
                };
                self.ask_packet(PACKET_SIZE);
                // Kept for the data; the packet itself is one block.
                self.state.block = limit.into();
                Next::Wait
            }
            IDENTIFY_PACKET_DEVICE => self.tell_identity(),
            SET_FEATURES => self.set_features(),
            STANDBY_IMMEDIATE | IDLE_IMMEDIATE | CHECK_POWER_MODE | FLUSH_CACHE => {
                self.state.count[0] = 0xff;
                self.state.status = READY;
                Next::Interrupt
            }
            // Says by its signature that it is no disk (6.16).
            IDENTIFY_DEVICE | READ_SECTORS => {
                self.sign();
                self.fail(ABRT)
            }
            NOP => self.fail(ABRT),
            _ => self.fail(ABRT),
        }
    }

    /// The packet has come.
    pub(super) fn packet(&mut self) -> Next {
        let mut packet = [0; PACKET_SIZE];
        for (to, from) in packet.iter_mut().zip(&self.state.buffer) {
            *to = *from;
        }
        self.forget();
        if packet[0] != REQUEST_SENSE {
            self.state.sense = [0; 3];
        }
        match packet[0] {
            TEST_UNIT_READY
            | START_STOP_UNIT
            | PREVENT_ALLOW_MEDIUM_REMOVAL
            | SEEK_10
            | SET_CD_SPEED => self.done(),
            REQUEST_SENSE => {
                let sense = self.sense_data();
                self.state.sense = [0; 3];
                self.answer(sense, packet[4].into())
            }
            INQUIRY if packet[1] & 1 == 0 => self.answer(inquiry(), be16(&packet[3..])),
            READ_CAPACITY => {
                let last = self.blocks().saturating_sub(1);
                let answer = [last.to_be_bytes(), CD_SECTOR.to_be_bytes()].concat();
                self.answer(answer, 8)
            }
            READ_10 => self.read_blocks(be32(&packet[2..]), be16(&packet[7..]) as u32),
            READ_12 => self.read_blocks(be32(&packet[2..]), be32(&packet[6..])),
            READ_TOC => self.read_toc(&packet),
            GET_CONFIGURATION => {
                let answer = self.configuration(packet[1] & 3, be16(&packet[2..]) as u16);
                self.answer(answer, be16(&packet[7..]))
            }
            GET_EVENT_STATUS if packet[1] & 1 != 0 => {
                self.answer(event_status(packet[4]), be16(&packet[7..]))
            }
            MODE_SENSE_10 => match mode_sense(packet[2] & 0x3f) {
                Some(answer) => self.answer(answer, be16(&packet[7..])),
                None => self.check_condition(INVALID_FIELD),
            },
            INQUIRY | GET_EVENT_STATUS => self.check_condition(INVALID_FIELD),
            _ => self.check_condition(INVALID_COMMAND),
        }
    }

    fn blocks(&self) -> u32 {
        u32::try_from(self.state.len / u64::from(CD_SECTOR)).unwrap_or(u32::MAX)
    }

    /// Ends a packet with an error that REQUEST SENSE tells more of.
    fn check_condition(&mut self, sense: [u8; 3]) -> Next {
        debug_assert_eq!(self.state.kind, Kind::Cd);
        self.state.sense = sense;
        self.done();
        self.state.status = READY | ERR;
        self.state.error = sense[0] << 4 | ABRT;
        Next::Interrupt
    }

    /// The image can't be read.
    pub(super) fn medium_error(&mut self) -> Next {
        self.forget();
        self.check_condition(MEDIUM_ERROR)
    }

    /// Sends at most `room` bytes of an answer.
    fn answer(&mut self, mut answer: Vec<u8>, room: usize) -> Next {
        answer.truncate(room);
        self.state.buffer = answer;
        if self.state.buffer.is_empty() {
            self.done()
        } else if self.state.packet_dma && self.dma {
            self.dma(Work::Send)
        } else {
            self.offer(self.state.block)
        }
    }

    fn read_blocks(&mut self, block: u32, count: u32) -> Next {
        let fits = block.checked_add(count).is_some_and(|end| end <= self.blocks());
        // As many as READ(10) can ask for: nobody asks for more at once.
        if !fits || count > u16::MAX.into() {
            return self.check_condition(NO_SUCH_BLOCK);
        }
        if count == 0 {
            return self.done();
        }
        let (at, len) = (u64::from(block) * u64::from(CD_SECTOR), count * CD_SECTOR);
        if self.state.packet_dma && self.dma {
            return self.dma(Work::Read { at, len });
        }
        (self.state.at, self.state.left) = (at, len.into());
        self.fill()
    }

    /// One session with one track of data (MMC-3, 5.25).
    fn read_toc(&mut self, packet: &[u8; PACKET_SIZE]) -> Next {
        let time = packet[1] & 2 != 0;
        let format = if packet[2] & 0x0f != 0 { packet[2] & 0x0f } else { packet[9] >> 6 };
        let first = packet[6];
        let address = |block: u32| match time {
            false => block.to_be_bytes(),
            true => {
                let frame = block.saturating_add(PREGAP);
                let minute = (frame / FRAMES / 60).min(255) as u8;
                [0, minute, (frame / FRAMES % 60) as u8, (frame % FRAMES) as u8]
            }
        };
        let descriptor = |track, block| [&[0, DATA_TRACK, track, 0][..], &address(block)].concat();
        let mut body = vec![1, 1];
        match format {
            0 if first <= 1 => {
                body.extend(descriptor(1, 0));
                body.extend(descriptor(LEAD_OUT, self.blocks()));
            }
            0 if first == LEAD_OUT => body.extend(descriptor(LEAD_OUT, self.blocks())),
            1 => body.extend(descriptor(1, 0)),
            _ => return self.check_condition(INVALID_FIELD),
        }
        let answer = [&(body.len() as u16).to_be_bytes()[..], &body].concat();
        self.answer(answer, be16(&packet[7..]))
    }

    /// Features of the drive and the disc (MMC-3, 5.2): those from `first` on.
    fn configuration(&self, wanted: u8, first: u16) -> Vec<u8> {
        const CD_ROM: u16 = 0x0008;
        const DVD_ROM: u16 = 0x0010;
        let current = if self.state.len > CD_BYTES { DVD_ROM } else { CD_ROM };
        let profile =
            |number: u16| [&number.to_be_bytes()[..], &[u8::from(number == current), 0]].concat();
        let features: [(u16, u8, Vec<u8>); 4] = [
            // Profile list; core (ATAPI); removable medium (a tray);
            // random readable (blocks of 2048 bytes).
            (0x0000, 0x03, [profile(DVD_ROM), profile(CD_ROM)].concat()),
            (0x0001, 0x0b, vec![0, 0, 0, 2, 1, 0, 0, 0]),
            (0x0003, 0x03, vec![0x29, 0, 0, 0]),
            (0x0010, 0x01, [&CD_SECTOR.to_be_bytes()[..], &[0, 1, 1, 0]].concat()),
        ];
        let mut body = vec![0, 0];
        body.extend(current.to_be_bytes());
        for (code, flags, data) in features {
            let listed = match wanted {
                2 => code == first,
                _ => code >= first,
            };
            if listed {
                body.extend(code.to_be_bytes());
                body.extend([flags, data.len() as u8]);
                body.extend(data);
            }
        }
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    /// Fixed format (SPC-3, 4.5.3).
    fn sense_data(&self) -> Vec<u8> {
        let [key, code, qualifier] = self.state.sense;
        let mut data = vec![0; 18];
        (data[0], data[2], data[7]) = (0x70, key, 10);
        (data[12], data[13]) = (code, qualifier);
        data
    }
}

fn inquiry() -> Vec<u8> {
    // A CD-ROM, removable, ATAPI.
    let mut data = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
    data.extend(b"MICROVM CD-ROM          1.0 ");
    data
}

/// Events of the medium, which never changes (MMC-3, 5.6).
fn event_status(classes: u8) -> Vec<u8> {
    const MEDIA: u8 = 4;
    const MEDIA_PRESENT: u8 = 0x02;
    match classes & 1 << MEDIA != 0 {
        true => vec![0, 6, MEDIA, 1 << MEDIA, 0, MEDIA_PRESENT, 0, 0],
        false => vec![0, 2, 0x80, 1 << MEDIA],
    }
}

/// Pages of MODE SENSE (MMC-3, 6.3): error recovery, and capabilities.
fn mode_sense(page: u8) -> Option<Vec<u8>> {
    const RECOVERY: [u8; 8] = [0x01, 6, 0, 5, 0, 0, 0, 0];
    // Locks, opens a tray; reads at 706 KB/s.
    const CAPABILITIES: [u8; 22] =
        [0x2a, 20, 0, 0, 0x00, 0, 0x29, 0, 2, 0xc2, 0, 2, 2, 0, 2, 0xc2, 0, 0, 0, 0, 0, 0];
    let pages = match page {
        0x01 => RECOVERY.to_vec(),
        0x2a => CAPABILITIES.to_vec(),
        0x3f => [&RECOVERY[..], &CAPABILITIES].concat(),
        _ => return None,
    };
    let mut data = vec![0; 8];
    let len = (pages.len() + 6) as u16;
    data[..2].copy_from_slice(&len.to_be_bytes());
    data.extend(pages);
    Some(data)
}
