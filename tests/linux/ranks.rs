//! Ranks of parallel programs: MPICH's and Open MPI's, under `mpirun` and under a
//! Slurm that the test starts, natively and in machines, with equal answers.

use crate::job::{Kit, as_user, complete, open_kvm_to};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("ranks::of_mpich_compute_together", || mpirun("mpich")),
        trial("ranks::of_open_mpi_compute_together", || mpirun("openmpi")),
        trial("ranks::under_slurm_compute_and_end_as_it_says", slurm),
    ]
}

const USER: u32 = 1000;
/// As many are started.
const RANKS: u32 = 2;
/// In the emulated host Linux as a guest does without XSAVE, whose sizes do not fit
/// (it seems that KVM does not hear of its XSETBV there). Open MPI's sums look for AVX
/// alone.
const NO_AVX: (&str, &str) = ("OMPI_MCA_op", "^avx");
/// What starts Slurm and asks it for things.
const SLURM: &str = include_str!("slurm.sh");

/// Starts ranks as an ordinary user.
struct Ranks {
    kit: Kit,
    kvm: u32,
    launcher: String,
    program: PathBuf,
    place: PathBuf,
}

/// What a rank says that is the same wherever it runs; and its machine.
type Answers = (Vec<String>, Vec<String>);

impl Ranks {
    fn new(name: &str, program: &Path) -> Result<Self, String> {
        let kit = Kit::new()?;
        let told = |e: std::io::Error| e.to_string();
        let place = kit.path("place");
        fs::create_dir(&place).map_err(told)?;
        fs::create_dir(place.join("runtime")).map_err(told)?;
        fs::create_dir(place.join("tmp")).map_err(told)?;
        let copy = place.join("ranks");
        fs::copy(program, &copy).map_err(told)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).map_err(told)?;
        for path in [&place, &place.join("runtime"), &place.join("tmp")] {
            chown(path, Some(USER), Some(USER)).map_err(told)?;
        }
        let kvm = open_kvm_to(Some(USER))?;
        Ok(Self { kit, kvm, launcher: format!("mpirun.{name}"), program: copy, place })
    }

    /// Lines of the ranks in their order, their machines, and the launcher's status.
    fn start(
        &self,
        count: u32,
        microvm: &[&str],
        words: &[&str],
    ) -> Result<(Answers, i32), String> {
        let mut command = Command::new(&self.launcher);
        command.current_dir(&self.place);
        command.env("HOME", &self.place).env("TMPDIR", self.place.join("tmp"));
        command.env("XDG_RUNTIME_DIR", self.place.join("runtime"));
        command.env("MICROVM_KERNEL", &self.kit.kernel);
        command.args(["-np", &count.to_string()]);
        if self.launcher.ends_with("openmpi") {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            command.env(NO_AVX.0, NO_AVX.1);
        }
        if let Some((first, options)) = microvm.split_first() {
            command.arg(&self.kit.microvm).arg(first).args(["--memory", "512M"]).args(options);
            command.arg("host");
        }
        command.arg(&self.program).args(words);
        as_user(&mut command, USER, self.kvm);
        let told = complete(command, Vec::new())?;
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        let answers = answers(&text);
        match answers.0.len() == count as usize {
            true => Ok((answers, told.status)),
            false => Err(format!("{microvm:?}: {:#x}\n{text}{}", told.status, told.stderr)),
        }
    }
}

fn answers(text: &str) -> Answers {
    let all: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(", machine ")).collect();
    (
        all.keys().map(|line| (*line).to_owned()).collect(),
        all.values().map(|machine| (*machine).to_owned()).collect(),
    )
}

