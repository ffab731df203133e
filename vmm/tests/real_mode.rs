//! The BIOS as a kernel's setup code sees it, on this host's own `/dev/kvm`: a
//! bzImage whose setup code asks everything and notes the answers.

use arch::layout;
use boot::{Kernel, Payload, Way};
use core::arch::global_asm;
use devices::bus::{Bus, BusDevice};
use devices::legacy::i8042;
use devices::legacy::power::PowerLine;
use kvm_ioctls::Kvm;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm::ending::Ending;
use vmm::exit::Exit;
use vmm::memory;
use vmm::vcpu::{self, Buses, Vcpu};
use vmm::vm::Vm;

const MEMORY: u64 = 32 << 20;
/// Where the setup code is, and its notes.
const SETUP: u64 = 0x10000;
const NOTES: u64 = SETUP + 0x5f00;
const MAP: u64 = SETUP + 0x6000;

global_asm!(
    ".pushsection .rodata.setup_code, \"a\", @progbits",
    ".code16",
    "setup_code:",
    "  xorl %ebx, %ebx",
    "  movw $0x6000, %di",
    "1:",
    "  movl $0xe820, %eax",
    "  movl $0x534d4150, %edx",
    "  movl $20, %ecx",
    "  int $0x15",
    "  jc 2f",
    "  cmpl $0x534d4150, %eax",
    "  jne 2f",
    "  addw $20, %di",
    "  testl %ebx, %ebx",
    "  jnz 1b",
    "2:",
    "  movw %di, 0x5f00",
    "  movw $0xe801, %ax",
    "  int $0x15",
    "  movw %cx, 0x5f02",
    "  movw %dx, 0x5f04",
    "  movb $0x88, %ah",
    "  int $0x15",
    "  movw %ax, 0x5f06",
    "  movb $0x41, %ah", // EDD
    "  movw $0x55aa, %bx",
    "  movb $0x80, %dl",
    "  int $0x13",
    "  setc 0x5f08",
    "  movw $0x2401, %ax", // A20 on
    "  stc",
    "  int $0x15",
    "  setc 0x5f09",
    "  int $0x12",
    "  movw %ax, 0x5f0a",
    "  movb $0x01, %ah", // a key?
    "  int $0x16",
    "  setz 0x5f0c",
    "  movw $0x5300, %ax", // power management
    "  int $0x15",
    "  setc 0x5f0d",
    "  movw $0x4f00, %ax", // VESA
    "  int $0x10",
    "  movw %ax, 0x5f0e",
    "  movb $0x0f, %ah", // video mode
    "  int $0x10",
    "  movw %ax, 0x5f10",
    "  xorl %ebx, %ebx",
    "  movl $0xe820, %eax", // with a buffer that is too small
    "  movl $0x534d4150, %edx",
    "  movl $19, %ecx",
    "  int $0x15",
    "  setc 0x5f12",
    "  int $0x08", // the timer
    "  movb $0, %ah",
    "  int $0x1a",
    "  movw %dx, 0x5f14",
    "  movw %sp, 0x5f16",
    "  movw $0x0e6f, %ax", // teletype
    "  int $0x10",
    "  movw $0x0e6b, %ax",
    "  int $0x10",
    "  int $0x19",
    "setup_code_end:",
    ".code64",
    ".popsection",
    ".globl setup_code, setup_code_end",
    options(att_syntax)
);

fn setup_code() -> &'static [u8] {
    unsafe extern "C" {
        #[link_name = "setup_code"]
        static BEGIN: u8;
        #[link_name = "setup_code_end"]
        static END: u8;
    }
    // SAFETY: both symbols are in one section, in this order.
    unsafe {
        let len = (&raw const END).offset_from(&raw const BEGIN) as usize;
        std::slice::from_raw_parts(&raw const BEGIN, len)
    }
}

