//! What a subject sees of the host, and what it is allowed to do.
//!
//! Two kinds. *Witnesses*: the host has hidden a word in a process, a file, a
//! socket, a port, a System V object and a key; who finds it here has found the
//! host's. Every one is looked for a second time under a wrong word, which must
//! not be found. *Attempts*: published ways out of containers, each up to where it
//! would begin to do harm; that it was allowed says nothing of the host until it
//! is known whose kernel allowed it, which the boot's id tells.

use crate::say;
use guest::system::plain;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

/// What the host's process has behind this in its command line.
const WITNESS: &str = "witness-";
/// Linux's `KEYCTL_SEARCH` and `KEY_SPEC_USER_KEYRING`.
const SEARCH: libc::c_long = 10;
const USER_KEYRING: libc::c_long = -4;
const NAMESPACES: [&str; 8] = ["mnt", "uts", "ipc", "pid", "net", "user", "cgroup", "time"];

/// Tells all, a line each.
pub fn tell(nonce: &str, path: &Path, port: u16) {
    facts();
    let process = witnesses("", nonce, path, port);
    let wrong: String = nonce.chars().rev().collect();
    let absent = path.with_file_name(format!("not-{wrong}"));
    witnesses("control_", &wrong, &absent, 0);
    attempts(process);
}

fn fact(name: &str, value: impl AsRef<str>) {
    say(&format!("@f {name} {}", value.as_ref().trim()));
}

fn facts() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|_| "-".to_owned());
    fact("kernel", read("/proc/sys/kernel/osrelease"));
    fact("boot_id", read("/proc/sys/kernel/random/boot_id"));
    fact("hostname", read("/proc/sys/kernel/hostname"));
    for name in NAMESPACES {
        let link = fs::read_link(format!("/proc/self/ns/{name}"));
        fact(&format!("ns_{name}"), link.unwrap_or_default().to_string_lossy());
    }
    let status = read("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("-", str::trim).split_whitespace().next().unwrap_or("-").to_owned()
    };
    fact("uid", field("Uid:"));
    fact("capabilities", field("CapEff:"));
    fact("no_new_privileges", field("NoNewPrivs:"));
    fact("seccomp", field("Seccomp:"));
    fact("processes", processes().len().to_string());
    fact("mounts", read("/proc/self/mounts").lines().count().to_string());
    let interfaces = fs::read_dir("/sys/class/net").map(|all| all.count());
    fact("interfaces", interfaces.map_or("-".to_owned(), |n| n.to_string()));
    fact("ring", ring());
}

/// In which ring the program itself runs: the low bits of CS.
fn ring() -> String {
    let cs: u16;
    // SAFETY: reading a segment register changes nothing.
    unsafe {
        std::arch::asm!("mov {0:x}, cs", out(reg) cs, options(nomem, nostack, preserves_flags))
    };
    (cs & 3).to_string()
}

fn processes() -> Vec<i32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Looks for each; the host's process, if it was found.
fn witnesses(prefix: &str, nonce: &str, path: &Path, port: u16) -> Option<i32> {
    let found = |name: &str, yes: bool| {
        fact(&format!("{prefix}{name}"), if yes { "found" } else { "not-found" });
    };
    let process = find_process(nonce);
    found("host_process", process.is_some());
    // SAFETY: kill takes numbers; signal 0 only asks.
    found("host_signal", process.is_some_and(|pid| unsafe { libc::kill(pid, 0) == 0 }));
    found("host_file", holds(path, nonce));
    // Through whichever process there is that lives in another root.
    let through = |pid: &i32| {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        path.strip_prefix("/").is_ok_and(|path| holds(&root.join(path), nonce))
    };
    found("host_root", processes().iter().any(through));
    found("host_socket", unix_socket(nonce));
    found("host_port", tcp_port(port, nonce));
    found("host_ipc", shared_memory(nonce));
    found("host_key", key(nonce));
    process
}

fn find_process(nonce: &str) -> Option<i32> {
    let word = format!("{WITNESS}{nonce}");
    processes().into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    })
}

fn holds(path: &Path, nonce: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == nonce)
}

fn unix_socket(nonce: &str) -> bool {
    let address = net::SocketAddr::from_abstract_name(nonce);
    address.and_then(|address| net::UnixStream::connect_addr(&address)).is_ok()
}

fn tcp_port(port: u16, nonce: &str) -> bool {
    let ask = || -> io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text == nonce)
    };
    port != 0 && ask().unwrap_or(false)
}

