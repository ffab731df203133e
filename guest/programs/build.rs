//! Builds the programs of crate `guest`, which become part of those that start
//! guests, packed (RFC 1951).
//!
//! Cargo runs again for it, in a target directory of its own: they are built for
//! size and always static, whatever the rest is built for.

use std::env;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Four more save a third of a percent, and take half a minute.
const ITERATIONS: NonZeroU64 = NonZeroU64::new(1).unwrap();

/// Their names, and the variables that tell the crate where they are.
const PROGRAMS: [(&str, &str); 2] =
    [("microvm-init", "MICROVM_INIT"), ("microvm-agent", "MICROVM_AGENT")];

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: [&str; 4] = [
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Clink-arg=-Wl,--no-eh-frame-hdr",
    // As of the monitor itself: functions with the same code are one.
    "-Clink-arg=-Wl,--icf=all,-O2",
];

fn main() {
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    let script = "resources/no-unwind.ld";
    for part in ["guest/src", "guest/Cargo.toml", "Cargo.toml", "guest/programs/build.rs", script] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    let target = out.join("guest");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--package", "guest", "--bins"])
        // Everything it needs is there: this crate's own build needs it, too.
        .args(["--profile", "guest", "--target", TARGET, "--frozen"])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    // What the outer cargo was told is not for this one: flags of a fuzzer,
    // wrappers of clippy, profiles.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let kept = ["CARGO", "CARGO_HOME", "RUSTC", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
        let foreign = name.starts_with("CARGO") || name.starts_with("RUST");
        if foreign && !kept.contains(&name.as_str()) {
            cargo.env_remove(name);
        }
    }
    let script = format!("-Clink-arg=-Wl,-T,{}", workspace.join(script).display());
    let flags = [&FLAGS[..], &[&script]].concat();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo.status().unwrap_or_else(|error| panic!("starting cargo: {error}"));
    assert!(status.success(), "building the programs of guests: {status}");
    for (program, variable) in PROGRAMS {
        let built = target.join(TARGET).join("guest").join(program);
        let packed = out.join(program).with_extension("deflate");
        let done = pack(&built, &packed);
        done.unwrap_or_else(|error| panic!("packing {}: {error}", built.display()));
        println!("cargo::rustc-env={variable}={}", packed.display());
    }
}

/// Half of the program is what it takes from libc and core: it packs well.
fn pack(from: &Path, to: &Path) -> io::Result<()> {
    let options = zopfli::Options { iteration_count: ITERATIONS, ..Default::default() };
    let program = fs::read(from)?;
    zopfli::compress(options, zopfli::Format::Deflate, &program[..], File::create(to)?)
}
