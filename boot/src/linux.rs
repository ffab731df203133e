//! The zero page (`Documentation/arch/x86/zero-page.rst`) of the 64-bit boot
//! protocol.

use crate::Ram;
use crate::load::{BootError, Placed};
use arch::layout;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use vm_memory::GuestAddress;

/// A boot loader without an assigned ID.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the zero page; `header` is the bzImage's own, or made up for a vmlinux.
pub(crate) fn write(
    mem: &Ram,
    header: Option<setup_header>,
    placed: &Placed,
) -> Result<(), BootError> {
    let mut params =
        boot_params { hdr: header.unwrap_or_else(vmlinux_header), ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some((address, size)) = placed.initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = placed.rsdp;
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(&placed.memory_map) {
        *slot = boot_e820_entry { addr: *addr, size: *size, r#type: *kind as u32 };
        params.e820_entries += 1;
    }
    let boot = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&boot, mem).map_err(|_| BootError::Tables)
}

/// The fields that `startup_64` and the early kernel look at.
fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x020c,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}