/// The key of the System V object that the host has made for the word: its first
/// eight hexadecimal digits.
fn shared_memory(nonce: &str) -> bool {
    let key = nonce.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
    // SAFETY: shmget takes numbers; without IPC_CREAT it only looks.
    key.is_some_and(|key| unsafe { libc::shmget(key as i32, 0, 0) } >= 0)
}

fn key(nonce: &str) -> bool {
    let name = format!("microvm-{nonce}\0");
    // SAFETY: both strings end with NUL and outlive the call.
    unsafe {
        let kind = c"user".as_ptr();
        libc::syscall(libc::SYS_keyctl, SEARCH, USER_KEYRING, kind, name.as_ptr(), 0) >= 0
    }
}

/// What came of an attempt: `allowed`, `refused ERROR`, or `absent`.
fn attempt(name: &str, result: io::Result<()>) {
    // What is empty is not there.
    let error = result.err().map(|error| error.raw_os_error().unwrap_or(libc::ENOENT));
    fact(
        name,
        match error {
            None => "allowed".to_owned(),
            Some(libc::ENOENT | libc::ENOSYS | libc::ENODEV | libc::ENXIO) => "absent".to_owned(),
            Some(error) => format!("refused {}", plain(&io::Error::from_raw_os_error(error))),
        },
    );
}

/// A call whose arguments are wrong on purpose: that it complains about those means
/// that it would have been allowed.
fn permitted(result: libc::c_long) -> io::Result<()> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result >= 0 => Ok(()),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

fn call(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(path: &str, write: bool) -> io::Result<()> {
    File::options().read(!write).write(write).open(path).map(drop)
}

fn attempts(witness: Option<i32>) {
    attempt("set_time", set_time());
    attempt("load_module", load_module());
    attempt("kexec", kexec());
    attempt("dev_mem", open("/dev/mem", false));
    attempt("make_device", device(libc::S_IFCHR, libc::makedev(1, 1)));
    attempt("raw_disk", raw_disk());
    attempt("kernel_memory", kernel_memory());
    attempt("kernel_addresses", kernel_addresses());
    attempt("kernel_log", kernel_log());
    attempt("core_pattern", open("/proc/sys/kernel/core_pattern", true));
    attempt("sysrq", open("/proc/sysrq-trigger", true));
    attempt("sysfs_write", open("/sys/kernel/mm/transparent_hugepage/enabled", true));
    attempt("mount", in_child(|| mounted(c"tmpfs")));
    attempt("mount_cgroup", in_child(|| mounted(c"cgroup2")));
    attempt("open_by_handle", open_by_handle());
    attempt("user_namespace", in_child(user_namespace));
    attempt("bpf", bpf());
    attempt("perf", perf());
    attempt("raw_socket", raw_socket());
    match witness {
        Some(pid) => attempt("ptrace_host", in_child(|| seize(pid))),
        None => fact("ptrace_host", "absent"),
    }
}

fn load_module() -> io::Result<()> {
    // SAFETY: there is no such descriptor; the string ends with NUL.
    permitted(unsafe { libc::syscall(libc::SYS_finit_module, -1, c"".as_ptr(), 0) })
}

fn kexec() -> io::Result<()> {
    // SAFETY: more segments than there may be: nothing is read.
    permitted(unsafe { libc::syscall(libc::SYS_kexec_load, 0, 1000, 0, 0) })
}

fn user_namespace() -> io::Result<()> {
    // SAFETY: unshare takes a number; this process has one thread.
    call(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
}

/// Loads a program of no instructions.
fn bpf() -> io::Result<()> {
    const LOAD: libc::c_int = 5;
    let attributes = [0u64; 16];
    // SAFETY: the attributes live across the call, which is told their size.
    let loaded = unsafe {
        libc::syscall(libc::SYS_bpf, LOAD, attributes.as_ptr(), size_of_val(&attributes))
    };
    permitted(loaded)
}

fn raw_socket() -> io::Result<()> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes numbers.
    call(unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) }.into())
}

/// Takes hold of a process as a debugger does; it is let go when this one ends.
fn seize(pid: i32) -> io::Result<()> {
    // SAFETY: the request reads and writes nothing of this process.
    call(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })
}

