//! What is compared.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// A namespace, as Linux calls it and as people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// The name in `ns:NAME`.
    pub name: &'static str,
    /// The name in `/proc/PID/ns`.
    pub file: &'static str,
    /// The flag of `clone3(2)`.
    pub flag: u64,
}

const fn namespace(name: &'static str, file: &'static str, flag: libc::c_int) -> Namespace {
    Namespace { name, file, flag: flag as u64 }
}

/// All that there are: the seven of the slides, and time.
pub const NAMESPACES: [Namespace; 8] = [
    namespace("mount", "mnt", libc::CLONE_NEWNS),
    namespace("uts", "uts", libc::CLONE_NEWUTS),
    namespace("ipc", "ipc", libc::CLONE_NEWIPC),
    namespace("pid", "pid", libc::CLONE_NEWPID),
    namespace("network", "net", libc::CLONE_NEWNET),
    namespace("user", "user", libc::CLONE_NEWUSER),
    namespace("cgroup", "cgroup", libc::CLONE_NEWCGROUP),
    // linux/sched.h: CLONE_NEWTIME.
    namespace("time", "time", 0x80),
];

/// Programs of others that make containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Tool {
    /// Bubblewrap.
    Bwrap,
    /// The OCI runtime in C.
    Crun,
    /// The OCI runtime in Go.
    Runc,
    /// Podman.
    Podman,
    /// systemd's.
    Nspawn,
    /// Apptainer, Singularity before.
    Apptainer,
}

impl Tool {
    const ALL: [Self; 6] =
        [Self::Bwrap, Self::Crun, Self::Runc, Self::Podman, Self::Nspawn, Self::Apptainer];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Bwrap => "bwrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Podman => "podman",
            Self::Nspawn => "systemd-nspawn",
            Self::Apptainer => "apptainer",
        }
    }
}

/// One of what is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A process of the host's.
    Native,
    /// One namespace.
    One(Namespace),
    /// All namespaces.
    All,
    /// All, a system call filter, no capabilities, control groups.
    Sandbox,
    /// What another program makes.
    Tool(Tool),
    /// `microvm run`.
    Job,
    /// A virtual machine of a mode, with nothing in it but the program.
    Mode(&'static str),
}

/// From the one that emulates most to the one that emulates least.
pub const MODES: [&str; 4] = ["hvm", "hvm-pv", "pvhvm", "pv"];

impl Subject {
    /// Every one, in the order of the report.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Native];
        all.extend(NAMESPACES.map(Self::One));
        all.extend([Self::All, Self::Sandbox]);
        all.extend(Tool::ALL.map(Self::Tool));
        all.push(Self::Job);
        all.extend(MODES.iter().rev().map(|mode| Self::Mode(mode)));
        all
    }

    /// Those that tell most in a short time.
    pub fn few() -> Vec<Self> {
        let mut few = vec![Self::Native, Self::All, Self::Sandbox];
        few.extend(Tool::ALL.map(Self::Tool));
        few.push(Self::Job);
        few.extend(MODES.iter().rev().map(|mode| Self::Mode(mode)));
        few
    }

    /// Whether it is a virtual machine.
    pub fn is_machine(self) -> bool {
        matches!(self, Self::Job | Self::Mode(_))
    }

    /// The namespaces that it has of its own; for those that we make.
    pub fn namespaces(self) -> u64 {
        match self {
            Self::One(one) => one.flag,
            Self::All | Self::Sandbox => NAMESPACES.iter().fold(0, |all, one| all | one.flag),
            _ => 0,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::One(one) => write!(f, "ns:{}", one.name),
            Self::All => f.write_str("ns:all"),
            Self::Sandbox => f.write_str("ns:sandbox"),
            Self::Tool(tool) => f.write_str(tool.program()),
            Self::Job => f.write_str("vm:job"),
            Self::Mode(mode) => write!(f, "vm:{mode}"),
        }
    }
}

/// A list of subjects, `NAME[,NAME]…`; `ns` and `vm` are all of those, `all` is
/// everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects(pub Vec<Subject>);

impl FromStr for Subjects {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Subject::all();
        // What others are compared with is always there.
        let mut chosen = vec![Subject::Native];
        for word in text.split(',') {
            let before = chosen.len();
            let matching = all.iter().filter(|subject| {
                let name = subject.to_string();
                word == "all"
                    || name == word
                    || name.strip_prefix(word).is_some_and(|n| n.starts_with(':'))
            });
            for subject in matching {
                if !chosen.contains(subject) {
                    chosen.push(*subject);
                }
            }
            if chosen.len() == before
                && word != "native"
                && !chosen.iter().any(|s| s.to_string() == word)
            {
                let names: Vec<String> = all.iter().map(Subject::to_string).collect();
                return Err(format!("{word:?} must be one of {}, ns, vm, all", names.join(", ")));
            }
        }
        chosen.sort_by_key(|subject| all.iter().position(|other| other == subject));
        Ok(Self(chosen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.parse::<Subjects>().unwrap().0.iter().map(Subject::to_string).collect()
    }

    #[test]
    fn subjects_are_chosen_by_name_and_by_kind_and_native_is_always_there() {
        assert_eq!(names("native"), ["native"]);
        assert_eq!(names("vm:pv,ns:all,native"), ["native", "ns:all", "vm:pv"]);
        assert_eq!(names("vm"), ["native", "vm:job", "vm:pv", "vm:pvhvm", "vm:hvm-pv", "vm:hvm"]);
        assert_eq!(names("ns").len(), 11);
        assert_eq!(names("all,ns:pid").len(), Subject::all().len());
        assert_eq!(names("ns:pid,ns:pid"), ["native", "ns:pid"]);
        for wrong in ["", "ns:", "vm:xen", "docker", "native,"] {
            assert!(wrong.parse::<Subjects>().is_err(), "{wrong}");
        }
    }
}
