//! System calls, and what to say when one fails.

use std::alloc::{Layout, alloc_zeroed};
use std::ffi::CString;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;
use std::ptr;

/// What could not be done.
#[derive(Debug)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names what an error was about.
pub trait About<T> {
    /// `what: error`, without Rust's `(os error N)`.
    fn about(self, what: impl fmt::Display) -> Result<T, Fault>;
}

impl<T> About<T> for io::Result<T> {
    fn about(self, what: impl fmt::Display) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(what, &error))
    }
}

impl Fault {
    /// `what: error`.
    pub fn new(what: impl fmt::Display, error: &io::Error) -> Self {
        Self(format!("{what}: {}", plain(error)))
    }
}

/// An error without Rust's `(os error N)`.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(plain, _)| plain.to_owned())
}

/// The error of a call that returned -1.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A path or word for the kernel.
pub fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Makes a directory and all above it, where they are not there.
pub fn make_directory(path: &Path) -> Result<(), Fault> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.about(path.display())
}

/// `mount(2)`; an empty `source` or `kind` is none.
pub fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> Result<(), Fault> {
    let call = || {
        let [source, kind, data] = [source, kind, data].map(|text| c_string(text.as_bytes()));
        let (source, kind, data) = (source?, kind?, data?);
        let target = c_string(target.as_os_str().as_bytes())?;
        let given = |text: &CString| match text.is_empty() {
            true => ptr::null(),
            false => text.as_ptr(),
        };
        // SAFETY: all strings end with NUL and outlive the call.
        check(unsafe {
            let data = given(&data).cast();
            libc::mount(given(&source), target.as_ptr(), given(&kind), flags, data)
        })
    };
    call().map(drop).about(format_args!("mounting {kind} {source} on {}", target.display()))
}

/// Of directories of the host: neither devices nor set-user-ID programs.
pub const SAFE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// What every root file system of a guest has of its kernel.
pub fn mount_kernel_files() -> Result<(), Fault> {
    let safe = SAFE | libc::MS_NOEXEC;
    for (kind, path, flags, data) in [
        ("proc", "/proc", safe, ""),
        ("sysfs", "/sys", safe, ""),
        ("devtmpfs", "/dev", libc::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", SAFE, "mode=1777"),
        ("mqueue", "/dev/mqueue", safe, ""),
        ("tmpfs", "/run", SAFE, "mode=0755"),
    ] {
        let path = Path::new(path);
        make_directory(path)?;
        mount(kind, path, kind, flags, data)?;
    }
    for (target, name) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, name).about(name)?;
    }
    Ok(())
}

/// Memory as `O_DIRECT` wants it: whole pages, zeroed, for good.
pub fn pages(len: usize) -> io::Result<&'static mut [u8]> {
    const PAGE: usize = 4096;
    let layout = Layout::from_size_align(len, PAGE).map_err(|_| io::ErrorKind::InvalidInput)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the layout's size is not zero; the memory is zeroed, large enough and
    // never given back.
    unsafe {
        let start = alloc_zeroed(layout);
        if start.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(std::slice::from_raw_parts_mut(start, len))
    }
}

/// Connects to a port of the host.
pub fn connect(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes numbers; the descriptor is nobody else's.
    let socket = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, kind, 0))?)
    };
    // The usual two seconds may not be enough where the machine is emulated.
    let patience = libc::timeval { tv_sec: 60, tv_usec: 0 };
    // SAFETY: sockaddr_vm is plain data for which zero is a value; both structs
    // live across the calls, and their sizes are given.
    unsafe {
        let (level, size) = (libc::AF_VSOCK, size_of_val(&patience) as libc::socklen_t);
        let option = (&raw const patience).cast();
        check(libc::setsockopt(socket.as_raw_fd(), level, CONNECT_TIMEOUT, option, size))?;
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_HOST;
        address.svm_port = port;
        let size = size_of_val(&address) as libc::socklen_t;
        check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size))?;
    }
    Ok(socket)
}

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` of `linux/vm_sockets.h`.
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Ends one direction of a connection; it may have ended already.
pub fn shutdown(socket: &impl AsRawFd, how: libc::c_int) {
    // SAFETY: shutdown takes numbers.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

/// A pipe: where it is read, and where it is written.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: pipe2 fills in two descriptors, which are nobody else's.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Makes a descriptor's file the job's own, so that it may open it by its name
/// in `/proc`, as in `echo >/dev/stderr`.
pub fn give_to(file: &impl AsRawFd, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: fchown takes numbers.
    check(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).map(drop)
}

/// Ends the machine.
pub fn power_off() -> ! {
    loop {
        // SAFETY: sync and reboot take no memory; nothing of this process is
        // needed any more.
        unsafe {
            libc::sync();
            libc::reboot(libc::RB_POWER_OFF);
            libc::pause();
        }
    }
}
