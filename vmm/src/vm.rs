//! The virtual machine as KVM holds it: interrupt controllers, timer, memory
//! and vCPUs, before any device of ours.

use crate::intr::Controllers;
use crate::memory::{self, MemoryError, Ram};
use crate::msi::{self, Messages, Wiring};
use arch::registers::{self, Entry};
use arch::{cpuid, layout, vcpu_state};
use devices::irq::IrqLine;
use devices::state::{Saved, StateError};
use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_SPLIT_IRQCHIP, KVM_CLOCK_TSC_STABLE,
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_clock_data, kvm_enable_cap,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Why KVM could not make the machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// An ioctl failed.
    #[error("KVM: {what}: {source}")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than this host allows.
    #[error("cpus: {asked}: this host's KVM allows at most {max}: lower --cpus")]
    TooManyCpus {
        /// vCPUs asked for.
        asked: u32,
        /// The host's limit.
        max: usize,
    },
    /// The CPUID leaves exceed KVM's limit.
    #[error("KVM: too many CPUID leaves")]
    Cpuid,
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vCPU's registers could not be set.
    #[error(transparent)]
    State(#[from] vcpu_state::VcpuStateError),
    /// Interrupt controllers of the monitor could not be saved or restored.
    #[error(transparent)]
    Controllers(#[from] StateError),
}

trait What<T> {
    fn what(self, what: &'static str) -> Result<T, VmError>;
}

impl<T> What<T> for Result<T, kvm_ioctls::Error> {
    fn what(self, what: &'static str) -> Result<T, VmError> {
        self.map_err(|source| VmError::Kvm { what, source })
    }
}

/// A virtual machine without vCPUs and devices.
pub struct Vm {
    /// The VM's file descriptor.
    pub fd: Arc<VmFd>,
    supported: CpuId,
    tsc_deadline: bool,
    options: Options,
    /// Messages that devices send.
    pub messages: Arc<Messages>,
    /// Whether KVM can take writes for us, to be carried out later.
    pub takes_writes: bool,
    /// Interrupt controllers that are not KVM's.
    pub controllers: Option<Arc<Controllers>>,
}

/// Which interrupt controllers and timers are KVM's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Chips {
    /// All of them.
    #[default]
    Kernel,
    /// Local APICs.
    Split,
    /// None.
    User,
}

/// What of the machine is KVM's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How interrupts reach the IOAPIC.
    pub wiring: Wiring,
    /// KVM's features that the guest may use: see [`cpuid::Topology`].
    pub paravirtual: Option<u32>,
    /// Which interrupt controllers and timers are KVM's.
    pub chips: Chips,
}

impl Default for Options {
    /// No motherboard, and all features.
    fn default() -> Self {
        Self { wiring: Wiring::Straight, paravirtual: Some(u32::MAX), chips: Chips::Kernel }
    }
}

/// The version of [`VmState`]'s layout.
pub const VERSION: u32 = 2;

/// What KVM holds for the machine as a whole.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    /// Master and slave 8259 and the IOAPIC, by `chip_id`; none that are not KVM's.
    pub irqchips: Vec<kvm_irqchip>,
    /// The 8254, if it is KVM's.
    pub pit: Option<kvm_pit_state2>,
    /// Those that are not KVM's.
    pub controllers: Option<Saved>,
    /// kvm-clock.
    pub clock: kvm_clock_data,
}

