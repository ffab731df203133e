//! Processor, clock, kernel and network.

use super::{Check, State, read};
use crate::host::{find_command, processor};
use std::fs::OpenOptions;
use std::io;

/// Processors, their time stamp counter, and the kernel.
pub(super) fn processor() -> Vec<Check> {
    vec![kernel(), cpus(), clock()]
}

fn kernel() -> Check {
    match read("/proc/sys/kernel/osrelease") {
        Some(release) => Check::ok("kernel", format!("Linux {release}")),
        None => Check::unknown("kernel", "/proc is not mounted"),
    }
}

fn cpus() -> Check {
    // SAFETY: sysconf has no preconditions; the set is plain data, and
    // sched_getaffinity writes at most the size that it is told.
    let (online, allowed) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let got = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        let allowed = if got == 0 { libc::CPU_COUNT(&set) } else { 0 };
        (libc::sysconf(libc::_SC_NPROCESSORS_ONLN), allowed)
    };
    let model = processor::model().map(|name| format!(", {name}")).unwrap_or_default();
    if i64::from(allowed) == online {
        Check::ok("processors", format!("{online}{model}"))
    } else {
        Check::ok("processors", format!("{allowed} of {online} allowed{model}"))
    }
}

fn clock() -> Check {
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let missing: Vec<&str> = ["constant_tsc", "nonstop_tsc"]
        .into_iter()
        .filter(|flag| !flags.split_ascii_whitespace().any(|f| f == *flag))
        .collect();
    match source.as_deref() {
        None => Check::unknown("clock", "no clocksource is shown"),
        // A guest of another hypervisor may well keep time by its clock.
        Some("tsc") if missing.is_empty() => Check::ok("clock", "tsc, constant and nonstop"),
        Some(source) if missing.is_empty() => Check::new(
            "clock",
            State::Warn,
            format!("{source}; the TSC is constant and nonstop, but not used"),
        )
        .remedy("guests' kvm-clock may be slower; see dmesg about the TSC"),
        Some(source) => Check::new(
            "clock",
            State::Warn,
            format!("{source}; the TSC lacks {}", missing.join(" and ")),
        )
        .remedy("guests' time may drift; a newer processor, or pass these flags through"),
    }
}

/// TAP interfaces and the tool that makes them, and networks without them.
pub(super) fn network() -> Vec<Check> {
    vec![tun(), ip_command(), user_network()]
}

fn tun() -> Check {
    let (path, name) = ("/dev/net/tun", "TAP");
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) if may_administer_network() => Check::ok(name, "/dev/net/tun; may make interfaces"),
        Ok(_) => Check::ok(name, "/dev/net/tun; only interfaces made for this user")
            .remedy("make one: sudo ip tuntap add vmtap0 mode tap user $USER"),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => "sudo modprobe tun; in a container, pass the device in",
                io::ErrorKind::PermissionDenied => "sudo setfacl -m u:$USER:rw /dev/net/tun",
                _ => "sudo modprobe tun",
            };
            // Machines without --net are not touched by this.
            Check::new(name, State::Warn, format!("{path}: {}", crate::plain(&error)))
                .remedy(remedy)
        }
    }
}

/// CAP_NET_ADMIN is effective.
fn may_administer_network() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = read("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_NET_ADMIN & 1 == 1)
}

fn ip_command() -> Check {
    match find_command("ip") {
        Some(path) => Check::ok("ip command", path.display().to_string()),
        None => Check::new("ip command", State::Warn, "not found")
            .remedy("install the package iproute2 to set up TAP interfaces"),
    }
}

/// Who would serve `--net user`.
fn user_network() -> Check {
    let name = "user network";
    match devices::backend::passt::find_sound() {
        Some(path) => Check::ok(name, format!("by passt, {}", path.display())),
        None => {
            Check::ok(name, "by microvm itself, for IPv4; a passt newer than Debian 12's adds IPv6")
        }
    }
}
