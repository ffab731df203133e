//! Guests of a few instructions on this host's own `/dev/kvm`: exits, device
//! registers, ends, and a machine that is saved and goes on elsewhere. They
//! use no SSE and no interrupts, so even a KVM that can't run Linux runs them.

use arch::registers::{self, Entry};
use arch::vcpu_state;
use core::arch::global_asm;
use devices::bus::{Bus, BusDevice};
use devices::legacy::power::{PowerLine, PowerRequest};
use devices::legacy::{i8042, pm, pvpanic};
use kvm_ioctls::{Kvm, VcpuFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm::ending::Ending;
use vmm::exit::Exit;
use vmm::memory::{self, Ram};
use vmm::vcpu::{self, Buses, Running, Vcpu};
use vmm::vm::Vm;

/// Where guests are loaded and start.
const START: u64 = 0x10_0000;
const MEMORY: u64 = 32 << 20;
/// A port and an address where the test listens.
const PORT: u64 = 0x500;
const MMIO: u64 = 0xd000_0000;

/// Assembles a guest and names a function that returns its bytes.
macro_rules! guest {
    ($name:ident, $code:literal) => {
        global_asm!(
            concat!(".pushsection .rodata.guest_", stringify!($name), ",\"a\",@progbits"),
            concat!(".globl guest_", stringify!($name)),
            concat!("guest_", stringify!($name), ":"),
            $code,
            concat!(".globl guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_end:"),
            ".popsection"
        );

        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name))]
                static BEGIN: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: both symbols are in one section, in this order.
            unsafe {
                let len = (&raw const END).offset_from(&raw const BEGIN) as usize;
                std::slice::from_raw_parts(&raw const BEGIN, len)
            }
        }
    };
}

/// What reached the device, in order.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

struct Listener(Arc<Mutex<Vec<Seen>>>);

impl BusDevice for Listener {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap().push(Seen::Read(offset, data.len()));
        data.iter_mut().enumerate().for_each(|(i, b)| *b = 0x10 + i as u8);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push(Seen::Write(offset, data.to_vec()));
    }
}

/// A machine with one vCPU at the start of a guest.
struct Tiny {
    kvm: Kvm,
    vm: Vm,
    ram: Ram,
    fd: Option<VcpuFd>,
    ending: Ending,
    seen: Arc<Mutex<Vec<Seen>>>,
    buses: Buses,
}

