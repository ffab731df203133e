//! The bzImage's oldest way in (`Documentation/arch/x86/boot.rst`, "The Linux/x86
//! Boot Protocol"): the setup code in real mode asks a BIOS what there is, and
//! switches to protected mode by itself.
//!
//! ```text
//!  0x10000  setup code, header filled in ◄── CS:IP = 0x1020:0, other segments 0x1000
//!  0x1e000  end of its heap and stack
//!  0x20000  command line
//!  0x100000 compressed kernel (code32_start)
//! ```
//!
//! A host whose processor can't run real mode by itself (VT-x without
//! unrestricted guest; `microvm spectrum` tells) has KVM interpret it: slower,
//! otherwise the same.

mod bios;

use crate::Ram;
use crate::bzimage::BzImage;
use crate::load::Placed;
use arch::layout;
use arch::registers::Entry;
use linux_loader::loader::Error as LoaderError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Where the setup code is put.
const SETUP: u64 = 0x10000;
const SETUP_SEGMENT: u16 = (SETUP >> 4) as u16;
/// Its first sector is the old boot sector; code begins behind.
const SETUP_ENTRY: u16 = 0x200;
/// End of heap and stack, from the setup's start.
const HEAP_END: u16 = 0xe000;
/// The most setup code that leaves room for them.
pub(crate) const MAX_SETUP: u64 = 0xb000;

// Fields of the header, from the setup's start.
const VID_MODE: u64 = 0x1fa;
const TYPE_OF_LOADER: u64 = 0x210;
const LOADFLAGS: u64 = 0x211;
const RAMDISK_IMAGE: u64 = 0x218;
const RAMDISK_SIZE: u64 = 0x21c;
const HEAP_END_PTR: u64 = 0x224;
const CMD_LINE_PTR: u64 = 0x228;

const VID_MODE_NORMAL: u16 = 0xffff;
const LOADER_UNDEFINED: u8 = 0xff;
const CAN_USE_HEAP: u8 = 0x80;

/// Why it could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Load(#[from] LoaderError),
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// Puts BIOS, setup code and kernel into memory.
pub(crate) fn load(
    image: &BzImage,
    file: &File,
    mem: &Ram,
    placed: &Placed,
) -> Result<Entry, Error> {
    image.load(file, mem)?;
    let mut setup = vec![0; image.setup_size as usize];
    file.read_exact_at(&mut setup, 0)?;
    mem.write_slice(&setup, GuestAddress(SETUP))?;

    let at = |field: u64| GuestAddress(SETUP + field);
    mem.write_obj(VID_MODE_NORMAL, at(VID_MODE))?;
    mem.write_obj(LOADER_UNDEFINED, at(TYPE_OF_LOADER))?;
    let flags: u8 = mem.read_obj(at(LOADFLAGS))?;
    mem.write_obj(flags | CAN_USE_HEAP, at(LOADFLAGS))?;
    mem.write_obj(HEAP_END - SETUP_ENTRY, at(HEAP_END_PTR))?;
    mem.write_obj(layout::CMDLINE as u32, at(CMD_LINE_PTR))?;
    if let Some((address, size)) = placed.initrd {
        mem.write_obj(address as u32, at(RAMDISK_IMAGE))?;
        mem.write_obj(size as u32, at(RAMDISK_SIZE))?;
    }
    bios::write(mem, &placed.memory_map)?;
    Ok(Entry::Real {
        cs: SETUP_SEGMENT + (SETUP_ENTRY >> 4),
        ip: 0,
        data: SETUP_SEGMENT,
        sp: HEAP_END,
    })
}