impl Vm {
    /// Makes the VM for `cpus` vCPUs.
    pub fn new(kvm: &Kvm, cpus: u32, options: Options) -> Result<Self, VmError> {
        let max = kvm.get_max_vcpus();
        if cpus as usize > max {
            return Err(VmError::TooManyCpus { asked: cpus, max });
        }
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).what("KVM_GET_SUPPORTED_CPUID")?;
        // The timer of a LAPIC that is not KVM's has no such mode.
        let tsc_deadline =
            kvm.check_extension(Cap::TscDeadlineTimer) && options.chips != Chips::User;
        let fd = kvm.create_vm().what("KVM_CREATE_VM")?;
        // Both are for VMX without unrestricted guest, and must precede vCPUs.
        fd.set_identity_map_address(layout::IDENTITY_MAP).what("KVM_SET_IDENTITY_MAP_ADDR")?;
        fd.set_tss_address(layout::TSS as usize).what("KVM_SET_TSS_ADDR")?;
        let fd = Arc::new(fd);
        let takes_writes = kvm.check_extension(Cap::CoalescedMmio);
        let failed = |e: io::Error| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EIO));
        let wiring = if options.chips == Chips::Split { Wiring::Messages } else { options.wiring };
        let messages = Messages::new(fd.clone(), wiring);
        let controllers = match options.chips {
            Chips::Kernel => {
                create_chips(&fd, wiring)?;
                None
            }
            Chips::Split => {
                let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
                cap.args[0] = layout::IOAPIC_PINS.into();
                fd.enable_cap(&cap).what("KVM_CAP_SPLIT_IRQCHIP")?;
                Some(Controllers::split(messages.clone()).map_err(failed).what("timerfd")?)
            }
            Chips::User => Some(Controllers::new().map_err(failed).what("timerfd")?),
        };
        Ok(Self { fd, supported, tsc_deadline, options, takes_writes, messages, controllers })
    }

    /// Which interrupt controllers and timers are KVM's.
    pub fn chips(&self) -> Chips {
        self.options.chips
    }

    /// Gives the guest its memory.
    pub fn set_memory(&self, ram: &Ram) -> Result<(), VmError> {
        Ok(memory::register(&self.fd, ram)?)
    }

    /// Gives the guest firmware in read-only memory.
    pub fn set_rom(&self, base: u64, image: &[u8]) -> Result<(), VmError> {
        Ok(memory::register_rom(&self.fd, base, image)?)
    }

    /// Makes vCPU `cpu` of `cpus` in its reset state.
    pub fn vcpu(&self, cpu: u32, cpus: u32) -> Result<VcpuFd, VmError> {
        let fd = self.fd.create_vcpu(cpu.into()).what("KVM_CREATE_VCPU")?;
        let topology = cpuid::Topology {
            cpu,
            cpus,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            tsc_deadline: self.tsc_deadline,
            x2apic: self.options.chips != Chips::User,
            paravirtual: self.options.paravirtual,
        };
        let leaves = cpuid::leaves(&self.supported, &topology).ok_or(VmError::Cpuid)?;
        fd.set_cpuid2(&leaves).what("KVM_SET_CPUID2")?;
        // Otherwise a feature that CPUID denies would work all the same.
        if self.options.paravirtual != Some(u32::MAX) {
            let mut cap =
                kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
            cap.args[0] = 1;
            fd.enable_cap(&cap).what("KVM_CAP_ENFORCE_PV_FEATURE_CPUID")?;
        }
        vcpu_state::write_msrs(&fd, &registers::boot_msrs())?;
        if self.options.chips == Chips::User {
            return Ok(fd);
        }
        let mut lapic = fd.get_lapic().what("KVM_GET_LAPIC")?;
        registers::virtual_wire(&mut lapic);
        fd.set_lapic(&lapic).what("KVM_SET_LAPIC")?;
        Ok(fd)
    }

    /// Puts the first vCPU at the kernel's entry point; the others wait for
    /// the guest to start them.
    pub fn enter(&self, vcpu: &VcpuFd, entry: Entry) -> Result<(), VmError> {
        let mut sregs = vcpu.get_sregs().what("KVM_GET_SREGS")?;
        registers::special(entry, &mut sregs);
        vcpu.set_sregs(&sregs).what("KVM_SET_SREGS")?;
        vcpu.set_regs(&registers::general(entry)).what("KVM_SET_REGS")
    }

    /// Ties an interrupt line to a GSI.
    pub fn connect_irq(&self, line: &IrqLine, gsi: u32) -> Result<(), VmError> {
        if let Some(controllers) = &self.controllers {
            let failed =
                |e: io::Error| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EIO));
            return controllers.connect(line, gsi).map_err(failed).what("eventfd");
        }
        self.fd.register_irqfd(line.eventfd(), gsi).what("KVM_IRQFD")
    }

    /// Ties a doorbell register to its queues' eventfds: KVM signals them
    /// without an exit to us. A register with one queue needs no comparison of
    /// the value, which lets KVM skip decoding the instruction.
    pub fn connect_doorbells(
        &self,
        register: u64,
        doorbells: &[Arc<EventFd>],
    ) -> Result<(), VmError> {
        let address = IoEventAddress::Mmio(register);
        match doorbells {
            [only] => self.fd.register_ioevent(only.as_ref(), &address, NoDatamatch),
            many => many.iter().enumerate().try_for_each(|(queue, doorbell)| {
                self.fd.register_ioevent(doorbell, &address, queue as u32)
            }),
        }
        .what("KVM_IOEVENTFD")
    }

    /// Writes to a register of 32 bits wait in KVM until the next access to
    /// memory-mapped registers that comes to us, and cost no exit of their own
    /// ([`crate::vcpu::Late`]). Only for what nobody needs to know before.
    pub fn take_writes(&self, register: u64) -> Result<(), VmError> {
        if !self.takes_writes {
            return Ok(());
        }
        let address = IoEventAddress::Mmio(register);
        self.fd.register_coalesced_mmio(address, 4).what("KVM_REGISTER_COALESCED_MMIO")
    }

    /// Saves what KVM holds for the machine. No vCPU may run.
    pub fn save(&self) -> Result<VmState, VmError> {
        let (mut irqchips, mut pit) = (Vec::new(), None);
        let ours = self.controllers.as_ref();
        let controllers = ours.map(|controllers| controllers.save()).transpose()?;
        if ours.is_none() {
            for chip_id in 0..3 {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                self.fd.get_irqchip(&mut chip).what("KVM_GET_IRQCHIP")?;
                irqchips.push(chip);
            }
            pit = Some(self.fd.get_pit2().what("KVM_GET_PIT2")?);
        }
        let mut clock = self.fd.get_clock().what("KVM_GET_CLOCK")?;
        // A flag of the answer that KVM_SET_CLOCK does not take.
        clock.flags &= !KVM_CLOCK_TSC_STABLE;
        Ok(VmState { irqchips, pit, controllers, clock })
    }

    /// Makes this VM, fresh or stopped, the one that was saved.
    pub fn restore(&self, state: &VmState) -> Result<(), VmError> {
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).what("KVM_SET_IRQCHIP")?;
        }
        if let Some(pit) = &state.pit {
            self.fd.set_pit2(pit).what("KVM_SET_PIT2")?;
        }
        if let (Some(controllers), Some(saved)) = (&self.controllers, &state.controllers) {
            controllers.restore(saved)?;
        }
        // Realtime and host TSC describe the host that saved, not this one.
        let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).what("KVM_SET_CLOCK")
    }
}

/// Makes KVM's own interrupt controllers and timer.
fn create_chips(fd: &VmFd, wiring: Wiring) -> Result<(), VmError> {
    fd.create_irq_chip().what("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    fd.create_pit2(pit).what("KVM_CREATE_PIT2")?;
    if wiring == Wiring::Straight {
        return Ok(());
    }
    let routes = KvmIrqRouting::from_entries(&msi::irqchip_routes(wiring));
    let routes = routes.map_err(|_| kvm_ioctls::Error::new(libc::E2BIG));
    routes.and_then(|routes| fd.set_gsi_routing(&routes)).what("KVM_SET_GSI_ROUTING")
}
