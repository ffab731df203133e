//! The spectrum: one kernel, from a PC without anything made for virtual machines
//! to none at all; its disks and its network in each, and both ways to end.

use crate::guest::{Guest, Outcome, check};
use crate::net::{HostTap, unavailable};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::path::Path;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("modes::hvm_is_a_pc_and_nothing_says_otherwise", hvm),
        trial("modes::interrupts_and_timers_can_be_the_monitors", user_interrupts),
        trial("modes::hvm_pv_is_a_pc_with_virtio_cards", hvm_pv),
        trial("modes::pvhvm_adds_the_hypervisors_clock_and_interrupts", pvhvm),
        trial("modes::pv_has_no_pc_around_it", pv),
        trial("modes::the_processor_moves_every_byte_and_an_mp_table_tells", slow),
        trial("modes::features_that_are_off_are_gone", masked),
        trial("modes::a_cd_is_read_and_the_guest_reboots", cd),
    ]
}

/// A mode with a second disk and a network card, and what it is asked to do.
struct Machine {
    mode: &'static str,
    /// `sd` or `vd`.
    disks: &'static str,
    tap: HostTap,
    /// Pages written to the disk and bytes sent each way.
    amount: (usize, usize),
}

/// What every guest tells of itself.
const TELL: &str = "
    echo hypervisor=$(grep -c hypervisor /proc/cpuinfo)
    echo detected=$(dmesg | grep -c 'Hypervisor detected')
    echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
    echo x2apic=$(dmesg | grep -ciE 'x2apic: enabled|x2apic enabled|Switched APIC routing to.*x2apic')
    echo virtio=$(ls /sys/bus/virtio/devices 2>/dev/null | wc -l)
    echo redhat=$(cat /sys/bus/pci/devices/*/vendor 2>/dev/null | grep -c 0x1af4)
    echo bridge=$(cat /sys/bus/pci/devices/0000:00:00.0/device 2>/dev/null)
    echo card=$(basename $(readlink /sys/class/net/eth0/device/driver))
    echo messages=$(grep -c MSI /proc/interrupts)
    echo levels=$(grep -c 'IO-APIC.*fasteoi.*eth0' /proc/interrupts)
    echo warnings=$(dmesg | grep -cE 'WARNING:|BUG:|unchecked MSR|nobody cared|lost interrupt|timeout')
    echo slowest=$(dmesg | sed -n 's/.*initcall .* after \\([0-9]*\\) usecs/\\1/p' | sort -n | tail -1)
";

impl Machine {
    fn new(
        mode: &'static str,
        disks: &'static str,
        tap: &'static str,
        net: u8,
        amount: (usize, usize),
    ) -> Option<Self> {
        Some(Self { mode, disks, tap: HostTap::new(tap, net)?, amount })
    }

    /// Writes to the disk, pings, exchanges data, and tells; every byte is
    /// compared where it arrives.
    fn run(self, with: impl FnOnce(Guest) -> Guest) -> Result<Outcome, libtest_mimic::Failed> {
        let (pages, bytes) = self.amount;
        let data: Vec<u8> =
            (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let (port, serve) = self.tap.exchange(&data)?;
        let host = self.tap.host();
        let script = format!(
            "disk=/dev/{disks}c
            i=0; while [ $i -lt {pages} ]; do printf '%08d%4088s' $i ''; i=$((i + 1)); done >/tmp/part
            sum=$(sha256sum </tmp/part)
            dd if=/tmp/part of=$disk bs=64k conv=fsync 2>/dev/null || exit 2
            echo 3 >/proc/sys/vm/drop_caches
            [ \"$(head -c {len} $disk | sha256sum)\" = \"$sum\" ] || exit 3
            ping -c 2 -W 10 -s 1400 {host} >/dev/null || exit 4
            nc {host} {port} </dev/null >/tmp/got || exit 5
            [ $(stat -c %s /tmp/got) = {bytes} ] || exit 6
            nc {host} {port} </tmp/got || exit 7
            {TELL}",
            disks = self.disks,
            len = pages * 4096,
        );
        let guest = Guest::tiny();
        let image = guest.scratch("data.img");
        std::fs::write(&image, vec![0; pages * 4096])?;
        let script = self.tap.script(&script);
        let guest = guest.script_on(&script, &format!("/dev/{}b", self.disks));
        let guest = self.tap.attach(guest.arg("--disk").arg(&image));
        let guest = guest.arg("--mode").arg(self.mode).word("initcall_debug");
        let started = with(guest).start();
        let outcome = started.wait_with(|| pages_of(&image))?;
        let (outcome, written) = outcome;
        let outcome = outcome.script_passed()?;
        let wanted: Vec<u8> =
            (0..pages).flat_map(|i| format!("{i:08}{:4088}", "").into_bytes()).collect();
        check(written == wanted, "the image holds what was written", &outcome)?;
        let back = serve.join().map_err(|_| "the host's side panicked")??;
        check(back == data, "what was sent comes back as it was", &outcome)?;
        check(outcome.count("warnings")? == 0, "the kernel is content", &outcome)?;
        Ok(outcome)
    }
}

fn pages_of(image: &Path) -> Vec<u8> {
    std::fs::read(image).unwrap_or_default()
}

fn hvm() -> Verdict {
    let Some(machine) = Machine::new("hvm", "sd", "mvhvm", 21, (1024, 1 << 20)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    for (name, what) in [
        ("hypervisor", "CPUID does not tell"),
        ("detected", "Linux detects no hypervisor"),
        ("virtio", "no virtio device"),
        ("redhat", "no card of virtio's vendor"),
        ("x2apic", "the local APIC is memory"),
        ("messages", "no messages"),
    ] {
        check(outcome.count(name)? == 0, what, &outcome)?;
    }
    check(outcome.value("card")? == "8139too", "the card is an RTL8139", &outcome)?;
    check(outcome.value("bridge")? == "0x1237", "the board is an i440FX", &outcome)?;
    check(outcome.count("levels")? == 1, "the card has a line", &outcome)?;
    let clock = outcome.value("clock")?;
    check(matches!(clock, "acpi_pm" | "tsc" | "hpet"), "the clock is a PC's", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

/// Without any interrupt controller in KVM: the same PC, its timer, drives and
/// card, and a processor that sleeps and is woken.
fn user_interrupts() -> Verdict {
    let Some(machine) = Machine::new("hvm", "sd", "mvuser", 27, (64, 64 << 10)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest.arg("--intr").arg("user"))?;
    check(outcome.count("x2apic")? == 0, "the local APIC is memory", &outcome)?;
    check(outcome.count("messages")? == 0, "no messages", &outcome)?;
    check(outcome.count("levels")? == 1, "the card has a line", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

fn hvm_pv() -> Verdict {
    let Some(machine) = Machine::new("hvm-pv", "vd", "mvhvmpv", 22, (1024, 1 << 20)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 0, "Linux detects no hypervisor", &outcome)?;
    check(outcome.count("virtio")? == 5, "disks, card and entropy are virtio's", &outcome)?;
    check(outcome.value("card")? == "virtio_net", "and so is the driver", &outcome)?;
    check(outcome.value("bridge")? == "0x1237", "the board is an i440FX", &outcome)?;
    check(outcome.count("messages")? > 5, "they send messages", &outcome)?;
    check(outcome.count("x2apic")? == 0, "the local APIC is memory", &outcome)?;
    Ok(Completion::Completed)
}

fn pvhvm() -> Verdict {
    let Some(machine) = Machine::new("pvhvm", "vd", "mvpvhvm", 23, (1024, 1 << 20)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 1, "Linux detects KVM", &outcome)?;
    check(outcome.value("bridge")? == "0x1237", "the board is an i440FX", &outcome)?;
    check(outcome.count("virtio")? == 5, "disks, card and entropy are virtio's", &outcome)?;
    let clock = outcome.value("clock")?;
    check(matches!(clock, "kvm-clock" | "tsc"), "time needs no exit", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no memory", &outcome)?;
    Ok(Completion::Completed)
}

fn pv() -> Verdict {
    let Some(machine) = Machine::new("pv", "vd", "mvpv", 24, (1024, 1 << 20)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 1, "Linux detects KVM", &outcome)?;
    check(outcome.value("bridge")?.is_empty(), "there is no bus", &outcome)?;
    check(outcome.count("virtio")? == 5, "all devices are virtio's", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no memory", &outcome)?;
    Ok(Completion::Completed)
}

/// The dearest of all, without ACPI: lines and processors are told by the MP table,
/// and the end is a reset.
fn slow() -> Verdict {
    let Some(machine) = Machine::new("hvm", "sd", "mvslow", 25, (32, 32 << 10)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| {
        let guest = guest.arg("--disk-bus").arg("ide-pio").arg("--net-model").arg("ne2000");
        guest.word("acpi=off microvm.exit=reboot")
    })?;
    check(outcome.value("card")? == "ne2k-pci", "the card is an NE2000", &outcome)?;
    check(outcome.count("levels")? == 1, "its line is the table's", &outcome)?;
    check(outcome.stderr.contains("guest rebooted"), "a reset ends it", &outcome)?;
    Ok(Completion::Completed)
}

fn masked() -> Verdict {
    let script =
        "echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
        echo kvmclock=$(dmesg | grep -c 'kvm-clock: Using msrs')
        echo eoi=$(dmesg | grep -c 'KVM setup async PF\\|PV EOI')
        echo detected=$(dmesg | grep -c 'Hypervisor detected: KVM')";
    let guest = Guest::tiny().script(script).word("microvm.exit=reboot");
    let guest = guest.arg("--mode").arg("pvhvm").arg("--pv-features").arg("clock=off,async-pf=off");
    let outcome = guest.run()?.script_passed()?;
    check(outcome.count("detected")? == 1, "KVM is there", &outcome)?;
    check(outcome.count("kvmclock")? == 0, "its clock is not", &outcome)?;
    check(outcome.value("clock")? != "kvm-clock", "nor is it used", &outcome)?;
    check(outcome.count("eoi")? == 0, "nor are asynchronous faults", &outcome)?;
    check(outcome.stderr.contains("guest rebooted"), "the board resets", &outcome)?;
    Ok(Completion::Completed)
}

/// With a virtio root; the disc's bytes are those of the image.
fn cd() -> Verdict {
    let guest = Guest::tiny();
    let image = guest.scratch("disc.iso");
    let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(40503) >> 9) as u8).collect();
    std::fs::write(&image, &bytes)?;
    let script = "echo size=$(cat /sys/block/sr0/size)
        dd if=/dev/sr0 of=/tmp/got bs=64k 2>/dev/null; cp /tmp/got /dev/vdc && sync
        echo errors=$(dmesg | grep -cE 'sr0.*(error|failed)|ata[0-9].*(exception|error)')";
    let copy = guest.scratch("copy.img");
    std::fs::write(&copy, vec![0; bytes.len()])?;
    let guest = guest.script(script).word("microvm.exit=reboot");
    let guest =
        guest.arg("--disk").arg(&copy).arg("--mode").arg("hvm-pv").arg("--cdrom").arg(&image);
    let (outcome, copied) = guest.start().wait_with(|| pages_of(&copy))?;
    let outcome = outcome.script_passed()?;
    check(outcome.count("size")? == bytes.len() as u64 / 512, "the disc has its size", &outcome)?;
    check(copied == bytes, "every byte is the image's", &outcome)?;
    check(outcome.count("errors")? == 0, "the kernel is content", &outcome)?;
    check(outcome.stderr.contains("guest rebooted"), "the board resets", &outcome)?;
    Ok(Completion::Completed)
}
