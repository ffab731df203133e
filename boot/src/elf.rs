//! Uncompressed ELF kernels (vmlinux): System V ABI, chapters 4 and 5, and the
//! Xen note that carries the PVH entry point (Xen `public/elfnote.h`).

use crate::Ram;
use crate::kernel::{ImageError, Inspect, field};
use arch::layout;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const EHDR_SIZE: usize = 64;
const PHDR_SIZE: u64 = 56;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u64 = 18;
/// A kernel has fewer than ten program headers and a few hundred bytes of notes.
const MAX_PHDRS: u64 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// A part of the file that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Where it goes in guest memory.
    pub address: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; what is over is zero.
    pub memory_size: u64,
}

/// A checked ELF kernel.
#[derive(Debug)]
pub struct Elf {
    /// The 64-bit entry point.
    pub entry: u64,
    /// The 32-bit PVH entry point, if the kernel has one.
    pub pvh_entry: Option<u32>,
    /// What is loaded.
    pub segments: Vec<Segment>,
}

impl Elf {
    /// Checks the headers of a file of `len` bytes that starts with `head`.
    pub(crate) fn parse(file: &File, head: &[u8], len: u64) -> Result<Self, Inspect> {
        if head.len() < EHDR_SIZE {
            return Err(truncated("the ELF header", EHDR_SIZE as u64, len).into());
        }
        if head[5] != ELFDATA2LSB {
            return Err(ImageError::Architecture("a big-endian machine".to_owned()).into());
        }
        let machine = field::<2>(head, 18);
        if machine != EM_X86_64 || head[4] != ELFCLASS64 {
            return Err(ImageError::Architecture(machine_name(machine, head[4])).into());
        }
        let (phoff, phentsize, phnum) =
            (field::<8>(head, 32), field::<2>(head, 54), field::<2>(head, 56));
        if phentsize != PHDR_SIZE || phnum == 0 || phnum > MAX_PHDRS {
            return Err(
                ImageError::Header("its ELF program headers make no sense: not a vmlinux").into()
            );
        }
        let table_len = phnum * PHDR_SIZE;
        inside("the program headers", phoff, table_len, len)?;
        let mut table = vec![0; table_len as usize];
        file.read_exact_at(&mut table, phoff)?;

        let mut elf = Self { entry: field::<8>(head, 24), pvh_entry: None, segments: Vec::new() };
        for header in table.chunks_exact(PHDR_SIZE as usize) {
            elf.header(file, header, len)?;
        }
        elf.check()?;
        Ok(elf)
    }

    fn header(&mut self, file: &File, header: &[u8], len: u64) -> Result<(), Inspect> {
        let (offset, file_size) = (field::<8>(header, 8), field::<8>(header, 32));
        match field::<4>(header, 0) {
            PT_LOAD => {
                inside("a segment", offset, file_size, len)?;
                self.segments.push(Segment {
                    offset,
                    address: field::<8>(header, 24),
                    file_size,
                    memory_size: field::<8>(header, 40),
                });
            }
            // Several note segments may follow each other: the first entry wins.
            PT_NOTE if self.pvh_entry.is_none() && file_size <= MAX_NOTES => {
                inside("a note", offset, file_size, len)?;
                let mut notes = vec![0; file_size as usize];
                file.read_exact_at(&mut notes, offset)?;
                self.pvh_entry = find_pvh_entry(&notes);
            }
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ImageError> {
        for s in &self.segments {
            if s.memory_size < s.file_size || s.address.checked_add(s.memory_size).is_none() {
                return Err(ImageError::Header("an ELF segment has an impossible size"));
            }
            if s.memory_size > 0 && s.address < layout::HIGH_RAM {
                return Err(ImageError::Header(
                    "an ELF segment lies below 1 MiB, where the monitor's own tables are",
                ));
            }
        }
        let entry = self.pvh_entry.map_or(self.entry, u64::from);
        let holds = |s: &Segment| (s.address..s.address + s.memory_size).contains(&entry);
        if !self.segments.iter().any(holds) {
            return Err(ImageError::Header("the ELF entry point is in no segment: not a kernel"));
        }
        Ok(())
    }

    /// Where the last segment ends in memory.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address + s.memory_size).max().unwrap_or(0)
    }

    /// Puts the segments in place; guest memory is zero already, so the tail of
    /// a segment needs no work.
    pub(crate) fn load(&self, file: &File, mem: &Ram) -> Result<(), GuestMemoryError> {
        for s in self.segments.iter().filter(|s| s.file_size > 0) {
            (&*file).seek(SeekFrom::Start(s.offset)).map_err(GuestMemoryError::IOError)?;
            let size = s.file_size as usize;
            mem.read_exact_volatile_from(GuestAddress(s.address), &mut &*file, size)?;
        }
        Ok(())
    }
}

fn truncated(what: &'static str, need: u64, have: u64) -> ImageError {
    ImageError::Truncated { what, need, have }
}

fn inside(what: &'static str, offset: u64, size: u64, len: u64) -> Result<(), ImageError> {
    match offset.checked_add(size) {
        Some(end) if end <= len => Ok(()),
        end => Err(truncated(what, end.unwrap_or(u64::MAX), len)),
    }
}

fn machine_name(machine: u64, class: u8) -> String {
    match machine {
        3 => "32-bit x86".to_owned(),
        EM_X86_64 if class != ELFCLASS64 => "x32".to_owned(),
        40 => "32-bit Arm".to_owned(),
        183 => "AArch64".to_owned(),
        243 => "RISC-V".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

/// Walks a note segment (name and descriptor padded to 4 bytes) for Xen's
/// `PHYS32_ENTRY`, a 4- or 8-byte address below 4 GiB.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u32> {
    while notes.len() >= 12 {
        let (name_len, desc_len) = (field::<4>(notes, 0) as usize, field::<4>(notes, 4) as usize);
        let desc_at = 12 + name_len.checked_next_multiple_of(4)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        let name = notes.get(12..12 + name_len)?;
        if field::<4>(notes, 8) == PHYS32_ENTRY && name == b"Xen\0" {
            return match desc_len {
                4 => u32::try_from(field::<4>(desc, 0)).ok(),
                8 => u32::try_from(field::<8>(desc, 0)).ok(),
                _ => None,
            };
        }
        notes = notes.get(desc_at + desc_len.checked_next_multiple_of(4)?..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut n = Vec::new();
        n.extend((name.len() as u32).to_le_bytes());
        n.extend((desc.len() as u32).to_le_bytes());
        n.extend(kind.to_le_bytes());
        for part in [name, desc] {
            n.extend(part);
            n.resize(n.len().next_multiple_of(4), 0);
        }
        n
    }

    #[test]
    fn the_pvh_note_is_found_among_others() {
        let entry = 0x100_0000u32.to_le_bytes();
        let notes =
            [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 5, b"x"), note(b"Xen\0", 18, &entry)]
                .concat();
        assert_eq!(find_pvh_entry(&notes), Some(0x100_0000));
        assert_eq!(find_pvh_entry(&notes[..notes.len() - 1]), None);
        assert_eq!(find_pvh_entry(&note(b"Xen\0", 18, &u64::MAX.to_le_bytes())), None);
    }

    proptest! {
        #[test]
        fn no_note_segment_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = find_pvh_entry(&bytes);
        }
    }
}
