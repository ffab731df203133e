//! Every way into Linux.

use crate::guest::{Guest, check};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("boot::vmlinux_enters_through_its_pvh_note", pvh),
        trial("boot::vmlinux_without_a_note_enters_at_startup_64", startup_64),
        trial("boot::bzimage_unpacks_itself", bzimage),
        trial("boot::a_bzimage_in_real_mode_asks_the_bios", real_mode),
        trial("boot::an_initrd_is_found_by_a_vmlinux", initrd_vmlinux),
        trial("boot::an_initrd_is_found_by_a_bzimage", initrd_bzimage),
        trial("boot::without_acpi_the_mp_table_and_command_line_serve", without_acpi),
        trial("boot::a_command_line_of_the_kernels_own_limit_arrives", longest_cmdline),
        trial("boot::debian_6_1_cloud_finds_its_root", || debian("6_1_CLOUD")),
        trial("boot::debian_6_1_generic_finds_its_root", || debian("6_1_GENERIC")),
        trial("boot::debian_6_1_generic_finds_a_pcs_drives_and_card", debian_on_a_pc),
        trial("boot::debian_6_12_cloud_finds_its_root", || debian("6_12_CLOUD")),
        trial("boot::debian_6_12_generic_finds_its_root", || debian("6_12_GENERIC")),
    ]
}

/// Which entry was taken, the kernel says in its first lines; the root is
/// checked by running from it.
fn pvh() -> Verdict {
    let outcome = Guest::tiny().script("dmesg | grep -c 'Booting paravirtualized kernel'").run()?;
    outcome.script_passed()?;
    Ok(Completion::Completed)
}

fn startup_64() -> Verdict {
    Guest::with_kernel(&kit::vmlinux_without_pvh())
        .rooted()
        .script("true")
        .run()?
        .script_passed()?;
    Ok(Completion::Completed)
}

fn bzimage() -> Verdict {
    Guest::with_kernel(&kit::bzimage()).rooted().script("true").run()?.script_passed()?;
    Ok(Completion::Completed)
}

/// That the setup code ran, and asked, is in what it hands over: the screen's
/// columns (`boot_params`, byte 7), which no other way in has.
fn real_mode() -> Verdict {
    let script = "uname -r; dmesg | grep -c 'BIOS-e820: .*0x0000000000100000-.*usable'
        echo columns=$(($(od -An -tu1 -j7 -N1 /sys/kernel/boot_params/data)))
        test -d /sys/firmware/acpi/tables && grep -q '^/dev/.* / ext4' /proc/mounts";
    let (debian, initrd) = kit::debian("6_12_GENERIC");
    for guest in [
        Guest::with_kernel(&kit::bzimage()).rooted(),
        Guest::with_kernel(&debian).rooted().arg("--initrd").arg(initrd).arg("--memory=512M"),
    ] {
        let outcome = guest.arg("--board=real16").script(script).run()?.script_passed()?;
        check(outcome.count("columns")? == 80, "the BIOS was asked", &outcome)?;
    }
    let refused = Guest::tiny().arg("--board=real16").run()?.ended(3)?;
    check(refused.stderr.contains("real-mode"), "a vmlinux has none", &refused)?;
    Ok(Completion::Completed)
}

