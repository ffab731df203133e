//! What the runner gives up before its guest runs, so that a guest that takes over
//! the monitor finds little: what is already there is said, what the host does not
//! offer is said, too.
//!
//! | what | by | left |
//! | --- | --- | --- |
//! | system calls | seccomp, for each thread | what the thread does anyway |
//! | files | Landlock | the shared directories |
//! | connections | Landlock (ABI 4) | none of TCP |
//! | privileges | `no_new_privs` | none can be gained |
//! | capabilities | `capset` | those of root on files, for root's shares |
//! | inspection | `PR_SET_DUMPABLE` | no core, no debugger of the same user |
//! | limits | `setrlimit` | no core, message queues, real-time priorities |
//! | namespaces | `unshare` | see [`separate`] |

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

/// What is done where the host does not offer something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing.
    #[default]
    Best,
    /// It is said what holds and what does not.
    Report,
    /// The job does not run.
    Strict,
}

impl FromStr for Isolation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "best" => Ok(Self::Best),
            "report" => Ok(Self::Report),
            "strict" => Ok(Self::Strict),
            _ => Err("must be best, report or strict"),
        }
    }
}

/// The newest Landlock that this program knows: what a kernel lacks of it is left
/// out.
const NEWEST: ABI = ABI::V6;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITIES_VERSION: u32 = 0x2008_0522;
/// What root's shares need: `CAP_CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`,
/// `FSETID`, `MKNOD`, `SETFCAP` (`linux/capability.h`).
const KEPT: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31;

/// A thing that holds, or why it does not.
#[derive(Debug, PartialEq, Eq)]
struct Point {
    what: &'static str,
    state: Result<String, String>,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Ok(how) => write!(f, "isolation: {}: {how}", self.what),
            Err(why) => write!(f, "isolation: {}: not limited: {why}", self.what),
        }
    }
}

/// What a runner is, as far as namespaces of its own depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// It shares directories of the host.
    pub shares: bool,
    /// It makes connections, or has a TAP.
    pub network: bool,
}

/// What has been tried so far.
#[derive(Debug)]
pub struct Tried(Vec<Point>);

/// Takes namespaces of the runner's own. Before there is any thread: they are a
/// thread's, and a user namespace is for processes of one.
///
/// Root gets all but a user namespace: in one, files would have no owners but
/// those that it maps. The same is why others, who get the rest only through one,
/// take none where directories are shared: whatever is not its user's would be
/// nobody's in the guest. The network's is for jobs without a network, as the
/// monitor makes the connections of others. A PID namespace would be for children,
/// and there are none: no thread may start a process.
pub fn separate(situation: Situation) -> Tried {
    // SAFETY: has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let state = match (root, situation.shares) {
        (false, true) => Ok("none: with one of users, owners of shared files were nobody".into()),
        _ => take_namespaces(!root, situation.network),
    };
    Tried(vec![Point { what: "namespaces", state }])
}

fn take_namespaces(user: bool, network: bool) -> Result<String, String> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let mut words = vec!["mount", "IPC", "UTS"];
    if user {
        flags |= libc::CLONE_NEWUSER;
        words.insert(0, "user");
    }
    if !network {
        flags |= libc::CLONE_NEWNET;
        words.push("network");
    }
    // SAFETY: neither call has preconditions.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: unshare takes numbers.
    done(unsafe { libc::unshare(flags) }.into())?;
    if user {
        let write = |file: &str, text: String| {
            let path = format!("/proc/self/{file}");
            fs::write(path, text).map_err(|e| format!("{file}: {}", vmm::plain(&e)))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("{uid} {uid} 1"))?;
        write("gid_map", format!("{gid} {gid} 1"))?;
    }
    // What is mounted here is seen nowhere else, and the other way round.
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    // SAFETY: the target is a string that ends with NUL; nothing else is read.
    done(unsafe { libc::mount(null, c"/".as_ptr(), null, flags, null.cast()) }.into())?;
    Ok(words.join(", "))
}

/// A directory that the guest may still reach.
#[derive(Debug, Clone)]
pub struct Reachable {
    /// The directory.
    pub path: PathBuf,
    /// Whether it can be changed.
    pub writable: bool,
}

/// Gives up what is not needed for a machine with these directories. The threads
/// that the caller starts from here on have given it up, too.
pub fn apply(
    level: Isolation,
    shares: &[Reachable],
    network: bool,
    tried: Tried,
) -> io::Result<()> {
    let mut points = vec![
        Point { what: "system calls", state: Ok("seccomp, a filter for each thread".to_owned()) },
        Point { what: "files", state: limit_files(shares, network) },
        Point { what: "privileges", state: no_new_privileges() },
        Point { what: "capabilities", state: drop_capabilities() },
        Point { what: "inspection", state: not_dumpable() },
        Point { what: "limits", state: lower_limits() },
    ];
    points.extend(tried.0);
    if level == Isolation::Report {
        points.iter().for_each(|point| eprintln!("microvm: {point}"));
    }
    match points.iter().find(|point| point.state.is_err()) {
        Some(point) if level == Isolation::Strict => Err(io::Error::other(point.to_string())),
        _ => Ok(()),
    }
}

