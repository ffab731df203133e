//! What a guest finds: processors, memory, clocks, entropy.

use crate::guest::{Guest, Outcome, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("machine::one_two_and_four_processors_come_up", processors),
        trial("machine::memory_of_32_mib_is_enough", least_memory),
        trial("machine::memory_of_64_mib", || memory("64M", 64)),
        trial("machine::memory_of_1_gib", || memory("1G", 1024)),
        trial("machine::memory_of_5_gib_goes_around_the_device_hole", || memory("5G", 5 * 1024)),
        trial("machine::the_clock_is_kvm_clock_and_the_apic_is_x2apic", clocks),
        trial("machine::entropy_comes_from_the_device", entropy),
        trial("machine::absent_ports_cost_no_wait", no_waits),
    ]
}

fn processors() -> Verdict {
    for cpus in [1, 2, 4] {
        let script = "echo cpus=$(nproc); echo cores=$(grep -m1 'cpu cores' /proc/cpuinfo | cut -d: -f2 | tr -d ' ')
            echo packages=$(sort -u /sys/devices/system/cpu/cpu*/topology/physical_package_id | wc -l)
            echo complaints=$(dmesg | grep -ciE 'topology.*(bug|mismatch)|smpboot.*(fail|error)|APIC.*(bug|error)')";
        let outcome =
            Guest::tiny().arg("--cpus").arg(cpus.to_string()).script(script).run()?.ended(0)?;
        check(outcome.count("cpus")? == cpus, "every processor is online", &outcome)?;
        check(outcome.count("cores")? == cpus, "CPUID tells one core each", &outcome)?;
        check(outcome.count("packages")? == 1, "CPUID tells one package", &outcome)?;
        check(outcome.count("complaints")? == 0, "the kernel is content", &outcome)?;
    }
    Ok(Completion::Completed)
}

/// The least that is allowed holds our kernel, a root and a shell.
fn least_memory() -> Verdict {
    let script = "echo free=$(grep MemAvailable /proc/meminfo | tr -dc 0-9)";
    let outcome = Guest::tiny().arg("--memory").arg("32M").script(script).run()?.ended(0)?;
    check(outcome.count("free")? > 1024, "there is some left", &outcome)?;
    Ok(Completion::Completed)
}

/// Memory less what a kernel takes for itself: under a tenth, or 24 MiB.
fn memory(size: &str, mib: u64) -> Verdict {
    let script = "echo total=$(grep MemTotal /proc/meminfo | tr -dc 0-9)
        # Every page can be written and read back.
        mount -t tmpfs -o size=90% none /mnt || mount -t tmpfs -o size=90% none /tmp
        dd if=/dev/zero of=/tmp/fill bs=1M count=16 2>/dev/null && echo filled=$(stat -c %s /tmp/fill)";
    let outcome = Guest::tiny().arg("--memory").arg(size).script(script).run()?.ended(0)?;
    let total = outcome.count("total")? / 1024;
    let least = mib - (mib / 10).max(24);
    check((least..=mib).contains(&total), "the guest has the memory that was asked for", &outcome)?;
    check(outcome.count("filled")? == 16 << 20, "it can be filled", &outcome)?;
    Ok(Completion::Completed)
}

fn clocks() -> Verdict {
    let script = "echo source=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
        echo x2apic=$(dmesg | grep -ciE 'x2apic: enabled|x2apic enabled|Switched APIC routing to.*x2apic|Switched APIC routing to: physical x2apic')
        a=$(cut -d. -f1 /proc/uptime); sleep 1; b=$(cut -d. -f1 /proc/uptime); echo passed=$((b - a))
        echo now=$(date +%s)";
    let outcome = Guest::tiny().script(script).run()?.ended(0)?;
    let source = outcome.value("source")?;
    check(matches!(source, "kvm-clock" | "tsc"), "time needs no exit", &outcome)?;
    check(outcome.count("x2apic")? > 0, "the APIC needs no MMIO", &outcome)?;
    check((1..=3).contains(&outcome.count("passed")?), "a second is a second", &outcome)?;
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let now = outcome.count("now")?;
    check(now.abs_diff(host) < 60, "the guest knows the time of day", &outcome)?;
    Ok(Completion::Completed)
}

fn entropy() -> Verdict {
    let script = "echo device=$(cat /sys/class/misc/hw_random/rng_current)
        head -c 4096 /dev/hwrng | sha256sum; echo got=$(head -c 65536 /dev/hwrng | wc -c)
        echo sums=$(for i in 1 2 3 4; do head -c 64 /dev/hwrng | sha256sum; done | sort -u | wc -l)";
    let outcome = Guest::tiny().script(script).run()?.ended(0)?;
    check(
        outcome.value("device")?.starts_with("virtio_rng"),
        "the device is the kernel's choice",
        &outcome,
    )?;
    check(outcome.count("got")? == 65536, "it gives what is asked for", &outcome)?;
    check(outcome.count("sums")? == 4, "never the same twice", &outcome)?;
    Ok(Completion::Completed)
}

/// Reads, from the kernel's log, the longest pause before init. Probing of
/// devices that aren't there would show as 0.5 s (i8042) or 1 s (RTC).
fn no_waits() -> Verdict {
    let outcome = Guest::tiny().word("initcall_debug").script("dmesg").run()?.ended(0)?;
    let slowest = slowest_initcall(&outcome);
    check(slowest < 450_000, &format!("the slowest initcall took {slowest} µs"), &outcome)?;
    Ok(Completion::Completed)
}

fn slowest_initcall(outcome: &Outcome) -> u64 {
    let micros = |line: &str| -> Option<u64> {
        let (_, after) = line.split_once("returned")?;
        after.split("after ").nth(1)?.split(' ').next()?.parse().ok()
    };
    outcome.console.lines().filter_map(micros).max().unwrap_or(0)
}
