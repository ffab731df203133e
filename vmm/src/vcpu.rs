//! A vCPU: a thread that runs the guest and carries its exits to the buses.

use crate::ending::Ending;
use crate::exit::Exit;
use crate::intr::Controllers;
use crate::record::{Kind, Recorder};
use devices::bus::{Bus, lock};
use kvm_bindings::{KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What a vCPU's exits are carried to.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub memory: Arc<Bus>,
}

/// Exits to user space, by kind, since the vCPU started.
#[derive(Debug, Default)]
pub struct ExitCounts {
    /// Port reads.
    pub port_in: AtomicU64,
    /// Port writes.
    pub port_out: AtomicU64,
    /// Reads of memory-mapped registers.
    pub mmio_read: AtomicU64,
    /// Writes to memory-mapped registers.
    pub mmio_write: AtomicU64,
    /// Everything else.
    pub other: AtomicU64,
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// Its KVM file descriptor.
    pub fd: VcpuFd,
    /// Where exits go.
    pub buses: Buses,
    /// How the machine ends.
    pub ending: Ending,
    /// Counters, shared with whoever reports them.
    pub counts: Arc<ExitCounts>,
    /// Interrupt controllers that are not KVM's.
    pub controllers: Option<Arc<Controllers>>,
    /// Where registers are whose writes KVM takes for us.
    pub late: Option<Late>,
    /// Who is told of every exit, if anybody is.
    pub recorder: Option<Arc<Recorder>>,
}

/// The right to look at the writes that KVM has taken for us
/// ([`crate::vm::Vm::take_writes`]): they are in one ring for all vCPUs, and
/// its reader is one at a time. They are carried out in the guest's order, and
/// before any access of the same vCPU to a memory-mapped register.
pub type Late = Arc<Mutex<()>>;

/// A vCPU whose thread runs.
pub struct Running {
    thread: JoinHandle<Vcpu>,
    /// `kvm_run.immediate_exit`: makes the next `KVM_RUN` return at once.
    immediate_exit: *const AtomicU8,
}

/// Makes the signal that kicks vCPUs out of the guest interrupt `KVM_RUN`
/// instead of ending the process. Once a process.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

