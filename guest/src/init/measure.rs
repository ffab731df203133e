//! Init as a measuring program: does things to its devices, and marks when.
//!
//! Nothing here takes time or counts; that is the host's, who sees the marks
//! ([`guest::measure`]). What can't be done is told in a line, and the rest goes on.

use guest::measure::{
    BLOCK, DATA_PORT, MARK_PORT, Operation, PACKET, PAGE, PEER, ROOT, SCRATCH, TICK_US, Task,
};
use guest::network;
use guest::protocol::Network;
use guest::system::{About, Fault, check, make_directory, mount, pages};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a disk may take to appear, in an emulated machine on an emulated host.
const PATIENCE: Duration = Duration::from_secs(20);
/// Devices are looked for this often.
const PAUSE: Duration = Duration::from_millis(1);
/// How many pairs of marks tell what marks cost.
const NOTHINGS: u32 = 8;
/// The offset on the disk up to which small requests go.
const SPAN: u64 = 4 << 20;

/// How much is done.
#[derive(Clone, Copy)]
struct Amounts {
    requests: u32,
    /// Blocks of a stream, at most, and for how long.
    blocks: u32,
    time: Duration,
    ticks: u32,
    interrupts: u32,
}

const QUICK: Amounts =
    Amounts { requests: 8, blocks: 8, time: Duration::from_millis(300), ticks: 10, interrupts: 16 };
const FULL: Amounts = Amounts {
    requests: 64,
    blocks: 512,
    time: Duration::from_millis(1500),
    ticks: 50,
    interrupts: 200,
};

/// Measures what the word of a task says.
pub fn run(word: &str) {
    let Some(task) = Task::of(word) else {
        eprintln!("microvm-init: {word}: nothing that can be measured");
        return;
    };
    if let Err(fault) = ports() {
        // Only the console is left to tell it.
        eprintln!("microvm-init: {fault}");
        return;
    }
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys")] {
        let path = Path::new(path);
        attempt(
            Operation::Init,
            make_directory(path).and_then(|()| mount(kind, path, kind, 0, "")),
        );
    }
    if std::env::var_os(ROOT).is_some() {
        attempt(Operation::Root, mount_root());
    }
    mark(Operation::Init, 1);
    // The kernel's clock at this mark.
    let _ = fs::write("/dev/kmsg", "<7>microvm: init\n");
    for _ in 0..NOTHINGS {
        mark(Operation::Nothing, 0);
        mark(Operation::Nothing, 1);
    }
    let amounts = if task == Task::Full { FULL } else { QUICK };
    match task {
        Task::Boot => tell_log(),
        Task::Ipi => attempt(Operation::Ipi, interrupts(amounts)),
        Task::Tick => ticks(amounts),
        Task::Quick | Task::Full => {
            attempt(Operation::Read, disk(amounts));
            attempt(Operation::Packet, packets(amounts));
            ticks(amounts);
            tell_log();
        }
    }
    mark(Operation::Done, 1);
}

/// Lets this process and its threads use ports.
fn ports() -> Result<(), Fault> {
    // SAFETY: iopl takes a number and changes what instructions may be used.
    match unsafe { libc::syscall(libc::SYS_iopl, 3) } {
        0 => Ok(()),
        _ => Err(Fault::new(
            "iopl (the kernel needs CONFIG_X86_IOPL_IOPERM)",
            &io::Error::last_os_error(),
        )),
    }
}

fn out(port: u16, value: u32) {
    // SAFETY: `ports` has allowed it, and nobody listens but the host.
    unsafe {
        std::arch::asm!("out dx, eax", in("dx") port, in("eax") value,
            options(nomem, nostack, preserves_flags));
    }
}

fn mark(operation: Operation, count: u32) {
    out(MARK_PORT, operation.mark(count));
}

fn tell(text: &str) {
    let line = text.bytes().chain(*b"\n");
    let bytes: Vec<u8> = line.collect();
    for four in bytes.chunks(4) {
        // The host drops zeros.
        let mut word = [0; 4];
        word.iter_mut().zip(four).for_each(|(to, from)| *to = *from);
        out(DATA_PORT, u32::from_le_bytes(word));
    }
}

fn attempt(operation: Operation, result: Result<(), Fault>) {
    if let Err(fault) = result {
        tell(&format!("why {} {fault}", operation.word()));
    }
}

