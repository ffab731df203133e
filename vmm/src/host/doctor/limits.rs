//! Memory, huge pages, and what this process may use.

use super::{Check, State, human, read};
use std::io;
use std::path::Path;

/// Memory of the host, and in which pages a guest gets it.
pub(super) fn memory() -> Vec<Check> {
    let mut checks = vec![available(), transparent_huge_pages(), hugetlb()];
    checks.push(cgroup_limit());
    checks
}

/// A line of /proc/meminfo, in bytes or as a plain number.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let mut words = line.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    Some(if words.next() == Some("kB") { number.saturating_mul(1024) } else { number })
}

fn available() -> Check {
    let text = read("/proc/meminfo").unwrap_or_default();
    match (meminfo(&text, "MemAvailable"), meminfo(&text, "MemTotal")) {
        (Some(free), Some(total)) => {
            let value = format!("{} available of {}", human(free), human(total));
            if free >= 512 << 20 {
                Check::ok("memory", value)
            } else {
                Check::new("memory", State::Warn, value)
                    .remedy("give guests less with --memory, or free some")
            }
        }
        _ => Check::unknown("memory", "/proc/meminfo can't be read"),
    }
}

fn transparent_huge_pages() -> Check {
    let name = "transparent huge";
    let setting = "/sys/kernel/mm/transparent_hugepage/enabled";
    // The one in force stands in brackets.
    let chosen = read(setting).and_then(|text| {
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    });
    match chosen.as_deref() {
        // Guest memory asks for them with madvise.
        Some(mode @ ("always" | "madvise")) => Check::ok(name, mode),
        Some(mode) => {
            Check::new(name, State::Warn, mode).remedy(format!("echo madvise | sudo tee {setting}"))
        }
        None => Check::new(name, State::Warn, "this kernel has none")
            .remedy("guests start slower; use a kernel with TRANSPARENT_HUGEPAGE"),
    }
}

fn hugetlb() -> Check {
    let text = read("/proc/meminfo").unwrap_or_default();
    let get = |key| meminfo(&text, key);
    match (get("HugePages_Total"), get("HugePages_Free"), get("Hugepagesize")) {
        // None reserved is the normal case: nothing needs them.
        (Some(0), _, Some(_)) => Check::ok("hugetlb pages", "none reserved, none needed"),
        (Some(total), Some(free), Some(size)) => {
            Check::ok("hugetlb pages", format!("{free} of {total} free, {} each", human(size)))
        }
        _ => Check::unknown("hugetlb pages", "not shown"),
    }
}

/// The tightest memory limit on the way from this process's control group up.
fn cgroup_limit() -> Check {
    let name = "cgroup memory";
    let Some(membership) = read("/proc/self/cgroup") else {
        return Check::unknown(name, "/proc/self/cgroup can't be read");
    };
    match tightest(&membership, Path::new("/sys/fs/cgroup")) {
        None => Check::ok(name, "no limit"),
        Some(limit) => {
            let value = format!("at most {}, guests included", human(limit));
            if limit >= 512 << 20 {
                Check::ok(name, value)
            } else {
                Check::new(name, State::Warn, value)
                    .remedy("raise memory.max of the control group, or lower --memory")
            }
        }
    }
}

/// Finds the limit in either hierarchy. In a container the path may name
/// groups that can't be seen; then the nearest one that can be counts.
fn tightest(membership: &str, mount: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (roots, file): (&[&str], _) = match controllers {
            "" => (&["", "unified"], "memory.max"),
            v1 if v1.split(',').any(|c| c == "memory") => (&["memory"], "memory.limit_in_bytes"),
            _ => continue,
        };
        for root in roots {
            let root = mount.join(root);
            let group = root.join(path.trim_start_matches('/'));
            for dir in group.ancestors().take_while(|dir| dir.starts_with(&root)) {
                limits.extend(read(dir.join(file)).and_then(|text| text.parse::<u64>().ok()));
            }
        }
    }
    // Version 1 writes "no limit" as the largest whole number of pages.
    limits.into_iter().filter(|limit| *limit < 1 << 62).min()
}

/// What this process may use, and the locks that it can put on itself.
pub(super) fn process() -> Vec<Check> {
    vec![open_files(), locked_memory(), seccomp(), landlock()]
}

fn rlimit(resource: libc::__rlimit_resource_t) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given.
    let got = unsafe { libc::getrlimit(resource, &mut limit) };
    (got == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

fn open_files() -> Check {
    match rlimit(libc::RLIMIT_NOFILE) {
        Some((soft, _)) if soft == libc::RLIM_INFINITY => Check::ok("open files", "no limit"),
        // A machine of 16 devices and 32 vCPUs uses about 150.
        Some((soft, _)) if soft >= 256 => Check::ok("open files", format!("up to {soft}")),
        Some((soft, _)) => {
            Check::new("open files", State::Warn, format!("only {soft}")).remedy("ulimit -n 1024")
        }
        None => Check::unknown("open files", "not told"),
    }
}

fn locked_memory() -> Check {
    match rlimit(libc::RLIMIT_MEMLOCK) {
        Some((soft, _)) if soft == libc::RLIM_INFINITY => Check::ok("locked memory", "no limit"),
        // Nothing is locked by default, so a limit is no fault.
        Some((soft, _)) => Check::ok("locked memory", format!("up to {}", human(soft))),
        None => Check::unknown("locked memory", "not told"),
    }
}

fn seccomp() -> Check {
    // SAFETY: with a null program this installs nothing; it fails with EFAULT
    // where filters exist and with EINVAL where they don't.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::null::<u8>(), 0, 0)
    };
    let error = io::Error::last_os_error().raw_os_error();
    if result == -1 && error == Some(libc::EFAULT) {
        Check::ok("seccomp filters", "available")
    } else {
        Check::new("seccomp filters", State::Fail, "not available")
            .remedy("use a kernel with SECCOMP_FILTER")
    }
}

fn landlock() -> Check {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version > 0 {
        Check::ok("Landlock", format!("version {version}"))
    } else {
        Check::new("Landlock", State::Warn, "not available")
            .remedy("add landlock to the kernel's lsm= list (Linux 5.13 or later)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn meminfo_is_read_in_both_its_forms() {
        let text = "MemTotal:       24685000 kB\nHugePages_Total:       3\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_685_000 * 1024));
        assert_eq!(meminfo(text, "HugePages_Total"), Some(3));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo("MemTotal: x kB", "MemTotal"), None);
    }

    #[test]
    fn the_tightest_limit_of_both_hierarchies_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, file: &str, text: &str| {
            let group = dir.path().join(path);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join(file), text).unwrap();
        };
        put("memory", "memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/a", "memory.limit_in_bytes", "1000000\n");
        put("a/b", "memory.max", "max\n");
        assert_eq!(tightest("4:memory:/a/unseen\n", dir.path()), Some(1_000_000));
        assert_eq!(tightest("4:memory:/\n", dir.path()), None);
        assert_eq!(tightest("0::/a/b\n", dir.path()), None);
        put("a", "memory.max", "500000\n");
        assert_eq!(tightest("0::/a/b\n4:memory:/a\n", dir.path()), Some(500_000));
        assert_eq!(tightest("nonsense\n::\n", dir.path()), None);
    }
}
