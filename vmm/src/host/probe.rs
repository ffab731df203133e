//! A guest of five instructions that tells whether Linux can run here.
//!
//! ```text
//!  SSE store ─► CMPXCHG16B ─► INT3 and back ─► OUT 0x10  ⇒ yes
//!      └───────────┴─────────────┴─► stuck, a wrong exception, KVM gives up ⇒ no
//! ```
//!
//! It runs in 64-bit mode at ring 0, as the kernel does. On VT-x and SVM these
//! instructions run on the processor; a KVM that interprets ring 0 has to know
//! each of them, and the one on page tables knows none. Linux uses all three
//! before it prints its first line.

use super::HostError;
use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

// The memory map of the probe guest: one slot from 0.
pub(super) const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
pub(super) const PAGE_DIRECTORY: u64 = 0x3000;
pub(super) const CODE: u64 = 0x4000;
const HANDLERS: u64 = 0x4100;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
/// Where the guest stores, and notes how far it has come.
pub(super) const SCRATCH: u64 = 0x7000;
const PROGRESS: u64 = SCRATCH + 0x20;
pub(super) const STACK_TOP: u64 = 0x8000;
const MEMORY: usize = 0x8000;

/// Null, then code and data of ring 0 and of ring 3.
const GDT_ENTRIES: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff];
/// Where the descriptors of a ring begin.
const RING_3: u16 = 3 * 8;

/// The port that the guest reports on, and what it says.
pub(super) const PORT: u16 = 0x10;
pub(super) const DONE: u8 = 0x4f;
const EXCEPTION: u8 = 0xee;

/// `rbx` points at SCRATCH.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x66, 0x48, 0x0f, 0x6e, 0xc0,       // movq xmm0, rax
    0x0f, 0x11, 0x03,                   // movups [rbx], xmm0
    0xc6, 0x43, 0x20, 1,                // mov byte [rbx+0x20], 1
    0x48, 0x0f, 0xc7, 0x4b, 0x10,       // cmpxchg16b [rbx+0x10]
    0xc6, 0x43, 0x20, 2,                // mov byte [rbx+0x20], 2
    0xcc,                               // int3
    0xc6, 0x43, 0x20, 3,                // mov byte [rbx+0x20], 3
    0xb0, DONE, 0xe6, PORT as u8,       // mov al, DONE; out PORT, al
    0xf4,                               // hlt
];

/// What stands between PROGRESS values: the step that did not succeed.
const STEPS: [&str; 4] = ["SSE", "CMPXCHG16B", "INT3", "OUT"];

/// At HANDLERS: the breakpoint returns; at +8, anything else is reported.
const HANDLER_CODE: &[u8] = &[
    0x48, 0xcf, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // iretq
    0xb0, EXCEPTION, 0xe6, PORT as u8, 0xf4, // mov al, EXCEPTION; out PORT, al; hlt
];

/// More thread CPU time than this without a result is no progress. The probe
/// itself needs microseconds; CPU time does not run while others are scheduled.
const PATIENCE_NS: i64 = 100_000_000;

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every instruction ran.
    CanRun,
    /// This one did not.
    CannotRun(&'static str),
}

/// Runs the probe guest.
pub fn run(kvm: &Kvm) -> Result<Verdict, HostError> {
    let (done, progress) = attempt(kvm, PROGRAM)?;
    if done {
        return Ok(Verdict::CanRun);
    }
    Ok(Verdict::CannotRun(STEPS[usize::from(progress).min(STEPS.len() - 1)]))
}

/// Runs `program`: whether it came to its end, and how far otherwise.
fn attempt(kvm: &Kvm, program: &[u8]) -> Result<(bool, u8), HostError> {
    let vm = kvm.create_vm().map_err(|e| HostError::kvm("KVM_CREATE_VM", e))?;
    let memory = memory(&vm, program)?;
    let mut vcpu = vm.create_vcpu(0).map_err(|e| HostError::kvm("KVM_CREATE_VCPU", e))?;
    set_up(&mut vcpu, Ring::Zero)?;
    let watchdog = Watchdog::start(&vcpu, PATIENCE_NS).map_err(HostError::Probe)?;
    // A KVM that can't go on says so through an error or an exit of its own:
    // all that counts is whether the guest came to its end.
    let done = loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [DONE])) => break true,
            Err(e) if e.errno() == libc::EINTR && !watchdog.has_fired() => {}
            _ => break false,
        }
    };
    Ok((done, memory.read_obj(GuestAddress(PROGRESS)).unwrap_or(0)))
}

