//! Builds the rig's init: a static program, made by cargo from this crate.

use crate::{cache, tools};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Everything the program is made of: when it changes, it is built anew.
const SOURCES: &[&str] = &[
    include_str!("frame.rs"),
    include_str!("job.rs"),
    include_str!("exits.rs"),
    include_str!("bin/rig-init/main.rs"),
    include_str!("bin/rig-init/child.rs"),
    include_str!("bin/rig-init/relay.rs"),
    include_str!("bin/rig-init/system.rs"),
    include_str!("bin/rig-init/trace.rs"),
];

/// The built program.
pub fn prepare() -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let top = cache::directory()?;
    let version = cache::fingerprint(SOURCES.iter().map(|s| s.as_bytes()));
    let program = top.join(format!("rig-init-{version}"));
    if program.is_file() {
        return Ok(program);
    }
    // An own target directory: the caller may be a test that cargo itself runs,
    // and cargo locks the target directory it builds in.
    let target = top.join("target");
    let output = Command::new(cargo())
        .args(["build", "--release", "--quiet", "--bin", "rig-init", "--target", TARGET])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!(
            "building the rig's init failed:\n{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let built = target.join(TARGET).join("release/rig-init");
    let content = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    cache::write_whole(&program, &content)?;
    Ok(program)
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO")
        .map(PathBuf::from)
        .or_else(|| tools::find("cargo"))
        .unwrap_or_else(|| "cargo".into())
}
