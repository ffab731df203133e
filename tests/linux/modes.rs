//! The spectrum: one kernel, from a PC without anything made for virtual machines
//! to none at all; its disks and its network in each, and both ways to end.

use crate::guest::{Guest, Outcome, check};
use crate::net::{HostTap, unavailable};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("modes::hvm_is_a_pc_and_nothing_says_otherwise", hvm),
        trial("modes::interrupts_and_timers_can_be_the_monitors", user_interrupts),
        trial("modes::local_apics_alone_can_be_kvms", split),
        trial("modes::messages_reach_them_as_well", split_pvhvm),
        trial("modes::hvm_pv_is_a_pc_with_virtio_cards", hvm_pv),
        trial("modes::pvhvm_adds_the_hypervisors_clock_and_interrupts", pvhvm),
        trial("modes::pv_has_no_pc_around_it", pv),
        trial("modes::the_processor_moves_every_byte_and_an_mp_table_tells", slow),
        trial("modes::features_that_are_off_are_gone", masked),
        trial("modes::a_board_resets_in_every_way_that_linux_knows", reboots),
    ]
}

/// A mode with a network card, and what it is asked to do.
struct Machine {
    mode: &'static str,
    /// The root's device, and where the script and the data are.
    root: &'static str,
    source: &'static str,
    tap: HostTap,
    /// Bytes that are copied from the source to the root's disk, and that are sent
    /// each way.
    amount: (usize, usize),
}