/// Does something `count` times between marks.
fn repeat(
    operation: Operation,
    count: u32,
    mut body: impl FnMut(u32) -> io::Result<()>,
) -> Result<(), Fault> {
    mark(operation, 0);
    let done = (0..count).try_for_each(&mut body);
    mark(operation, count);
    if done.is_err() {
        // Not what the marks say.
        tell(&format!("void {}", operation.word()));
    }
    done.about(operation.word())
}

/// The same with blocks, until there is no time left.
fn stream(
    operation: Operation,
    amounts: Amounts,
    mut body: impl FnMut(u32) -> io::Result<()>,
    end: impl FnOnce() -> io::Result<()>,
) -> Result<(), Fault> {
    mark(operation, 0);
    let start = Instant::now();
    let mut count = 0;
    let mut done = Ok(());
    while done.is_ok() && count < amounts.blocks && start.elapsed() < amounts.time {
        done = body(count);
        count += 1;
    }
    let done = done.and_then(|()| end());
    mark(operation, count);
    if done.is_err() {
        tell(&format!("void {}", operation.word()));
    }
    done.about(operation.word())
}

/// Every disk, with its size in sectors.
fn disks() -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let disk = |entry: fs::DirEntry| {
        let size = fs::read_to_string(entry.path().join("size")).ok()?;
        let size = size.trim().parse().ok().filter(|size| *size > 0)?;
        Some((Path::new("/dev").join(entry.file_name()), size))
    };
    entries.flatten().filter_map(disk).collect()
}

/// Waits for the disk that may be overwritten, or for the other one.
fn find(scratch: bool) -> Result<PathBuf, Fault> {
    let wanted = std::env::var(SCRATCH).ok().and_then(|sectors| sectors.parse::<u64>().ok());
    let start = Instant::now();
    loop {
        let mut disks = disks().into_iter();
        // Where the kernel has made its node as well.
        let fits = |(path, size): &(PathBuf, u64)| {
            (Some(*size) == wanted) == scratch && is_disk(path) && path.exists()
        };
        if let Some((path, _)) = disks.find(fits) {
            return Ok(path);
        }
        if start.elapsed() > PATIENCE {
            return Err(Fault("no disk: the kernel has no driver for this one".to_owned()));
        }
        thread::sleep(PAUSE);
    }
}

fn is_disk(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["vd", "sd", "hd"].iter().any(|kind| name.starts_with(kind))
}

/// Mounts the root disk by whichever file system of the kernel's it has.
fn mount_root() -> Result<(), Fault> {
    let disk = find(false)?;
    let target = Path::new("/root");
    make_directory(target)?;
    let kinds = fs::read_to_string("/proc/filesystems").about("/proc/filesystems")?;
    let kinds = kinds.lines().filter_map(|line| line.strip_prefix('\t'));
    for kind in kinds {
        let source = disk.to_string_lossy();
        if mount(&source, target, kind, libc::MS_RDONLY, "").is_ok() {
            mark(Operation::Root, 1);
            return Ok(());
        }
    }
    Err(Fault(format!("{}: the kernel knows no file system of it", disk.display())))
}

fn disk(amounts: Amounts) -> Result<(), Fault> {
    let path = find(true)?;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let disk = options.open(&path).about(path.display())?;
    let buffer = pages(BLOCK).about("memory")?;
    let small = buffer.get_mut(..PAGE).unwrap_or_default();
    // Neighbours would be put together by nobody, but a real program's are apart.
    let place = |i: u32| u64::from(i).wrapping_mul(37) * PAGE as u64 % SPAN;
    disk.read_exact_at(small, 0).about("first read")?;
    repeat(Operation::OneRead, 1, |i| disk.read_exact_at(small, place(i + 1)))?;
    repeat(Operation::Read, amounts.requests, |i| disk.read_exact_at(small, place(i)))?;
    small.fill(0x5a);
    repeat(Operation::Write, amounts.requests, |i| disk.write_all_at(small, place(i)))?;
    let offset = |i: u32| u64::from(i) * BLOCK as u64 % SPAN;
    let end = || Ok(());
    stream(Operation::ReadStream, amounts, |i| disk.read_exact_at(buffer, offset(i)), end)?;
    stream(
        Operation::WriteStream,
        amounts,
        |i| disk.write_all_at(buffer, offset(i)),
        || disk.sync_data(),
    )
}

