//! The tables of a PC: the fixed hardware (4.8.3), the interrupts of a PC/AT
//! (5.2.12), and where those of PCI cards lead (6.2.13).

use super::{OEM, OEM_REVISION, OEM_TABLE, Pc, PciInterrupt, byte_port};
use crate::layout;
use acpi_tables::Aml;
use acpi_tables::aml::PackageBuilder;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::sdt::Sdt;

pub fn fadt(board: &Pc, dsdt: u64, facs: u64) -> impl Aml {
    // Devices on an ISA bus, an 8042, no VGA to probe (5.2.9.3).
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    /// Where the RTC keeps the century.
    const CENTURY: u8 = 0x32;
    /// Latencies, in microseconds, that say that there is neither C2 nor C3.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    table.iapc_boot_arch = (LEGACY_DEVICES | HAS_8042 | VGA_NOT_PRESENT).into();
    table.sci_int = u16::from(board.sci).into();
    (table.pm1a_evt_blk, table.pm1_evt_len) = (u32::from(board.event_block).into(), 4);
    (table.pm1a_cnt_blk, table.pm1_cnt_len) = (u32::from(board.control_block).into(), 2);
    (table.pm_tmr_blk, table.pm_tmr_len) = (u32::from(board.timer_block).into(), 4);
    (table.p_lvl2_lat, table.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    table.century = CENTURY;
    let (port, value) = board.reset;
    (table.reset_reg, table.reset_value) = (byte_port(port), value);
    table.finalize()
}

pub fn madt(cpus: u32, sci: u8) -> Sdt {
    const REVISION: u8 = 5;
    /// There are two 8259s as well.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u8 = 1;
    const ALL: u8 = 0xff;
    let mut table = Sdt::new(*b"APIC", 36, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut put = |bytes: &[u8]| table.append_slice(bytes);
    put(&layout::LOCAL_APIC.to_le_bytes());
    put(&PCAT_COMPAT.to_le_bytes());
    for id in 0..cpus as u8 {
        put(&[0, 8, id, id, ENABLED, 0, 0, 0]);
    }
    put(&[1, 12, 0, 0]);
    put(&layout::IOAPIC.to_le_bytes());
    put(&[0; 4]);
    // The PIT's IRQ 0 arrives at pin 2; the SCI is a level, active high.
    const CONFORMS: u8 = 0x00;
    const LEVEL_HIGH: u8 = 0x0d;
    for (irq, pin, flags) in [(0, 2, CONFORMS), (sci, sci, LEVEL_HIGH)] {
        put(&[2, 10, 0, irq, pin, 0, 0, 0, flags, 0]);
    }
    // LINT1 of every local APIC is the NMI.
    put(&[4, 6, ALL, 0, 0, 1]);
    table
}

/// `_PRT`: fixed interrupts, without a link device between.
pub fn routes(interrupts: &[PciInterrupt]) -> PackageBuilder {
    /// Any function.
    const ANY: u32 = 0xffff;
    let mut routes = PackageBuilder::new();
    for interrupt in interrupts {
        let mut route = PackageBuilder::new();
        route.add_element(&(u32::from(interrupt.device) << 16 | ANY));
        route.add_element(&interrupt.pin.saturating_sub(1));
        route.add_element(&0u8);
        route.add_element(&interrupt.gsi);
        routes.add_element(&route);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(table: &dyn Aml) -> Vec<u8> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn the_fixed_hardware_is_where_it_is_said_to_be() {
        let board = Pc {
            event_block: 0x600,
            control_block: 0x604,
            timer_block: 0x608,
            sci: 9,
            reset: (0xcf9, 6),
            ..Pc::default()
        };
        let fadt = bytes(&fadt(&board, 0xe_1000, 0xe_2000));
        let word = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
        // Offsets of table 5.9.
        assert_eq!((word(36), word(56), word(64), word(76)), (0xe_2000, 0x600, 0x604, 0x608));
        assert_eq!((fadt[46], fadt[88], fadt[89], fadt[91]), (9, 4, 2, 4));
        assert_eq!(word(112) & (1 << 20 | 1 << 4), 0, "fixed hardware, and its power button");
        assert_eq!((fadt[116], word(120), fadt[128]), (1, 0xcf9, 6));
    }

    #[test]
    fn a_route_is_a_package_of_four() {
        let interrupt = PciInterrupt { device: 3, pin: 2, gsi: 11 };
        let aml = bytes(&routes(&[interrupt]));
        let address = [0x0c, 0xff, 0xff, 0x03, 0x00];
        assert!(aml.windows(5).any(|w| w == address), "{aml:x?}");
        assert!(aml.ends_with(&[0x01, 0x00, 0x0a, 0x0b]), "{aml:x?}");
    }

    #[test]
    fn the_pit_arrives_at_pin_2() {
        let madt = bytes(&madt(2, 9));
        assert_eq!(madt[40..44], [1, 0, 0, 0], "there are 8259s");
        assert!(madt.windows(10).any(|w| w == [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]));
        assert!(madt.windows(10).any(|w| w == [2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]));
    }
}
