//! Everything that is measured and tried, in the order of the report.

/// What values of a measurement are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds; less is better.
    Nanoseconds,
    /// MiB a second; more is better.
    Rate,
    /// In a second; more is better.
    PerSecond,
    /// In a second; less is better.
    Frequency,
    /// For each operation; less is better.
    Each,
    /// Instances in a GiB; more is better.
    PerGib,
    /// KiB; less is better.
    Kibibytes,
    /// Percent; less is better.
    Percent,
    /// A number; less is better.
    Count,
}

impl Unit {
    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::PerSecond | Self::PerGib)
    }

    /// A value for people, with three digits that count.
    pub fn show(self, value: f64) -> String {
        let scaled = |steps: &[(f64, &str)]| {
            let step = steps.iter().rev().find(|(size, _)| value.abs() >= *size);
            let (size, name) = step.or(steps.first()).copied().unwrap_or((1.0, ""));
            format!("{} {name}", digits(value / size))
        };
        match self {
            Self::Nanoseconds => scaled(&[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")]),
            Self::Kibibytes => scaled(&[(1.0, "KiB"), (1024.0, "MiB"), (1_048_576.0, "GiB")]),
            Self::Rate => scaled(&[(1.0, "MiB/s"), (1024.0, "GiB/s")]),
            Self::PerSecond | Self::Frequency => format!("{} /s", digits(value)),
            Self::Each => digits(value),
            Self::PerGib => format!("{} /GiB", digits(value)),
            Self::Percent => format!("{} %", digits(value)),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// A number with three digits that count, or all of its whole ones.
pub fn digits(value: f64) -> String {
    match value.abs() {
        a if a >= 99.95 => format!("{value:.0}"),
        a if a >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A measurement.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in JSON and in the agent's lines.
    pub name: &'static str,
    /// What people read.
    pub title: &'static str,
    /// What its values are in.
    pub unit: Unit,
    /// Which part of the report it is in.
    pub group: Group,
}

/// Parts of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// From nothing to a program, and to its end.
    Start,
    /// What an instance takes.
    Memory,
    /// The agent's `kernel`.
    Kernel,
    /// The agent's `load`.
    Load,
    /// The agent's `disk`.
    Disk,
    /// The agent's `net`.
    Net,
    /// Two processes of MPI.
    Mpi,
    /// How often a machine leaves its guest.
    Exits,
    /// What of the host's interface is used.
    Surface,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Memory,
        Self::Kernel,
        Self::Load,
        Self::Disk,
        Self::Net,
        Self::Mpi,
        Self::Exits,
        Self::Surface,
    ];

    /// What people read.
    pub fn title(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Memory => "Memory of an instance",
            Self::Kernel => "System calls",
            Self::Load => "Processor and memory",
            Self::Disk => "Disk",
            Self::Net => "Network, its own loopback",
            Self::Mpi => "MPI, two processes in it",
            Self::Exits => "Exits from the guest",
            Self::Surface => "The host's interface, as used",
        }
    }

    /// The agent's name of it, if it is the agent's.
    pub fn of_agent(self) -> Option<&'static str> {
        match self {
            Self::Kernel => Some("kernel"),
            Self::Load => Some("load"),
            Self::Disk => Some("disk"),
            Self::Net => Some("net"),
            Self::Start | Self::Memory | Self::Mpi | Self::Exits | Self::Surface => None,
        }
    }
}

const fn metric(name: &'static str, title: &'static str, unit: Unit, group: Group) -> Metric {
    Metric { name, title, unit, group }
}

/// All measurements.
pub const METRICS: &[Metric] = &[
    metric("start_exec", "start to the program's first line", Unit::Nanoseconds, Group::Start),
    metric("start_made", "of it, before its kernel or program", Unit::Nanoseconds, Group::Start),
    metric("guest_kernel", "of it, since its kernel began", Unit::Nanoseconds, Group::Start),
    metric("start_exit", "start to the end of all", Unit::Nanoseconds, Group::Start),
    metric("start_end", "of it, after the program's line", Unit::Nanoseconds, Group::Start),
    metric("starts_1", "starts, one at a time", Unit::PerSecond, Group::Start),
    metric("starts_2", "starts, 2 at once", Unit::PerSecond, Group::Start),
    metric("starts_4", "starts, 4 at once", Unit::PerSecond, Group::Start),
    metric("starts_8", "starts, 8 at once", Unit::PerSecond, Group::Start),
    metric("starts_16", "starts, 16 at once", Unit::PerSecond, Group::Start),
    metric("starts_32", "starts, 32 at once", Unit::PerSecond, Group::Start),
    metric("starts_64", "starts, 64 at once", Unit::PerSecond, Group::Start),
    metric("starts_n", "starts, one for each processor", Unit::PerSecond, Group::Start),
    metric("command", "the command, start to end", Unit::Nanoseconds, Group::Start),
    metric("memory_pss", "its processes (PSS)", Unit::Kibibytes, Group::Memory),
    metric("memory_host", "less free on the host", Unit::Kibibytes, Group::Memory),
    metric("density", "instances, tried together", Unit::PerGib, Group::Memory),
    metric("getpid", "getpid", Unit::Nanoseconds, Group::Kernel),
    metric("clock", "clock_gettime", Unit::Nanoseconds, Group::Kernel),
    metric("read", "read of a byte, /dev/zero", Unit::Nanoseconds, Group::Kernel),
    metric("write", "write of a byte, /dev/null", Unit::Nanoseconds, Group::Kernel),
    metric("stat", "stat of /", Unit::Nanoseconds, Group::Kernel),
    metric("open_close", "open and close of /", Unit::Nanoseconds, Group::Kernel),
    metric("mmap", "mmap and munmap of a page", Unit::Nanoseconds, Group::Kernel),
    metric("page_fault", "page fault", Unit::Nanoseconds, Group::Kernel),
    metric("futex", "futex, a wake of nobody", Unit::Nanoseconds, Group::Kernel),
    metric("signal", "signal to oneself", Unit::Nanoseconds, Group::Kernel),
    metric("pipe", "a byte through a pipe", Unit::Nanoseconds, Group::Kernel),
    metric("context_switch", "context switch", Unit::Nanoseconds, Group::Kernel),
    metric("fork", "fork, exit and wait", Unit::Nanoseconds, Group::Kernel),
    metric("exec", "fork, exec, exit and wait", Unit::Nanoseconds, Group::Kernel),
    metric("cpu_integer", "integer loop, a round", Unit::Nanoseconds, Group::Load),
    metric("cpu_float", "floating point loop, a round", Unit::Nanoseconds, Group::Load),
    metric("memory_copy", "copy of 8 MiB", Unit::Rate, Group::Load),
    metric("tlb", "load from another page each time", Unit::Nanoseconds, Group::Load),
    metric("noise", "equal work that took longer", Unit::Percent, Group::Load),
    metric("disk_write", "write, 64 KiB after another", Unit::Rate, Group::Disk),
    metric("disk_read", "read, 64 KiB after another", Unit::Rate, Group::Disk),
    metric("disk_random_read", "read of 4 KiB anywhere", Unit::Nanoseconds, Group::Disk),
    metric("disk_fsync", "write of 4 KiB and fdatasync", Unit::Nanoseconds, Group::Disk),
    metric("create_unlink", "file made and removed", Unit::Nanoseconds, Group::Disk),
    metric("net_round_trip", "TCP, a byte there and back", Unit::Nanoseconds, Group::Net),
    metric("net_connect", "TCP, connection made and ended", Unit::Nanoseconds, Group::Net),
    metric("net_stream", "TCP, stream", Unit::Rate, Group::Net),
    metric("mpi_round_trip", "a byte there and back", Unit::Nanoseconds, Group::Mpi),
    metric("mpi_stream", "messages of 1 MiB", Unit::Rate, Group::Mpi),
    metric("exits_boot", "to the program's first line", Unit::Count, Group::Exits),
    metric("exits_boot_user", "of them, to microvm", Unit::Count, Group::Exits),
    metric("exits_idle", "while it sleeps", Unit::Frequency, Group::Exits),
    metric("exits_busy", "while it computes", Unit::Frequency, Group::Exits),
    metric("exits_getpid", "for a getpid", Unit::Each, Group::Exits),
    metric("exits_page_fault", "for a page fault", Unit::Each, Group::Exits),
    metric("exits_switch", "for a context switch", Unit::Each, Group::Exits),
    metric("exits_timer", "for a sleep of 1 ms", Unit::Each, Group::Exits),
    metric("exits_disk_read", "for a read of 4 KiB", Unit::Each, Group::Exits),
    metric("exits_disk_read_user", "of them, to microvm", Unit::Each, Group::Exits),
    metric("exits_disk_fsync", "for a write and fdatasync", Unit::Each, Group::Exits),
    metric("calls_start", "host system calls to start and end", Unit::Count, Group::Surface),
    metric("kinds_start", "kinds of them", Unit::Count, Group::Surface),
    metric("kinds_work", "kinds of them, a program makes 154", Unit::Count, Group::Surface),
    metric("kvm_ioctls", "different ioctls of KVM", Unit::Count, Group::Surface),
    metric("kinds_allowed", "system calls a filter lets through", Unit::Count, Group::Surface),
];

/// How many starts are tried at once where there are so many processors, and what the
/// measurement is called: from one to all of them, doubling.
pub fn at_once(processors: usize) -> impl Iterator<Item = (&'static str, usize)> {
    let counted =
        |metric: &Metric| Some((metric.name, metric.name.strip_prefix("starts_")?.parse().ok()?));
    let fewer = move |(_, count): &(&str, usize)| *count == 1 || *count < processors;
    METRICS.iter().filter_map(counted).filter(fewer).chain([("starts_n", processors)])
}

/// Whether a measurement is none of a host with so many processors.
pub fn is_beyond(metric: &str, processors: usize) -> bool {
    metric.starts_with("starts_") && at_once(processors).all(|(name, _)| name != metric)
}

/// A measurement by its name.
pub fn metric_of(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// Something that a subject may see or do.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Its name in JSON and in the agent's lines.
    pub name: &'static str,
    /// What people read.
    pub title: &'static str,
    /// What finding or being allowed it means.
    pub kind: Kind,
}

/// Kinds of probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that the host has hidden.
    Witness,
    /// Something that a kernel allows or not.
    Attempt,
    /// A fact that is the host's own, or another.
    Fact,
}

