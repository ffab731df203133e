//! A guest that measures what its own privileged instructions cost.
//!
//! ```text
//!  a loop of one instruction, n times ─► OUT ─► ns and KVM's statistics, before and after
//!        n grows until the loop takes long enough to be told from the way in and out
//! ```
//!
//! Times are the thread's processor time, guest included: they don't run while
//! other programs do.

use crate::host::HostError;
use crate::host::probe::{self, CODE, DONE, PML4, PORT, Ring, SCRATCH, STACK_TOP, Watchdog};
use crate::metrics::kvm::Statistics;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// An instruction, or a loop of nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Two instructions that need no privilege, in ring 3.
    Ring3Loop,
    /// The same in ring 0.
    Ring0Loop,
    /// The same in real mode, where every PC starts.
    RealModeLoop,
    /// CPUID.
    Cpuid,
    /// Reading a model-specific register.
    Rdmsr,
    /// Loading the address of the page tables.
    LoadCr3,
    /// Forgetting one translation.
    Invlpg,
    /// Writing an entry of a page table that is in use.
    PageTableWrite,
    /// Writing to a port that nobody has in the kernel.
    PortWrite,
    /// Writing to memory that is a device's.
    MmioWrite,
    /// The end of an interrupt, told to KVM's local APIC by a store.
    EoiStore,
    /// The same by WRMSR, as x2APIC has it.
    EoiMsr,
}

/// What one of them cost, on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// What was measured.
    pub operation: Operation,
    /// Nanoseconds of processor time.
    pub nanoseconds: f64,
    /// Exits from the guest; not where KVM keeps no statistics.
    pub exits: Option<f64>,
    /// Exits to this program.
    pub user_exits: f64,
    /// Instructions that KVM carried out itself.
    pub emulated: Option<f64>,
    /// Translations that KVM forgot in page tables of its own.
    pub shadow_invalidations: Option<f64>,
}

impl Operation {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 12] = [
        Self::Ring3Loop,
        Self::Ring0Loop,
        Self::RealModeLoop,
        Self::Cpuid,
        Self::Rdmsr,
        Self::LoadCr3,
        Self::Invlpg,
        Self::PageTableWrite,
        Self::PortWrite,
        Self::MmioWrite,
        Self::EoiStore,
        Self::EoiMsr,
    ];

    /// Whether it takes a local APIC of KVM's.
    fn needs_apic(self) -> bool {
        matches!(self, Self::EoiStore | Self::EoiMsr)
    }

    /// The instruction, for the registers of [`Self::registers`].
    fn code(self) -> &'static [u8] {
        match self {
            Self::Ring3Loop | Self::Ring0Loop | Self::RealModeLoop => &[],
            Self::Cpuid => &[0x31, 0xc0, 0x0f, 0xa2], // xor eax, eax; cpuid
            Self::Rdmsr => &[0x0f, 0x32],             // rdmsr
            Self::LoadCr3 => &[0x0f, 0x22, 0xdf],     // mov cr3, rdi
            Self::Invlpg => &[0x0f, 0x01, 0x3e],      // invlpg [rsi]
            Self::PageTableWrite => &[0x48, 0x89, 0x45, 0x00], // mov [rbp], rax
            Self::PortWrite => &[0xe6, IDLE_PORT as u8], // out IDLE_PORT, al
            Self::MmioWrite => &[0x41, 0x88, 0x01],   // mov [r9], al
            Self::EoiStore => &[0x41, 0x89, 0x81, 0xb0, 0, 0, 0], // mov [r9 + 0xb0], eax
            Self::EoiMsr => &[0x0f, 0x30],            // wrmsr
        }
    }

    fn program(self) -> Vec<u8> {
        // dec r8, or dec ecx in real mode
        let count: &[u8] =
            if self == Self::RealModeLoop { &[0x66, 0x49] } else { &[0x49, 0xff, 0xc8] };
        let mut program = [self.code(), count].concat();
        let back = (program.len() as u8 + 2).wrapping_neg();
        program.extend([0x75, back]); // jnz to the start
        program.extend([0xb0, DONE, 0xe6, PORT as u8, 0xf4]); // mov al, DONE; out PORT, al; hlt
        program
    }

    fn registers(self, count: u64) -> kvm_regs {
        let shared = kvm_regs {
            rip: CODE,
            rsp: STACK_TOP,
            rflags: 2,
            rcx: count,
            r8: count,
            ..Default::default()
        };
        match self {
            Self::RealModeLoop => shared,
            Self::Ring3Loop => kvm_regs { rflags: 2 | 3 << 12, ..shared },
            Self::Rdmsr => kvm_regs { rcx: IA32_APIC_BASE, ..shared },
            Self::EoiMsr => kvm_regs { rcx: X2APIC_EOI, ..shared },
            // The last entry of the directory, which maps nothing, stays 0.
            Self::PageTableWrite => kvm_regs { rbp: probe::PAGE_DIRECTORY + 511 * 8, ..shared },
            _ => kvm_regs { rdi: PML4, rsi: SCRATCH, r9: DEVICE, ..shared },
        }
    }
}

