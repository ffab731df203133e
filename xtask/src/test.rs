//! `cargo xtask test`: everything there is to check, and one line at the end.

use crate::kit::Kit;
use crate::workspace::{self, cargo, describe};
use anyhow::{Context, Result};
use clap::Args;
use rig::{Emulation, Options, Tally};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Arguments of the command.
#[derive(Args)]
pub struct TestArguments {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Leave out the tests in the VT-x rig, which take a minute
    #[arg(long)]
    no_vtx: bool,
}

/// What the guest of the smoke test does: count processors, ping its host,
/// write to a disk. What it says is spelled so that no echo of the command can
/// be taken for it.
const GUEST: &str = "#!/bin/sh
echo \"the guest has $((6 * 7)) reasons and $(nproc) processors\"
ip addr add 10.77.9.2/24 dev eth0 && ip link set eth0 up
ping -c 2 -W 10 10.77.9.1 >/dev/null && echo \"the host answers $((6 * 7)) times\"
echo \"written $((6 * 7)) times\" >/dev/vdc && sync
exit 3
";
/// What runs in the rig: a TAP, the monitor, and a look at the disk.
const HOST: &str =
    "tunctl -t vtx0 >/dev/null && ifconfig vtx0 10.77.9.1 netmask 255.255.255.0 up || exit 1
\"$@\"
status=$?
head -n 1 \"$DISK\"
exit $status
";
/// Whose shell and tools run it.
const BUSYBOX: &str = "/bin/busybox";
/// What must be seen of it.
const SEEN: [&str; 4] = [
    "the guest has 42 reasons and 2 processors",
    "the host answers 42 times",
    "written 42 times",
    "EXIT 3",
];

impl TestArguments {
    /// For `cargo xtask ci`: everything.
    pub fn everything() -> Self {
        Self { filter: None, no_vtx: false }
    }

    /// Runs the tests; prints the summary; returns the exit status.
    pub fn run(self) -> Result<u8> {
        let tally = self.tally()?;
        Ok(tally.conclude())
    }

    /// Runs the tests; returns the counts.
    pub fn tally(self) -> Result<Tally> {
        self.tally_beside(|| Ok(Tally::default()))
    }

    /// Runs the tests, and `beside` along with those that keep one processor busy;
    /// returns the counts of both.
    pub fn tally_beside(
        self,
        beside: impl FnOnce() -> Result<Tally> + Send + 'static,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        // First of all, because a test that needs it would wait in silence for
        // the kernel to be compiled.
        let kit = stage("guest kit", Kit::prepare)?;
        tally.add(stage("unit tests, property tests, guests", || self.cargo_tests())?);
        let beside = thread::spawn(beside);
        tally.add(self.one_at_a_time(&kit));
        let beside = beside.join().map_err(|_| anyhow::anyhow!("what runs beside panicked"))?;
        tally.add(beside?);
        Ok(tally)
    }

