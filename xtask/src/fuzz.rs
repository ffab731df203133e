//! `cargo xtask fuzz`: libFuzzer against what a guest can write or say, or an image
//! can hold.
//!
//! The stable compiler can do it: the coverage that libFuzzer follows is a pass
//! of LLVM's. What a run learns is kept in the target directory; `fuzz/corpus`
//! has what every run starts from.

use crate::workspace::{TARGET, cargo, check, root, target_directory};
use anyhow::{Context, Result};
use clap::Args;
use rig::Tally;
use std::fs;
use std::path::Path;
use std::process::Command;

/// All targets.
const TARGETS: &[&str] = &[
    "queue", "block", "mmio", "pci", "vsock", "net", "usernet", "fs", "agent", "image", "control",
    "ide", "rtl8139", "ne2k", "legacy", "board",
];
/// Seconds for each where time is short.
const BRIEF: u64 = 5;
/// Bytes of a program for a device; longer ones find nothing that shorter don't.
const LENGTH: u32 = 1024;
/// Bytes of an archive: its blocks are 512 bytes.
const ARCHIVE: u32 = 8192;

const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing -Cdebug-assertions -Coverflow-checks";

/// Arguments of the command.
#[derive(Args)]
pub struct FuzzArguments {
    /// Targets [default: all]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl FuzzArguments {
    /// For `cargo xtask ci`: every target, briefly.
    pub fn brief() -> Self {
        Self { targets: Vec::new(), seconds: BRIEF }
    }

    /// Runs them; returns the exit status.
    pub fn run(self) -> Result<u8> {
        Ok(self.tally()?.conclude())
    }

    /// Runs them; returns the counts.
    pub fn tally(self) -> Result<Tally> {
        // libFuzzer itself is C++.
        if Command::new("c++").arg("--version").output().is_err() {
            rig::install_packages(&["g++"])?;
        }
        let build = target_directory().join("fuzz");
        let mut command = cargo(&["build", "--quiet", "--release", "--target", TARGET]);
        command.current_dir(root().join("fuzz"));
        check(command.env("CARGO_TARGET_DIR", &build).env("RUSTFLAGS", FLAGS))?;
        let mut tally = Tally::default();
        for target in TARGETS.iter().copied() {
            if !self.targets.is_empty() && !self.targets.iter().any(|name| name == target) {
                continue;
            }
            match fuzz(&build, target, self.seconds) {
                Ok(runs) => {
                    println!("test fuzz::{target} ... ok ({runs} programs)");
                    tally.passed += 1;
                }
                Err(error) => {
                    println!("test fuzz::{target} ... FAILED\n{error:#}");
                    tally.failed += 1;
                }
            }
        }
        Ok(tally)
    }
}

/// Runs one target; returns how many programs it tried.
fn fuzz(build: &Path, target: &str, seconds: u64) -> Result<String> {
    let learnt = build.join("corpus").join(target);
    let crashes = build.join("crashes");
    fs::create_dir_all(&learnt)?;
    fs::create_dir_all(&crashes)?;
    let program = build.join(TARGET).join("release").join(target);
    let length = if target == "image" { ARCHIVE } else { LENGTH };
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={length}"))
        .arg(format!("-artifact_prefix={}/{target}-", crashes.display()))
        .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024"])
        .arg(&learnt)
        .arg(root().join("fuzz/corpus").join(target));
    let output = command.output().with_context(|| format!("starting {}", program.display()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let start = told.lines().count().saturating_sub(40);
        let end: Vec<&str> = told.lines().skip(start).collect();
        anyhow::bail!("{}: {}", output.status, end.join("\n"));
    }
    let runs = told.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(runs.context("no count of programs")?.trim().to_owned())
}
