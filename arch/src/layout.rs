//! The guest's physical memory map. This table is the documentation.
//!
//! | from | to | what |
//! | --- | --- | --- |
//! | `0x0000_0500` | `0x0000_0520` | GDT ([`GDT`]) |
//! | `0x0000_6000` | `0x0000_7000` | PVH `hvm_start_info`, its module and memory map ([`PVH_INFO`]) |
//! | `0x0000_7000` | `0x0000_8000` | Linux zero page, `boot_params` ([`ZERO_PAGE`]) |
//! | `0x0000_8ff0` | | initial stack pointer ([`BOOT_STACK`]) |
//! | `0x0000_9000` | `0x0000_f000` | boot page tables: PML4, PDPT, 4 × PD ([`PML4`]) |
//! | `0x0002_0000` | `0x0003_0000` | kernel command line ([`CMDLINE`]) |
//! | `0x0009_fc00` | `0x000a_0000` | EBDA, reserved |
//! | `0x000a_0000` | `0x0010_0000` | RAM that no table promises: legacy hole |
//! | `0x000e_0000` | `0x000f_0000` | ACPI: RSDP first, tables behind it ([`ACPI`]) |
//! | `0x000f_0000` | `0x0010_0000` | MP table ([`MP_TABLE`]) |
//! | `0x0010_0000` | 3 GiB | RAM: kernel, initrd at the top |
//! | `0xd000_0000` | `0xd001_0000` | virtio-mmio, 4 KiB a device ([`VIRTIO_MMIO`]) |
//! | `0xd010_0000` | `0xd020_0000` | memory window of the PCI bus ([`PCI_WINDOW`]) |
//! | `0xe000_0000` | `0xfec0_0000` | the same, where firmware has placed it ([`PCI_FIRMWARE_WINDOW`]) |
//! | `0xfec0_0000` | | IOAPIC ([`IOAPIC`]) |
//! | `0xfee0_0000` | | local APIC ([`LOCAL_APIC`]) |
//! | `0xfffb_c000` | `0xfffc_0000` | KVM's own pages on VMX ([`IDENTITY_MAP`], [`TSS`]) |
//! | `0xfffc_0000` | 4 GiB | firmware, where there is any |
//! | 4 GiB | … | the rest of RAM |

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// PVH start of day: `hvm_start_info`, one module entry and the memory map.
pub const PVH_INFO: u64 = 0x6000;
/// Linux's `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// The stack pointer that a 64-bit kernel starts with.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The first of six pages of boot page tables.
pub const PML4: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Room for the command line, its NUL included. No kernel takes more than
/// 2 KiB on x86 (`COMMAND_LINE_SIZE`); the kernel's own limit is checked too.
pub const CMDLINE_MAX: u64 = 0x10000;
/// End of conventional memory; the EBDA is above.
pub const EBDA: u64 = 0x9fc00;
/// The RSDP, with all ACPI tables behind it.
pub const ACPI: u64 = 0xe0000;
/// Room for the ACPI tables.
pub const ACPI_SIZE: u64 = 0x10000;
/// The MP floating pointer and table.
pub const MP_TABLE: u64 = 0xf0000;
/// Where memory above 1 MiB starts.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where RAM below 4 GiB ends, at the latest: the device hole begins.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM above the device hole starts.
pub const RAM_64: u64 = 1 << 32;
/// The first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Address space of one virtio-mmio device.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Where the BARs of PCI functions are.
pub const PCI_WINDOW: u64 = 0xd010_0000;
/// The size of that window.
pub const PCI_WINDOW_SIZE: u64 = 0x10_0000;
/// Where the I/O BARs of PCI functions are.
pub const PCI_PORTS: u16 = 0xc000;
/// How many ports there are for them.
pub const PCI_PORTS_SIZE: u64 = 0x2000;
/// Where SeaBIOS puts BARs (`pcimem_start` to `pcimem_end` of its pciinit.c).
pub const PCI_FIRMWARE_WINDOW: u64 = 0xe000_0000;
/// The size of that window: to the IOAPIC.
pub const PCI_FIRMWARE_WINDOW_SIZE: u64 = 0x1ec0_0000;
/// The IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// `KVM_SET_IDENTITY_MAP_ADDR`: one page that VMX without unrestricted guest needs.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// `KVM_SET_TSS_ADDR`: three pages likewise.
pub const TSS: u64 = 0xfffb_d000;
/// COM1.
pub const COM1: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;

/// Interrupt lines for virtio devices: all IOAPIC pins but those of the PIT
/// (0, 2), keyboard (1), COM ports (3, 4), RTC (8) and SCI (9).
pub const VIRTIO_GSIS: [u32; 17] =
    [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// The interrupt of the Generic Event Device: the SCI's, which a
/// hardware-reduced machine does not have.
pub const GED_GSI: u32 = 9;

/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u32 = 24;

/// The ranges of guest RAM for `size` bytes: below the device hole, and the
/// rest from 4 GiB on.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((RAM_64, size - low));
    }
    ranges
}

/// What a range of the memory map is, as firmware tells it (ACPI 6.5, 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// The memory map (e820) for `size` bytes of RAM.
pub fn memory_map(size: u64) -> Vec<(u64, u64, MemoryKind)> {
    let low = size.min(LOW_RAM_END);
    let mut map = vec![
        (0, EBDA, MemoryKind::Ram),
        (EBDA, 0xa_0000 - EBDA, MemoryKind::Reserved),
        (ACPI, HIGH_RAM - ACPI, MemoryKind::Reserved),
        (HIGH_RAM, low.saturating_sub(HIGH_RAM), MemoryKind::Ram),
    ];
    if size > low {
        map.push((RAM_64, size - low, MemoryKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_device_hole() {
        assert_eq!(ram_ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ram_ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (RAM_64, 2 << 30)]);
    }

    #[test]
    fn the_map_is_sorted_disjoint_and_inside_ram() {
        for size in [32u64 << 20, 3 << 30, (3 << 30) + 4096, 100 << 30] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            let ram = ram_ranges(size);
            for (base, len, _) in map {
                assert!(ram.iter().any(|(b, l)| base >= *b && base + len <= b + l));
            }
        }
    }
}
