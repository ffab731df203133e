//! How large the machine of a job is, where its user does not say: what the
//! caller may use of processors and memory.
//!
//! | from | processors | memory |
//! | --- | --- | --- |
//! | the scheduler's mask | `sched_getaffinity` | |
//! | cgroup v2, each level | `cpu.max` | `memory.max` |
//! | cgroup v1, each level | `cpu.cfs_quota_us` | `memory.limit_in_bytes` |
//! | Slurm | `SLURM_CPUS_PER_TASK` | `SLURM_MEM_PER_NODE`, `SLURM_MEM_PER_CPU` |
//!
//! The least counts. Without any limit of memory the guest gets half of the
//! host's, but at most [`MOST`]; the host gives it pages as it touches them.

use std::fs;
use std::path::{Path, PathBuf};
use vmm::config::{MAX_CPUS, MAX_MEMORY};

const MIB: u64 = 1 << 20;
/// What the monitor itself takes of a limit.
const OVERHEAD: u64 = 64 * MIB;
/// The least that a guest is given.
const LEAST: u64 = 128 * MIB;
/// The most that a guest is given without being told.
const MOST: u64 = 4096 * MIB;

/// Where limits are read.
pub struct Sources<'a> {
    /// `/proc/self/cgroup`.
    pub membership: &'a str,
    /// `/sys/fs/cgroup`.
    pub mount: &'a Path,
    /// A variable of the environment.
    pub variable: &'a dyn Fn(&str) -> Option<u64>,
    /// Processors of the scheduler's mask.
    pub affinity: u32,
    /// The host's memory.
    pub total: u64,
}

/// How many processors and how many bytes of memory this process may use.
pub fn of_caller() -> (u32, u64) {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let variable = |name: &str| std::env::var(name).ok()?.trim().parse().ok();
    let sources = Sources {
        membership: &membership,
        mount: Path::new("/sys/fs/cgroup"),
        variable: &variable,
        affinity: affinity(),
        total: total(),
    };
    (sources.cpus(), sources.memory())
}

fn affinity() -> u32 {
    // SAFETY: the set is plain data that the call fills in.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of_val(&set), &mut set) {
            0 => libc::CPU_COUNT(&set).unsigned_abs(),
            _ => 1,
        }
    }
}

/// Lets this process run on all processors that its cgroups allow, whatever its
/// launcher has kept it to; returns how many those are.
pub fn widen() -> u32 {
    // SAFETY: a set is plain data; the call only reads it.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        (0..8 * size_of_val(&all)).for_each(|cpu| libc::CPU_SET(cpu, &mut all));
        libc::sched_setaffinity(0, size_of_val(&all), &all);
    }
    affinity()
}

