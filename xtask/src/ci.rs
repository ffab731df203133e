//! `cargo xtask ci`: what has to hold before a change is taken.

use crate::tally::Tally;
use crate::test::{TestArguments, heading};
use crate::workspace::{self, cargo, check};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

const DENY_VERSION: &str = "0.20.2";

/// Runs all checks, even after one has failed; prints the summary.
pub fn run() -> Result<u8> {
    let mut tally = Tally::default();
    let mut step = |name: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            println!("{name}: {error:#}");
            tally.failed += 1;
        } else {
            tally.passed += 1;
        }
    };
    heading("format");
    step("format", check(&mut cargo(&["fmt", "--all", "--check"])));
    heading("clippy");
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    step("clippy", check(&mut cargo(&clippy)));
    heading("dependencies");
    step("dependencies", deny());
    tally.add(TestArguments::everything().tally()?);
    Ok(tally.conclude())
}

fn deny() -> Result<()> {
    let program = install_deny()?;
    check(Command::new(program).args(["--all-features", "check"]).current_dir(workspace::root()))
}

/// `cargo-deny`, kept in the cache rather than among the user's programs.
fn install_deny() -> Result<PathBuf> {
    let home = rig::cache_directory()?.join(format!("cargo-deny-{DENY_VERSION}"));
    let program = home.join("bin/cargo-deny");
    if !program.exists() {
        let mut command = cargo(&["install", "--locked", "--quiet", "cargo-deny"]);
        command.args(["--version", DENY_VERSION, "--root"]).arg(&home);
        check(&mut command)?;
    }
    Ok(program)
}
