//! What the figures depend on.

use crate::memory;
use crate::report::Host;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};
use vmm::host::processor;
use vmm::host::spectrum::{self, How};

/// This host.
pub fn examine() -> Host {
    let spectrum = spectrum::examine();
    let hypervisor = processor::hypervisor();
    let name = processor::model().unwrap_or_else(|| "unknown".to_owned());
    let emulated = hypervisor.as_deref() == Some(processor::TCG) || name.contains("QEMU TCG");
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    Host {
        processor: name,
        processors: processors(),
        memory: memory::total(),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        hypervisor,
        kvm: spectrum.problem.clone().unwrap_or_else(|| spectrum.facts.backend.to_owned()),
        privileged_instructions: spectrum.privileged_instructions.how.letters().to_owned(),
        page_tables: spectrum.page_tables.how.letters().to_owned(),
        emulated,
        virtualization_emulated: emulated || spectrum.privileged_instructions.how == How::Software,
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        // SAFETY: geteuid has no preconditions.
        uid: unsafe { libc::geteuid() },
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Nanoseconds since this host's kernel began (`CLOCK_BOOTTIME`).
pub fn uptime() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives across the call; on an error it stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// How many processors this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