fn packets(amounts: Amounts) -> Result<(), Fault> {
    let peer = std::env::var(PEER).map_err(|_| Fault("nobody to send to".to_owned()))?;
    let peer: SocketAddrV4 = peer.parse().map_err(|_| Fault(format!("{peer}: no address")))?;
    let card = Network { address: [10, 0, 2, 15], prefix: 24, gateway: Some([10, 0, 2, 2]) };
    let start = Instant::now();
    while !Path::new("/sys/class/net/eth0").exists() {
        if start.elapsed() > PATIENCE / 4 {
            return Err(Fault("no card: the kernel has no driver for this one".to_owned()));
        }
        thread::sleep(PAUSE);
    }
    network::bring_up(&[card])?;
    // Not by name: that would bring a resolver into this program.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).about("socket")?;
    socket.connect(peer).about("peer")?;
    socket.set_read_timeout(Some(Duration::from_secs(1))).about("socket")?;
    let mut packet = [0x5a; PACKET];
    let mut there_and_back = |_| {
        socket.send(&packet)?;
        socket.recv(&mut packet).map(drop)
    };
    // The link may take a while to come up.
    let mut first = Err(io::ErrorKind::TimedOut.into());
    for attempt in 0..10 {
        first = there_and_back(attempt);
        if first.is_ok() {
            break;
        }
    }
    first.about("no packet came back")?;
    repeat(Operation::OnePacket, 1, &mut there_and_back)?;
    repeat(Operation::Packet, amounts.requests, &mut there_and_back)?;
    let mut connection = TcpStream::connect(peer).about("connecting")?;
    let mut other = connection.try_clone().about("connection")?;
    let block = vec![0x5a; BLOCK];
    stream(
        Operation::SendStream,
        amounts,
        |_| connection.write_all(&block),
        || {
            other.shutdown(Shutdown::Write)?;
            // The host closes when it has all.
            other.read(&mut [0]).map(drop)
        },
    )
}

fn ticks(amounts: Amounts) {
    let nap = libc::timespec { tv_sec: 0, tv_nsec: TICK_US as libc::c_long * 1000 };
    let result = repeat(Operation::Tick, amounts.ticks, |_| {
        // SAFETY: the time lives across the call; no rest is asked for.
        match unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &nap, std::ptr::null_mut()) }
        {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    });
    attempt(Operation::Tick, result);
}

/// Interrupts between processors, by the system call that must reach every
/// processor on which this process runs (`membarrier(2)`).
fn interrupts(amounts: Amounts) -> Result<(), Fault> {
    const REGISTER: libc::c_long = 1 << 4;
    const EXPEDITED: libc::c_long = 1 << 3;
    if !Path::new("/sys/devices/system/cpu/cpu1").exists() {
        return Ok(());
    }
    let barrier = |command: libc::c_long| {
        // SAFETY: membarrier takes numbers.
        check(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } as libc::c_int)
    };
    barrier(REGISTER).about("membarrier (the kernel needs CONFIG_MEMBARRIER)")?;
    pin(0).about("processor 0")?;
    static STARTED: AtomicBool = AtomicBool::new(false);
    static STOP: AtomicBool = AtomicBool::new(false);
    let other = thread::spawn(|| {
        let pinned = pin(1);
        STARTED.store(true, Ordering::Release);
        while pinned.is_ok() && !STOP.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    while !STARTED.load(Ordering::Acquire) {
        thread::sleep(PAUSE);
    }
    let result = repeat(Operation::Ipi, amounts.interrupts, |_| barrier(EXPEDITED).map(drop));
    STOP.store(true, Ordering::Relaxed);
    let _ = other.join();
    result
}

/// Keeps this thread on a processor.
fn pin(processor: usize) -> io::Result<()> {
    let mask: u64 = 1 << processor;
    // SAFETY: the mask lives across the call, and its size is given.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of_val(&mask), (&raw const mask).cast()) };
    check(result).map(drop)
}

/// Tells the kernel's messages, each with its time, and a `*` where a driver speaks
/// of a device (`Documentation/ABI/testing/dev-kmsg`).
fn tell_log() {
    const MOST: usize = 800;
    const WIDTH: usize = 60;
    let mut options = File::options();
    let Ok(mut log) = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return tell("why log /dev/kmsg can't be read");
    };
    let mut buffer = [0; 4096];
    for _ in 0..MOST {
        let Ok(len @ 1..) = log.read(&mut buffer) else { break };
        let record = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default());
        let mut lines = record.lines();
        let Some((prefix, text)) = lines.next().and_then(|line| line.split_once(';')) else {
            continue;
        };
        let time = prefix.split(',').nth(2).unwrap_or("0");
        let driver = lines.any(|line| line.starts_with(" SUBSYSTEM="));
        let text: String = text.chars().take(WIDTH).collect();
        tell(&format!("log {time} {} {text}", if driver { '*' } else { '-' }));
    }
}
