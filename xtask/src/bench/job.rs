//! `cargo xtask bench job`: from start to the first word of a job, and to its end.
//!
//! The same program of the same small root file system runs natively, under
//! bubblewrap, crun and podman, and in `microvm run`, in turns, all in one rig; the
//! medians count, and only their ratios mean something elsewhere. The runner's own
//! marks (`--log debug`) tell where its time goes.

use crate::kit::Kit;
use crate::workspace::build_monitor;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rig::Options;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Arguments of the command.
#[derive(Args)]
pub struct JobArguments {
    /// Starts of each, of which the median counts
    #[arg(long, default_value_t = 7)]
    starts: usize,
    /// The monitor [default: a static one of this source]
    #[arg(long, value_name = "PROGRAM")]
    microvm: Option<PathBuf>,
}

/// Arguments of the command in the rig.
#[derive(Args)]
pub struct HostArguments {
    /// Starts of each
    #[arg(long)]
    starts: usize,
    /// The monitor
    #[arg(long)]
    microvm: PathBuf,
    /// The guest's kernel
    #[arg(long)]
    kernel: PathBuf,
    /// An image of the root file system, ext4
    #[arg(long)]
    root: PathBuf,
}

/// What is run everywhere.
const PROGRAM: [&str; 3] = ["/bin/sh", "-c", "echo first"];

impl JobArguments {
    /// Measures in the rig and prints the tables; returns the exit status.
    pub fn run(self) -> Result<u8> {
        let packages = [("bwrap", "bubblewrap"), ("crun", "crun"), ("podman", "podman")];
        let missing = packages.iter().filter(|(program, _)| !is_there(program));
        let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
        rig::install_packages(&missing)?;
        let kit = Kit::prepare()?;
        let own = std::env::current_exe().context("finding this program")?;
        let mut command: Vec<OsString> = vec![own.into()];
        command.extend(
            ["bench", "job-host", "--starts", &self.starts.to_string()].map(OsString::from),
        );
        let microvm = match self.microvm {
            Some(program) => std::path::absolute(program)?,
            None => build_monitor()?,
        };
        for (name, path) in [("--microvm", microvm), ("--kernel", kit.kernel), ("--root", kit.root)]
        {
            command.extend([name.into(), path.into_os_string()]);
        }
        Options { limit: Some(Duration::from_secs(1800)), ..Options::default() }.run(&command)
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|place| place.join(program).is_file())
}

/// When the first byte came and when all was over.
#[derive(Debug, Clone, Copy)]
struct Times {
    first: Duration,
    end: Duration,
}

struct Subject {
    name: &'static str,
    command: Vec<OsString>,
    times: Vec<Times>,
}

impl HostArguments {
    /// Measures; returns the exit status.
    pub fn run(self) -> Result<u8> {
        let place = std::env::temp_dir().join("bench-job");
        fs::create_dir_all(&place)?;
        let tree = unpack(&self.root, &place)?;
        let mut subjects = self.subjects(&place, &tree)?;
        for round in 0..=self.starts {
            for subject in &mut subjects {
                let times = start(&subject.command).with_context(|| subject.name.to_owned())?;
                // The first fills caches.
                if round > 0 {
                    subject.times.push(times);
                }
            }
        }
        print(&subjects);
        self.parts()?;
        Ok(0)
    }

