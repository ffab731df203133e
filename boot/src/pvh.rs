//! `hvm_start_info` of the PVH boot protocol (Xen `public/arch-x86/hvm/start_info.h`).

use crate::Ram;
use crate::load::{BootError, Placed};
use arch::layout;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 brought the memory map.
const VERSION: u32 = 1;
const MODULES: u64 = layout::PVH_INFO + 0x40;
const MEMORY_MAP: u64 = layout::PVH_INFO + 0x80;

/// Writes the start info, the module list (the initrd) and the memory map.
pub(crate) fn write(mem: &Ram, placed: &Placed) -> Result<(), BootError> {
    let map: Vec<_> = placed
        .memory_map
        .iter()
        .map(|(addr, size, kind)| hvm_memmap_table_entry {
            addr: *addr,
            size: *size,
            type_: *kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = placed
        .initrd
        .iter()
        .map(|(paddr, size)| hvm_modlist_entry { paddr: *paddr, size: *size, ..Default::default() })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: placed.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut boot = BootParams::new(&info, GuestAddress(layout::PVH_INFO));
    boot.set_sections(&map, GuestAddress(MEMORY_MAP));
    if !modules.is_empty() {
        boot.set_modules(&modules, GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&boot, mem).map_err(|_| BootError::Tables)
}
