//! What the figures depend on.

use crate::memory;
use crate::report::Host;
use std::arch::x86_64::__cpuid;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};
use vmm::host::spectrum::{self, How};

/// CPUID's name of QEMU's interpreter.
const TCG: &str = "TCGTCGTCGTCG";

/// This host.
pub fn examine() -> Host {
    let spectrum = spectrum::examine();
    let hypervisor = hypervisor();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']));
    let emulated = hypervisor.as_deref() == Some(TCG) || name.contains("QEMU TCG");
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    Host {
        processor: name.to_owned(),
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

/// How many processors this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Leaf 0x40000000, where bit 31 of leaf 1's ECX says that it means anything.
fn hypervisor() -> Option<String> {
    if __cpuid(1).ecx >> 31 == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes: Vec<u8> =
        [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
    let name: String = bytes
        .iter()
        .take_while(|b| **b != 0)
        .filter(|b| b.is_ascii_graphic())
        .map(|b| char::from(*b))
        .collect();
    Some(if name.is_empty() { "unnamed".to_owned() } else { name })
}
