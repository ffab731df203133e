//! bzImage (`Documentation/arch/x86/boot.rst`): the compressed kernel that
//! distributions ship. The guest unpacks itself; we place it and enter at its
//! 64-bit entry point.

use crate::Ram;
use crate::kernel::{CMDLINE_LIMIT, ImageError, field};
use arch::layout;
use linux_loader::bootparam::setup_header;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use std::fs::File;
use vm_memory::GuestAddress;

/// Protocol 2.12 brought `xloadflags`, with Linux 3.8.
const MIN_VERSION: u64 = 0x020c;
/// Bytes of a paragraph.
const PARAGRAPH: u64 = 16;
const LOADED_HIGH: u64 = 1;
/// `XLF_KERNEL_64`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u64 = 1;
/// The 64-bit entry point, from the start of the loaded part.
const ENTRY_64: u64 = 0x200;

/// A checked bzImage.
#[derive(Debug)]
pub struct BzImage {
    /// Boot sector and setup code: the part that runs in real mode.
    pub(crate) setup_size: u64,
    cmdline_size: u64,
    pref_address: u64,
    init_size: u64,
    /// The highest address at which the initrd may end, less one.
    pub initrd_addr_max: u64,
}

impl BzImage {
    /// Checks the setup header of a file of `len` bytes that starts with `head`.
    pub(crate) fn parse(head: &[u8], len: u64) -> Result<Self, ImageError> {
        if field::<2>(head, 0x206) < MIN_VERSION {
            return Err(ImageError::Header("a bzImage older than boot protocol 2.12 (Linux 3.8)"));
        }
        if field::<1>(head, 0x211) & LOADED_HIGH == 0 {
            return Err(ImageError::Header("a zImage: give a bzImage"));
        }
        if field::<2>(head, 0x236) & XLF_KERNEL_64 == 0 {
            return Err(ImageError::Architecture("32-bit x86".to_owned()));
        }
        let setup_sects = match field::<1>(head, 0x1f1) {
            0 => 4,
            n => n,
        };
        let setup_size = (setup_sects + 1) * 512;
        // The header counts in paragraphs, and the last one need not be whole.
        let need = setup_size + field::<4>(head, 0x1f4) * PARAGRAPH;
        if need >= len.saturating_add(PARAGRAPH) {
            return Err(ImageError::Truncated { what: "the compressed kernel", need, have: len });
        }
        Ok(Self {
            setup_size,
            cmdline_size: field::<4>(head, 0x238),
            pref_address: field::<8>(head, 0x258),
            init_size: field::<4>(head, 0x260),
            initrd_addr_max: field::<4>(head, 0x22c),
        })
    }

    /// The longest command line, without its NUL.
    pub fn cmdline_limit(&self) -> usize {
        (self.cmdline_size as usize).min(CMDLINE_LIMIT)
    }

    /// Where the unpacked kernel ends: it needs this much contiguous memory.
    pub fn end(&self) -> u64 {
        self.pref_address.max(layout::HIGH_RAM).saturating_add(self.init_size)
    }

    /// Puts the compressed kernel at 1 MiB; returns the entry point and the
    /// header to hand over in the zero page.
    pub(crate) fn load(
        &self,
        mut file: &File,
        mem: &Ram,
    ) -> Result<(u64, setup_header), LoaderError> {
        let start = GuestAddress(layout::HIGH_RAM);
        let result = linux_loader::loader::BzImage::load(mem, Some(start), &mut file, Some(start))?;
        let header = result.setup_header.unwrap_or_default();
        Ok((result.kernel_load.0 + ENTRY_64, header))
    }
}