/// Where data begins on the source, behind the script.
const DATA: usize = 1 << 20;

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
    # The emulated host's XSAVE is not quite a processor's.
    complaints=$(dmesg | grep -E 'WARNING:|BUG:|unchecked MSR|nobody cared|lost interrupt|timeout' |
        grep -v fpu/xstate.c)
    echo warnings=$(echo -n \"$complaints\" | grep -c .)
    echo \"$complaints\"
";

impl Machine {
    fn new(
        mode: &'static str,
        (root, source): (&'static str, &'static str),
        (tap, net): (&'static str, u8),
        amount: (usize, usize),
    ) -> Option<Self> {
        Some(Self { mode, root, source, tap: HostTap::new(tap, net)?, amount })
    }

    /// Copies data to the disk of the root, behind its file system, and reads it
    /// back; pings, exchanges data, and tells. Every byte is compared where it
    /// arrives. The root's is the only disk that can be SCSI's to Linux, which
    /// names those in whatever order it finds them.
    fn run(self, with: impl FnOnce(Guest) -> Guest) -> Result<Outcome, libtest_mimic::Failed> {
        let (len, bytes) = self.amount;
        let data = pattern(len.max(bytes));
        let (port, serve) = self.tap.exchange(&data[..bytes])?;
        let (host, root, source) = (self.tap.host(), self.root, self.source);
        let guest = Guest::bare();
        let image = guest.scratch("root.img");
        std::fs::copy(kit::root(), &image)?;
        let disk = std::fs::File::options().write(true).open(&image)?;
        let end = disk.metadata()?.len();
        disk.set_len(end + len as u64)?;
        let script = format!(
            "dd if={source} of=/tmp/data bs=64k skip=16 2>/dev/null || exit 2
            dd if=/tmp/data of={root} bs=64k seek={at} conv=fsync,notrunc 2>/dev/null || exit 3
            echo 3 >/proc/sys/vm/drop_caches
            sum=$(dd if={root} bs=64k skip={at} 2>/dev/null | sha256sum)
            [ \"$sum\" = \"$(sha256sum </tmp/data)\" ] || exit 4
            ping -c 2 -W 10 -s 1400 {host} >/dev/null || exit 5
            nc {host} {port} </dev/null >/tmp/got || exit 6
            [ $(stat -c %s /tmp/got) = {bytes} ] || exit 7
            nc {host} {port} </tmp/got || exit 8
            {TELL}",
            at = end / (64 << 10),
        );
        let script = format!("#!/bin/sh\n{}\n", self.tap.script(&script));
        let mut disc = script.into_bytes();
        disc.resize(DATA, 0);
        disc.extend(&data[..len]);
        let path = guest.scratch("disc");
        std::fs::write(&path, disc)?;
        let option = if source == "/dev/sr0" { "--cdrom" } else { "--disk" };
        let guest = guest.arg("--rootfs").arg(&image).arg(option).arg(&path);
        let guest = guest.quiet().word("ro").word(format!("microvm.run={source}"));
        let guest = self.tap.attach(guest.arg("--mode").arg(self.mode));
        let look = || std::fs::read(&image).unwrap_or_default().split_off(end as usize);
        let (outcome, written) = with(guest).start().wait_with(look)?;
        let outcome = outcome.script_passed()?;
        check(written == data[..len], "the image holds what was written", &outcome)?;
        let back = serve.join().map_err(|_| "the host's side panicked")??;
        check(back == data[..bytes], "what was sent comes back as it was", &outcome)?;
        check(outcome.count("warnings")? == 0, "the kernel is content", &outcome)?;
        Ok(outcome)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

const SCSI: (&str, &str) = ("/dev/sda", "/dev/sr0");
const VIRTIO: (&str, &str) = ("/dev/vda", "/dev/sr0");
/// Enough of each.
const MUCH: (usize, usize) = (4 << 20, 1 << 20);

fn hvm() -> Verdict {
    let Some(machine) = Machine::new("hvm", SCSI, ("mvhvm", 21), MUCH) else {
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
    let Some(machine) = Machine::new("hvm", SCSI, ("mvuser", 27), (256 << 10, 64 << 10)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest.arg("--intr").arg("user"))?;
    check(outcome.count("x2apic")? == 0, "the local APIC is memory", &outcome)?;
    check(outcome.count("messages")? == 0, "no messages", &outcome)?;
    check(outcome.count("levels")? == 1, "the card has a line", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

/// With local APICs in KVM and everything before them in the monitor, two
/// processors: levels of the card, edges of drives and the timer.
fn split() -> Verdict {
    let Some(machine) = Machine::new("hvm", SCSI, ("mvsplit", 28), (256 << 10, 64 << 10)) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest.arg("--intr").arg("split").arg("--cpus").arg("2"))?;
    check(outcome.count("detected")? == 0, "Linux detects no hypervisor", &outcome)?;
    check(outcome.count("messages")? == 0, "no messages", &outcome)?;
    check(outcome.count("levels")? == 1, "the card has a line", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

fn split_pvhvm() -> Verdict {
    let Some(machine) = Machine::new("pvhvm", VIRTIO, ("mvsplpv", 29), (256 << 10, 64 << 10))
    else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest.arg("--intr").arg("split").arg("--cpus").arg("2"))?;
    check(outcome.count("detected")? == 1, "Linux detects KVM", &outcome)?;
    check(outcome.count("messages")? > 5, "cards send messages", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no memory", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

fn hvm_pv() -> Verdict {
    let Some(machine) = Machine::new("hvm-pv", VIRTIO, ("mvhvmpv", 22), MUCH) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 0, "Linux detects no hypervisor", &outcome)?;
    check(outcome.count("virtio")? == 3, "disk, card and entropy are virtio's", &outcome)?;
    check(outcome.value("card")? == "virtio_net", "and so is the driver", &outcome)?;
    check(outcome.value("bridge")? == "0x1237", "the board is an i440FX", &outcome)?;
    check(outcome.count("messages")? > 5, "they send messages", &outcome)?;
    check(outcome.count("x2apic")? == 0, "the local APIC is memory", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

fn pvhvm() -> Verdict {
    let Some(machine) = Machine::new("pvhvm", VIRTIO, ("mvpvhvm", 23), MUCH) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 1, "Linux detects KVM", &outcome)?;
    check(outcome.value("bridge")? == "0x1237", "the board is an i440FX", &outcome)?;
    check(outcome.count("virtio")? == 3, "disk, card and entropy are virtio's", &outcome)?;
    let clock = outcome.value("clock")?;
    check(matches!(clock, "kvm-clock" | "tsc"), "time needs no exit", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no memory", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

fn pv() -> Verdict {
    let Some(machine) = Machine::new("pv", ("/dev/vda", "/dev/vdb"), ("mvpv", 24), MUCH) else {
        return unavailable();
    };
    let outcome = machine.run(|guest| guest)?;
    check(outcome.count("detected")? == 1, "Linux detects KVM", &outcome)?;
    check(outcome.value("bridge")?.is_empty(), "there is no bus", &outcome)?;
    check(outcome.count("virtio")? == 4, "all devices are virtio's", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no memory", &outcome)?;
    check(outcome.stderr.contains("guest powered off"), "ACPI powers off", &outcome)?;
    Ok(Completion::Completed)
}

/// The dearest of all, without ACPI: lines and processors are told by the MP table,
/// and the end is a reset.
fn slow() -> Verdict {
    let Some(machine) = Machine::new("hvm", SCSI, ("mvslow", 25), (128 << 10, 32 << 10)) else {
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

/// By every way that Linux knows on a PC, of machines that other tests have seen power
/// off: ACPI's reset register, the PIIX's, and the keyboard controller. What resets
/// like a crash is told as one.
fn reboots() -> Verdict {
    for (mode, way) in [("hvm-pv", "acpi"), ("hvm", "pci"), ("hvm", "kbd"), ("pvhvm", "kbd")] {
        let guest = Guest::tiny().script("true").word("microvm.exit=reboot");
        let guest = guest.word(format!("reboot={way}")).arg("--mode").arg(mode);
        // In hvm disks are SCSI's to Linux, in whatever order it finds them.
        let guest = if mode == "hvm" { guest.arg("--disk-bus").arg("virtio") } else { guest };
        let outcome = guest.run()?.script_passed()?;
        let what = format!("{mode} resets by {way}");
        check(outcome.stderr.contains("guest rebooted"), &what, &outcome)?;
    }
    let guest = Guest::tiny().script("true").word("microvm.exit=reboot reboot=triple");
    let outcome = guest.arg("--mode").arg("hvm-pv").run()?.ended(6)?;
    check(outcome.stderr.contains("triple fault"), "a triple fault is told", &outcome)?;
    Ok(Completion::Completed)
}
