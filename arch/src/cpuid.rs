//! What a vCPU says of itself: everything that KVM supports, with the topology
//! and timing leaves made true for this machine.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E;
//! Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the policy has to know beside KVM's list.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// This vCPU's number, which is its APIC ID.
    pub cpu: u32,
    /// vCPUs of the machine: one socket, one thread a core.
    pub cpus: u32,
    /// The guest's TSC frequency in kHz; 0 when unknown.
    pub tsc_khz: u32,
    /// Whether KVM emulates the LAPIC's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// KVM's paravirtual features that the guest may use, as bits of leaf
    /// 0x40000001; `None`: nothing says that this is a virtual machine.
    pub paravirtual: Option<u32>,
}

/// Base of KVM's own leaves.
const KVM_LEAF: u32 = 0x4000_0000;
/// Timing leaf, as VMware defined it: EAX = TSC kHz, EBX = APIC bus kHz.
const TIMING_LEAF: u32 = 0x4000_0010;
/// KVM's features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Leaves that hypervisors have for themselves.
const HYPERVISOR_LEAVES: std::ops::Range<u32> = KVM_LEAF..0x4001_0000;
/// KVM's LAPIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The CPUID leaves of one vCPU. `None` when they don't fit KVM's limit.
pub fn leaves(supported: &CpuId, topology: &Topology) -> Option<CpuId> {
    let hidden = topology.paravirtual.is_none();
    let has_kvm = !hidden && supported.as_slice().iter().any(|e| e.function == KVM_LEAF);
    let has_0b = supported.as_slice().iter().any(|e| e.function == 0 && e.eax >= 0xb);
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        // Topology is rebuilt below; without 0x1f, 0x0b is what counts.
        .filter(|e| !matches!(e.function, 0x0b | 0x1f))
        .filter(|e| !(hidden && HYPERVISOR_LEAVES.contains(&e.function)))
        .map(|e| patched(*e, topology))
        .collect();
    if has_0b {
        entries.extend(extended_topology(topology));
    }
    if has_kvm && topology.tsc_khz != 0 {
        entries.push(kvm_cpuid_entry2 {
            function: TIMING_LEAF,
            eax: topology.tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).ok()
}

/// Bits of an APIC ID that number the cores.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

fn patched(mut e: kvm_cpuid_entry2, t: &Topology) -> kvm_cpuid_entry2 {
    match e.function {
        // Features: APIC ID, logical processors, HTT, hypervisor, TSC-deadline.
        0x01 => {
            e.ebx = (e.ebx & 0xffff) | (t.cpu << 24) | (t.cpus.next_power_of_two() << 16);
            set(&mut e.edx, 28, t.cpus > 1);
            set(&mut e.ecx, 31, t.paravirtual.is_some());
            set(&mut e.ecx, 24, t.tsc_deadline);
        }
        // Deterministic cache parameters: the last level is everybody's.
        0x04 if e.eax & 0x1f != 0 => {
            e.eax = (e.eax & 0x3fff) | shared_by(e.eax, t) << 14 | (t.cpus - 1) << 26;
        }
        // Thermal and power: the APIC timer always runs; no APERF/MPERF.
        0x06 => {
            e.eax = 1 << 2;
            e.ebx = 0;
            e.ecx = 0;
        }
        // No performance counters: they cost boot time and show the host.
        0x0a => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
        KVM_LEAF => e.eax = e.eax.max(TIMING_LEAF),
        KVM_FEATURES => e.eax &= t.paravirtual.unwrap_or(0),
        // AMD: core count and the size of the core's part of the APIC ID.
        0x8000_0008 => {
            e.ecx = (e.ecx & !0xf0ff) | (t.cpus - 1) | core_bits(t.cpus) << 12;
        }
        // AMD: no performance counter extensions (PerfCtrExtCore and NB/LLC).
        0x8000_0001 => {
            set(&mut e.ecx, 23, false);
            set(&mut e.ecx, 24, false);
            set(&mut e.ecx, 28, false);
        }
        // AMD: PerfMonV2.
        0x8000_0022 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
        0x8000_001d if e.eax & 0x1f != 0 => {
            e.eax = (e.eax & 0x3fff) | shared_by(e.eax, t) << 14;
        }
        // AMD: extended APIC ID, core ID with one thread, node 0 of 1.
        0x8000_001e => (e.eax, e.ebx, e.ecx) = (t.cpu, t.cpu & 0xff, 0),
        _ => {}
    }
    e
}

/// Cores that share a cache, less one: all share the third level and above.
fn shared_by(eax: u32, t: &Topology) -> u32 {
    if eax >> 5 & 7 >= 3 { t.cpus.next_power_of_two() - 1 } else { 0 }
}

/// Leaf 0x0b: one thread a core, `cpus` cores.
fn extended_topology(t: &Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0x0b,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: t.cpu,
        ..Default::default()
    };
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    [level(0, 0, 1, SMT), level(1, core_bits(t.cpus), t.cpus, CORE), level(2, 0, 0, 0)]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !(1 << bit) | u32::from(on) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ..Default::default() }
    }

    fn build(cpu: u32, cpus: u32) -> Vec<kvm_cpuid_entry2> {
        build_with(cpu, cpus, Some(u32::MAX))
    }

    fn build_with(cpu: u32, cpus: u32, paravirtual: Option<u32>) -> Vec<kvm_cpuid_entry2> {
        let supported = CpuId::from_entries(&[
            entry(0, 0x1f),
            entry(1, 0x800f12),
            entry(4, 1 | 1 << 5),
            entry(4, 3 | 3 << 5),
            entry(0x1f, 7),
            entry(0x0b, 7),
            entry(KVM_LEAF, 0x4000_0001),
            entry(KVM_FEATURES, 0x0100_7efb),
            entry(0x8000_0008, 0x3030),
            entry(0x8000_001e, 9),
        ])
        .unwrap();
        let t = Topology { cpu, cpus, tsc_khz: 2_500_000, tsc_deadline: true, paravirtual };
        leaves(&supported, &t).unwrap().as_slice().to_vec()
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().filter(|e| e.function == function).nth(index as usize).unwrap()
    }

    #[test]
    fn every_topology_leaf_tells_the_same() {
        for cpus in [1, 2, 3, 4, 32] {
            for cpu in 0..cpus {
                let e = build(cpu, cpus);
                assert_eq!(leaf(&e, 1, 0).ebx >> 24, cpu);
                assert_eq!(leaf(&e, 1, 0).ebx >> 16 & 0xff, cpus.next_power_of_two());
                assert_eq!(leaf(&e, 1, 0).edx >> 28 & 1, u32::from(cpus > 1));
                assert_eq!(leaf(&e, 4, 0).eax >> 14 & 0xfff, 0);
                assert_eq!(leaf(&e, 4, 1).eax >> 14 & 0xfff, cpus.next_power_of_two() - 1);
                assert_eq!(leaf(&e, 0x0b, 1).ebx, cpus);
                assert_eq!(leaf(&e, 0x0b, 1).edx, cpu);
                assert!(1 << leaf(&e, 0x0b, 1).eax >= cpus);
                assert_eq!(leaf(&e, 0x8000_0008, 0).ecx & 0xff, cpus - 1);
                assert_eq!(leaf(&e, 0x8000_001e, 0).eax, cpu);
                assert!(!e.iter().any(|e| e.function == 0x1f));
            }
        }
    }

    #[test]
    fn the_timing_leaf_is_reachable() {
        let e = build(0, 1);
        assert_eq!(leaf(&e, KVM_LEAF, 0).eax, TIMING_LEAF);
        assert_eq!(leaf(&e, TIMING_LEAF, 0).eax, 2_500_000);
    }

    #[test]
    fn features_are_masked_and_kvm_can_be_hidden() {
        const HYPERVISOR: u32 = 1 << 31;
        let e = build(0, 1);
        assert_eq!(leaf(&e, KVM_FEATURES, 0).eax, 0x0100_7efb);
        assert_eq!(leaf(&e, 1, 0).ecx & HYPERVISOR, HYPERVISOR);
        let e = build_with(0, 1, Some(!(1 << 6)));
        assert_eq!(leaf(&e, KVM_FEATURES, 0).eax, 0x0100_7ebb, "no PV EOI");
        let e = build_with(0, 1, None);
        assert!(!e.iter().any(|e| HYPERVISOR_LEAVES.contains(&e.function)));
        assert_eq!(leaf(&e, 1, 0).ecx & HYPERVISOR, 0);
    }
}
