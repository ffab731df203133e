//! Namespaces made by us: what a child does between `clone3(2)` and `execve(2)`.
//!
//! All of it is prepared before, as a child of a process with threads may do
//! nothing but make system calls.

mod filter;

use crate::subject::Subject;
pub use filter::ALLOWED;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// What the child makes of itself.
pub struct Setup {
    /// Of `clone3(2)`.
    pub flags: u64,
    uid_map: CString,
    gid_map: CString,
    root: Option<Root>,
    confine: Option<Vec<libc::sock_filter>>,
}

struct Root {
    path: CString,
    directory: CString,
    mounts: Vec<Mount>,
}

struct Mount {
    source: CString,
    target: CString,
    kind: Option<CString>,
    flags: libc::c_ulong,
}

/// What can fail, in words.
pub const STEPS: [&str; 12] = [
    "process group",
    "standard streams",
    "user id map",
    "group id map",
    "loopback interface",
    "private mounts",
    "mounting",
    "new root",
    "capabilities",
    "system call filter",
    "tracing",
    "executing",
];

/// Where it was that something failed.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Step {
    /// `setpgid`.
    Group,
    /// `dup2`.
    Streams,
    /// `/proc/self/uid_map`.
    Users,
    /// `/proc/self/setgroups` and `gid_map`.
    Groups,
    /// `lo`.
    Loopback,
    /// `/` is private from here on.
    Private,
    /// Whatever the root has.
    Mount,
    /// `pivot_root`.
    Pivot,
    /// `capset`.
    Capabilities,
    /// seccomp.
    Filter,
    /// `PTRACE_TRACEME`.
    Trace,
    /// `execve`.
    Execute,
}

fn c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Setup {
    /// For a subject that is made of namespaces; `root`, mounted on the directory
    /// `at`, becomes its root if it has a mount namespace, and it starts in
    /// `directory` then. An ordinary user needs a user namespace for any other.
    pub fn new(subject: Subject, root: &Path, at: &Path, directory: &Path) -> io::Result<Self> {
        // SAFETY: neither call has preconditions.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let mut flags = subject.namespaces();
        if flags != 0 && uid != 0 {
            flags |= libc::CLONE_NEWUSER as u64;
        }
        let has = |flag: libc::c_int| flags & flag as u64 != 0;
        let confined = subject == Subject::Sandbox;
        let own = [has(libc::CLONE_NEWPID), has(libc::CLONE_NEWNET)];
        let root = match has(libc::CLONE_NEWNS) {
            true => Some(Root::new(root, at, directory, own, confined)?),
            false => None,
        };
        // The same numbers inside as outside.
        let map = |id: u32| CString::new(format!("{id} {id} 1")).map_err(io::Error::other);
        Ok(Self {
            flags,
            uid_map: map(uid)?,
            gid_map: map(gid)?,
            root,
            confine: confined.then(filter::program),
        })
    }

    /// Makes it so. In the child: system calls only.
    pub fn apply(&self) -> Result<(), Step> {
        let has = |flag: libc::c_int| self.flags & flag as u64 != 0;
        if has(libc::CLONE_NEWUSER) {
            write(c"/proc/self/uid_map", &self.uid_map).map_err(|()| Step::Users)?;
            // Kernels before 3.19 don't have it.
            let _ = write(c"/proc/self/setgroups", c"deny");
            write(c"/proc/self/gid_map", &self.gid_map).map_err(|()| Step::Groups)?;
        }
        if has(libc::CLONE_NEWUTS) {
            // SAFETY: nine bytes that outlive the call.
            unsafe { libc::sethostname(c"container".as_ptr(), 9) };
        }
        if has(libc::CLONE_NEWNET) {
            loopback().map_err(|()| Step::Loopback)?;
        }
        if let Some(root) = &self.root {
            root.enter()?;
        }
        if let Some(filter) = &self.confine {
            drop_capabilities().map_err(|()| Step::Capabilities)?;
            filter::install(filter).map_err(|()| Step::Filter)?;
        }
        Ok(())
    }
}

fn done(result: libc::c_long) -> Result<(), ()> {
    if result < 0 { Err(()) } else { Ok(()) }
}

