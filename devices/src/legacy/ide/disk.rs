//! The commands of a disk (ATA/ATAPI-7 volume 1, 6).

use super::identify::{self, MAX_MULTIPLE};
use super::media::Work;
use super::unit::{ABRT, IDNF, LBA, MAX_BUFFER, Next, Unit};
use crate::backend::disk::SECTOR;

const RECALIBRATE: u8 = 0x10;
const READ_SECTORS: u8 = 0x20;
const READ_SECTORS_NO_RETRY: u8 = 0x21;
const READ_SECTORS_EXT: u8 = 0x24;
const READ_DMA_EXT: u8 = 0x25;
const READ_MULTIPLE_EXT: u8 = 0x29;
const WRITE_SECTORS: u8 = 0x30;
const WRITE_SECTORS_NO_RETRY: u8 = 0x31;
const WRITE_SECTORS_EXT: u8 = 0x34;
const WRITE_DMA_EXT: u8 = 0x35;
const WRITE_MULTIPLE_EXT: u8 = 0x39;
const READ_VERIFY: u8 = 0x40;
const READ_VERIFY_NO_RETRY: u8 = 0x41;
const READ_VERIFY_EXT: u8 = 0x42;
const SEEK: u8 = 0x70;
const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
const READ_MULTIPLE: u8 = 0xc4;
const WRITE_MULTIPLE: u8 = 0xc5;
const SET_MULTIPLE_MODE: u8 = 0xc6;
const READ_DMA: u8 = 0xc8;
const READ_DMA_NO_RETRY: u8 = 0xc9;
const WRITE_DMA: u8 = 0xca;
const WRITE_DMA_NO_RETRY: u8 = 0xcb;
const STANDBY_IMMEDIATE: u8 = 0xe0;
const IDLE_IMMEDIATE: u8 = 0xe1;
const STANDBY: u8 = 0xe2;
const IDLE: u8 = 0xe3;
const CHECK_POWER_MODE: u8 = 0xe5;
const SLEEP: u8 = 0xe6;
const FLUSH_CACHE: u8 = 0xe7;
const FLUSH_CACHE_EXT: u8 = 0xea;
const IDENTIFY_DEVICE: u8 = 0xec;
pub const SET_FEATURES: u8 = 0xef;

/// CHECK POWER MODE: active or idle.
const ACTIVE: u8 = 0xff;

// Subcommands of SET FEATURES (6.49).
const ENABLE_WRITE_CACHE: u8 = 0x02;
const SET_TRANSFER_MODE: u8 = 0x03;
const DISABLE_LOOK_AHEAD: u8 = 0x55;
const DISABLE_DEFAULTS: u8 = 0x66;
const DISABLE_WRITE_CACHE: u8 = 0x82;
const ENABLE_LOOK_AHEAD: u8 = 0xaa;
const ENABLE_DEFAULTS: u8 = 0xcc;

/// How many sectors a count of 0 means.
const ALL_28: u32 = 0x100;
const ALL_48: u32 = 0x1_0000;

/// How a command tells its address.
#[derive(Clone, Copy, PartialEq)]
enum Address {
    /// 28 bits, or cylinder, head and sector.
    Short,
    /// 48 bits.
    Long,
}

impl Unit {
    pub(super) fn disk_command(&mut self, command: u8) -> Next {
        use Address::{Long, Short};
        let multiple = usize::from(self.state.multiple);
        match command {
            READ_SECTORS | READ_SECTORS_NO_RETRY => self.read(Short, 1),
            READ_SECTORS_EXT => self.read(Long, 1),
            READ_MULTIPLE if multiple > 0 => self.read(Short, multiple),
            READ_MULTIPLE_EXT if multiple > 0 => self.read(Long, multiple),
            READ_DMA | READ_DMA_NO_RETRY => self.read_dma(Short),
            READ_DMA_EXT => self.read_dma(Long),
            WRITE_SECTORS | WRITE_SECTORS_NO_RETRY => self.write(Short, 1),
            WRITE_SECTORS_EXT => self.write(Long, 1),
            WRITE_MULTIPLE if multiple > 0 => self.write(Short, multiple),
            WRITE_MULTIPLE_EXT if multiple > 0 => self.write(Long, multiple),
            WRITE_DMA | WRITE_DMA_NO_RETRY => self.write_dma(Short),
            WRITE_DMA_EXT => self.write_dma(Long),
            READ_VERIFY | READ_VERIFY_NO_RETRY => self.verify(Short),
            READ_VERIFY_EXT => self.verify(Long),
            FLUSH_CACHE | FLUSH_CACHE_EXT => self.work(Work::Flush),
            IDENTIFY_DEVICE => self.tell_identity(),
            SET_FEATURES => self.set_features(),
            SET_MULTIPLE_MODE => self.set_multiple(),
            INITIALIZE_DEVICE_PARAMETERS => self.set_geometry(),
            CHECK_POWER_MODE => {
                self.state.count[0] = ACTIVE;
                self.done()
            }
            RECALIBRATE | SEEK | STANDBY_IMMEDIATE | IDLE_IMMEDIATE | STANDBY | IDLE | SLEEP => {
                self.done()
            }
            _ => self.fail(ABRT),
        }
    }

