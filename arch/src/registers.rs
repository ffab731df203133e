//! The registers a vCPU starts with, for each way into a kernel.
//!
//! - 64-bit boot protocol: `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"
//! - real mode: the same file, "The Real-Mode Kernel Header" and around it
//! - PVH: Xen `docs/misc/pvh.pandoc`; 32-bit protected mode, paging off

use crate::layout;
use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Long mode, identity-mapped; RSI holds the zero page.
    Long {
        /// `startup_64`.
        rip: u64,
    },
    /// Protected mode without paging; EBX holds `hvm_start_info`.
    Pvh {
        /// The `XEN_ELFNOTE_PHYS32_ENTRY` address.
        eip: u32,
    },
    /// Real mode, as after a reset.
    Real {
        /// Code segment.
        cs: u16,
        /// Instruction pointer.
        ip: u16,
        /// All other segments.
        data: u16,
        /// Stack pointer.
        sp: u16,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set; interrupts are off.
const RFLAGS: u64 = 2;
/// Page table entry: present, writable.
const PTE: u64 = 3;
/// Page directory entry: a 2 MiB page.
const PDE_PS: u64 = 1 << 7;
/// GiB that the boot page tables map one to one.
const MAPPED_GIB: u64 = 4;

/// Access bytes and flags of the boot segments, as in a descriptor's bits 40–55.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TSS: u16 = 0x808b;

/// The boot GDT: null, null, code (0x10), data (0x18), TSS (0x20).
fn gdt(entry: Entry) -> [u64; 5] {
    let code = if matches!(entry, Entry::Long { .. }) { CODE_64 } else { CODE_32 };
    [0, 0, descriptor(code, 0xf_ffff), descriptor(DATA, 0xf_ffff), descriptor(TSS, 0)]
}

/// A descriptor with base 0 (SDM 3A, figure 3-8).
fn descriptor(flags: u16, limit: u64) -> u64 {
    (u64::from(flags) << 40) | (limit & 0xffff) | (limit & 0xf_0000) << 32
}

/// The segment register that holds descriptor `index` of the GDT.
fn segment(index: u16, descriptor: u64) -> kvm_segment {
    let bit = |n: u32| (descriptor >> n & 1) as u8;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        limit: if bit(55) == 1 { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        unusable: 0,
        padding: 0,
    }
}

/// General registers of the first vCPU.
pub fn general(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Long { rip } => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: RFLAGS,
            ..Default::default()
        },
        Entry::Pvh { eip } => kvm_regs {
            rip: eip.into(),
            rbx: layout::PVH_INFO,
            rflags: RFLAGS,
            ..Default::default()
        },
        Entry::Real { ip, sp, .. } => {
            kvm_regs { rip: ip.into(), rsp: sp.into(), rflags: RFLAGS, ..Default::default() }
        }
    }
}

/// Turns the reset state `sregs` of the first vCPU into that of `entry`.
pub fn special(entry: Entry, sregs: &mut kvm_sregs) {
    if let Entry::Real { cs, data, .. } = entry {
        // All else is as real mode has it after a reset.
        let place = |segment: &mut kvm_segment, selector: u16| {
            (segment.selector, segment.base) = (selector, u64::from(selector) << 4);
        };
        place(&mut sregs.cs, cs);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            place(segment, data);
        }
        return;
    }
    let table = gdt(entry);
    let data = segment(3, table[3]);
    sregs.cs = segment(2, table[2]);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4, table[4]);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if let Entry::Long { .. } = entry {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PML4;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

/// Writes the GDT and, for long mode, the identity map of the first 4 GiB.
pub fn write_tables(mem: &GuestMemoryMmap<()>, entry: Entry) -> Result<(), GuestMemoryError> {
    if matches!(entry, Entry::Real { .. }) {
        return Ok(());
    }
    let mut bytes = Vec::new();
    gdt(entry).iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    mem.write_slice(&bytes, GuestAddress(layout::GDT))?;
    if matches!(entry, Entry::Pvh { .. }) {
        return Ok(());
    }
    let pdpt = layout::PML4 + 0x1000;
    let first_pd = layout::PML4 + 0x2000;
    mem.write_slice(&(pdpt | PTE).to_le_bytes(), GuestAddress(layout::PML4))?;
    for gib in 0..MAPPED_GIB {
        let pd = first_pd + gib * 0x1000;
        mem.write_slice(&(pd | PTE).to_le_bytes(), GuestAddress(pdpt + gib * 8))?;
        let page: Vec<u8> =
            (0..512u64).flat_map(|i| (gib << 30 | i << 21 | PTE | PDE_PS).to_le_bytes()).collect();
        mem.write_slice(&page, GuestAddress(pd))?;
    }
    Ok(())
}

/// MSRs that firmware would have set: fast string operations on, and memory
/// write-back cacheable by default (MTRRs enabled, none variable).
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const MISC_FAST_STRING: u64 = 1;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
    [(IA32_MISC_ENABLE, MISC_FAST_STRING), (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .into()
}

/// Points the local APIC's LINT0 at the 8259 (ExtINT) and LINT1 at NMI, as a
/// BIOS leaves them (MPS 1.4, 3.6.2.2 virtual wire mode). `regs` is the
/// register page as KVM gives it.
pub fn virtual_wire(regs: &mut kvm_bindings::kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_EXTINT: u32 = 0x700;
    const DELIVERY_NMI: u32 = 0x400;
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        for (i, byte) in mode.to_le_bytes().iter().enumerate() {
            regs.regs[offset + i] = *byte as _;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat() {
        let table = gdt(Entry::Long { rip: 0 });
        let code = segment(2, table[2]);
        assert_eq!((code.selector, code.l, code.db, code.type_), (0x10, 1, 0, 0xb));
        let table = gdt(Entry::Pvh { eip: 0 });
        let code = segment(2, table[2]);
        assert_eq!((code.l, code.db, code.limit, code.g), (0, 1, 0xffff_ffff, 1));
        let data = segment(3, table[3]);
        assert_eq!((data.selector, data.type_, data.limit), (0x18, 3, 0xffff_ffff));
        let tss = segment(4, table[4]);
        assert_eq!((tss.type_, tss.s, tss.present), (0xb, 0, 1));
    }

    #[test]
    fn page_tables_map_one_to_one() {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&mem, Entry::Long { rip: 0 }).unwrap();
        let read = |a: u64| mem.read_obj::<u64>(GuestAddress(a)).unwrap();
        for addr in [0u64, 0x1234_5678, 0xc000_0000, 0xffff_f000] {
            let pdpt = read(layout::PML4 + (addr >> 39) * 8) & !0xfff;
            let pd = read(pdpt + (addr >> 30 & 511) * 8) & !0xfff;
            let pde = read(pd + (addr >> 21 & 511) * 8);
            assert_eq!(pde & !0x1f_ffff, addr & !0x1f_ffff);
            assert_eq!(pde & 0x83, 0x83);
        }
    }
}