/// What Debian's kernel has for a PC are modules of its initramfs.
fn debian_on_a_pc() -> Verdict {
    let (kernel, initrd) = kit::debian("6_1_GENERIC");
    let guest = Guest::with_kernel(&kernel).rooted().arg("--initrd").arg(initrd);
    let guest = guest.arg("--memory=512M").arg("--mode=hvm").arg("--net=user,backend=internal");
    let mut script = b"#!/bin/sh
        driver() { basename $(readlink $1/device/driver); }
        grep -q '^/dev/root / ext4\\|^/dev/sda / ext4' /proc/mounts || exit 2
        for module in ata_piix 8139too; do grep -q ^$module /proc/modules || exit 3; done
        card=$(basename $(ls -d /sys/class/net/e*)); ip link set $card up
        ip addr add 10.0.2.15/24 dev $card; ping -c 2 -W 20 10.0.2.2 || exit 4
        echo card=$(driver /sys/class/net/$card) detected=$(dmesg | grep -c 'Hypervisor detected')
        \n"
    .to_vec();
    script.resize(script.len().next_multiple_of(2048), 0);
    let disc = guest.scratch("disc");
    std::fs::write(&disc, script)?;
    let report = guest.scratch("report");
    let guest = guest.arg("--metrics").arg(&report).word("microvm.run=/dev/sr0");
    let read = || std::fs::read_to_string(&report).unwrap_or_default();
    let (outcome, report) = guest.arg("--cdrom").arg(&disc).start().wait_with(read)?;
    let outcome = outcome.script_passed()?;
    let counts: serde_json::Value = serde_json::from_str(report.lines().last().unwrap_or("{}"))?;
    for path in ["ide0/bytes_read", "ide1/reads", "net0/tx_frames", "net0/rx_bytes"] {
        let count = counts.pointer(&format!("/devices/{path}")).and_then(|count| count.as_u64());
        check(count.is_some_and(|count| count > 0), &format!("{path} of {report}"), &outcome)?;
    }
    check(outcome.value("card")? == "8139too detected=0", "an RTL8139 of a PC", &outcome)?;
    Ok(Completion::Completed)
}

/// There is no root disk: the script's is the first.
fn from_initrd(guest: Guest) -> Verdict {
    let guest = guest.arg("--initrd").arg(kit::initrd()).quiet();
    let outcome =
        guest.script("grep -q ' / rootfs' /proc/mounts").word("microvm.run=/dev/vda").run()?;
    outcome.script_passed()?;
    Ok(Completion::Completed)
}

fn initrd_vmlinux() -> Verdict {
    from_initrd(Guest::bare())
}

fn initrd_bzimage() -> Verdict {
    from_initrd(Guest::with_kernel(&kit::bzimage()))
}

fn without_acpi() -> Verdict {
    let guest = Guest::tiny().word("acpi=off microvm.exit=reboot").arg("--cpus").arg("2");
    let outcome =
        guest.script("test ! -e /sys/firmware/acpi; echo cpus=$(nproc)").run()?.script_passed()?;
    check(outcome.count("cpus")? == 2, "both processors are in the MP table", &outcome)?;
    Ok(Completion::Completed)
}

fn longest_cmdline() -> Verdict {
    const LIMIT: usize = 2047;
    let script = "read -r line </proc/cmdline; echo length=${#line}; case $line in *last) exit 0;; esac; exit 1";
    let added = "root=/dev/vda ro console=ttyS0 reboot=panic_warm,k panic=-1 pci=off quiet microvm.run=/dev/vdb ";
    let padding = LIMIT - added.len() - " last".len();
    let padded = |n: usize| Guest::tiny().script(script).word("x".repeat(n)).word("last");
    let outcome = padded(padding).run()?.script_passed()?;
    check(outcome.count("length")? == LIMIT as u64, "all of it arrives", &outcome)?;
    let refused = padded(padding + 1).run()?.ended(3)?;
    check(refused.stderr.contains("2048 bytes"), "one more is refused by its length", &refused)?;
    Ok(Completion::Completed)
}

fn debian(name: &str) -> Verdict {
    let (kernel, initrd) = kit::debian(name);
    let guest = Guest::with_kernel(&kernel)
        .rooted()
        .arg("--initrd")
        .arg(initrd)
        .arg("--memory")
        .arg("512M");
    let script = "uname -r; grep -q '^/dev/.* / ext4' /proc/mounts && ls /sys/bus/virtio/devices";
    guest.script(script).run()?.script_passed()?;
    Ok(Completion::Completed)
}