fn mpirun(name: &str) -> Verdict {
    let Some(program) = kit::ranks(name) else {
        return Ok(Completion::ignored_with(format!("{name} is missing")));
    };
    // SAFETY: has no preconditions.
    if std::env::var_os(rig::IN_RIG).is_none() || unsafe { libc::geteuid() } != 0 {
        return Ok(Completion::ignored_with("needs root on a host that is ours: the rig"));
    }
    let ranks = Ranks::new(name, &program)?;
    let ((native, host), status) = ranks.start(RANKS, &[], &[])?;
    if status != 0 || !native.iter().all(|line| line.ends_with(", solved")) {
        return Err(format!("natively: {status:#x} {native:?}").into());
    }
    for join in ["auto", "never"] {
        let ((inside, machines), status) = ranks.start(RANKS, &["run", "--join", join], &[])?;
        if inside != native || status != 0 {
            return Err(format!("{join}: {status:#x} {inside:?}, natively {native:?}").into());
        }
        let different: BTreeSet<&String> = machines.iter().chain(&host).collect();
        let wanted = if join == "auto" { 2 } else { 1 + RANKS as usize };
        if different.len() != wanted {
            return Err(format!("{join}: machines {machines:?} on {host:?}").into());
        }
    }
    // The launcher hears of a rank's status, too.
    let (_, native) = ranks.start(2, &[], &["3"])?;
    let (_, inside) = ranks.start(2, &["run"], &["3"])?;
    if inside != native || native == 0 {
        return Err(format!("status {inside:#x}, natively {native:#x}").into());
    }
    let left = fs::read_dir(ranks.place.join("runtime/microvm"))?.count();
    if left != 0 {
        return Err(format!("{left} names are left").into());
    }
    Ok(Completion::Completed)
}

fn slurm() -> Verdict {
    let all = ["slurmctld", "slurmd", "srun", "munged", "unshare", "ip"];
    if let Some(missing) = all.into_iter().find(|program| !kit::has(program)) {
        return Ok(Completion::ignored_with(format!("{missing} is missing")));
    }
    let (Some(mpich), Some(openmpi)) = (kit::ranks("mpich"), kit::ranks("openmpi")) else {
        return Ok(Completion::ignored_with("mpich or openmpi is missing"));
    };
    // SAFETY: has no preconditions.
    if std::env::var_os(rig::IN_RIG).is_none() || unsafe { libc::geteuid() } != 0 {
        return Ok(Completion::ignored_with("needs root on a host that is ours: the rig"));
    }
    let kit = Kit::new()?;
    let place = kit.path("slurm");
    fs::create_dir(&place)?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
    // Slurm's own network, host name and /etc/hosts; and all its limits of time.
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", "900", "unshare", "--mount", "--net", "--uts", "sh", "-c", SLURM, "sh"]);
    command.arg(&place).arg(&kit.microvm).arg(mpich).arg(openmpi);
    command.env("MICROVM_KERNEL", &kit.kernel).env(NO_AVX.0, NO_AVX.1).current_dir(&place);
    let told = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let whole = || {
        let errors = String::from_utf8_lossy(&told.stderr);
        format!("{}\n{text}\n{errors}", told.status)
    };
    let part = |name: &str| -> Result<&str, String> {
        let start = format!("== {name}\n");
        let rest = text.split_once(&start).ok_or_else(|| format!("no {name}: {}", whole()))?.1;
        Ok(rest.split("== ").next().unwrap_or_default())
    };
    for name in ["pmi2", "pmix"] {
        let (native, _) = answers(part(&format!("{name} natively"))?);
        // In one machine, and in one each.
        for (how, wanted) in [("", 1), (" apart", 2)] {
            let (inside, machines) = answers(part(&format!("{name}{how}"))?);
            let different: BTreeSet<&String> = machines.iter().collect();
            if native.len() != 2 || inside != native || different.len() != wanted {
                return Err(format!("{name}{how}: {inside:?} {machines:?}: {}", whole()).into());
            }
        }
    }
    for (name, wanted) in [
        ("statuses", "7\n143\n"),
        ("array", "element 0\nelement 1\n"),
        ("suspended", "T\nCOMPLETED 0:0\n"),
        ("accounted", "processor memory\nrecorded\n"),
        ("cancelled", "CANCELLED\n0 left\n"),
        ("drained", "finished\ndrained\n0 left\n"),
        ("time limit", "TIMEOUT\n0 left\n"),
    ] {
        if part(name)? != wanted {
            return Err(format!("{name}: not {wanted:?}: {}", whole()).into());
        }
    }
    Ok(Completion::Completed)
}