/// Sets a part of the clock's state to what it is.
fn set_time() -> io::Result<()> {
    // SAFETY: timex is plain data for which zero is a value.
    unsafe {
        let mut state: libc::timex = mem::zeroed();
        call(libc::clock_adjtime(libc::CLOCK_REALTIME, &mut state).into())?;
        state.modes = libc::ADJ_TICK;
        call(libc::clock_adjtime(libc::CLOCK_REALTIME, &mut state).into())
    }
}

/// Makes a device node of one's own and opens it, where file systems have such.
fn device(kind: libc::mode_t, number: libc::dev_t) -> io::Result<()> {
    device_at(c"/dev/microvm-compare.device", kind, number)
        .or_else(|_| device_at(c"/tmp/microvm-compare.device", kind, number))
}

fn device_at(path: &CStr, kind: libc::mode_t, number: libc::dev_t) -> io::Result<()> {
    // SAFETY: the string ends with NUL; the descriptor is closed once.
    unsafe {
        libc::unlink(path.as_ptr());
        call(libc::mknod(path.as_ptr(), kind | 0o600, number).into())?;
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let opened = call(fd.into());
        libc::unlink(path.as_ptr());
        if fd >= 0 {
            libc::close(fd);
        }
        opened
    }
}

fn raw_disk() -> io::Result<()> {
    let absent = || io::Error::from_raw_os_error(libc::ENOENT);
    let disk = fs::read_dir("/sys/block")?.flatten().find(|entry| {
        let size = fs::read_to_string(entry.path().join("size")).unwrap_or_default();
        size.trim().parse().unwrap_or(0u64) > 0
    });
    let numbers = fs::read_to_string(disk.ok_or_else(absent)?.path().join("dev"))?;
    let (major, minor) = numbers.trim().split_once(':').ok_or_else(absent)?;
    let number = |text: &str| text.parse().map_err(|_| absent());
    device(libc::S_IFBLK, libc::makedev(number(major)?, number(minor)?))
}

/// An ELF of all memory; container engines hide it behind an empty file.
fn kernel_memory() -> io::Result<()> {
    let mut start = [0; 4];
    File::open("/proc/kcore")?.read_exact(&mut start)
}

fn kernel_addresses() -> io::Result<()> {
    let mut start = [0; 16];
    File::open("/proc/kallsyms")?.read_exact(&mut start)?;
    let hidden = start.iter().all(|digit| *digit == b'0');
    if hidden { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
}

fn kernel_log() -> io::Result<()> {
    const READ_ALL: libc::c_int = 3;
    let mut byte = 0;
    // SAFETY: one byte for a call that is told of one.
    call(unsafe { libc::klogctl(READ_ALL, &raw mut byte, 1) }.into())
}

/// With a mount namespace of one's own, so that nobody else sees it.
fn mounted(kind: &CStr) -> io::Result<()> {
    // SAFETY: strings that end with NUL; the process ends afterwards.
    unsafe {
        call(libc::unshare(libc::CLONE_NEWNS).into())?;
        let (none, flags) = (ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        call(libc::mount(none, c"/".as_ptr(), none, flags, ptr::null()).into())?;
        call(libc::mount(kind.as_ptr(), c"/tmp".as_ptr(), kind.as_ptr(), 0, ptr::null()).into())
    }
}

/// A file by a handle that is nobody's: allowed is who hears that it is stale.
fn open_by_handle() -> io::Result<()> {
    let root = File::open("/")?;
    let handle = [8u32, 1, 0, 0];
    // SAFETY: a file_handle with eight bytes, which lives across the call.
    let opened = unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&root);
        libc::syscall(libc::SYS_open_by_handle_at, fd, handle.as_ptr(), libc::O_PATH)
    };
    permitted(opened)
}

/// A counter of all that a processor does.
fn perf() -> io::Result<()> {
    let mut attributes = [0u32; 28];
    // PERF_TYPE_SOFTWARE, the struct's size, PERF_COUNT_SW_CPU_CLOCK.
    (attributes[0], attributes[1]) = (1, 112);
    // SAFETY: a perf_event_attr of 112 bytes, which lives across the call.
    call(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 8) })
}

/// Tries something in a process that ends then.
fn in_child(body: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: there is one thread; the child ends by _exit.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let error = body().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            libc::_exit(error);
        }
        call(pid.into())?;
        let mut status = 0;
        call(libc::waitpid(pid, &mut status, 0).into())?;
        match libc::WEXITSTATUS(status) {
            0 if libc::WIFEXITED(status) => Ok(()),
            0 => Err(io::Error::from_raw_os_error(libc::EPERM)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
