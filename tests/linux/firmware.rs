//! Firmware, boot loaders and systems that nobody here wrote, as their Debian packages
//! have them.

use crate::guest::{Guest, Started, check};
use crate::{Verdict, kit, trial};
use core::arch::global_asm;
use libtest_mimic::{Completion, Failed, Trial};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("firmware::seabios_boots_the_first_sector_of_an_ide_disk", boot_sector),
        trial("firmware::grub_boots_debian_from_an_ide_disk", debian),
        trial("firmware::ipxe_boots_from_a_cd_and_configures_its_card", ipxe),
        trial("firmware::memtest86_tests_memory", memtest),
        trial("firmware::a_real_mode_program_reads_an_ide_disk", real_mode),
    ]
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
    // A CD comes after disks that have a boot sector.
    let disc = guest.scratch("disc.iso");
    std::fs::write(&disc, vec![0; 64 << 10])?;
    let guest = guest.arg("--disk").arg(&image).arg("--cdrom").arg(&disc);
    let outcome = guest.run()?.ended(0)?;
    let said = "a sector of ours runs; the next says: six by nine is forty-two";
    check(outcome.console.contains(said), said, &outcome)?;
    check(outcome.stderr.contains("guest rebooted"), "it resets the machine", &outcome)?;
    Ok(Completion::Completed)
}

/// Lets a guest go that has said all it is to say: nobody ends it from inside.
fn seen(mut started: Started, texts: &[&str]) -> Verdict {
    texts.iter().try_for_each(|text| started.expect(text))?;
    started.signal(libc::SIGTERM);
    started.wait()?;
    Ok(Completion::Completed)
}

/// What is typed at Debian's prompt: drivers, ACPI, the disk, the network.
const LOOK: &str = "
    for module in ata_piix 8139too; do grep -q ^$module /proc/modules && echo has_$module=1; done
    echo debian=$(cut -d. -f1 /etc/debian_version) loader=$(ls /boot/grub/grub.cfg)
    echo buttons=$(ls /sys/bus/acpi/devices | grep -c LNXPWRBN)
    echo devices=$(ls /sys/bus/pci/devices | wc -l)
    echo complaints=$(dmesg | grep -cE 'MP-BIOS bug|nobody cared|lost interrupt|AE_NOT_FOUND')
    dd if=/dev/urandom of=/root/data bs=64k count=8 2>/dev/null; sum=$(md5sum </root/data)
    sync; echo 3 >/proc/sys/vm/drop_caches
    [ \"$sum\" = \"$(md5sum </root/data)\" ] && echo kept=1
    card=$(basename $(ls -d /sys/class/net/e*)); busybox ip link set $card up
    busybox ip addr add 10.0.2.15/24 dev $card
    busybox ping -c 2 -W 20 10.0.2.2 >/dev/null && echo pings=1
    poweroff
";

/// SeaBIOS, the MBR, GRUB, Debian's kernel with the initramfs of its own tools, its
/// init, and a login.
fn debian() -> Verdict {
    let guest = Guest::empty().arg("--mode").arg("hvm").arg("--board").arg("bios");
    let image = guest.scratch("debian.qcow2");
    let base = kit::debian_disk();
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&image);
    match create.status() {
        Ok(status) if status.success() => {}
        _ => return Ok(Completion::ignored_with("qemu-img makes no overlay here")),
    }
    let guest = guest.arg("--disk").arg(format!("{},format=qcow2", image.display()));
    let (input, mut keyboard) = std::io::pipe()?;
    let guest = guest.arg("--net").arg("user,backend=internal");
    let mut started = guest.stdin(input).start();
    // Every sector that the BIOS reads is some ten exits, and Debian's init asks much.
    started.deadline += Duration::from_secs(300);
    started.expect("GRUB loads Debian")?;
    started.expect("microvm login:")?;
    keyboard.write_all(b"root\n")?;
    started.expect("root@microvm:~#")?;
    for line in LOOK.lines() {
        writeln!(keyboard, "{}", line.trim())?;
    }
    let mut outcome = started.wait()?.ended(0)?;
    // Its shell marks the end of what is typed, and returns to the line's start.
    outcome.console = outcome.console.replace('\r', "\n");
    for (name, what) in [
        ("has_ata_piix", "the disk's driver is a module"),
        ("has_8139too", "so is the card's"),
        ("kept", "what is written is read back"),
        ("pings", "the card is connected"),
    ] {
        check(outcome.count(name)? == 1, what, &outcome)?;
    }
    check(outcome.value("debian")?.starts_with("12 loader=/boot/grub/"), "Debian 12", &outcome)?;
    check(outcome.count("buttons")? >= 1, "ACPI has a power button", &outcome)?;
    check(outcome.count("devices")? == 5, "bridges, drives, power and card", &outcome)?;
    check(outcome.count("complaints")? == 0, "the kernel is content", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

/// ISOLINUX on the CD starts iPXE, which finds the card and asks DHCP. The disk is as
/// new, so there is nothing to boot from it.
fn ipxe() -> Verdict {
    let disc = kit::ipxe().join("usr/lib/ipxe/ipxe.iso");
    let guest = Guest::empty().arg("--mode").arg("hvm").arg("--board").arg("bios");
    let blank = guest.scratch("blank.img");
    std::fs::write(&blank, vec![0; 1 << 20])?;
    let guest = guest.arg("--disk").arg(&blank);
    let guest = guest.arg("--net").arg("user,backend=internal").arg("--cdrom").arg(disc);
    seen(guest.start(), &["ISOLINUX", "iPXE initialising devices", "rtl8139", "Configuring", "ok"])
}

/// Entered in real mode, as a boot loader would.
fn memtest() -> Verdict {
    let image = kit::memtest().join("boot/memtest86+x64.bin");
    let guest = Guest::with_kernel(&image).arg("--mode").arg("hvm").arg("--board").arg("real16");
    let guest = guest.arg("--memory").arg("64M").word("console=ttyS0,115200");
    seen(guest.start(), &["Memtest86+", "Testing"])
}

/// SYSLINUX's GeoDsp, all of it in real mode: what the BIOS tells of a disk, and that
/// its services agree.
fn real_mode() -> Verdict {
    let packed = kit::syslinux().join("usr/lib/syslinux/mbr/diag/geodsp/geodsp1s.img.xz");
    let image = Command::new("xz").arg("-dc").arg(packed).output()?;
    if !image.status.success() {
        return Err(Failed::from(format!("xz: {}", image.status)));
    }
    let guest = Guest::empty().arg("--mode").arg("hvm").arg("--board").arg("bios");
    let path = guest.scratch("geodsp.img");
    std::fs::write(&path, image.stdout)?;
    seen(guest.arg("--disk").arg(&path).start(), &["CHS", "@EDD", "D=EDD", "end"])
}