impl Vcpu {
    /// Starts the thread. `before` runs on it first: the place for what belongs
    /// to a thread, such as its system call filter.
    pub fn start(mut self, before: impl FnOnce() + Send + 'static) -> io::Result<Running> {
        let immediate_exit = (&raw mut self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .stack_size(VCPU_STACK)
            .spawn(move || {
                before();
                self.run();
                self
            })?;
        Ok(Running { thread, immediate_exit })
    }

    /// Runs the guest until the machine ends or this vCPU is kicked.
    fn run(&mut self) {
        let controllers = self.controllers.clone();
        if let Some(controllers) = &controllers {
            controllers.attach(&mut self.fd);
        }
        self.run_attached();
        if let Some(controllers) = &controllers {
            controllers.detach();
        }
    }

    fn run_attached(&mut self) {
        while !self.ending.has_ended() {
            match self.step() {
                Ok(Step::Go) => {}
                Ok(Step::Kicked) => break,
                Err(reason) => {
                    let rip = self.fd.get_regs().ok().map(|r| r.rip);
                    self.ending.end(Exit::Crash { vcpu: self.id, rip, reason });
                }
            }
        }
    }

    /// One entry into the guest and the exit that follows; `Err` is a guest
    /// that can't go on.
    fn step(&mut self) -> Result<Step, String> {
        let counts = &*self.counts;
        let count = |c: &AtomicU64| c.fetch_add(1, Ordering::Relaxed);
        if let Some(controllers) = &self.controllers {
            controllers.enter(&mut self.fd)?;
        }
        let exit = self.fd.run();
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counts.port_out);
                let (at, len) = (data.as_ptr(), data.len());
                let size = access_size(&mut self.fd);
                // SAFETY: KVM's buffer inside the run page, valid until the
                // next KVM_RUN; only `access_size` looked at the page since.
                let data = unsafe { std::slice::from_raw_parts(at, len) };
                for item in data.chunks(size) {
                    self.buses.ports.write(port.into(), item);
                }
                if let Some(recorder) = &self.recorder {
                    recorder.access(Kind::PortWrite, port.into(), size, data);
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counts.port_in);
                let (at, len) = (data.as_mut_ptr(), data.len());
                let size = access_size(&mut self.fd);
                // SAFETY: as above; the guest can't see the page before the
                // next KVM_RUN.
                let data = unsafe { std::slice::from_raw_parts_mut(at, len) };
                for item in data.chunks_mut(size) {
                    self.buses.ports.read(port.into(), item);
                }
                if let Some(recorder) = &self.recorder {
                    recorder.access(Kind::PortRead, port.into(), size, data);
                }
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counts.mmio_write);
                let (at, len) = (data.as_ptr(), data.len());
                self.late_writes();
                // SAFETY: KVM's buffer inside the run page, as above; the ring
                // of late writes is in another page.
                let data = unsafe { std::slice::from_raw_parts(at, len) };
                self.buses.memory.write(address, data);
                if let Some(recorder) = &self.recorder {
                    recorder.access(Kind::MemoryWrite, address, data.len(), data);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counts.mmio_read);
                let (at, len) = (data.as_mut_ptr(), data.len());
                self.late_writes();
                // SAFETY: as above; the guest can't see the page before the
                // next KVM_RUN.
                let data = unsafe { std::slice::from_raw_parts_mut(at, len) };
                self.buses.memory.read(address, data);
                if let Some(recorder) = &self.recorder {
                    recorder.access(Kind::MemoryRead, address, data.len(), data);
                }
            }
            Ok(VcpuExit::Intr) => return Ok(self.interrupted()),
            Ok(VcpuExit::Shutdown) => return Err("triple fault".to_owned()),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Err(format!(
                    "KVM could not enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
                ));
            }
            Ok(VcpuExit::InternalError) => return Err(internal_error(&mut self.fd)),
            Ok(VcpuExit::SystemEvent(kind, _)) => return Err(format!("KVM system event {kind}")),
            Ok(VcpuExit::Hlt) if self.controllers.is_some() => {
                count(&counts.other);
                self.note(Kind::Halt);
                self.halt();
            }
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => {
                count(&counts.other);
                self.note(Kind::Window);
            }
            Ok(VcpuExit::Hlt) => return Err("HLT without an interrupt controller".to_owned()),
            Ok(other) => return Err(format!("unexpected exit {other:?}")),
            Err(e) => match e.errno() {
                libc::EINTR => return Ok(self.interrupted()),
                libc::EAGAIN => {
                    count(&counts.other);
                }
                _ => return Err(format!("KVM_RUN: {e}")),
            },
        }
        Ok(Step::Go)
    }

    /// Carries out the writes that KVM has taken for us, if there are any.
    fn late_writes(&mut self) {
        let Some(late) = &self.late else { return };
        let _reader = lock(late);
        // As many as there can be now: other vCPUs may go on writing.
        for _ in 0..LATE_WRITES {
            let Ok(Some(write)) = self.fd.coalesced_mmio_read() else { return };
            let data = write.data.get(..write.len as usize).unwrap_or_default();
            self.buses.memory.write(write.phys_addr, data);
        }
    }

    fn note(&self, kind: Kind) {
        if let Some(recorder) = &self.recorder {
            recorder.other(kind);
        }
    }

    /// Sleeps until an interrupt comes, if the guest lets one come.
    fn halt(&mut self) {
        let interruptible = self.fd.get_kvm_run().if_flag != 0;
        if let Some(controllers) = &self.controllers {
            controllers.halt(interruptible);
        }
    }

    /// A kick says so in `immediate_exit`; being stopped and continued, or a
    /// debugger, interrupts `KVM_RUN`, too, and means nothing.
    fn interrupted(&mut self) -> Step {
        self.note(Kind::Called);
        match self.fd.get_kvm_run().immediate_exit {
            // An interrupt came; whoever stops this vCPU has ended the machine.
            _ if self.controllers.is_some() => Step::Go,
            0 => Step::Go,
            _ => Step::Kicked,
        }
    }
}

enum Step {
    Go,
    Kicked,
}

/// Exits are handled in a few frames and nothing recurses.
const VCPU_STACK: usize = 128 << 10;

/// More than the ring of late writes holds, which is one page.
const LATE_WRITES: usize = 4096 / size_of::<kvm_bindings::kvm_coalesced_mmio>();

/// The width of one access of a port exit: KVM hands over a whole `rep outs`
/// at once, as `count` items of `size` bytes.
fn access_size(fd: &mut VcpuFd) -> usize {
    // SAFETY: the last exit was KVM_EXIT_IO, so `io` is the live union member.
    let size = unsafe { fd.get_kvm_run().__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// What KVM says of an instruction that it could not carry out.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, so `internal` is live.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM could not deliver an event".to_owned(),
        other => format!("KVM internal error {other}"),
    }
}

impl Running {
    /// Kicks the vCPU out of the guest and waits for its thread.
    pub fn stop(self) -> thread::Result<Vcpu> {
        // SAFETY: the run page is mapped as long as the `VcpuFd` lives, which
        // the thread owns and hands back through `join` below.
        unsafe { &*self.immediate_exit }.store(1, Ordering::SeqCst);
        // If it is in the guest, the signal gets it out; if it is on its way
        // in, `immediate_exit` stops it. A thread that has ended is no error.
        // SAFETY: the thread has not been joined, so its pthread_t is valid.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGRTMIN()) };
        let mut vcpu = self.thread.join()?;
        vcpu.fd.set_kvm_immediate_exit(0);
        Ok(vcpu)
    }
}
