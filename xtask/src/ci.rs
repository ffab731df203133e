//! `cargo xtask ci`: what has to hold before a change is taken.

use crate::fuzz::FuzzArguments;
use crate::test::{TestArguments, stage, timed};
use crate::workspace::{self, cargo, check};
use anyhow::{Result, bail};
use rig::Tally;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

const DENY_VERSION: &str = "0.20.2";

/// Runs all checks, even after one has failed; prints the summary.
pub fn run() -> Result<u8> {
    let mut tally = Tally::default();
    // What is downloaded and unpacked, one thing after the other, beside what compiles.
    let resources = workspace::root().join("resources");
    let fetching =
        thread::spawn(move || timed("packages and files", || rig::kit::prefetch(&resources)));
    let mut step = |name: &str, step: &dyn Fn() -> Result<()>| {
        if let Err(error) = stage(name, step) {
            println!("{name}: {error:#}");
            tally.failed += 1;
        } else {
            tally.passed += 1;
        }
    };
    step("format", &|| check(&mut cargo(&["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    step("clippy", &|| check(&mut cargo(&clippy)));
    step("dependencies", &deny);
    match advisories() {
        Ok(Some(reason)) => {
            println!("advisories: skipped: {reason}");
            tally.skipped += 1;
        }
        Ok(None) => tally.passed += 1,
        Err(error) => {
            println!("advisories: {error:#}");
            tally.failed += 1;
        }
    }
    let _ = fetching.join();
    // A fuzzer keeps one processor busy, as do the last tests.
    let fuzzing = || stage("fuzzing", || FuzzArguments::brief().tally());
    tally.add(TestArguments::everything().tally_beside(fuzzing)?);
    Ok(tally.conclude())
}

/// Licences, duplicate versions and sources: all that needs no network.
fn deny() -> Result<()> {
    let mut command = Command::new(install_deny()?);
    command.args(["--all-features", "--offline", "check", "bans", "licenses", "sources"]);
    check(command.current_dir(workspace::root()))
}

/// Known vulnerabilities. Their list is a git repository: where that can't be
/// reached and no copy is at hand, the check is skipped with the reason.
fn advisories() -> Result<Option<String>> {
    let mut command = Command::new(install_deny()?);
    command.args(["--all-features", "check", "advisories"]).current_dir(workspace::root());
    let output = command.output()?;
    if output.status.success() {
        return Ok(None);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    if told.contains("failed to fetch advisory database") {
        return Ok(Some("the advisory database can't be reached from here".to_owned()));
    }
    bail!("{told}")
}

/// `cargo-deny`, kept in the cache rather than among the user's programs.
fn install_deny() -> Result<PathBuf> {
    let home = rig::cache_directory()?.join(format!("cargo-deny-{DENY_VERSION}"));
    let program = home.join("bin/cargo-deny");
    if !program.exists() {
        // Not optimised: it takes longer to compile than to run.
        let mut command = cargo(&["install", "--debug", "--locked", "--quiet", "cargo-deny"]);
        command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        command.args(["--version", DENY_VERSION, "--root"]).arg(&home);
        check(&mut command)?;
    }
    Ok(program)
}