fn limit_files(shares: &[Reachable], network: bool) -> Result<String, String> {
    let told = |error: &dyn fmt::Display| error.to_string();
    let all = AccessFs::from_all(NEWEST);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    // Nothing is executed here, and devices have their meaning in the guest.
    let write = all & !(AccessFs::Execute | AccessFs::IoctlDev);
    let make = || -> Result<_, landlock::RulesetError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .scope(Scope::from_all(NEWEST))?;
        if !network {
            rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let mut rules = rules.create()?;
        for share in shares {
            // One that has gone since is one less.
            if let Ok(directory) = PathFd::new(&share.path) {
                let access = if share.writable { write } else { read };
                rules = rules.add_rule(PathBeneath::new(directory, access))?;
            }
        }
        rules.restrict_self()
    };
    let status = make().map_err(|error| told(&error))?;
    let offered = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => format!("Landlock, {effective_abi:?}"),
        LandlockStatus::NotEnabled => "Landlock is not enabled (lsm= of the host)".to_owned(),
        _ => "this host's kernel has no Landlock".to_owned(),
    };
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(offered),
        _ => {
            let words: Vec<String> = shares
                .iter()
                .map(|share| {
                    let may = if share.writable { "write" } else { "read" };
                    format!("{may} {}", share.path.display())
                })
                .collect();
            let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
            Ok(format!("{offered}: {words}"))
        }
    }
}

fn done(result: libc::c_long) -> Result<(), String> {
    match result {
        0 => Ok(()),
        _ => Err(vmm::plain(&io::Error::last_os_error())),
    }
}

fn no_new_privileges() -> Result<String, String> {
    // SAFETY: prctl takes numbers here.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    Ok("no_new_privs".to_owned())
}

/// The job has its own, which are its caller's.
fn lower_limits() -> Result<String, String> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    for resource in [libc::RLIMIT_CORE, libc::RLIMIT_MSGQUEUE, libc::RLIMIT_RTPRIO] {
        // SAFETY: setrlimit reads the struct that it is given.
        done(unsafe { libc::setrlimit(resource, &none) }.into())?;
    }
    Ok("no cores, message queues or real-time priorities".to_owned())
}

fn not_dumpable() -> Result<String, String> {
    // SAFETY: prctl takes numbers here.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())?;
    Ok("not dumpable".to_owned())
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, of which there are two: low and high bits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn drop_capabilities() -> Result<String, String> {
    let header = Header { version: CAPABILITIES_VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: both calls get the structs that they want, which outlive them.
    let kept = unsafe {
        done(libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()))?;
        let mut kept = 0;
        for (half, sets) in sets.iter_mut().enumerate() {
            let mask = (KEPT >> (32 * half)) as u32;
            let left = sets.permitted & mask;
            *sets = Sets { effective: left & sets.effective, permitted: left, inheritable: 0 };
            kept += left.count_ones();
        }
        done(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()))?;
        kept
    };
    Ok(match kept {
        0 => "none".to_owned(),
        n => format!("{n} of root's, on files"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    /// In a child, as nothing of this can be taken back.
    fn in_child(body: fn(&Path) -> Result<(), String>, name: &str) {
        let variable = "MICROVM_TEST_ISOLATION";
        if let Some(path) = std::env::var_os(variable) {
            body(Path::new(&path)).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["read", "write", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "text").unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(variable, dir.path());
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn what_is_shared_is_left_and_nothing_else() {
        in_child(body, "isolation::tests::what_is_shared_is_left_and_nothing_else");
        fn body(dir: &Path) -> Result<(), String> {
            let reach = |name: &str, writable| Reachable { path: dir.join(name), writable };
            let shares = [reach("read", false), reach("write", true)];
            // An open descriptor of before is as good as its file.
            let offered = limit_files(&shares, false);
            drop_capabilities()?;
            no_new_privileges()?;
            not_dumpable()?;
            let Ok(words) = offered else { return Ok(()) };
            assert!(words.contains("read ") && words.contains("write "), "{words}");
            assert_eq!(fs::read(dir.join("read/file")).unwrap(), b"text");
            assert!(fs::write(dir.join("read/file"), "x").is_err());
            assert!(fs::read(dir.join("other/file")).is_err());
            assert!(fs::read_dir("/").is_err());
            fs::write(dir.join("write/file"), "changed").unwrap();
            fs::rename(dir.join("write/file"), dir.join("write/other")).unwrap();
            assert!(fs::rename(dir.join("write/other"), dir.join("read/stolen")).is_err());
            let status = fs::read("/proc/self/status");
            assert!(status.is_err(), "not even this");
            // SAFETY: prctl takes numbers here.
            assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 0);
            Ok(())
        }
    }

    #[test]
    fn namespaces_are_taken_where_nothing_is_shared() {
        in_child(body, "isolation::tests::namespaces_are_taken_where_nothing_is_shared");
        fn body(_: &Path) -> Result<(), String> {
            let names = ["mnt", "ipc", "uts", "net"];
            let of = |name: &str| fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
            let before = names.map(of);
            // A test has threads, so it can't take one of users; root needs none.
            // SAFETY: has no preconditions.
            if unsafe { libc::geteuid() } != 0 {
                return Ok(());
            }
            let Tried(points) = separate(Situation { shares: true, network: true });
            let Ok(words) = &points[0].state else { return Ok(()) };
            assert_eq!(words, "mount, IPC, UTS");
            let after = names.map(of);
            let differs: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
            assert_eq!(differs, [true, true, true, false]);
            lower_limits()?;
            Ok(())
        }
    }

    #[test]
    fn levels_have_names() {
        assert_eq!("strict".parse(), Ok(Isolation::Strict));
        assert!("none".parse::<Isolation>().is_err());
    }
}
