//! Guests of a few instructions, for what needs no Linux.

use std::io::Write;
use std::sync::OnceLock;
use tempfile::NamedTempFile;

/// Sends back what the serial port receives; `q` resets the machine.
#[rustfmt::skip]
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // start: mov dx, 0x3fd (line status)
    0xec,                   // wait:  in al, dx
    0x24, 0x21,             //        and al, 0x21  (received, may send)
    0x3c, 0x21,             //        cmp al, 0x21
    0x75, 0xf9,             //        jne wait
    0x66, 0xba, 0xf8, 0x03, //        mov dx, 0x3f8
    0xec,                   //        in al, dx
    0x3c, b'q',             //        cmp al, 'q'
    0x74, 0x03,             //        je reset
    0xee,                   //        out dx, al
    0xeb, 0xe9,             //        jmp start
    0xb0, 0xfe,             // reset: mov al, 0xfe
    0xe6, 0x64,             //        out 0x64, al
    0xf4,                   //        hlt
];

/// Says `!` and sleeps for good.
#[rustfmt::skip]
pub const HELLO: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'!', 0xee,       // mov al, '!'; out dx, al
    0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp to hlt
];

/// Sleeps for good.
pub const SLEEP: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to hlt

/// A "kernel": an ELF file with one segment at 16 MiB that starts with `code`.
pub fn kernel(code: &[u8]) -> NamedTempFile {
    const AT: u64 = 0x100_0000;
    const OFFSET: u64 = 0x1000;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    for word in [AT, 64, 0] {
        elf.extend(u64::to_le_bytes(word)); // entry, program headers, sections
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes()); // readable, executable
    let size = code.len() as u64;
    for word in [OFFSET, AT, AT, size, size, OFFSET] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(OFFSET as usize, 0);
    elf.extend(code);
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&elf).expect("room for it");
    file
}

/// Whether this host can run guests at all: the doctor's answer.
pub fn can_run() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let can = *ANSWER.get_or_init(|| crate::run(&["doctor"]).status.success());
    assert!(can || std::env::var_os(rig::IN_RIG).is_none(), "the rig can run guests");
    if !can {
        println!("skipped: no guest can run on this host");
    }
    can
}