/// A bzImage whose setup is [`setup_code`], with a kernel of one page.
fn image() -> Vec<u8> {
    const SECTORS: u8 = 3;
    let mut b = vec![0; (usize::from(SECTORS) + 1) * 512 + 4096];
    b[0x1f1] = SECTORS;
    b[0x1f4..0x1f8].copy_from_slice(&256u32.to_le_bytes());
    b[0x200..0x202].copy_from_slice(&[0xeb, 0x66]); // jmp behind the header
    b[0x202..0x206].copy_from_slice(b"HdrS");
    b[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    b[0x211] = 1;
    b[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    b[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    b[0x236] = 1;
    b[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    b[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    b[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    let code = setup_code();
    b[0x268..0x268 + code.len()].copy_from_slice(code);
    b
}

/// A serial port that is always ready.
struct Teletype(Arc<Mutex<Vec<u8>>>);

impl BusDevice for Teletype {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 5 { 0x60 } else { 0 });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.0.lock().unwrap().extend(data);
        }
    }
}

#[test]
fn setup_code_gets_its_answers_from_the_bios() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return;
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image()).unwrap();
    let kernel = Kernel::open(file.path()).unwrap();
    let vm = Vm::new(&kvm, 1, Default::default()).unwrap();
    let ram = memory::allocate(MEMORY).unwrap();
    vm.set_memory(&ram).unwrap();
    let payload = Payload {
        kernel: &kernel,
        initrd: None,
        cmdline: "console=ttyS0",
        memory: MEMORY,
        rsdp: 0,
        way: Way::RealMode,
    };
    let entry = boot::load(&ram, &payload).unwrap();
    let fd = vm.vcpu(0, 1).unwrap();
    vm.enter(&fd, entry).unwrap();

    let (ending, said) = (Ending::new().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let end = ending.clone();
    let power = PowerLine::new(move |_| end.end(Exit::Reboot));
    let mut ports = Bus::new();
    let teletype = Arc::new(Mutex::new(Teletype(said.clone())));
    ports.insert(layout::COM1.into(), 8, teletype).unwrap();
    let controller = Arc::new(Mutex::new(i8042::I8042::new(power)));
    ports.insert(i8042::BASE.into(), i8042::SIZE, controller).unwrap();
    let buses = Buses { ports: Arc::new(ports), memory: Arc::new(Bus::new()) };
    vcpu::install_kick_handler().unwrap();
    let vcpu = Vcpu {
        id: 0,
        fd,
        buses,
        ending: ending.clone(),
        counts: Default::default(),
        controllers: None,
        late: None,
        recorder: None,
    };
    let running = vcpu.start(|| ()).unwrap();
    let start = Instant::now();
    while !ending.has_ended() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.stop().unwrap();
    assert_eq!(ending.how(), Some(Exit::Reboot));
    assert_eq!(*said.lock().unwrap(), b"ok");

    let word = |at: u64| ram.read_obj::<u16>(GuestAddress(NOTES + at)).unwrap();
    let byte = |at: u64| ram.read_obj::<u8>(GuestAddress(NOTES + at)).unwrap();
    let map = layout::memory_map(MEMORY);
    assert_eq!(usize::from(word(0)), 0x6000 + 20 * map.len(), "entries of the map");
    for (i, (base, size, kind)) in map.into_iter().enumerate() {
        let at = GuestAddress(MAP + 20 * i as u64);
        let entry: [u32; 5] = ram.read_obj(at).unwrap();
        let wide = |low: usize| u64::from(entry[low]) | u64::from(entry[low + 1]) << 32;
        assert_eq!((wide(0), wide(2), entry[4]), (base, size, kind as u32));
    }
    assert_eq!((word(2), word(4), word(6)), (15 << 10, 256, 31 << 10), "older forms");
    assert_eq!((byte(8), byte(9)), (1, 0), "no EDD; the A20 gate is open");
    assert_eq!(word(0xa), 639, "KiB of conventional memory");
    assert_eq!((byte(0xc), byte(0xd)), (1, 1), "no key, no APM");
    assert_eq!((word(0xe), word(0x10)), (0x4f00, 0x5003), "no VESA, 80 columns");
    assert_eq!(byte(0x12), 1, "a buffer that is too small is refused");
    assert_eq!(word(0x14), 1, "one tick");
    assert_eq!(word(0x16), 0xe000, "the stack is as it was");
}
