//! What a BIOS finds on the motherboard beside what any guest does: the
//! configuration device, its own console, and the clock's memory.

use super::board::Board;
use super::error::Error;
use crate::config::Config;
use crate::memory::Ram;
use arch::acpi;
use arch::layout::{self, MemoryKind};
use devices::legacy::debug::{self, DebugConsole};
use devices::legacy::fw_cfg::{self, Files, FwCfg};
use devices::legacy::rtc::Rtc;

// Bytes of the clock's memory, as SeaBIOS reads them.
const BOOT_FLAGS_1: u8 = 0x38;
const BOOT_FLAGS_2: u8 = 0x3d;
const OTHER_CPUS: u8 = 0x5f;
/// `BOOT_FLAGS_1`: no signature is asked of floppies.
const ANY_FLOPPY: u8 = 1;
/// `BOOT_FLAGS_2`: disks, then CDs; the other way around.
const DISK_FIRST: u8 = 0x32;
const CD_FIRST: u8 = 0x23;

/// A clock that tells firmware what to boot from.
pub fn clock(config: &Config) -> Rtc {
    let mut rtc = Rtc::new();
    let disks = config.all_disks().next().is_some();
    rtc.preset(BOOT_FLAGS_1, ANY_FLOPPY);
    rtc.preset(BOOT_FLAGS_2, if disks { DISK_FIRST } else { CD_FIRST });
    rtc.preset(OTHER_CPUS, (config.cpus - 1) as u8);
    rtc
}

/// Puts firmware's devices on the board.
pub fn add_devices(config: &Config, ram: &Ram, board: &mut Board) -> Result<(), Error> {
    let mut files = files(config);
    // SeaBIOS's own tables are of a machine with slots that cards leave while it
    // runs: of registers that are not here Linux reads that all have left.
    for (name, content) in acpi::linked(&board.machine(config.cpus)).files {
        files.add(name, content);
    }
    let cfg = FwCfg::new(ram.clone(), config.cpus as u16, files);
    board.add_ports(fw_cfg::BASE, fw_cfg::SIZE, cfg)?;
    let console = DebugConsole::new(|line| log::debug!("firmware: {line}"));
    board.add_ports(debug::CONSOLE, 1, console)
}

/// No menu to wait at, text on the serial port, and the memory map.
fn files(config: &Config) -> Files {
    let mut files = Files::default();
    files.add("etc/show-boot-menu", [0, 0]);
    files.add("etc/boot-menu-wait", [0, 0]);
    files.add("etc/sercon-port", layout::COM1.to_le_bytes());
    let mut map = Vec::new();
    let mut entry = |base: u64, len: u64, kind: MemoryKind| {
        map.extend(base.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend((kind as u32).to_le_bytes());
    };
    for (base, len) in layout::ram_ranges(config.memory.0) {
        entry(base, len, MemoryKind::Ram);
    }
    // KVM's own pages on VT-x.
    entry(layout::IDENTITY_MAP, 0x4000, MemoryKind::Reserved);
    files.add("etc/e820", map);
    files
}
