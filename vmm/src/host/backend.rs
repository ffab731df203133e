//! What stands behind `/dev/kvm`, from the module list, the processor and KVM.

use super::exists;
use kvm_ioctls::Kvm;
use std::arch::x86_64::__cpuid;
use std::ffi::CStr;
use std::fmt;
use std::path::Path;

/// Told from Linux 6.11 on, and only with nested paging.
pub(super) const KVM_CAP_PRE_FAULT_MEMORY: libc::c_ulong = 236;

/// VMX capability MSRs, which KVM lists as features on VT-x alone.
const VMX_FEATURE_MSRS: std::ops::RangeInclusive<u32> = 0x480..=0x491;

/// How KVM runs the guest's privileged instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Intel VT-x.
    Vmx,
    /// AMD SVM.
    Svm,
    /// On page tables alone (`kvm_pvm`): ring 0 of an ordinary guest is emulated.
    Pagetable,
    /// It doesn't tell.
    Unknown,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Backend {
    /// Its name and its module's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmx => "VT-x, kvm_intel",
            Self::Svm => "SVM, kvm_amd",
            Self::Pagetable => "pagetable-based, kvm_pvm",
            Self::Unknown => "unknown backend",
        }
    }

    /// Finds the backend; without a KVM at hand, from the modules alone.
    pub fn detect(kvm: Option<&Kvm>) -> Self {
        // A module that is built in is listed whether or not it found its
        // processor, so the flag decides between VT-x and SVM.
        match cpu_flag() {
            Some(backend) if exists(backend.module()) => backend,
            _ if exists(Self::Pagetable.module()) => Self::Pagetable,
            // Without sysfs, ask KVM itself.
            _ if kvm.is_some_and(lists_vmx_msrs) => Self::Vmx,
            Some(backend) if kvm.is_some() && !exists(c"/sys/module") => backend,
            _ => Self::Unknown,
        }
    }

    /// Where the kernel shows the module.
    pub(super) fn module(self) -> &'static CStr {
        match self {
            Self::Vmx => c"/sys/module/kvm_intel",
            Self::Svm => c"/sys/module/kvm_amd",
            Self::Pagetable => c"/sys/module/kvm_pvm",
            Self::Unknown => c"/sys/module/kvm",
        }
    }

    /// What to do when Linux can't run on it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Pagetable => {
                "use a host with VT-x or SVM, or boot one in QEMU (qemu-system-x86_64 -cpu max)"
            }
            _ => "use a host with VT-x or SVM; microvm doctor tells more",
        }
    }

    /// Whether KVM uses the processor's second level of page tables.
    pub fn nested_paging(self, kvm: &Kvm) -> Option<bool> {
        let parameter = match self {
            Self::Pagetable => Some(false),
            _ => self.nested_paging_parameter(),
        };
        let told = kvm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY) > 0;
        // 0 also stands for a kernel that doesn't know the question.
        parameter.or_else(|| told.then_some(true))
    }

    /// What the module's parameter for it says.
    pub(super) fn nested_paging_parameter(self) -> Option<bool> {
        match self {
            Self::Vmx => parameter("kvm_intel", "ept"),
            Self::Svm => parameter("kvm_amd", "npt"),
            Self::Pagetable | Self::Unknown => None,
        }
    }

    /// Whether VT-x runs real mode by itself; elsewhere there is no question.
    pub(super) fn unrestricted_guest(self) -> Option<bool> {
        match self {
            Self::Vmx => parameter("kvm_intel", "unrestricted_guest"),
            Self::Svm | Self::Pagetable | Self::Unknown => None,
        }
    }

    /// Whether the processor delivers interrupts by itself (APICv, AVIC).
    pub fn interrupt_virtualization(self) -> Option<bool> {
        match self {
            Self::Vmx => parameter("kvm_intel", "enable_apicv"),
            Self::Svm => parameter("kvm_amd", "avic"),
            Self::Pagetable => Some(false),
            Self::Unknown => None,
        }
    }
}

/// The extension that this processor has, whether or not KVM uses it.
pub(super) fn cpu_flag() -> Option<Backend> {
    if __cpuid(1).ecx & 1 << 5 != 0 {
        Some(Backend::Vmx)
    } else if __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0 {
        Some(Backend::Svm)
    } else {
        None
    }
}

/// Whether this host is a guest itself.
pub(super) fn cpu_is_virtual() -> bool {
    __cpuid(1).ecx & 1 << 31 != 0
}

fn lists_vmx_msrs(kvm: &Kvm) -> bool {
    kvm.get_msr_feature_index_list()
        .is_ok_and(|list| list.as_slice().iter().any(|msr| VMX_FEATURE_MSRS.contains(msr)))
}

/// A yes-or-no parameter of a module.
fn parameter(module: &str, name: &str) -> Option<bool> {
    let path = Path::new("/sys/module").join(module).join("parameters").join(name);
    match std::fs::read_to_string(path).ok()?.trim() {
        "Y" | "y" => Some(true),
        "N" | "n" => Some(false),
        // AVIC counts: 1, and -1 for automatic.
        number => number.parse::<i32>().ok().map(|n| n != 0),
    }
}
