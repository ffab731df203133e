//! A BIOS of less than a kilobyte, for kernels that are entered in real mode.
//!
//! ```text
//!  0x00000  interrupt vectors ─┐           0x9fc00  EBDA: its size
//!  0x00400  BIOS data area     │           0xff000  the code (bios.s), memory map in it
//!                              └─────────►          at its end the reset vector and date
//! ```
//!
//! There is no self test: the monitor writes what one would leave behind. The
//! code lies in RAM, and a guest that breaks it breaks only itself.

use crate::Ram;
use arch::layout::{self, MemoryKind};
use core::arch::global_asm;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

global_asm!(
    ".pushsection .rodata.bios16, \"a\", @progbits",
    ".code16",
    include_str!("bios.s"),
    ".globl microvm_bios16_begin",
    ".hidden microvm_bios16_begin",
    ".set microvm_bios16_begin, bios_begin",
    ".globl microvm_bios16_end",
    ".hidden microvm_bios16_end",
    ".set microvm_bios16_end, bios_end",
    ".code64",
    ".popsection",
    options(att_syntax)
);

/// The segment that it runs in, up to 1 MiB.
const SEGMENT: u16 = 0xff00;
const BASE: u64 = (SEGMENT as u64) << 4;
const SIZE: usize = 0x1000;
/// Where the processor starts after a reset, from the segment's start.
const RESET_VECTOR: usize = 0xff0;
/// Behind it, the BIOS's date and the model byte of a PC AT.
const DATE: &[u8] = b"11/25/26";
const MODEL_AT: u8 = 0xfc;

/// What `bios.s` lists at its beginning.
#[derive(Clone, Copy)]
enum Symbol {
    Nothing,
    Timer,
    IrqMaster,
    IrqSlave,
    Int10,
    Int11,
    Int12,
    Int13,
    Int15,
    Int16,
    Reset,
    Int1a,
    Memory,
}

/// The most entries of the memory map that there is room for.
const MAX_ENTRIES: usize = 16;
const ENTRY: usize = 20;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The BIOS data area (IBM PC AT Technical Reference, section 5).
const BDA: u64 = 0x400;
const BDA_SIZE: usize = 0x100;

fn code() -> &'static [u8] {
    unsafe extern "C" {
        #[link_name = "microvm_bios16_begin"]
        static BEGIN: u8;
        #[link_name = "microvm_bios16_end"]
        static END: u8;
    }
    // SAFETY: both symbols are in one section, in this order; nothing writes it.
    unsafe {
        let len = (&raw const END).offset_from(&raw const BEGIN) as usize;
        std::slice::from_raw_parts(&raw const BEGIN, len)
    }
}

fn offset(symbol: Symbol) -> u16 {
    let at = symbol as usize * 2;
    u16::from_le_bytes([code()[at], code()[at + 1]])
}

/// Writes the BIOS with everything that it would have set up, for a machine
/// with this memory map.
pub(super) fn write(mem: &Ram, map: &[(u64, u64, MemoryKind)]) -> Result<(), GuestMemoryError> {
    mem.write_slice(&image(map), GuestAddress(BASE))?;
    mem.write_slice(&vectors(), GuestAddress(0))?;
    mem.write_slice(&data_area(), GuestAddress(BDA))?;
    // The extended data area begins with its own size in KiB.
    mem.write_obj(1u8, GuestAddress(layout::EBDA))
}

/// The segment's 4 KiB.
fn image(map: &[(u64, u64, MemoryKind)]) -> Vec<u8> {
    let mut image = code().to_vec();
    image.resize(SIZE, 0);
    let memory = memory(map);
    let at = usize::from(offset(Symbol::Memory));
    image[at..at + memory.len()].copy_from_slice(&memory);
    let [low, high] = offset(Symbol::Reset).to_le_bytes();
    let [segment_low, segment_high] = SEGMENT.to_le_bytes();
    // A far jump.
    let jump = [0xea, low, high, segment_low, segment_high];
    image[RESET_VECTOR..RESET_VECTOR + jump.len()].copy_from_slice(&jump);
    let date = RESET_VECTOR + jump.len();
    image[date..date + DATE.len()].copy_from_slice(DATE);
    image[SIZE - 2] = MODEL_AT;
    image
}

