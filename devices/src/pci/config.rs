//! A type 0 configuration space: registers, what of them is writable, and a
//! list of capabilities (PCI 3.0, chapter 6).

/// Bytes in a configuration space.
pub const SIZE: usize = 256;
/// `Command`: memory space enable, bus master enable, interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// `Command`: memory space enable.
const MEMORY_SPACE: u8 = 1 << 1;
/// `Status`: there is a capabilities list.
const CAPABILITIES_LIST: u8 = 1 << 4;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Who a function says that it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// `Vendor ID`.
    pub vendor: u16,
    /// `Device ID`.
    pub device: u16,
    /// `Class Code`: base class, sub-class, programming interface.
    pub class: u32,
    /// `Revision ID`.
    pub revision: u8,
}

/// The registers of one function.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    next: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        let Identity { vendor, device, class, revision } = identity;
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        space.put(REVISION, &(class << 8 | u32::from(revision)).to_le_bytes());
        space.put(SUBSYSTEM, &vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &device.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        // The interrupt line is a note of the software to itself.
        space.writable[0x3c] = 0xff;
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes BAR 0 a window of `size` bytes (a power of two, at least 16) of
    /// 32-bit memory at `base`.
    pub fn set_bar0(&mut self, base: u32, size: u32) {
        self.put(BAR0, &base.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability: `id`, and `body` behind the link, of which `writable`
    /// may be written. Returns where it starts; `None` when there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<usize> {
        let at = self.next;
        let end = at + 2 + body.len();
        if end > SIZE {
            return None;
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        for (i, mask) in writable.iter().enumerate().take(body.len()) {
            self.writable[at + 2 + i] = *mask;
        }
        self.bytes[self.last_link] = at as u8;
        self.bytes[STATUS] |= CAPABILITIES_LIST;
        self.last_link = at + 1;
        self.next = end.next_multiple_of(4);
        Some(at)
    }

    /// Reads registers; what is past the end is all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, to) in data.iter_mut().enumerate() {
            *to = self.bytes.get(offset + i).copied().unwrap_or(0xff);
        }
    }

    /// Writes what is writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, from) in data.iter().enumerate() {
            if let Some(mask) = self.writable.get(offset + i) {
                let byte = &mut self.bytes[offset + i];
                *byte = *byte & !mask | from & mask;
            }
        }
    }

    /// Where BAR 0 is decoded, if memory space is enabled and it has a place.
    pub fn bar0(&self) -> Option<u64> {
        let word = |at: usize| {
            self.bytes[at..at + 4]
                .iter()
                .rev()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
        };
        let base = u64::from(word(BAR0) & !0xf);
        (self.bytes[COMMAND] & MEMORY_SPACE != 0 && base != 0).then_some(base)
    }

    /// All registers, for a saved state.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over what is writable of saved registers.
    pub fn restore(&mut self, bytes: &[u8]) {
        self.write(0, bytes.get(..SIZE).unwrap_or(bytes));
    }
}
