//! What a drive tells of itself: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE
//! (ATA/ATAPI-7 volume 1, 6.17 and 6.18), 256 words each.

use super::unit::{Kind, Unit};

/// Heads and sectors of a track that a disk claims to have.
pub const HEADS: u8 = 16;
pub const SECTORS: u8 = 63;
/// The most sectors that a block of READ MULTIPLE has.
pub const MAX_MULTIPLE: u8 = 16;
/// Sectors that a 28-bit address reaches.
const MAX_LBA28: u64 = 0x0fff_ffff;
/// The highest number of cylinders (word 1).
const MAX_CYLINDERS: u64 = 16383;

const MODEL_DISK: &str = "MICROVM DISK";
const MODEL_CD: &str = "MICROVM CD-ROM";
const FIRMWARE: &str = "1.0";

/// The 512 bytes of the answer.
pub fn identify(unit: &Unit) -> Vec<u8> {
    let mut words = [0u16; 256];
    match unit.state.kind {
        Kind::Disk => disk(unit, &mut words),
        Kind::Cd => cd(unit, &mut words),
    }
    text(&mut words[10..20], &unit.serial);
    text(&mut words[23..27], FIRMWARE);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// ASCII, padded with spaces, the first character of each word in its upper half.
fn text(words: &mut [u16], text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        let pair = [bytes.next(), bytes.next()].map(|byte| byte.unwrap_or(b' '));
        *word = u16::from_be_bytes(pair);
    }
}

/// Puts a number of several words down, the lowest first.
fn number(words: &mut [u16], number: u64) {
    for (i, word) in words.iter_mut().enumerate() {
        *word = (number >> (16 * i)) as u16;
    }
}

/// Word 63: multiword DMA modes 0 to 2, and which is chosen.
fn multiword_dma(unit: &Unit) -> u16 {
    if !unit.dma {
        return 0;
    }
    0x0007 | unit.state.dma_mode.map_or(0, |mode| 0x100 << mode)
}

fn disk(unit: &Unit, words: &mut [u16; 256]) {
    let sectors = unit.sectors();
    let per_cylinder = u64::from(HEADS) * u64::from(SECTORS);
    let cylinders = (sectors / per_cylinder).min(MAX_CYLINDERS);
    words[0] = 0x0040; // fixed
    (words[1], words[3], words[6]) = (cylinders as u16, HEADS.into(), SECTORS.into());
    text(&mut words[27..47], MODEL_DISK);
    words[47] = 0x8000 | u16::from(MAX_MULTIPLE);
    words[49] = 0x0a00 | u16::from(unit.dma) << 8; // IORDY, LBA, DMA
    words[50] = 0x4000;
    words[53] = 0x0007; // words 54 to 58, 64 to 70 and 88 hold
    let (heads, per_track) = (u64::from(unit.state.heads), u64::from(unit.state.sectors));
    let current = (sectors / (heads * per_track)).min(MAX_CYLINDERS);
    (words[54], words[55], words[56]) = (current as u16, heads as u16, per_track as u16);
    number(&mut words[57..59], current * heads * per_track);
    if unit.state.multiple > 0 {
        words[59] = 0x0100 | u16::from(unit.state.multiple);
    }
    number(&mut words[60..62], sectors.min(MAX_LBA28));
    words[63] = multiword_dma(unit);
    words[64] = 0x0003; // PIO modes 3 and 4
    words[65..69].fill(120); // nanoseconds of a cycle
    words[80] = 0x00f0; // ATA-4 to ATA/ATAPI-7
    let cache = u16::from(unit.state.write_cache) << 5;
    // Write cache; FLUSH CACHE (EXT), 48-bit addresses. No host protected area.
    (words[82], words[83], words[84]) = (0x0020, 0x7400, 0x4000);
    (words[85], words[86], words[87]) = (cache, 0x3400, 0x4000);
    words[93] = 0x6001; // reset was passed; a cable of 80 wires
    number(&mut words[100..104], sectors);
}

fn cd(unit: &Unit, words: &mut [u16; 256]) {
    words[0] = 0x8580; // ATAPI, a CD-ROM, removable, packets of 12 bytes
    text(&mut words[27..47], MODEL_CD);
    words[49] = 0x0a00 | u16::from(unit.dma) << 8;
    words[50] = 0x4000;
    words[53] = 0x0006;
    words[63] = multiword_dma(unit);
    words[64] = 0x0003;
    words[65..69].fill(120);
    words[80] = 0x00f0;
    // PACKET and DEVICE RESET.
    (words[82], words[83], words[84]) = (0x0210, 0x4000, 0x4000);
    (words[85], words[86], words[87]) = (0x0210, 0, 0x4000);
    words[93] = 0x6001;
}
