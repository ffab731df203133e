//! Interrupt controllers and timers in the monitor: all of them with `--intr user`,
//! all but the local APICs with `--intr split`.
//!
//! ```text
//!  lines (eventfds) ─► event loop ─┐                         ┌─ KVM_INTERRUPT
//!  timers (timerfd) ─► event loop ─┼─► Interrupts ─► vCPU ───┤
//!  registers ─► vCPU's exits ──────┘        │                └─ window, HLT
//!                                           └─► KVM_SIGNAL_MSI (split)
//! ```
//!
//! The vCPU looks for an interrupt each time before it enters the guest. If one
//! comes while the guest runs, a signal gets the vCPU out; if the guest does not
//! let itself be interrupted, KVM is asked to come back when it does.
//!
//! Where local APICs are KVM's, only the 8259's interrupts take that way, and only
//! on the first vCPU. The I/O APIC's are messages; KVM tells of the end of those
//! that are levels (`KVM_EXIT_IOAPIC_EOI`), as it knows the pins' messages from its
//! routing table.

use crate::msi::Messages;
use devices::bus::{BusDevice, lock};
use devices::irq::IrqLine;
use devices::legacy::interrupts::Interrupts;
use devices::pci::intx::InterruptInputs;
use devices::state::{Saved, StateError};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::SIGRTMIN;
use vmm_sys_util::timerfd::TimerFd;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`: a vector, 32 bits wide.
pub const KVM_INTERRUPT: u32 = 0x4004_ae86;
/// A timer that a guest sets shorter than this is not worth waking up for more
/// often; its ends then come together.
const SHORTEST: Duration = Duration::from_micros(20);

/// The controllers, shared by the vCPU and the event loop.
pub struct Controllers {
    state: Mutex<State>,
    /// The vCPU sleeps here while the guest has halted it.
    wake: Condvar,
    /// Time began then.
    start: Instant,
    lines: Mutex<Vec<(EventFd, u32)>>,
    /// The way to local APICs that are KVM's.
    messages: Option<Arc<Messages>>,
}

struct State {
    chips: Interrupts,
    timer: TimerFd,
    /// What the timer is set to.
    armed: Option<u64>,
    vcpu: Option<Kick>,
    /// KVM comes back by itself once the guest can be interrupted.
    window: bool,
    stopped: bool,
    /// Taken from the 8259, and KVM has one already that it has not injected yet.
    taken: Option<u8>,
    /// What CR8 was as the guest was entered.
    cr8: u8,
}

/// How the vCPU is got out of the guest.
struct Kick {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is into the vCPU's run page and used only while the vCPU
// is attached; both threads access the byte atomically.
unsafe impl Send for Kick {}

impl Controllers {
    /// Controllers without any line, and with the local APIC.
    pub fn new() -> io::Result<Arc<Self>> {
        Self::with(Interrupts::new(), None)
    }

    /// The same for local APICs that are KVM's.
    pub fn split(messages: Arc<Messages>) -> io::Result<Arc<Self>> {
        Self::with(Interrupts::without_local_apic(), Some(messages))
    }

    fn with(chips: Interrupts, messages: Option<Arc<Messages>>) -> io::Result<Arc<Self>> {
        let timer = TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // It may be set anew between its end and the read that asks for it.
        // SAFETY: the descriptor is open, and the flag is the only one it has.
        if unsafe { libc::fcntl(timer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                chips,
                timer,
                armed: None,
                vcpu: None,
                window: false,
                stopped: false,
                taken: None,
                cr8: 0,
            }),
            wake: Condvar::new(),
            start: Instant::now(),
            lines: Mutex::default(),
            messages,
        }))
    }

    /// Whether local APICs are KVM's.
    pub fn is_split(&self) -> bool {
        self.messages.is_some()
    }

    /// Whether this vCPU's interrupts come from here.
    pub fn interrupts(&self, vcpu: u32) -> bool {
        !self.is_split() || vcpu == 0
    }

    /// Ties a device's line to an input.
    pub fn connect(&self, line: &IrqLine, irq: u32) -> io::Result<()> {
        let event = line.eventfd().try_clone()?;
        lock(&self.lines).push((event, irq));
        Ok(())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Does something to the chips, and tells the vCPU and the timer of it.
    fn change<T>(&self, change: impl FnOnce(&mut Interrupts, u64) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.now();
        let result = change(&mut state.chips, now);
        state.arm(now);
        self.send(&mut state.chips);
        if state.chips.is_pending() {
            self.wake.notify_all();
            state.kick();
        }
        result
    }

    /// Says which thread the vCPU runs on. To be called on it.
    pub fn attach(&self, fd: &mut VcpuFd) {
        let immediate_exit = (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        lock(&self.state).vcpu = Some(Kick { thread, immediate_exit });
    }

    /// The vCPU's thread is about to end.
    pub fn detach(&self) {
        lock(&self.state).vcpu = None;
    }

    /// Before the guest is entered: injects what is pending, or asks KVM to come
    /// back when it can be.
    pub fn enter(&self, fd: &mut VcpuFd) -> Result<(), String> {
        let mut state = lock(&self.state);
        if !state.stopped {
            fd.set_kvm_immediate_exit(0);
        }
        let now = self.now();
        state.chips.advance(now);
        self.send(&mut state.chips);
        let cr8 = fd.get_kvm_run().cr8 as u8;
        if cr8 != state.cr8 {
            state.chips.set_cr8(cr8);
        }
        if state.chips.take_nmi() {
            fd.nmi().map_err(|e| format!("KVM_NMI: {e}"))?;
        }
        let run = fd.get_kvm_run();
        let open = run.ready_for_interrupt_injection != 0 && run.if_flag != 0;
        if open && let Some(vector) = state.taken.take().or_else(|| state.chips.acknowledge()) {
            match interrupt(fd, vector) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => state.taken = Some(vector),
                done => done.map_err(|e| format!("KVM_INTERRUPT: {e}"))?,
            }
        }
        state.window = state.taken.is_some() || state.chips.is_pending();
        state.cr8 = state.chips.cr8();
        let run = fd.get_kvm_run();
        run.request_interrupt_window = state.window.into();
        run.cr8 = state.cr8.into();
        state.arm(now);
        Ok(())
    }

    /// A local APIC of KVM's has ended an interrupt that was a level.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.change(|chips, _| chips.end_of_interrupt(vector));
    }

    /// Sends the I/O APIC's messages to local APICs that are KVM's.
    fn send(&self, chips: &mut Interrupts) {
        if let Some(messages) = &self.messages {
            chips.take_sent().iter().for_each(|message| messages.send(message.as_write()));
        }
    }

    /// Tells KVM what the I/O APIC's pins send.
    fn tell_pins(&self, chips: &Interrupts) {
        if let Some(messages) = &self.messages {
            let pins = chips.messages().map(|(pin, message)| (pin as u32, message.as_write()));
            messages.set_pins(pins);
        }
    }

    /// Their state. No vCPU may run.
    pub fn save(&self) -> Result<Saved, StateError> {
        lock(&self.state).chips.save()
    }

    /// Takes over a saved state. No vCPU may run.
    pub fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let mut state = lock(&self.state);
        state.chips.restore(saved)?;
        self.tell_pins(&state.chips);
        state.arm(self.now());
        Ok(())
    }

    /// The guest has executed HLT: waits for what ends it.
    pub fn halt(&self, interruptible: bool) {
        let mut state = lock(&self.state);
        loop {
            let interrupted = interruptible && state.chips.is_pending();
            if state.stopped || interrupted {
                break;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The machine ends: a vCPU that is halted goes on, once.
    pub fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        state.kick();
        self.wake.notify_all();
    }
}

impl State {
    /// Sets the timer to the next event.
    fn arm(&mut self, now: u64) {
        let next = self.chips.next_event();
        if next == self.armed {
            return;
        }
        self.armed = next;
        let done = match next {
            Some(at) => {
                let wait = Duration::from_nanos(at.saturating_sub(now)).max(SHORTEST);
                self.timer.reset(wait, None)
            }
            None => self.timer.clear(),
        };
        if let Err(e) = done {
            log::error!("timerfd: {e}: the guest's timers stand still");
        }
    }

    /// Gets the vCPU out of the guest, unless it is the caller or comes anyway.
    fn kick(&self) {
        // SAFETY: pthread_self has no preconditions.
        let own = unsafe { libc::pthread_self() };
        let Some(vcpu) = self.vcpu.as_ref().filter(|vcpu| vcpu.thread != own) else { return };
        if self.window && !self.stopped {
            return;
        }
        // SAFETY: the vCPU is attached, so its run page is mapped, and its
        // thread has not ended.
        unsafe {
            (*vcpu.immediate_exit).store(1, Ordering::SeqCst);
            libc::pthread_kill(vcpu.thread, SIGRTMIN());
        }
    }
}

/// Queues an external interrupt for the vCPU.
fn interrupt(fd: &VcpuFd, vector: u8) -> io::Result<()> {
    let vector = u32::from(vector);
    // SAFETY: the ioctl reads the four bytes of a live local.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT.into(), &vector) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl InterruptInputs for Controllers {
    fn set(&self, irq: u32, level: bool) {
        self.change(|chips, _| chips.set_line(irq, level));
    }
}

/// The event loop's part: edges of lines, and the ends of timers.
pub struct Watch(pub Arc<Controllers>);

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let lines = lock(&self.0.lines);
        match lines.get(events.data() as usize) {
            Some((event, irq)) => {
                // Several edges at once are one, as on the line itself.
                let _ = event.read();
                let irq = *irq;
                drop(lines);
                self.0.change(|chips, _| chips.pulse(irq));
            }
            None => {
                drop(lines);
                let mut state = lock(&self.0.state);
                // Set anew meanwhile, it has nothing to tell yet.
                let _ = state.timer.wait();
                state.armed = None;
                drop(state);
                self.0.change(|chips, now| chips.advance(now));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let lines = lock(&self.0.lines);
        let state = lock(&self.0.state);
        let timer = (state.timer.as_raw_fd(), lines.len());
        let lines = lines.iter().enumerate().map(|(i, (event, _))| (event.as_raw_fd(), i));
        for (fd, data) in lines.chain([timer]) {
            let events = Events::with_data_raw(fd, data as u32, EventSet::IN);
            if let Err(e) = ops.add(events) {
                log::error!("event loop: {e:?}: an interrupt line is dead");
            }
        }
    }
}

/// Ports of the 8259s, the 8254 and port B, from the first on.
pub struct Ports {
    /// The chips.
    pub controllers: Arc<Controllers>,
    /// The first port.
    pub base: u16,
}

impl BusDevice for Ports {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        let port = self.base + offset as u16;
        *byte = self.controllers.change(|chips, now| chips.read_port(port, now));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // A word goes to two ports, as on the ISA bus.
        for (port, byte) in (self.base + offset as u16..).zip(data) {
            self.controllers.change(|chips, now| chips.write_port(port, *byte, now));
        }
    }
}

/// The registers of the I/O APIC.
pub struct IoApicPage(pub Arc<Controllers>);
/// The registers of the local APIC.
pub struct LocalApicPage(pub Arc<Controllers>);

/// Registers are read as 32 bits; a part of one is a part of its value.
fn read_register(offset: u64, data: &mut [u8], read: impl FnOnce(u64) -> u32) {
    let skip = (offset & 3) as usize;
    let bytes = read(offset & !3).to_le_bytes();
    let len = data.len().min(bytes.len() - skip);
    data[..len].copy_from_slice(&bytes[skip..skip + len]);
}

fn written(offset: u64, data: &[u8]) -> Option<u32> {
    let bytes = data.try_into().ok().filter(|_| offset & 3 == 0)?;
    Some(u32::from_le_bytes(bytes))
}

impl BusDevice for IoApicPage {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(offset, data, |at| self.0.change(|chips, _| chips.read_ioapic(at)));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(value) = written(offset, data) {
            self.0.change(|chips, _| {
                chips.write_ioapic(offset, value);
                // Before what it has let go is sent: its end may come at once.
                self.0.tell_pins(chips);
            });
        }
    }
}

impl BusDevice for LocalApicPage {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(offset, data, |at| self.0.change(|chips, now| chips.read_lapic(at, now)));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(value) = written(offset, data) {
            self.0.change(|chips, now| chips.write_lapic(offset, value, now));
        }
    }
}