fn write(path: &std::ffi::CStr, text: &std::ffi::CStr) -> Result<(), ()> {
    // SAFETY: both strings end with NUL and outlive the calls; the descriptor is
    // closed once.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        done(fd.into())?;
        let len = text.count_bytes();
        let written = libc::write(fd, text.as_ptr().cast(), len);
        // An error of write is what is to be told.
        let error = *libc::__errno_location();
        libc::close(fd);
        *libc::__errno_location() = error;
        if written == len as isize { Ok(()) } else { Err(()) }
    }
}

/// Brings `lo` up (`netdevice(7)`).
fn loopback() -> Result<(), ()> {
    // SAFETY: an ifreq is plain data for which zero is a value; it lives across the
    // call; the descriptor is closed once.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        done(socket.into())?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let up = libc::ioctl(socket, libc::SIOCSIFFLAGS, &request);
        libc::close(socket);
        done(up.into())
    }
}

impl Root {
    fn new(
        root: &Path,
        path: &Path,
        directory: &Path,
        [processes, network]: [bool; 2],
        confined: bool,
    ) -> io::Result<Self> {
        let mount = |source: &str, target: &str, kind: Option<&str>, flags| -> io::Result<Mount> {
            let text = |text: &str| CString::new(text).map_err(io::Error::other);
            let kind = kind.map(text).transpose()?;
            let target = c(&path.join(target))?;
            Ok(Mount { source: text(source)?, target, kind, flags })
        };
        let bind = libc::MS_BIND | libc::MS_REC;
        let safe = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        // A new root has to be a mount.
        let mut mounts = vec![mount(&root.to_string_lossy(), "", None, bind)?];
        mounts.push(match processes {
            true => mount("proc", "proc", Some("proc"), safe)?,
            false => mount("/proc", "proc", None, bind)?,
        });
        mounts.push(match network {
            true => mount("sysfs", "sys", Some("sysfs"), safe)?,
            false => mount("/sys", "sys", None, bind)?,
        });
        for device in ["null", "zero"] {
            mounts.push(mount(&format!("/dev/{device}"), &format!("dev/{device}"), None, bind)?);
        }
        if confined {
            // As container engines do: what is the kernel's own can't be changed.
            let fixed = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | safe;
            for file in ["proc/sys", "proc/sysrq-trigger", "sys"] {
                let source = path.join(file).to_string_lossy().into_owned();
                if file != "sys" {
                    mounts.push(mount(&source, file, None, libc::MS_BIND)?);
                }
                mounts.push(mount("", file, None, fixed)?);
            }
            mounts.push(mount("/dev/null", "proc/kcore", None, libc::MS_BIND)?);
            mounts.push(mount("/dev/null", "proc/kallsyms", None, libc::MS_BIND)?);
        }
        Ok(Self { path: c(path)?, directory: c(directory)?, mounts })
    }

    fn enter(&self) -> Result<(), Step> {
        let none = ptr::null();
        // SAFETY: every string ends with NUL and outlives the calls.
        unsafe {
            let private = libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                ptr::null(),
            );
            done(private.into()).map_err(|()| Step::Private)?;
            for mount in &self.mounts {
                let kind = mount.kind.as_ref().map_or(ptr::null(), |kind| kind.as_ptr());
                let (source, target) = (mount.source.as_ptr(), mount.target.as_ptr());
                let made = libc::mount(source, target, kind, mount.flags, ptr::null());
                let absent = *libc::__errno_location() == libc::ENOENT;
                // A kernel may have no such file to hide.
                if made != 0 && !(absent && mount.flags & libc::MS_REC == 0) {
                    return Err(Step::Mount);
                }
            }
            // On top of each other (`pivot_root(2)`): the old one is then taken away.
            let dot = c".".as_ptr();
            let entered = done(libc::chdir(self.path.as_ptr()).into())
                .and_then(|()| done(libc::syscall(libc::SYS_pivot_root, dot, dot)))
                .and_then(|()| done(libc::umount2(dot, libc::MNT_DETACH).into()))
                .and_then(|()| done(libc::chdir(self.directory.as_ptr()).into()));
            entered.map_err(|()| Step::Pivot)
        }
    }
}

/// All of them, those that could be had again too.
fn drop_capabilities() -> Result<(), ()> {
    // linux/capability.h: version 3 with two words of each set.
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    // SAFETY: the header and the sets live across the call.
    unsafe {
        for capability in 0..64 {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        done(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()))
    }
}