/// Ends `KVM_RUN` when the calling thread has used up its time.
///
/// A timer on the thread's CPU clock sends a signal that is blocked on this
/// thread except inside `KVM_RUN` (`KVM_SET_SIGNAL_MASK`), so that no handler
/// is needed and the signal waits to be asked for.
pub(super) struct Watchdog {
    timer: libc::timer_t,
    old_mask: libc::sigset_t,
}

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, which kvm-ioctls leaves out.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// `struct kvm_signal_mask` with the kernel's sigset of 64 bits.
#[repr(C, packed)]
struct KvmSignalMask {
    len: u32,
    sigset: u64,
}

impl Watchdog {
    /// The signal; nothing else in the monitor uses it.
    fn signal() -> libc::c_int {
        libc::SIGRTMAX() - 1
    }

    fn only_ours() -> libc::sigset_t {
        // SAFETY: sigset_t is plain data, and both calls only write to it.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, Self::signal());
            set
        }
    }

    /// `patience_ns` is less than a second.
    pub(super) fn start(vcpu: &VcpuFd, patience_ns: i64) -> io::Result<Self> {
        let ours = Self::only_ours();
        // SAFETY: all pointers are to live locals of the right types; the
        // timer is deleted in drop.
        unsafe {
            let mut old_mask = std::mem::zeroed();
            check(libc::pthread_sigmask(libc::SIG_BLOCK, &ours, &mut old_mask))?;
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = Self::signal();
            // Not the C library's gettid: std refers to it weakly, and so it is
            // missing from a static executable with link-time optimization.
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as libc::pid_t;
            let mut timer = std::mem::zeroed();
            let clock = libc::CLOCK_THREAD_CPUTIME_ID;
            if libc::timer_create(clock, &mut event, &mut timer) != 0 {
                let error = io::Error::last_os_error();
                libc::pthread_sigmask(libc::SIG_SETMASK, &old_mask, std::ptr::null_mut());
                return Err(error);
            }
            let watchdog = Self { timer, old_mask };
            // The kernel's sigset is the first eight bytes of the C library's.
            let blocked: u64 = std::ptr::from_ref(&old_mask).cast::<u64>().read_unaligned();
            let mask = KvmSignalMask { len: 8, sigset: blocked & !(1 << (Self::signal() - 1)) };
            if libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &mask) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut when: libc::itimerspec = std::mem::zeroed();
            when.it_value.tv_nsec = patience_ns;
            if libc::timer_settime(timer, 0, &when, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(watchdog)
        }
    }

    /// Takes the signal, if it has come.
    pub(super) fn has_fired(&self) -> bool {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both arguments are live locals; no siginfo is asked for.
        unsafe { libc::sigtimedwait(&Self::only_ours(), std::ptr::null_mut(), &now) > 0 }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: the timer was made by start and is deleted only here.
        unsafe { libc::timer_delete(self.timer) };
        // A signal that came in the meantime must not outlive the mask.
        self.has_fired();
        // SAFETY: the mask is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.old_mask, std::ptr::null_mut()) };
    }
}

/// pthread functions return the error itself.
fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Memory with page tables, descriptor tables and code.
pub(super) fn memory(vm: &VmFd, program: &[u8]) -> Result<GuestMemoryMmap, HostError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|e| HostError::Probe(io::Error::other(e)))?;
    let write = |at: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|e| HostError::Probe(io::Error::other(e)))
    };
    // Present, writable, for ring 3, too; the directory's entry is one page of
    // 2 MiB.
    write(PML4, &(PDPT | 7).to_le_bytes())?;
    write(PDPT, &(PAGE_DIRECTORY | 7).to_le_bytes())?;
    write(PAGE_DIRECTORY, &0x87u64.to_le_bytes())?;
    for (slot, descriptor) in GDT_ENTRIES.iter().enumerate() {
        write(GDT + 8 * slot as u64, &descriptor.to_le_bytes())?;
    }
    for vector in 0..32 {
        let handler = if vector == 3 { HANDLERS } else { HANDLERS + 8 };
        // An interrupt gate of ring 0 to selector 8; the address has 16 bits.
        let gate = handler | 8 << 16 | 0x8e00 << 32;
        write(IDT + 16 * vector, &gate.to_le_bytes())?;
    }
    write(CODE, program)?;
    write(HANDLERS, HANDLER_CODE)?;

    let region = memory
        .get_host_address(GuestAddress(0))
        .map_err(|e| HostError::Probe(io::Error::other(e)))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: region as u64,
    };
    // SAFETY: the region is MEMORY bytes long, and `attempt` keeps it mapped
    // until its vCPU has run for the last time.
    unsafe { vm.set_user_memory_region(slot) }
        .map_err(|e| HostError::kvm("KVM_SET_USER_MEMORY_REGION", e))?;
    Ok(memory)
}

/// A ring of 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    /// The kernel's.
    Zero,
    /// The programs'.
    Three,
}

