//! The few system calls of an init, each wrapped once.

use anyhow::{Context, Result, bail};
use rig::job;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Mounts `source` of file system type `kind` on `target`.
pub fn mount(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    mount_flags(source, target, kind, options, 0)
}

/// Makes the tree at `source` appear at `target` too.
pub fn bind(source: &str, target: &str) -> Result<()> {
    mount_flags(source, target, "", "", libc::MS_BIND | libc::MS_REC)
}

fn mount_flags(
    source: &str,
    target: &str,
    kind: &str,
    options: &str,
    flags: libc::c_ulong,
) -> Result<()> {
    let about = || format!("mounting {kind} {source} on {target}");
    let (c_source, c_target) = (CString::new(source)?, CString::new(target)?);
    let (c_kind, c_options) = (CString::new(kind)?, CString::new(options)?);
    // SAFETY: all four are NUL-terminated strings that outlive the call.
    check(unsafe {
        libc::mount(
            c_source.as_ptr(),
            c_target.as_ptr(),
            c_kind.as_ptr(),
            flags,
            c_options.as_ptr().cast(),
        )
    })
    .with_context(about)?;
    Ok(())
}

/// Makes `root` the root of the mount namespace, as `switch_root` does.
///
/// A plain `chroot` would do for most commands, but the kernel refuses user
/// namespaces and `pivot_root` to chrooted processes, and sandboxes use both.
pub fn enter_root(root: &str) -> Result<()> {
    std::env::set_current_dir(root).context("entering the new root")?;
    mount_flags(".", "/", "", "", libc::MS_MOVE)?;
    std::os::unix::fs::chroot(".").context("changing root")?;
    std::env::set_current_dir("/").context("entering the new root")?;
    Ok(())
}

/// Loads modules by file name, each with its parameters behind a blank.
pub fn load_modules(modules: &[String]) -> Result<()> {
    for module in modules {
        let (name, parameters) = module.split_once(' ').unwrap_or((module, ""));
        let path = Path::new("/").join(job::MODULES_PATH).join(name);
        load_module(&path, parameters).with_context(|| format!("loading module {name}"))?;
    }
    Ok(())
}

fn load_module(path: &Path, parameters: &str) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::new(parameters)?;
    // SAFETY: a valid descriptor and a NUL-terminated string; no memory of ours
    // is written.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EEXIST) {
            bail!(error);
        }
    }
    Ok(())
}

/// Brings `lo` up.
pub fn loopback_up() -> Result<()> {
    // SAFETY: plain system call without pointers.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
            .context("opening a socket")?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let result = check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &request) });
    // SAFETY: the descriptor is ours and not used again.
    unsafe { libc::close(socket) };
    result.context("bringing lo up")?;
    Ok(())
}

/// Names the machine.
pub fn set_host_name(name: &str) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", name).context("setting the host name")
}

/// Writes everything to where it belongs: the caller will pull the plug.
pub fn sync() {
    // SAFETY: takes nothing, touches no memory of ours.
    unsafe { libc::sync() };
}

/// Switches the machine off.
pub fn power_off() -> ! {
    sync();
    // SAFETY: takes a constant; on success it does not return.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    loop {
        std::thread::park();
    }
}