/// What `bios.s` has at `memory`.
fn memory(map: &[(u64, u64, MemoryKind)]) -> Vec<u8> {
    // RAM that goes on from 1 MiB.
    let extended = map
        .iter()
        .find(|(base, _, kind)| *base == layout::HIGH_RAM && *kind == MemoryKind::Ram)
        .map_or(0, |(_, size, _)| *size);
    let below_16 = extended.min(15 * MIB);
    let above_16 = (extended - below_16) / (64 * KIB);
    let ah_88 = (extended / KIB).min(63 * KIB);
    let entries = &map[..map.len().min(MAX_ENTRIES)];
    let mut bytes = Vec::with_capacity(8 + entries.len() * ENTRY);
    for word in [ah_88, below_16 / KIB, above_16, entries.len() as u64] {
        bytes.extend((word as u16).to_le_bytes());
    }
    for (base, size, kind) in entries {
        bytes.extend(base.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend((*kind as u32).to_le_bytes());
    }
    bytes
}

/// All 256 interrupt vectors.
fn vectors() -> Vec<u8> {
    let handler = |vector: u8| match vector {
        0x08 => Symbol::Timer,
        0x09..=0x0f => Symbol::IrqMaster,
        0x10 => Symbol::Int10,
        0x11 => Symbol::Int11,
        0x12 => Symbol::Int12,
        0x13 => Symbol::Int13,
        0x15 => Symbol::Int15,
        0x16 => Symbol::Int16,
        0x18 | 0x19 => Symbol::Reset,
        0x1a => Symbol::Int1a,
        0x70..=0x77 => Symbol::IrqSlave,
        _ => Symbol::Nothing,
    };
    (0..=255)
        .flat_map(|vector| {
            let pointer = u32::from(SEGMENT) << 16 | u32::from(offset(handler(vector)));
            pointer.to_le_bytes()
        })
        .collect()
}

/// A PC with a coprocessor, one serial port, no disk, no keyboard's keys, and an
/// 80-column text mode that nobody sees.
fn data_area() -> [u8; BDA_SIZE] {
    let mut area = [0; BDA_SIZE];
    let mut word = |at: usize, value: u16| {
        area[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    const FPU: u16 = 1 << 1;
    const COLOUR_80: u16 = 2 << 4;
    const ONE_SERIAL: u16 = 1 << 9;
    word(0x00, layout::COM1);
    word(0x0e, (layout::EBDA >> 4) as u16);
    word(0x10, FPU | COLOUR_80 | ONE_SERIAL);
    word(0x13, (layout::EBDA / KIB) as u16);
    // The keyboard's buffer, empty.
    for at in [0x1a, 0x1c, 0x80] {
        word(at, 0x1e);
    }
    word(0x82, 0x3e);
    word(0x4a, 80);
    word(0x4c, 0x1000);
    word(0x63, 0x3d4);
    word(0x85, 16);
    area[0x49] = 3;
    area[0x84] = 24;
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_and_every_symbol_is_in_it() {
        let code = code();
        assert!(code.len() <= RESET_VECTOR, "{} bytes", code.len());
        assert!(code.len() < 1024, "{} bytes", code.len());
        for vector in vectors().chunks_exact(4) {
            let (offset, segment) = (
                u16::from_le_bytes([vector[0], vector[1]]),
                u16::from_le_bytes([vector[2], vector[3]]),
            );
            assert_eq!(segment, SEGMENT);
            assert!(offset >= 26 && offset < super::offset(Symbol::Memory), "{offset:#x}");
        }
        let room = code.len() - usize::from(offset(Symbol::Memory));
        assert_eq!(room, 8 + MAX_ENTRIES * ENTRY);
    }

    #[test]
    fn memory_is_told_in_every_form() {
        let words = |size: u64| {
            let bytes = memory(&layout::memory_map(size));
            let word = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            (word(0), word(2), word(4), word(6))
        };
        assert_eq!(words(32 << 20), (31 << 10, 15 << 10, 256, 4));
        assert_eq!(words(256 << 20), (63 << 10, 15 << 10, 240 << 4, 4));
        assert_eq!(words(8 << 30), (63 << 10, 15 << 10, (3 * 1024 - 16) << 4, 5));
    }

    #[test]
    fn it_is_all_in_its_place() {
        let mem = Ram::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&mem, &layout::memory_map(64 << 20)).unwrap();
        let byte = |at: u64| mem.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!((byte(0xf_fff0), byte(0xf_fffe)), (0xea, MODEL_AT));
        assert_eq!(byte(layout::EBDA), 1);
        assert_eq!((byte(0x410), byte(0x411)), (0x22, 0x02));
        let vector: u32 = mem.read_obj(GuestAddress(0x10 * 4)).unwrap();
        // The handler begins with cmp ah, 0x0e.
        let handler = u64::from(vector >> 16 << 4) + u64::from(vector & 0xffff);
        assert_eq!((byte(handler), byte(handler + 1), byte(handler + 2)), (0x80, 0xfc, 0x0e));
    }
}