/// A port without a device in KVM.
const IDLE_PORT: u16 = 0x11;
/// An address that is mapped and no memory.
const DEVICE: u64 = 0x10_0000;
const IA32_APIC_BASE: u64 = 0x1b;
/// Its bits: a bootstrap processor's, enabled, in x2APIC mode.
const APIC_ENABLED: u64 = 1 << 8 | 1 << 11;
const APIC_X2: u64 = 1 << 10;
/// `IA32_X2APIC_EOI`.
const X2APIC_EOI: u64 = 0x80b;

/// A loop that takes this long is measured.
const LONG_ENOUGH_NS: f64 = 1_500_000.0;
/// And no loop has more rounds than this.
const MAX_COUNT: u64 = 1 << 26;
/// The best of so many counts.
const REPETITIONS: usize = 3;
/// Processor time after which a guest without an end is given up.
const PATIENCE_NS: i64 = 900_000_000;

/// The costs of all operations that this KVM can carry out.
pub fn measure(kvm: &Kvm) -> Result<Vec<Cost>, HostError> {
    let mut guest = Guest::new(kvm, false)?;
    let (apic, plain): (Vec<&Operation>, Vec<&Operation>) =
        Operation::ALL.iter().partition(|operation| operation.needs_apic());
    let costs = plain.into_iter().filter_map(|operation| guest.cost(*operation).transpose());
    let mut costs: Vec<Cost> = costs.collect::<Result<_, _>>()?;
    drop(guest);
    // A KVM without interrupt controllers measures all the rest.
    if let Ok(mut guest) = Guest::new(kvm, true) {
        costs.extend(apic.into_iter().filter_map(|operation| guest.cost(*operation).ok()?));
    }
    if let Some(round) = costs.iter().find(|cost| cost.operation == Operation::Ring0Loop).copied() {
        costs.iter_mut().for_each(|cost| cost.subtract(&round));
    }
    Ok(costs)
}

impl Cost {
    /// Leaves the instruction alone, without the loop that it is in.
    fn subtract(&mut self, round: &Self) {
        use Operation::{RealModeLoop, Ring0Loop, Ring3Loop};
        if matches!(self.operation, Ring3Loop | Ring0Loop | RealModeLoop) {
            return;
        }
        self.nanoseconds = (self.nanoseconds - round.nanoseconds).max(0.0);
        if let (Some(emulated), Some(less)) = (&mut self.emulated, round.emulated) {
            *emulated = (*emulated - less).max(0.0);
        }
    }
}

/// How a run of the guest went.
struct Run {
    nanoseconds: f64,
    user_exits: u64,
    statistics: BTreeMap<String, u64>,
}

struct Guest {
    vcpu: VcpuFd,
    memory: GuestMemoryMmap,
    statistics: Option<Statistics>,
    /// As the vCPU was made.
    reset: kvm_sregs,
    // Last, so that it goes last.
    _vm: VmFd,
}