    /// IDENTIFY DEVICE or IDENTIFY PACKET DEVICE.
    pub(super) fn tell_identity(&mut self) -> Next {
        self.state.buffer = identify::identify(self);
        self.state.left = 0;
        self.offer(SECTOR as usize)
    }

    /// The first byte and the length of a transfer, if the disk has it all.
    fn range(&self, address: Address) -> Option<(u64, u32)> {
        let s = &self.state;
        let [low, middle, high] = s.lba.map(|twice| u64::from(twice[0]));
        let old = s.lba.map(|twice| u64::from(twice[1]));
        let (lba, count) = match address {
            Address::Long => {
                let lba = old[2] << 40 | old[1] << 32 | old[0] << 24;
                let count = u32::from(s.count[1]) << 8 | u32::from(s.count[0]);
                (lba | high << 16 | middle << 8 | low, if count == 0 { ALL_48 } else { count })
            }
            Address::Short => {
                let (head, count) = (u64::from(s.device & 0x0f), u32::from(s.count[0]));
                let lba = match s.device & LBA != 0 {
                    true => head << 24 | high << 16 | middle << 8 | low,
                    false => {
                        let track = (high << 8 | middle) * u64::from(s.heads) + head;
                        (track * u64::from(s.sectors) + low).checked_sub(1)?
                    }
                };
                (lba, if count == 0 { ALL_28 } else { count })
            }
        };
        (lba + u64::from(count) <= self.sectors()).then(|| (lba * SECTOR, count * SECTOR as u32))
    }

    fn read(&mut self, address: Address, block: usize) -> Next {
        let Some((at, len)) = self.range(address) else { return self.fail(IDNF) };
        (self.state.at, self.state.left) = (at, len.into());
        self.state.block = block * SECTOR as usize;
        self.fill()
    }

    fn write(&mut self, address: Address, block: usize) -> Next {
        let Some((at, len)) = self.range(address) else { return self.fail(IDNF) };
        if self.read_only {
            return self.fail(ABRT);
        }
        (self.state.at, self.state.left) = (at, len.into());
        // The first block is asked for without an interrupt (5.10 volume 2).
        self.ask(len.min(MAX_BUFFER), block * SECTOR as usize);
        Next::Wait
    }

    fn read_dma(&mut self, address: Address) -> Next {
        match self.range(address) {
            _ if !self.dma => self.fail(ABRT),
            Some((at, len)) => self.dma(Work::Read { at, len }),
            None => self.fail(IDNF),
        }
    }

    fn write_dma(&mut self, address: Address) -> Next {
        match self.range(address) {
            _ if !self.dma || self.read_only => self.fail(ABRT),
            Some((at, len)) => self.dma(Work::Write { at, len }),
            None => self.fail(IDNF),
        }
    }

    fn verify(&mut self, address: Address) -> Next {
        match self.range(address) {
            Some(_) => self.done(),
            None => self.fail(IDNF),
        }
    }

    pub(super) fn set_features(&mut self) -> Next {
        match self.state.features[0] {
            ENABLE_WRITE_CACHE => self.state.write_cache = true,
            // What is in the cache must be written before it is off.
            DISABLE_WRITE_CACHE => {
                self.state.write_cache = false;
                return self.work(Work::Flush);
            }
            SET_TRANSFER_MODE => return self.set_transfer_mode(),
            DISABLE_LOOK_AHEAD | ENABLE_LOOK_AHEAD | DISABLE_DEFAULTS | ENABLE_DEFAULTS => {}
            _ => return self.fail(ABRT),
        }
        self.done()
    }

    fn set_transfer_mode(&mut self) -> Next {
        // The mode's kind is in the upper five bits.
        match (self.state.count[0] >> 3, self.state.count[0] & 7) {
            (0, 0 | 1) | (1, 0..=4) => {}
            (4, mode @ 0..=2) if self.dma => self.state.dma_mode = Some(mode),
            _ => return self.fail(ABRT),
        }
        self.done()
    }

    fn set_multiple(&mut self) -> Next {
        let count = self.state.count[0];
        if count > MAX_MULTIPLE || (count != 0 && !count.is_power_of_two()) {
            return self.fail(ABRT);
        }
        self.state.multiple = count;
        self.done()
    }

    fn set_geometry(&mut self) -> Next {
        let (heads, sectors) = ((self.state.device & 0x0f) + 1, self.state.count[0]);
        if sectors == 0 {
            return self.fail(ABRT);
        }
        (self.state.heads, self.state.sectors) = (heads, sectors);
        self.done()
    }
}
