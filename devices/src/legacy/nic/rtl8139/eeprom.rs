//! The 93C46 behind `9346CR`: 64 words, read a bit at a time (Microwire).

use serde::{Deserialize, Serialize};

/// Words of it.
pub const WORDS: usize = 64;

/// `9346CR` pins.
pub const EEDO: u8 = 1 << 0;
const EEDI: u8 = 1 << 1;
const EESK: u8 = 1 << 2;
const EECS: u8 = 1 << 3;

/// Bits of a command: start, two of the operation, six of the address.
const COMMAND_BITS: u8 = 9;
const READ: u16 = 0b10;

/// Its pins and where it is in a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eeprom {
    clock: bool,
    /// Bits of the command so far; none before the start bit.
    command: u16,
    bits: u8,
    /// The word that is being read, and how many of its bits are left.
    word: u16,
    left: u8,
    output: bool,
}

impl Eeprom {
    /// The driver sets the pins.
    pub fn write(&mut self, pins: u8, words: &[u16; WORDS]) {
        let clock = pins & EESK != 0;
        let rises = clock && !self.clock;
        self.clock = clock;
        if pins & EECS == 0 {
            *self = Self { clock, ..Self::default() };
        } else if rises {
            self.shift(pins & EEDI != 0, words);
        }
    }

    fn shift(&mut self, bit: bool, words: &[u16; WORDS]) {
        if self.bits == COMMAND_BITS {
            self.left = self.left.saturating_sub(1);
            self.output = self.word >> (self.left % 16) & 1 != 0;
            return;
        }
        if self.bits == 0 && !bit {
            return;
        }
        self.command = self.command << 1 | u16::from(bit);
        self.bits += 1;
        if self.bits == COMMAND_BITS {
            let (operation, address) = (self.command >> 6 & 3, usize::from(self.command & 0x3f));
            // Nothing can be written: other operations read as ones.
            let word = words.get(address).filter(|_| operation == READ);
            (self.word, self.left) = (word.copied().unwrap_or(u16::MAX), 16);
            self.output = operation != READ;
        }
    }

    /// The output pin.
    pub fn output(&self) -> u8 {
        if self.output { EEDO } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's `read_eeprom` in 8139too.c.
    fn read(eeprom: &mut Eeprom, words: &[u16; WORDS], address: u16, bits: u8) -> u16 {
        let command = address | 6 << bits;
        eeprom.write(0, words);
        eeprom.write(EECS, words);
        for i in (0..=4 + bits).rev() {
            let data = if command >> i & 1 != 0 { EEDI } else { 0 };
            eeprom.write(EECS | data, words);
            eeprom.write(EECS | data | EESK, words);
        }
        eeprom.write(EECS, words);
        let mut value = 0;
        for _ in 0..16 {
            eeprom.write(EECS | EESK, words);
            value = value << 1 | u16::from(eeprom.output());
            eeprom.write(EECS, words);
        }
        eeprom.write(0, words);
        value
    }

    #[test]
    fn words_are_read_as_linux_reads_them() {
        let mut words = [0; WORDS];
        (words[0], words[7], words[63]) = (0x8129, 0x1234, 0xfedc);
        let mut eeprom = Eeprom::default();
        assert_ne!(read(&mut eeprom, &words, 0, 8), 0x8129, "it is not one of 8 address bits");
        for (address, value) in [(0, 0x8129), (7, 0x1234), (63, 0xfedc), (1, 0)] {
            assert_eq!(read(&mut eeprom, &words, address, 6), value);
        }
    }
}
