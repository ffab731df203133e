//! Everything that makes up a vCPU, saved and restored explicitly.
//!
//! The order of the calls matters (Linux `Documentation/virt/kvm/api.rst`):
//! events are saved after MP state, because `KVM_GET_MP_STATE` may turn a
//! pending INIT into state; on restore CPUID comes first, the local APIC before
//! the MSRs (TSC deadline), and events last.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// The version of [`VcpuState`]'s layout.
pub const VERSION: u32 = 1;

/// A vCPU's whole state.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    /// CPUID leaves, as they were set.
    pub cpuid: CpuId,
    /// Run state (running, halted, waiting for SIPI, …).
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segment, control and table registers, APIC base, pending interrupt.
    pub sregs: kvm_sregs,
    /// XSAVE area: x87, SSE, AVX and so on.
    pub xsave: kvm_xsave,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// The local APIC's register page.
    pub lapic: kvm_lapic_state,
    /// Every MSR that KVM lists and can read, in KVM's order.
    pub msrs: Vec<kvm_msr_entry>,
    /// Exceptions, interrupts, NMI and SMI in flight.
    pub events: kvm_vcpu_events,
    /// TSC frequency in kHz; `None` where KVM can't tell.
    pub tsc_khz: Option<u32>,
}

/// A step of saving or restoring that KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("vCPU state: {step}: {source}")]
pub struct VcpuStateError {
    step: &'static str,
    source: kvm_ioctls::Error,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, VcpuStateError>;
}

impl<T> Step<T> for Result<T, kvm_ioctls::Error> {
    fn step(self, step: &'static str) -> Result<T, VcpuStateError> {
        self.map_err(|source| VcpuStateError { step, source })
    }
}

/// The MSRs that KVM says belong to a vCPU's state.
pub fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}

/// Saves a vCPU that is not running.
pub fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<VcpuState, VcpuStateError> {
    // GET_MP_STATE may process a pending INIT: before everything else.
    let mp_state = vcpu.get_mp_state().step("KVM_GET_MP_STATE")?;
    Ok(VcpuState {
        mp_state,
        cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).step("KVM_GET_CPUID2")?,
        regs: vcpu.get_regs().step("KVM_GET_REGS")?,
        sregs: vcpu.get_sregs().step("KVM_GET_SREGS")?,
        xsave: vcpu.get_xsave().step("KVM_GET_XSAVE")?,
        xcrs: vcpu.get_xcrs().step("KVM_GET_XCRS")?,
        debug: vcpu.get_debug_regs().step("KVM_GET_DEBUGREGS")?,
        lapic: vcpu.get_lapic().step("KVM_GET_LAPIC")?,
        msrs: read_msrs(vcpu, msr_indices)?,
        events: vcpu.get_vcpu_events().step("KVM_GET_VCPU_EVENTS")?,
        tsc_khz: vcpu.get_tsc_khz().ok(),
    })
}

/// Makes `vcpu`, fresh or stopped, the one that was saved.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    vcpu.set_cpuid2(&state.cpuid).step("KVM_SET_CPUID2")?;
    vcpu.set_mp_state(state.mp_state).step("KVM_SET_MP_STATE")?;
    vcpu.set_regs(&state.regs).step("KVM_SET_REGS")?;
    vcpu.set_sregs(&state.sregs).step("KVM_SET_SREGS")?;
    // SAFETY: the CPUID leaves above don't enable any dynamic XSTATE feature
    // (nobody asks for the guest permission), so the area is the 4 KiB that
    // `kvm_xsave` holds, and KVM reads no further.
    unsafe { vcpu.set_xsave(&state.xsave) }.step("KVM_SET_XSAVE")?;
    vcpu.set_xcrs(&state.xcrs).step("KVM_SET_XCRS")?;
    vcpu.set_debug_regs(&state.debug).step("KVM_SET_DEBUGREGS")?;
    vcpu.set_lapic(&state.lapic).step("KVM_SET_LAPIC")?;
    write_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).step("KVM_SET_VCPU_EVENTS")
}

/// MSRs a call may carry; KVM's own limit is 256.
const CHUNK: usize = 128;

/// Reads all of `indices` that can be read. KVM lists some that a given vCPU
/// does not have and stops at the first of those, so that one is dropped and
/// the rest is tried again.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest
            .iter()
            .take(CHUNK)
            .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
            .collect();
        let Ok(mut msrs) = Msrs::from_entries(&asked) else { break };
        let n = vcpu.get_msrs(&mut msrs).step("KVM_GET_MSRS")?;
        found.extend_from_slice(&msrs.as_slice()[..n.min(asked.len())]);
        let skip = if n < asked.len() { n + 1 } else { n };
        rest = &rest[skip..];
    }
    Ok(found)
}

/// Writes MSRs; one that KVM refuses to write back (some are read-only on some
/// hosts) is skipped, as it already has the value that this host gives it.
pub fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), VcpuStateError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let n = rest.len().min(CHUNK);
        let Ok(msrs) = Msrs::from_entries(&rest[..n]) else { break };
        let done = vcpu.set_msrs(&msrs).step("KVM_SET_MSRS")?;
        if done < n {
            log::debug!("KVM_SET_MSRS: {:#x} not writable", rest[done].index);
        }
        rest = &rest[if done < n { done + 1 } else { n }..];
    }
    Ok(())
}