    /// Those with an emulated host of a special kind.
    fn one_at_a_time(&self, kit: &Kit) -> Tally {
        let mut tally = Tally::default();
        if self.wants("monitor::is_small_and_static") {
            heading("monitor");
            tally.add(verdict("monitor::is_small_and_static", small_and_static));
        }
        if self.wants("spectrum::shadow_page_tables_are_seen") {
            heading("shadow page tables");
            tally.add(verdict("spectrum::shadow_page_tables_are_seen", shadow_page_tables));
        }
        if self.wants("spectrum::a_pc_waits_for_its_drives_alone") {
            heading("waits");
            let test = || waits(kit);
            tally.add(verdict("spectrum::a_pc_waits_for_its_drives_alone", test));
        }
        if self.wants("vtx::boot_smp_block_and_network") {
            if self.no_vtx {
                tally.skipped += 1;
            } else {
                heading("VT-x");
                tally.add(verdict("vtx::boot_smp_block_and_network", || vtx_smoke(kit)));
            }
        }
        tally
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// All tests cargo knows; those with guests go to the rig by themselves.
    fn cargo_tests(&self) -> Result<Tally> {
        let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
        if let Some(filter) = &self.filter {
            command.args(["--", filter]);
        }
        counted(&mut command)
    }
}

/// Runs a command, passes its output on and counts the results in it.
fn counted(command: &mut Command) -> Result<Tally> {
    let name = describe(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {name}"))?;
    let mut tally = Tally::default();
    let output = child.stdout.take().context("no output to read")?;
    let mut screen = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        tally.read(&String::from_utf8_lossy(&line));
        screen.write_all(&line)?;
        screen.write_all(b"\n")?;
        screen.flush()?;
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not get as far as counting: a build error or a crash.
        println!("{name}: {status}");
        tally.failed += 1;
    }
    Ok(tally)
}

/// Runs one test of our own and reports it as libtest would.
fn verdict(name: &str, test: impl FnOnce() -> Result<()>) -> Tally {
    let started = Instant::now();
    let mut tally = Tally::default();
    match test() {
        Ok(()) => {
            tally.passed += 1;
            println!("test {name} ... ok ({:.0} s)", started.elapsed().as_secs_f32());
        }
        Err(error) => {
            tally.failed += 1;
            println!("test {name} ... FAILED\n{error:#}");
        }
    }
    tally
}

/// Bytes of the monitor, at most: a goal of this project.
const LARGEST: usize = 4 << 20;

/// The program as it is released: one file that needs no other.
fn small_and_static() -> Result<()> {
    let program = fs::read(workspace::build_monitor()?)?;
    if program.len() > LARGEST {
        anyhow::bail!("{} bytes are more than {LARGEST}", program.len());
    }
    // A dynamic program names its interpreter.
    let name = b"/lib64/ld-linux-x86-64.so.2\0";
    if program.windows(name.len()).any(|bytes| bytes == name) {
        anyhow::bail!("it needs an interpreter");
    }
    println!("{} KiB", program.len() / 1024);
    Ok(())
}

/// The fourth column of Xen's table without nested paging: the processor still
/// runs ring 0, and page tables are KVM's business.
fn shadow_page_tables() -> Result<()> {
    let monitor = workspace::build_monitor()?;
    let options = Options { nested_paging: false, ..Options::default() };
    let command = [monitor.into_os_string(), "spectrum".into(), "--json".into()];
    let output = options.output(&command)?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| e.to_string().into());
    let how = |half: &str| report[half]["how"].as_str().unwrap_or_default();
    if (output.status, how("privileged_instructions"), how("page_tables")) != (0, "VH", "VS") {
        anyhow::bail!(
            "status {}; {report:#}\nstandard error:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The way to init of machines without anything made for virtual machines, in a host
/// whose clock is its instructions: they sleep as long as Linux lets drives rest after
/// a reset, and the log of no other driver stands still.
fn waits(kit: &Kit) -> Result<()> {
    let monitor = workspace::build_monitor()?;
    let options = Options {
        count: true,
        limit: Some(Duration::from_secs(900)),
        files: vec![monitor.clone(), kit.kernel.clone(), kit.root.clone()],
        ..Options::default()
    };
    let mut command = vec![monitor.into_os_string()];
    let words = ["spectrum", "--measure", "--boot", "--counted", "--json", "--modes"];
    command.extend(words.map(OsString::from));
    command.extend(["hvm,hvm-pio".into(), "--kernel".into()]);
    command.extend([kit.kernel.clone().into_os_string(), "--rootfs".into()]);
    command.push(kit.root.clone().into_os_string());
    let output = options.output(&command)?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| e.to_string().into());
    let modes = report["modes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let fine = output.status == 0 && modes.len() == 2 && modes.iter().all(waits_for_drives_alone);
    if !fine {
        anyhow::bail!(
            "status {}; {report:#}\nstandard error:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Linux's `ATA_WAIT_AFTER_RESET`, in nanoseconds, which it sleeps for all channels at
/// once; and what it may sleep beside that, for threads that wait for each other.
const AFTER_RESET: u64 = 150_000_000;
const BESIDE: u64 = 15_000_000;
/// No other driver is silent for as many milliseconds, not even while a drive's data
/// goes through a port.
const SILENCE: f64 = 50.0;

fn waits_for_drives_alone(mode: &serde_json::Value) -> bool {
    let boot = &mode["boot"];
    let asleep = boot["asleep"].as_u64().is_some_and(|asleep| asleep <= AFTER_RESET + BESIDE);
    let gaps = boot["gaps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_drives =
        |gap: &serde_json::Value| gap["after"].as_str().is_some_and(|line| line.starts_with("ata"));
    let short = |gap: &serde_json::Value| gap["ms"].as_f64().is_some_and(|ms| ms < SILENCE);
    asleep && !gaps.is_empty() && gaps.iter().all(|gap| short(gap) || of_drives(gap))
}

/// The monitor under VT-x: a guest with two processors boots from its disk,
/// reaches the host over a TAP, and what it writes to a disk is in the file.
fn vtx_smoke(kit: &Kit) -> Result<()> {
    if !Path::new(BUSYBOX).exists() {
        rig::install_packages(&["busybox-static"])?;
    }
    let monitor = workspace::build_monitor()?;
    let directory = workspace::target_directory().join("kit");
    let (script, run, disk) =
        (directory.join("vtx.sh"), directory.join("vtx.run"), directory.join("vtx.disk"));
    fs::write(&script, GUEST)?;
    workspace::resource("rootfs/build.sh", &[Path::new("script"), &run, &script])?;
    fs::write(&disk, vec![0; 1 << 20])?;
    let options = Options {
        emulation: Emulation::Vtx,
        limit: Some(Duration::from_secs(900)),
        memory_mib: 640,
        files: vec![BUSYBOX.into(), monitor.clone(), kit.kernel.clone(), kit.root.clone()]
            .into_iter()
            .chain([run.clone(), disk.clone()])
            .collect(),
        environment: vec![("DISK".into(), disk.clone().into())],
        ..Options::default()
    };
    let path = |path: &Path| path.as_os_str().to_owned();
    let disk_of = |image: &Path| {
        let mut text = OsString::from("path=");
        text.push(image);
        text
    };
    let mut command: Vec<OsString> = [BUSYBOX, "sh", "-c", HOST, "sh"].map(OsString::from).into();
    command.extend([path(&monitor), "--kernel".into(), path(&kit.kernel)]);
    command.extend(["--rootfs".into(), path(&kit.root)]);
    command.extend(["--disk".into(), disk_of(&run), "--disk".into(), disk_of(&disk)]);
    command.extend(["--net", "tap=vtx0", "--cpus", "2", "--memory", "128M"].map(OsString::from));
    command.extend(["--cmdline", "quiet microvm.run=/dev/vdb"].map(OsString::from));
    let output = options.output(&command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let missing: Vec<_> = SEEN.iter().filter(|seen| !stdout.contains(**seen)).collect();
    if !missing.is_empty() || output.status != 0 {
        anyhow::bail!(
            "status {}; not seen: {missing:?}; standard output:\n{stdout}\nstandard error:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Announces a part of a long run.
fn heading(text: &str) {
    println!("\n=== {text}");
}

/// Announces a part, and tells how long it took.
pub fn stage<T>(name: &str, part: impl FnOnce() -> T) -> T {
    heading(name);
    timed(name, part)
}

/// Tells how long a part took.
pub fn timed<T>(name: &str, part: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = part();
    println!("{name}: {} s", start.elapsed().as_secs());
    result
}