impl Guest {
    fn new(kvm: &Kvm, apic: bool) -> Result<Self, HostError> {
        let vm = kvm.create_vm().map_err(|e| HostError::kvm("KVM_CREATE_VM", e))?;
        // Where VT-x needs them to run real mode; others don't mind.
        vm.set_identity_map_address(arch::layout::IDENTITY_MAP)
            .map_err(|e| HostError::kvm("KVM_SET_IDENTITY_MAP_ADDR", e))?;
        vm.set_tss_address(arch::layout::TSS as usize)
            .map_err(|e| HostError::kvm("KVM_SET_TSS_ADDR", e))?;
        let memory = probe::memory(&vm, &[])?;
        if apic {
            vm.create_irq_chip().map_err(|e| HostError::kvm("KVM_CREATE_IRQCHIP", e))?;
        }
        let mut vcpu = vm.create_vcpu(0).map_err(|e| HostError::kvm("KVM_CREATE_VCPU", e))?;
        let reset = vcpu.get_sregs().map_err(|e| HostError::kvm("KVM_GET_SREGS", e))?;
        probe::set_up(&mut vcpu, Ring::Zero)?;
        if apic {
            // The probe's processor has no x2APIC.
            let leaves = kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(|e| HostError::kvm("KVM_GET_SUPPORTED_CPUID", e))?;
            vcpu.set_cpuid2(&leaves).map_err(|e| HostError::kvm("KVM_SET_CPUID2", e))?;
        }
        let statistics = Statistics::open(&vcpu);
        Ok(Self { vcpu, memory, statistics, reset, _vm: vm })
    }

    /// The cost of one operation; `None` when this KVM can't carry it out.
    fn cost(&mut self, operation: Operation) -> Result<Option<Cost>, HostError> {
        let Some(once) = self.run(operation, 1)? else { return Ok(None) };
        let mut count = 64;
        loop {
            let Some(run) = self.run(operation, count)? else { return Ok(None) };
            if run.nanoseconds - once.nanoseconds > LONG_ENOUGH_NS || count >= MAX_COUNT {
                break;
            }
            count *= 4;
        }
        let mut best: Option<Run> = None;
        for _ in 0..REPETITIONS {
            let Some(run) = self.run(operation, count)? else { return Ok(None) };
            if best.as_ref().is_none_or(|best| run.nanoseconds < best.nanoseconds) {
                best = Some(run);
            }
        }
        Ok(best.map(|best| average(operation, &once, &best, count - 1)))
    }