/// 64-bit mode at CODE, interrupts off; ring 3 may use ports.
pub(super) fn set_up(vcpu: &mut VcpuFd, ring: Ring) -> Result<(), HostError> {
    describe_processor(vcpu)?;
    enter_long_mode(vcpu, ring)
}

fn describe_processor(vcpu: &VcpuFd) -> Result<(), HostError> {
    // Enough of a processor for long mode, SSE2 and CMPXCHG16B. KVM's own list
    // would do as well, but asking for it costs a CPUID exit for every leaf
    // where this host is a guest itself.
    let leaf = |function, eax, ecx, edx| kvm_cpuid_entry2 {
        function,
        eax,
        ecx,
        edx,
        ..Default::default()
    };
    let leaves = [
        leaf(0, 1, 0, 0),
        leaf(1, 0x600, 1 << 13 | 1, 0x0789_ab79 | 1 << 9),
        leaf(0x8000_0000, 0x8000_0008, 0, 0),
        leaf(0x8000_0001, 0, 1, 1 << 29 | 1 << 20 | 1 << 11),
        leaf(0x8000_0008, 0x3024, 0, 0),
    ];
    let leaves = CpuId::from_entries(&leaves).map_err(|_| {
        HostError::Probe(io::Error::other("the list of CPUID leaves can't be made"))
    })?;
    vcpu.set_cpuid2(&leaves).map_err(|e| HostError::kvm("KVM_SET_CPUID2", e))
}

/// The registers of a ring of long mode. A vCPU that was left in another ring
/// gets there this way, too.
pub(super) fn enter_long_mode(vcpu: &VcpuFd, ring: Ring) -> Result<(), HostError> {
    let mut sregs: kvm_sregs = vcpu.get_sregs().map_err(|e| HostError::kvm("KVM_GET_SREGS", e))?;
    let (first, dpl, iopl) = match ring {
        Ring::Zero => (8, 0, 0),
        Ring::Three => (RING_3, 3, 3 << 12),
    };
    let flat = kvm_segment { limit: u32::MAX, s: 1, present: 1, g: 1, dpl, ..Default::default() };
    sregs.cs = kvm_segment { selector: first | u16::from(dpl), type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: (first + 8) | u16::from(dpl), type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, size_of_val(&GDT_ENTRIES) as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 32 * 16 - 1);
    sregs.cr3 = PML4;
    // PAE; SSE on.
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    // PE, MP, ET, NE, WP, PG.
    sregs.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    // LME, LMA.
    sregs.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs).map_err(|e| HostError::kvm("KVM_SET_SREGS", e))?;
    let regs = kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        rbx: SCRATCH,
        rflags: 2 | iopl,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(|e| HostError::kvm("KVM_SET_REGS", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{KVM_DEVICE, open_kvm};
    use std::time::{Duration, Instant};

    fn kvm() -> Option<Kvm> {
        open_kvm(std::path::Path::new(KVM_DEVICE)).ok()
    }

    #[test]
    fn plain_integer_code_comes_to_its_end_on_every_kvm() {
        let Some(kvm) = kvm() else { return };
        let start = Instant::now();
        // mov byte [rbx+0x20], 7; mov al, DONE; out PORT, al
        let program = [0xc6, 0x43, 0x20, 7, 0xb0, DONE, 0xe6, PORT as u8, 0xf4];
        assert_eq!(attempt(&kvm, &program).unwrap(), (true, 7));
        println!("plain program: {:?}", start.elapsed());
    }

    #[test]
    fn an_exception_is_not_an_end() {
        let Some(kvm) = kvm() else { return };
        // ud2
        assert_eq!(attempt(&kvm, &[0x0f, 0x0b]).unwrap(), (false, 0));
        // xor ebx, ebx; div ebx
        assert_eq!(attempt(&kvm, &[0x31, 0xdb, 0xf7, 0xf3]).unwrap(), (false, 0));
        // hlt
        assert_eq!(attempt(&kvm, &[0xf4]).unwrap(), (false, 0));
    }

    #[test]
    fn a_guest_without_progress_is_ended_and_leaves_no_trace() {
        let Some(kvm) = kvm() else { return };
        let start = Instant::now();
        // jmp to itself
        assert_eq!(attempt(&kvm, &[0xeb, 0xfe]).unwrap(), (false, 0));
        let took = start.elapsed();
        assert!(took > Duration::from_nanos(PATIENCE_NS as u64 / 2), "{took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        let blocked = vmm_sys_util::signal::get_blocked_signals().unwrap();
        assert!(!blocked.contains(&Watchdog::signal()), "{blocked:?}");
        // Nothing is pending that would end the next one.
        assert!(attempt(&kvm, &[0xb0, DONE, 0xe6, PORT as u8]).unwrap().0);
    }
}
