//! The Intel MultiProcessor table (MPS 1.4, chapter 4), for kernels that are
//! told not to use ACPI. An ISA bus whose IRQs are the IOAPIC's pins, and the PCI
//! bus where its cards have interrupt pins.

use crate::acpi::PciInterrupt;
use crate::layout;

const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const SPEC_1_4: u8 = 4;
/// Buses are numbered as PCI numbers its own.
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;

/// The floating pointer and the table for `cpus` processors, to be placed at
/// [`layout::MP_TABLE`]; `interrupts` are those of PCI cards.
pub fn table(cpus: u8, interrupts: &[PciInterrupt]) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut entries = Vec::new();
    for cpu in 0..cpus {
        const ENABLED: u8 = 1;
        const BOOT: u8 = 2;
        let flags = if cpu == 0 { ENABLED | BOOT } else { ENABLED };
        // Family 6; features FPU and APIC.
        entries.push(vec![
            0,
            cpu,
            LAPIC_VERSION,
            flags,
            0,
            6,
            0,
            0,
            1,
            2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
    }
    entries.push([&[1, PCI_BUS][..], b"PCI   "].concat());
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    let address = layout::IOAPIC.to_le_bytes();
    entries.push([&[2, ioapic_id, IOAPIC_VERSION, 1][..], &address].concat());
    const INT: u8 = 0;
    const NMI: u8 = 1;
    const EXT_INT: u8 = 3;
    const ALL_LAPICS: u8 = 0xff;
    for irq in 0..layout::IOAPIC_PINS as u8 {
        // The PIT's IRQ 0 arrives at pin 2, as on every PC.
        let pin = if irq == 0 { 2 } else { irq };
        let taken = interrupts.iter().any(|interrupt| interrupt.gsi == u32::from(irq));
        if irq != 2 && !taken {
            entries.push(vec![3, INT, 0, 0, ISA_BUS, irq, ioapic_id, pin]);
        }
    }
    // A level, active low, as is usual for PCI (flags 0): device and pin are one
    // byte (appendix D.3).
    for interrupt in interrupts {
        let source = interrupt.device << 2 | interrupt.pin.saturating_sub(1) & 3;
        entries.push(vec![3, INT, 0, 0, PCI_BUS, source, ioapic_id, interrupt.gsi as u8]);
    }
    entries.push(vec![4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]);

    let count = entries.len() as u16;
    let body = entries.concat();
    let mut table = Vec::with_capacity(16 + 44 + body.len());
    table.extend(floating_pointer());
    table.extend(b"PCMP");
    table.extend((44 + body.len() as u16).to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"MICROVM ");
    table.extend(b"MICROVM     ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[16 + 7] = checksum(&table[16..]);
    table
}

fn floating_pointer() -> Vec<u8> {
    let mut fp = b"_MP_".to_vec();
    fp.extend((layout::MP_TABLE as u32 + 16).to_le_bytes());
    fp.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    fp[10] = checksum(&fp);
    fp
}

/// The byte that makes the sum zero, where its own place holds zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_zero_and_lengths_hold() {
        let card = PciInterrupt { device: 2, pin: 1, gsi: 10 };
        for (cpus, cards) in [(1u8, &[][..]), (2, &[card]), (32, &[card; 31])] {
            let t = table(cpus, cards);
            let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
            assert_eq!(sum(&t[..16]), 0);
            assert_eq!(sum(&t[16..]), 0);
            assert_eq!(usize::from(u16::from_le_bytes([t[20], t[21]])), t.len() - 16);
            assert!(t.len() < 0x10000);
            let cards_told = t.windows(8).filter(|w| w[..6] == [3, 0, 0, 0, PCI_BUS, 8]);
            assert_eq!(cards_told.count(), cards.len());
        }
    }
}
