//! This checkout: where things are, and how cargo and the kit's scripts are run.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the monitor is built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// How it is built: one program that needs nothing else.
pub const STATIC: &str = "-C target-feature=+crt-static";
/// Arguments of cargo for that.
pub const MONITOR: [&str; 7] =
    ["build", "--quiet", "--release", "--bin", "microvm", "--target", TARGET];

/// The top of the checkout.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo builds.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// A cargo command at the top of the checkout.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end; an error if it fails.
pub fn check(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// A command as a user would type it.
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = Path::new(word);
            // The paths of programs say more about this machine than about the step.
            let short = if word.is_absolute() { word.file_name() } else { None };
            short.unwrap_or(word.as_os_str()).to_string_lossy()
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The monitor: one static program.
pub fn build_monitor() -> Result<PathBuf> {
    check(cargo(&MONITOR).env("RUSTFLAGS", STATIC))?;
    Ok(target_directory().join(TARGET).join("release/microvm"))
}

/// Runs a script of `resources/`, which prints the path of what it has made.
pub fn resource<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Result<PathBuf> {
    let mut command = Command::new(root().join("resources").join(script));
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    let name = describe(&command);
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", output.status);
    }
    let text = String::from_utf8(output.stdout).context("a path that is not UTF-8")?;
    Ok(PathBuf::from(text.trim_end()))
}