fn total() -> u64 {
    // SAFETY: sysconf takes a number.
    let [pages, size] =
        [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
}

impl Sources<'_> {
    /// Processors.
    pub fn cpus(&self) -> u32 {
        let slurm = (self.variable)("SLURM_CPUS_PER_TASK");
        let all = [Some(self.affinity.into()), self.quota(), slurm];
        let least = all.into_iter().flatten().min().unwrap_or(1);
        least.clamp(1, MAX_CPUS.into()) as u32
    }

    /// Bytes of memory, in whole MiB.
    pub fn memory(&self) -> u64 {
        let mut limits = self.values("memory", "memory.max", "memory.limit_in_bytes");
        let slurm = |name: &str| (self.variable)(name).filter(|n| *n > 0);
        limits.extend(slurm("SLURM_MEM_PER_NODE").map(|mib| mib.saturating_mul(MIB)));
        limits.extend(
            slurm("SLURM_MEM_PER_CPU")
                .map(|mib| mib.saturating_mul(MIB).saturating_mul(self.cpus().into())),
        );
        // What is beyond the host's memory is no limit.
        let limit = limits.into_iter().filter(|limit| *limit < self.total).min();
        let size = match limit {
            Some(limit) => limit.saturating_sub(OVERHEAD + limit / 64),
            None => (self.total / 2).min(MOST),
        };
        size.clamp(LEAST, MAX_MEMORY) / MIB * MIB
    }

    /// Processors by the quotas, rounded up.
    fn quota(&self) -> Option<u64> {
        let v2 = self.read("", "cpu.max").into_iter().filter_map(|text| {
            let (quota, period) = text.split_once(' ')?;
            Some((quota.parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?))
        });
        let v1 = self
            .read("cpu", "cpu.cfs_quota_us")
            .into_iter()
            .zip(self.read("cpu", "cpu.cfs_period_us"))
            .filter_map(|(quota, period)| Some((quota.parse().ok()?, period.parse().ok()?)));
        v2.chain(v1).filter(|(_, period)| *period > 0).map(|(q, p)| q.div_ceil(p)).min()
    }

    fn values(&self, controller: &str, v2: &str, v1: &str) -> Vec<u64> {
        let all = self.read("", v2).into_iter().chain(self.read(controller, v1));
        all.filter_map(|text| text.parse().ok()).collect()
    }

    /// A file of the group of `controller` and of all above it; of version 2 if it
    /// is empty.
    fn read(&self, controller: &str, file: &str) -> Vec<String> {
        let Some(group) = self.group(controller) else { return Vec::new() };
        let mount = match controller {
            "" if self.mount.join("unified").is_dir() => self.mount.join("unified"),
            "" => self.mount.to_owned(),
            name => self.mount.join(name),
        };
        let group = group.trim_start_matches('/');
        let levels: Vec<PathBuf> = Path::new(group).ancestors().map(|l| mount.join(l)).collect();
        let read = |level: &PathBuf| fs::read_to_string(level.join(file)).ok();
        levels.iter().filter_map(read).map(|text| text.trim().to_owned()).collect()
    }

    /// The group's path: a line is `number:controllers:path`.
    fn group(&self, controller: &str) -> Option<&str> {
        self.membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = controllers.split(',').any(|name| name == controller);
            (ours && !path.split('/').any(|part| part == "..")).then_some(path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources<'a>(
        membership: &'a str,
        mount: &'a Path,
        variable: &'a dyn Fn(&str) -> Option<u64>,
    ) -> Sources<'a> {
        Sources { membership, mount, variable, affinity: 8, total: 64 << 30 }
    }

    fn write(mount: &Path, file: &str, text: &str) {
        let path = mount.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn without_limits_it_is_the_host() {
        let none = |_: &str| None;
        let host = sources("", Path::new("/nonexistent"), &none);
        assert_eq!((host.cpus(), host.memory()), (8, MOST));
        let small = Sources { total: 512 * MIB, affinity: 100, ..host };
        assert_eq!((small.cpus(), small.memory()), (MAX_CPUS, 256 * MIB));
    }

    #[test]
    fn the_least_of_the_chain_counts_in_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path();
        write(mount, "a/cpu.max", "250000 100000\n");
        write(mount, "a/b/cpu.max", "max 100000\n");
        write(mount, "a/b/memory.max", "max\n");
        write(mount, "a/memory.max", "1073741824\n");
        write(mount, "other/memory.max", "1\n");
        let none = |_: &str| None;
        let limited = sources("0::/a/b\n", mount, &none);
        assert_eq!(limited.cpus(), 3);
        assert_eq!(limited.memory(), (1024 - 64 - 16) * MIB);
    }

    #[test]
    fn the_least_of_the_chain_counts_in_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path();
        write(mount, "memory/slurm/job/memory.limit_in_bytes", "9223372036854771712");
        write(mount, "memory/slurm/memory.limit_in_bytes", "2147483648");
        write(mount, "cpu/slurm/cpu.cfs_quota_us", "-1");
        write(mount, "cpu/slurm/cpu.cfs_period_us", "100000");
        write(mount, "cpu/slurm/job/cpu.cfs_quota_us", "400000");
        write(mount, "cpu/slurm/job/cpu.cfs_period_us", "100000");
        let none = |_: &str| None;
        let limited =
            sources("4:cpu,cpuacct:/slurm/job\n2:memory:/slurm/job\n0::/\n", mount, &none);
        assert_eq!(limited.cpus(), 4);
        assert_eq!(limited.memory(), (2048 - 64 - 32) * MIB);
    }

    #[test]
    fn slurm_is_believed() {
        let slurm = |name: &str| match name {
            "SLURM_CPUS_PER_TASK" => Some(2),
            "SLURM_MEM_PER_CPU" => Some(640),
            _ => None,
        };
        let job = sources("", Path::new("/nonexistent"), &slurm);
        assert_eq!((job.cpus(), job.memory()), (2, (1280 - 64 - 20) * MIB));
    }

    #[test]
    fn no_group_leads_out() {
        let none = |_: &str| None;
        let job = sources("0::/../../etc\n", Path::new("/sys"), &none);
        assert!(job.group("").is_none());
    }
}