    /// Runs `count` rounds; `None` when the guest did not come to its end.
    fn run(&mut self, operation: Operation, count: u64) -> Result<Option<Run>, HostError> {
        self.memory
            .write_slice(&operation.program(), GuestAddress(CODE))
            .map_err(|e| HostError::Probe(io::Error::other(e)))?;
        self.set_registers(operation, count)?;
        let watchdog = Watchdog::start(&self.vcpu, PATIENCE_NS).map_err(HostError::Probe)?;
        let before = self.statistics();
        let start = thread_time();
        let mut user_exits = 0;
        let done = loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, [DONE])) => break true,
                Ok(VcpuExit::IoOut(IDLE_PORT, _)) => user_exits += 1,
                Ok(VcpuExit::MmioWrite(DEVICE, _)) => user_exits += 1,
                Err(e) if e.errno() == libc::EINTR && !watchdog.has_fired() => {}
                _ => break false,
            }
        };
        let nanoseconds = thread_time() - start;
        let after = self.statistics();
        drop(watchdog);
        self.complete();
        let gained = |(name, value): (String, u64)| {
            let before = before.get(&name).copied().unwrap_or(0);
            (name, value.saturating_sub(before))
        };
        let statistics = after.into_iter().map(gained).collect();
        Ok(done.then_some(Run { nanoseconds, user_exits, statistics }))
    }

    fn set_registers(&self, operation: Operation, count: u64) -> Result<(), HostError> {
        match operation {
            Operation::RealModeLoop => {
                let mut sregs = self.reset;
                for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
                    (segment.base, segment.selector) = (0, 0);
                }
                self.vcpu.set_sregs(&sregs).map_err(|e| HostError::kvm("KVM_SET_SREGS", e))?;
            }
            Operation::Ring3Loop => probe::enter_long_mode(&self.vcpu, Ring::Three)?,
            _ => probe::enter_long_mode(&self.vcpu, Ring::Zero)?,
        }
        if operation.needs_apic() {
            let mut sregs =
                self.vcpu.get_sregs().map_err(|e| HostError::kvm("KVM_GET_SREGS", e))?;
            let mode = if operation == Operation::EoiMsr { APIC_X2 } else { 0 };
            // Its page where this guest's tables have one.
            sregs.apic_base = DEVICE | APIC_ENABLED | mode;
            self.vcpu.set_sregs(&sregs).map_err(|e| HostError::kvm("KVM_SET_SREGS", e))?;
        }
        let registers = operation.registers(count);
        self.vcpu.set_regs(&registers).map_err(|e| HostError::kvm("KVM_SET_REGS", e))
    }

    /// Has KVM finish the OUT that it came back with, before registers change
    /// (`Documentation/virt/kvm/api.rst`, 4.10: with `immediate_exit`).
    fn complete(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        self.vcpu.set_kvm_immediate_exit(0);
    }

    fn statistics(&self) -> BTreeMap<String, u64> {
        self.statistics.iter().flat_map(Statistics::read).collect()
    }
}

/// One round of `many`, less the way in and out.
fn average(operation: Operation, once: &Run, many: &Run, rounds: u64) -> Cost {
    let rounds = rounds as f64;
    let each = |more: f64, less: f64| ((more - less) / rounds).max(0.0);
    let statistic = |name: &str| {
        let (more, less) = (many.statistics.get(name)?, once.statistics.get(name)?);
        Some(each(*more as f64, *less as f64))
    };
    Cost {
        operation,
        nanoseconds: each(many.nanoseconds, once.nanoseconds),
        exits: statistic("exits"),
        user_exits: each(many.user_exits as f64, once.user_exits as f64),
        emulated: statistic("insn_emulation"),
        shadow_invalidations: statistic("invlpg"),
    }
}

/// Processor time of this thread in nanoseconds.
fn thread_time() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock always exists, and the pointer is to a live local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{KVM_DEVICE, open_kvm};

    #[test]
    fn the_jump_leads_back_to_the_first_byte() {
        for operation in Operation::ALL {
            let program = operation.program();
            let jump = program.len() - 7;
            assert_eq!(program[jump], 0x75, "{operation:?}");
            assert_eq!(jump as i64 + 2 + i64::from(program[jump + 1] as i8), 0, "{operation:?}");
        }
    }

    /// What any KVM must show, whatever stands behind it.
    #[test]
    fn ports_and_devices_cost_an_exit_to_us_and_loops_none() {
        let Ok(kvm) = open_kvm(std::path::Path::new(KVM_DEVICE)) else { return };
        let costs = measure(&kvm).unwrap();
        for cost in &costs {
            println!("{cost:?}");
            let to_us = matches!(cost.operation, Operation::PortWrite | Operation::MmioWrite);
            assert_eq!(cost.user_exits, if to_us { 1.0 } else { 0.0 }, "{cost:?}");
            assert!(cost.nanoseconds >= 0.0 && cost.nanoseconds < 1e7, "{cost:?}");
        }
        let time = |operation| {
            costs.iter().find(|cost| cost.operation == operation).map(|cost| cost.nanoseconds)
        };
        let ring3 = time(Operation::Ring3Loop).expect("ring 3 runs on every KVM");
        assert!(time(Operation::PortWrite).unwrap() > 100.0 * ring3);
    }
}
