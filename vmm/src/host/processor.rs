//! What the host's processor says of itself.

use std::arch::x86_64::__cpuid;
use std::fs;

/// CPUID's name of QEMU's interpreter (`accel/tcg`).
pub const TCG: &str = "TCGTCGTCGTCG";

/// The processor's brand, as /proc/cpuinfo has it.
pub fn model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?;
    Some(name.1.trim().to_owned())
}

/// The hypervisor that this host runs on: CPUID leaf 0x4000_0000, which means
/// something if bit 31 of leaf 1's ECX is set.
pub fn hypervisor() -> Option<String> {
    const HYPERVISOR: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let name = bytes.into_iter().filter(u8::is_ascii_graphic).map(char::from).collect::<String>();
    Some(if name.is_empty() { "unnamed".to_owned() } else { name })
}
