//! Firmware that nobody here wrote boots a disk from its first sector.

use crate::guest::{Guest, check};
use crate::{Verdict, trial};
use core::arch::global_asm;
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![trial("firmware::seabios_boots_the_first_sector_of_an_ide_disk", boot_sector)]
}

// A boot sector: says so by the BIOS's teletype, reads the next sector through
// the BIOS's disk services, says what is in it, and resets the machine.
global_asm!(
    ".pushsection .rodata.boot_sector, \"a\", @progbits",
    ".code16",
    ".globl boot_sector",
    "boot_sector:",
    "  ljmp $0, $(0x7c00 + 1f - boot_sector)",
    "1:",
    "  xorw %ax, %ax",
    "  movw %ax, %ds",
    "  movw %ax, %ss",
    "  movw $0x7c00, %sp",
    "  movw $(0x7c00 + 5f - boot_sector), %si",
    "  call 3f",
    "  movw $(0x7c00 + 6f - boot_sector), %si",
    "  movb $0x42, %ah",
    "  int $0x13",
    "  jc 2f",
    "  movw $0x8000, %si",
    "  call 3f",
    "2:",
    "  movb $0xfe, %al",
    "  outb %al, $0x64",
    "  hlt",
    "3:",
    "  lodsb",
    "  testb %al, %al",
    "  jz 4f",
    "  movw $7, %bx",
    "  movb $0x0e, %ah",
    "  int $0x10",
    "  jmp 3b",
    "4:",
    "  ret",
    "5:",
    "  .asciz \"a sector of ours runs; the next says: \"",
    "  .balign 4",
    "6:",
    "  .word 16, 1, 0x8000, 0",
    "  .quad 1",
    "  .org boot_sector + 510",
    "  .word 0xaa55",
    ".code64",
    ".popsection",
    options(att_syntax)
);

fn sector() -> &'static [u8; 512] {
    unsafe extern "C" {
        #[link_name = "boot_sector"]
        static SECTOR: [u8; 512];
    }
    // SAFETY: the symbol stands for 512 bytes, as `.org` and `.word` make them,
    // and nothing writes them.
    unsafe { &SECTOR }
}

fn boot_sector() -> Verdict {
    let guest = Guest::empty().arg("--mode").arg("hvm").arg("--board").arg("bios");
    let image = guest.scratch("disk.img");
    let mut disk = sector().to_vec();
    // SeaBIOS holds a character back until the next, or the next tick.
    disk.extend(b"six by nine is forty-two, says the sector\n\0");
    disk.resize(1 << 20, 0);
    std::fs::write(&image, disk)?;
    let outcome = guest.arg("--disk").arg(&image).run()?.ended(0)?;
    let said = "a sector of ours runs; the next says: six by nine is forty-two";
    check(outcome.console.contains(said), said, &outcome)?;
    check(outcome.stderr.contains("guest rebooted"), "it resets the machine", &outcome)?;
    Ok(Completion::Completed)
}
