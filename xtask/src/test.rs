//! `cargo xtask test`: everything there is to check, and one line at the end.

use crate::kit::Kit;
use crate::tally::Tally;
use crate::workspace::{self, cargo, describe};
use anyhow::{Context, Result};
use clap::Args;
use rig::{Emulation, Options};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
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

/// What the guest of a smoke test says, spelled so that no echo of the command
/// can be taken for it.
const SCRIPT: &str =
    "#!/bin/sh\necho \"the guest has $((6 * 7)) of $(grep -c vmx /proc/cpuinfo)\"\nexit 3\n";

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
        let mut tally = Tally::default();
        // First of all, because a test that needs it would wait in silence for
        // the kernel to be compiled.
        heading("guest kit");
        let kit = Kit::prepare()?;
        heading("unit tests, property tests, guests");
        tally.add(self.cargo_tests()?);
        if self.wants("vtx::boots_to_a_script") {
            if self.no_vtx {
                tally.skipped += 1;
            } else {
                heading("VT-x");
                tally.add(verdict("vtx::boots_to_a_script", || vtx_smoke(&kit)));
            }
        }
        Ok(tally)
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

/// The monitor under VT-x: a guest boots from its disk and a script in it says
/// what it should.
fn vtx_smoke(kit: &Kit) -> Result<()> {
    let monitor = workspace::build_monitor()?;
    let directory = workspace::target_directory().join("kit");
    let script = directory.join("vtx.sh");
    let disk = directory.join("vtx.disk");
    fs::write(&script, SCRIPT)?;
    let words = [Path::new("script"), &disk, &script];
    workspace::resource("rootfs/build.sh", &words)?;
    let options = Options {
        emulation: Emulation::Vtx,
        limit: Some(Duration::from_secs(900)),
        memory_mib: 640,
        ..Options::default()
    };
    let command: Vec<OsString> = [
        monitor.as_os_str(),
        "--kernel".as_ref(),
        kit.kernel.as_os_str(),
        "--rootfs".as_ref(),
        kit.root.as_os_str(),
        "--disk".as_ref(),
        disk.as_os_str(),
        "--memory".as_ref(),
        "128M".as_ref(),
        "--cmdline".as_ref(),
        "quiet microvm.run=/dev/vdb".as_ref(),
    ]
    .map(OsString::from)
    .into();
    let output = options.output(&command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let said = stdout.contains("the guest has 42 of") && stdout.contains("EXIT 3");
    if !said || output.status != 0 {
        anyhow::bail!(
            "status {}; standard output:\n{stdout}\nstandard error:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Announces a part of a long run.
pub fn heading(text: &str) {
    println!("\n=== {text}");
}