impl Tiny {
    /// `None`, with the reason on the output, where there is no KVM to use.
    fn new(code: &[u8]) -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(e) => {
                println!("skipped: /dev/kvm: {e}");
                return None;
            }
        };
        vcpu::install_kick_handler().unwrap();
        let vm = Vm::new(&kvm, 1, Default::default()).unwrap();
        let ram = memory::allocate(MEMORY).unwrap();
        vm.set_memory(&ram).unwrap();
        let fd = vm.vcpu(0, 1).unwrap();
        let entry = Entry::Long { rip: START };
        registers::write_tables(&ram, entry).unwrap();
        ram.write_slice(code, GuestAddress(START)).unwrap();
        vm.enter(&fd, entry).unwrap();

        let (ending, seen) = (Ending::new().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let end = ending.clone();
        let power = PowerLine::new(move |request| {
            end.end(match request {
                PowerRequest::PowerOff => Exit::PowerOff,
                PowerRequest::Panic => Exit::Panic,
                _ => Exit::Reboot,
            });
        });
        let (mut ports, mut mmio) = (Bus::new(), Bus::new());
        let listener = || Arc::new(Mutex::new(Listener(seen.clone())));
        ports.insert(PORT, 4, listener()).unwrap();
        let controller = Arc::new(Mutex::new(i8042::I8042::new(power.clone())));
        ports.insert(i8042::BASE.into(), i8042::SIZE, controller).unwrap();
        let panic = Arc::new(Mutex::new(pvpanic::PvPanic::new(power.clone())));
        ports.insert(pvpanic::PORT.into(), 1, panic).unwrap();
        let off = Arc::new(Mutex::new(pm::PowerManagement::new(power)));
        ports.insert(pm::SLEEP_CONTROL.into(), pm::SIZE, off).unwrap();
        mmio.insert(MMIO, 0x100, listener()).unwrap();
        let buses = Buses { ports: Arc::new(ports), memory: Arc::new(mmio) };
        Some(Self { kvm, vm, ram, fd: Some(fd), ending, seen, buses })
    }

    fn start(&mut self) -> Running {
        let vcpu = Vcpu {
            id: 0,
            fd: self.fd.take().unwrap(),
            buses: self.buses.clone(),
            ending: self.ending.clone(),
            counts: Default::default(),
            controllers: None,
            late: None,
            recorder: None,
        };
        vcpu.start(|| ()).unwrap()
    }

    /// Runs the guest to its end.
    fn run(&mut self) -> (Exit, Vec<Seen>) {
        let running = self.start();
        self.wait(|tiny| tiny.ending.has_ended());
        running.stop().unwrap();
        (self.ending.how().unwrap(), self.seen())
    }

    fn wait(&self, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until(self) {
            assert!(Instant::now() < deadline, "the guest does nothing: {:?}", self.seen());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

guest!(
    port_widths,
    "mov dx, 0x500
     mov eax, 0x44332211
     out dx, al
     out dx, ax
     out dx, eax
     in al, dx
     in eax, dx
     out dx, eax
     lea rsi, [rip + 2f]
     mov ecx, 3
     cld
     rep outsb
     mov dx, 0x64
     mov al, 0xfe
     out dx, al
  1: jmp 1b
  2: .ascii \"abc\""
);

#[test]
fn port_accesses_arrive_in_their_width() {
    let Some(mut tiny) = Tiny::new(port_widths()) else { return };
    let (exit, seen) = tiny.run();
    assert_eq!(exit, Exit::Reboot);
    let write = |bytes: &[u8]| Seen::Write(0, bytes.to_vec());
    assert_eq!(
        seen,
        [
            write(&[0x11]),
            write(&[0x11, 0x22]),
            write(&[0x11, 0x22, 0x33, 0x44]),
            Seen::Read(0, 1),
            Seen::Read(0, 4),
            write(&[0x10, 0x11, 0x12, 0x13]),
            write(b"a"),
            write(b"b"),
            write(b"c"),
        ]
    );
}

guest!(
    mmio_widths,
    "mov edi, 0xd0000000
     mov byte ptr [rdi], 1
     mov word ptr [rdi + 2], 0x0302
     mov dword ptr [rdi + 4], 0x07060504
     mov eax, [rdi + 8]
     mov [rdi + 0x10], rax
     mov eax, [rdi + 0x1000]
     mov [rdi + 0x20], eax
     mov dx, 0x600
     mov al, 0x34
     out dx, al
  1: jmp 1b"
);

#[test]
fn memory_accesses_arrive_in_their_width_and_holes_read_as_ones() {
    let Some(mut tiny) = Tiny::new(mmio_widths()) else { return };
    let (exit, seen) = tiny.run();
    assert_eq!(exit, Exit::PowerOff);
    assert_eq!(
        seen,
        [
            Seen::Write(0, vec![1]),
            Seen::Write(2, vec![2, 3]),
            Seen::Write(4, vec![4, 5, 6, 7]),
            Seen::Read(8, 4),
            Seen::Write(0x10, vec![0x10, 0x11, 0x12, 0x13, 0, 0, 0, 0]),
            Seen::Write(0x20, vec![0xff; 4]),
        ]
    );
}

guest!(
    panics,
    "mov dx, 0x505
     mov al, 1
     out dx, al
  1: jmp 1b"
);

#[test]
fn pvpanic_ends_the_machine() {
    let Some(mut tiny) = Tiny::new(panics()) else { return };
    assert_eq!(tiny.run().0, Exit::Panic);
}

// No IDT: the page fault becomes a double and then a triple fault.
guest!(
    faults,
    "nop
     mov rax, 0x0000700000000000
     mov [rax], rax"
);

#[test]
fn a_triple_fault_names_the_vcpu_and_its_place() {
    let Some(mut tiny) = Tiny::new(faults()) else { return };
    match tiny.run().0 {
        Exit::Crash { vcpu: 0, rip: Some(_), reason } => assert_eq!(reason, "triple fault"),
        other => panic!("{other:?}"),
    }
}

// Counts in a register, in memory and in an MSR-free local APIC register, and
// tells each number.
guest!(
    counts,
    "mov dx, 0x500
     mov ebx, 0x200000
  1: inc dword ptr [rbx]
     inc r12d
     mov eax, r12d
     out dx, eax
     cmp eax, [rbx]
     je 1b
     ud2"
);

/// The numbers that a counting guest told, which must have no gap.
fn numbers(seen: &[Seen]) -> Vec<u32> {
    let number = |s: &Seen| match s {
        Seen::Write(0, bytes) => u32::from_le_bytes(bytes.as_slice().try_into().unwrap()),
        other => panic!("{other:?}"),
    };
    seen.iter().map(number).collect()
}

#[test]
fn a_saved_machine_goes_on_in_another() {
    let Some(mut first) = Tiny::new(counts()) else { return };
    let running = first.start();
    first.wait(|tiny| tiny.seen().len() > 20);
    let vcpu = running.stop().unwrap();
    let indices = vcpu_state::msr_indices(&first.kvm).unwrap();
    let saved = vcpu_state::save(&vcpu.fd, &indices).unwrap();
    // Through text, as a snapshot would be kept.
    let saved = serde_json::to_string(&saved).unwrap();
    let machine = serde_json::to_string(&first.vm.save().unwrap()).unwrap();
    let mut ram = vec![0; MEMORY as usize];
    first.ram.read_slice(&mut ram, GuestAddress(0)).unwrap();
    let before = numbers(&first.seen());

    let mut second = Tiny::new(&[]).unwrap();
    second.ram.write_slice(&ram, GuestAddress(0)).unwrap();
    second.vm.restore(&serde_json::from_str(&machine).unwrap()).unwrap();
    let state = serde_json::from_str(&saved).unwrap();
    vcpu_state::restore(second.fd.as_ref().unwrap(), &state).unwrap();
    let running = second.start();
    second.wait(|tiny| tiny.seen().len() > 20);
    running.stop().unwrap();
    let after = numbers(&second.seen());
    let all: Vec<u32> = before.iter().chain(&after).copied().collect();
    assert_eq!(all, (1..=all.len() as u32).collect::<Vec<_>>(), "no number is lost or told twice");
}

guest!(spins, "1: jmp 1b");

#[test]
fn a_guest_that_never_exits_can_be_stopped() {
    let Some(mut tiny) = Tiny::new(spins()) else { return };
    let running = tiny.start();
    std::thread::sleep(Duration::from_millis(5));
    let started = Instant::now();
    running.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
}