    fn microvm(&self, options: &[&str]) -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![self.microvm.clone().into(), "run".into()];
        command.extend(["--kernel".into(), self.kernel.clone().into_os_string()]);
        command.extend(["--cpus", "1", "--memory", "256M"].map(OsString::from));
        command.extend(options.iter().map(OsString::from));
        command.push(self.root.clone().into());
        command.extend(PROGRAM.map(OsString::from));
        command
    }

    fn subjects(&self, place: &Path, tree: &Path) -> Result<Vec<Subject>> {
        let words =
            |words: &[&str]| -> Vec<OsString> { words.iter().map(OsString::from).collect() };
        let tree_text = tree.to_str().context("a strange path")?;
        let place_text = place.to_str().context("a strange path")?;
        write_bundle(place, tree)?;
        let busybox = format!("{tree_text}/bin/busybox");
        let native = words(&[&busybox, "sh", "-c", "echo first"]);
        let bwrap = [
            "bwrap",
            "--unshare-all",
            "--ro-bind",
            tree_text,
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
        ];
        let crun = [
            "crun",
            "--root",
            &format!("{place_text}/crun"),
            "--cgroup-manager",
            "disabled",
            "run",
            "--bundle",
            place_text,
            "bench",
        ]
        .map(str::to_owned);
        let podman = [
            "podman",
            "--root",
            &format!("{place_text}/storage"),
            "--runroot",
            &format!("{place_text}/run"),
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "run",
            "--rm",
            "--cgroups=disabled",
            "--net=none",
            "--rootfs",
            tree_text,
        ]
        .map(str::to_owned);
        let of = |name, command| Subject { name, command, times: Vec::new() };
        let behind = |mut command: Vec<OsString>| {
            command.extend(PROGRAM.map(OsString::from));
            command
        };
        Ok(vec![
            of("native", native),
            of("bubblewrap, all namespaces", behind(words(&bwrap))),
            of("crun", crun.map(OsString::from).into()),
            of("podman with crun", behind(podman.map(OsString::from).into())),
            of("microvm, alone", self.microvm(&["--contain", "--net", "none"])),
            of("microvm, as it comes", self.microvm(&[])),
        ])
    }

    /// Where the runner's time goes.
    fn parts(&self) -> Result<()> {
        let command = self.microvm(&["--log", "debug"]);
        let mut all: Vec<Vec<(String, i64)>> = Vec::new();
        for _ in 0..self.starts {
            all.push(marks(&command)?);
        }
        let first = all.first().context("no start")?;
        println!("\nmicrovm, as it comes: ms to each mark, of which");
        let mut before = 0;
        for (number, (name, _)) in first.iter().enumerate() {
            let mut times: Vec<i64> =
                all.iter().filter_map(|marks| marks.get(number)).map(|(_, at)| *at).collect();
            times.sort_unstable();
            let at = times[times.len() / 2];
            println!("{:>8.1} {:>8.1}  {name}", at as f64 / 1e3, (at - before) as f64 / 1e3);
            before = at;
        }
        Ok(())
    }
}

/// The files of an ext4 image in a directory.
fn unpack(image: &Path, place: &Path) -> Result<PathBuf> {
    let tree = place.join("tree");
    fs::create_dir_all(&tree)?;
    let request = format!("rdump / {}", tree.display());
    let mut debugfs = Command::new("debugfs");
    let status = debugfs.args(["-R", &request]).arg(image).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "unpacking the root file system: {status}");
    Ok(tree)
}

fn write_bundle(place: &Path, tree: &Path) -> Result<()> {
    let mount = |target: &str, kind: &str| serde_json::json!({ "destination": target, "type": kind, "source": kind });
    let spaces = ["pid", "mount", "ipc", "uts", "network"];
    let spaces: Vec<_> = spaces.iter().map(|kind| serde_json::json!({ "type": kind })).collect();
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": tree, "readonly": true },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": PROGRAM, "cwd": "/",
            "env": ["PATH=/bin"] },
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs")],
        "linux": { "namespaces": spaces },
    });
    Ok(fs::write(place.join("config.json"), config.to_string())?)
}

fn start(command: &[OsString]) -> Result<Times> {
    let (program, arguments) = command.split_first().context("no command")?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    let mut byte = [0; 1];
    let got = output.read(&mut byte)?;
    let first = began.elapsed();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    let mut error = String::new();
    child.stderr.take().context("no pipe")?.read_to_string(&mut error)?;
    let status = child.wait()?;
    let end = began.elapsed();
    if got == 0 || !status.success() {
        bail!("{status}: {error}");
    }
    Ok(Times { first, end })
}

fn monotonic() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// Microseconds from the start to each of the runner's marks, and to the end.
fn marks(command: &[OsString]) -> Result<Vec<(String, i64)>> {
    let (program, arguments) = command.split_first().context("no command")?;
    let began = monotonic();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut all = Vec::new();
    for line in BufReader::new(child.stderr.take().context("no pipe")?).lines() {
        let line = line?;
        let mark = line.split_once("job at ").and_then(|(_, rest)| rest.split_once(" us: "));
        if let Some((at, name)) = mark {
            all.push((name.to_owned(), at.parse::<i64>()? - began));
        }
    }
    let status = child.wait()?;
    ensure!(status.success() && all.len() > 3, "{status}, {} marks", all.len());
    all.push(("microvm has ended".to_owned(), monotonic() - began));
    Ok(all)
}

fn print(subjects: &[Subject]) {
    let median = |subject: &Subject, of: fn(&Times) -> Duration| {
        let mut all: Vec<Duration> = subject.times.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    println!("{:<28} {:>12} {:>12} {:>8}", "ms, medians", "first word", "end", "native");
    let native = subjects.first().map_or(1.0, |subject| median(subject, |times| times.end));
    for subject in subjects {
        let (first, end) = (median(subject, |t| t.first), median(subject, |t| t.end));
        println!("{:<28} {first:>12.1} {end:>12.1} {:>7.0}x", subject.name, end / native);
    }
}
