//! The balloon, seen from the guest and from the host; and the entropy device's
//! limit.

use crate::guest::{Guest, LIMIT, Outcome, Started, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::io::{self, Write};
use std::time::{Duration, Instant};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("balloon::inflated_it_gives_memory_to_the_host", || inflated("mmio")),
        trial("balloon::inflated_it_gives_memory_to_the_host_over_pci", || inflated("pci")),
        trial("balloon::what_the_guest_frees_goes_to_the_host", || reported("mmio")),
        trial("balloon::what_the_guest_frees_goes_to_the_host_over_pci", || reported("pci")),
        trial("balloon::out_of_memory_it_deflates", || deflated("mmio")),
        trial("balloon::out_of_memory_it_deflates_over_pci", || deflated("pci")),
        trial("balloon::statistics_arrive", || statistics("mmio")),
        trial("balloon::statistics_arrive_over_pci", || statistics("pci")),
        trial("balloon::entropy_keeps_its_rate", || entropy("mmio")),
        trial("balloon::entropy_keeps_its_rate_over_pci", || entropy("pci")),
    ]
}

fn guest(transport: &str, balloon: &str, script: &str) -> Guest {
    let guest = Guest::tiny().script(script).arg("--transport").arg(transport);
    guest.arg("--balloon").arg(balloon).arg("--log").arg("info")
}

/// Physical memory that the monitor holds, guest and all, in MiB.
fn resident(started: &Started) -> Result<u64, String> {
    let path = format!("/proc/{}/smaps_rollup", started.child.id());
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib >> 10).ok_or_else(|| format!("no Pss in {text}"))
}

/// Waits until no more than so many MiB are held.
fn shrinks(started: &Started, most: u64) -> Result<u64, String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let now = resident(started)?;
        if now <= most || Instant::now() > deadline {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One of the counters that are reported at the end.
fn counter(outcome: &Outcome, name: &str) -> Result<u64, String> {
    let words = outcome.stderr.split_ascii_whitespace();
    let value = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next();
    let value = value.and_then(|value| value.parse().ok());
    value.ok_or_else(|| format!("no counter {name}; {}", outcome.story()))
}

const FILL: &str = "mount -o remount,size=90% /tmp
    dd if=/dev/zero of=/tmp/fill bs=1M count=160 2>/dev/null";

/// The driver comes when the guest has used most of its memory.
fn inflated(transport: &str) -> Verdict {
    let script = format!(
        "cd /sys/bus/virtio/drivers/virtio_balloon; device=$(basename virtio[0-9]*)
        echo $device >unbind; {FILL}; rm /tmp/fill
        echo filled; read line; echo $device >bind; echo inflating; read line
        echo total=$(grep MemTotal /proc/meminfo | tr -dc 0-9); echo $device >unbind
        echo whole=$(grep MemTotal /proc/meminfo | tr -dc 0-9)"
    );
    let (input, mut keys) = io::pipe()?;
    let mut started = guest(transport, "size=192M", &script).stdin(input).start();
    started.expect("filled")?;
    let before = resident(&started)?;
    keys.write_all(b"\n")?;
    started.expect("inflating")?;
    let after = shrinks(&started, before - 120)?;
    keys.write_all(b"\n")?;
    let outcome = started.wait()?.script_passed()?;
    eprintln!("balloon over {transport}: {before} MiB before, {after} MiB after");
    check(before > 160, &format!("{before} MiB were used"), &outcome)?;
    check(after + 120 <= before, &format!("{before} MiB became {after}"), &outcome)?;
    let (total, whole) = (outcome.count("total")?, outcome.count("whole")?);
    check(whole - total > 120 << 10, "the guest knows", &outcome)?;
    check(counter(&outcome, "outside_ram_bytes")? == 0, "all of it was RAM", &outcome)?;
    Ok(Completion::Completed)
}

fn reported(transport: &str) -> Verdict {
    let script = format!("{FILL}; echo filled; read line; rm /tmp/fill; echo freed; read line");
    let (input, mut keys) = io::pipe()?;
    let mut started = guest(transport, "free-page-reporting=on", &script).stdin(input).start();
    started.expect("filled")?;
    let before = resident(&started)?;
    keys.write_all(b"\n")?;
    started.expect("freed")?;
    let after = shrinks(&started, before - 120)?;
    keys.write_all(b"\n")?;
    let outcome = started.wait()?.script_passed()?;
    eprintln!("free pages over {transport}: {before} MiB before, {after} MiB after");
    check(after + 120 <= before, &format!("{before} MiB became {after}"), &outcome)?;
    check(counter(&outcome, "reported_free_bytes")? > 120 << 20, "as reported", &outcome)?;
    Ok(Completion::Completed)
}

/// A process wants more than the balloon has left.
fn deflated(transport: &str) -> Verdict {
    let script = "i=0; while [ $(grep MemFree /proc/meminfo | tr -dc 0-9) -gt 40000 ]; do
            i=$((i + 1)); [ $i -lt 300 ] || exit 3; usleep 100000; done
        dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null || exit 4
        echo killed=$(dmesg | grep -c 'Killed process')";
    let guest = guest(transport, "size=80M,deflate-on-oom=on", script).arg("--memory").arg("128M");
    let outcome = guest.run()?.script_passed()?;
    check(outcome.count("killed")? == 0, "nobody is killed", &outcome)?;
    check(counter(&outcome, "deflated_bytes")? > 8 << 20, "the balloon gave way", &outcome)?;
    Ok(Completion::Completed)
}

fn statistics(transport: &str) -> Verdict {
    let script = "sleep 4; echo total=$(grep MemTotal /proc/meminfo | tr -dc 0-9)";
    let outcome = guest(transport, "stats=1", script).run()?.script_passed()?;
    let value = |name: &str| counter(&outcome, name);
    check(value("stats_reports")? >= 3, "one a second", &outcome)?;
    let total = value("guest_total_bytes")?;
    check(total == outcome.count("total")? << 10, "the guest's total is known", &outcome)?;
    check((1..total).contains(&value("guest_free_bytes")?), "and what is free", &outcome)?;
    check((1..total).contains(&value("guest_available_bytes")?), "and available", &outcome)?;
    Ok(Completion::Completed)
}

/// The guest's kernel takes some for itself, so it can only be slower.
fn entropy(transport: &str) -> Verdict {
    let script = "a=$(cut -d. -f1 /proc/uptime); dd if=/dev/hwrng of=/tmp/r bs=512 count=80
        b=$(cut -d. -f1 /proc/uptime); echo seconds=$((b - a)); echo bytes=$(wc -c </tmp/r)";
    let guest = Guest::tiny().script(script).arg("--transport").arg(transport);
    let outcome = guest.arg("--rng").arg("rate=8K:1K").run()?.script_passed()?;
    check(outcome.count("bytes")? == 80 * 512, "all of it comes", &outcome)?;
    check(outcome.count("seconds")? >= 4, "40 KiB take 5 seconds", &outcome)?;
    Ok(Completion::Completed)
}
