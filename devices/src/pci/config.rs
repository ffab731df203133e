//! A type 0 configuration space: registers, what of them is writable, and a
//! list of capabilities (PCI 3.0, chapter 6).

/// Bytes in a configuration space.
pub const SIZE: usize = 256;
/// `Command`: memory space enable, bus master enable, interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// `Command`: I/O space enable.
const IO_SPACE: u8 = 1 << 0;
/// `Command`: memory space enable.
const MEMORY_SPACE: u8 = 1 << 1;
/// `Command`: bus master enable.
const BUS_MASTER: u8 = 1 << 2;
/// `Command`, upper byte: interrupt disable.
const INTERRUPT_DISABLE: u8 = 1 << 2;
/// `Status`: there is a capabilities list.
const CAPABILITIES_LIST: u8 = 1 << 4;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// `Header Type`: the device has more than one function.
const MULTI_FUNCTION: u8 = 1 << 7;
/// The I/O space indicator of a BAR.
const IO_BAR: u8 = 1;

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
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes BAR 0 a window of `size` bytes (a power of two, at least 16) of
    /// 32-bit memory at `base`.
    pub fn set_bar0(&mut self, base: u32, size: u32) {
        self.set_memory_bar(0, base, size);
    }

    /// Makes BAR `index` a window of `size` bytes (a power of two, at least 16)
    /// of 32-bit memory at `base`.
    pub fn set_memory_bar(&mut self, index: usize, base: u32, size: u32) {
        let at = BAR0 + 4 * index;
        self.put(at, &base.to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Makes BAR `index` a window of `size` ports (a power of two, 4 to 256) at
    /// `base`.
    pub fn set_io_bar(&mut self, index: usize, base: u16, size: u16) {
        let at = BAR0 + 4 * index;
        self.put(at, &[0, 0, 0, 0]);
        self.put(at, &base.to_le_bytes());
        self.bytes[at] |= IO_BAR;
        // Firmware finds the size out with all 32 bits, though there are no ports
        // above 65,535.
        self.writable[at..at + 4].copy_from_slice(&(!(u32::from(size) - 1)).to_le_bytes());
        self.writable[COMMAND] |= IO_SPACE;
    }

    /// Says that an interrupt pin (1: INTA# … 4: INTD#) is used, and which line
    /// it is routed to.
    pub fn set_interrupt(&mut self, pin: u8, line: u8) {
        self.put(INTERRUPT_LINE, &[line, pin]);
        debug_assert_eq!(INTERRUPT_PIN, INTERRUPT_LINE + 1);
    }

    /// Says that this is one function of several.
    pub fn set_multi_function(&mut self) {
        self.bytes[HEADER_TYPE] |= MULTI_FUNCTION;
    }

    /// Says whom the card is from, where that is not the chip's maker.
    pub fn set_subsystem(&mut self, vendor: u16, device: u16) {
        self.put(SUBSYSTEM, &vendor.to_le_bytes());
        self.put(SUBSYSTEM + 2, &device.to_le_bytes());
    }

    /// Registers of the function's own: what they hold, and which bits of each
    /// can be written.
    pub fn set_registers(&mut self, at: usize, bytes: &[u8], writable: &[u8]) {
        self.put(at, bytes);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    /// Lets the driver turn decoding of ports and bus mastering on, and has both
    /// on already, as firmware leaves them.
    pub fn enable(&mut self) {
        self.bytes[COMMAND] |= (IO_SPACE | MEMORY_SPACE | BUS_MASTER) & self.writable[COMMAND];
    }

    /// One register.
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0xff)
    }

    /// Whether the function may read and write memory.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0
    }

    /// Whether its interrupt pin is off.
    pub fn interrupt_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & INTERRUPT_DISABLE != 0
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
        self.memory_bar(0)
    }

    /// Where the memory BAR `index` is decoded, if memory space is enabled and it
    /// has a place.
    pub fn memory_bar(&self, index: usize) -> Option<u64> {
        let base = u64::from(self.bar(index) & !0xf);
        (self.bytes[COMMAND] & MEMORY_SPACE != 0 && base != 0).then_some(base)
    }

    /// Where the I/O BAR `index` is decoded, if I/O space is enabled.
    pub fn io_bar(&self, index: usize) -> Option<u16> {
        let on = self.bytes[COMMAND] & IO_SPACE != 0;
        on.then(|| u16::try_from(self.bar(index) & !3).ok()).flatten()
    }

    fn bar(&self, index: usize) -> u32 {
        let at = BAR0 + 4 * index;
        let bytes = self.bytes.get(at..at + 4).unwrap_or_default();
        bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
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