const fn probe(name: &'static str, title: &'static str, kind: Kind) -> Probe {
    Probe { name, title, kind }
}

/// All probes.
pub const PROBES: &[Probe] = &[
    probe("boot_id", "runs on the host's kernel", Kind::Fact),
    probe("hostname", "has the host's name", Kind::Fact),
    probe("host_process", "sees a process of the host", Kind::Witness),
    probe("host_signal", "may signal it", Kind::Witness),
    probe("host_file", "reads a file of the host", Kind::Witness),
    probe("host_root", "reads it through /proc/PID/root", Kind::Witness),
    probe("host_socket", "connects to an abstract socket", Kind::Witness),
    probe("host_port", "connects to the host's 127.0.0.1", Kind::Witness),
    probe("host_ipc", "finds System V shared memory", Kind::Witness),
    probe("host_key", "finds a key of the user's", Kind::Witness),
    probe("ptrace_host", "debugs a process of the host", Kind::Attempt),
    probe("set_time", "sets the clock", Kind::Attempt),
    probe("load_module", "loads a kernel module", Kind::Attempt),
    probe("kexec", "loads another kernel", Kind::Attempt),
    probe("dev_mem", "opens /dev/mem", Kind::Attempt),
    probe("make_device", "makes a device node, opens memory", Kind::Attempt),
    probe("raw_disk", "makes a device node, opens a disk", Kind::Attempt),
    probe("kernel_memory", "opens /proc/kcore", Kind::Attempt),
    probe("kernel_addresses", "reads addresses of the kernel", Kind::Attempt),
    probe("kernel_log", "reads the kernel's log", Kind::Attempt),
    probe("core_pattern", "may set core_pattern", Kind::Attempt),
    probe("sysrq", "may write to sysrq-trigger", Kind::Attempt),
    probe("sysfs_write", "may change settings in /sys", Kind::Attempt),
    probe("mount", "mounts a file system", Kind::Attempt),
    probe("mount_cgroup", "mounts the control groups", Kind::Attempt),
    probe("open_by_handle", "opens files by handle (shocker)", Kind::Attempt),
    probe("user_namespace", "makes a user namespace", Kind::Attempt),
    probe("bpf", "loads a BPF program", Kind::Attempt),
    probe("perf", "counts all that a processor does", Kind::Attempt),
    probe("raw_socket", "opens a raw socket", Kind::Attempt),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit_that_fits() {
        for (unit, value, text) in [
            (Unit::Nanoseconds, 0.5, "0.50 ns"),
            (Unit::Nanoseconds, 1234.0, "1.23 µs"),
            (Unit::Nanoseconds, 99_960_000.0, "100 ms"),
            (Unit::Nanoseconds, 2e9, "2.00 s"),
            (Unit::Kibibytes, 512.0, "512 KiB"),
            (Unit::Kibibytes, 40_960.0, "40.0 MiB"),
            (Unit::Rate, 2048.0, "2.00 GiB/s"),
            (Unit::Percent, 1.5, "1.50 %"),
            (Unit::Count, 12.0, "12"),
            (Unit::Each, 0.123, "0.12"),
            (Unit::Frequency, 250.0, "250 /s"),
            (Unit::PerGib, 99.95, "100 /GiB"),
        ] {
            assert_eq!(unit.show(value), text);
        }
    }

    #[test]
    fn starts_are_tried_from_one_at_a_time_to_all_processors() {
        let counts = |processors| at_once(processors).map(|(_, n)| n).collect::<Vec<_>>();
        assert_eq!(counts(1), [1, 1]);
        assert_eq!(counts(2), [1, 2]);
        assert_eq!(counts(6), [1, 2, 4, 6]);
        assert_eq!(counts(64), [1, 2, 4, 8, 16, 32, 64]);
        assert!(at_once(200).all(|(name, _)| metric_of(name).is_some()));
        assert!(is_beyond("starts_2", 2) && !is_beyond("starts_2", 3) && !is_beyond("tlb", 1));
    }

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<_> =
            METRICS.iter().map(|m| m.name).chain(PROBES.iter().map(|p| p.name)).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        // The first column of the table.
        let longest = METRICS.iter().map(|m| m.title).chain(PROBES.iter().map(|p| p.title));
        assert!(longest.map(|title| title.chars().count()).max().unwrap() <= 36);
    }
}
