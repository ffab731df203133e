//! Links the released monitor without what it never uses: a seventh of it.

use std::env;
use std::path::Path;

const SCRIPT: &str = "resources/no-unwind.ld";

fn main() {
    println!("cargo::rerun-if-changed={SCRIPT}");
    println!("cargo::rerun-if-changed=build.rs");
    // Others unwind: tests catch panics.
    if env::var_os("PROFILE").is_none_or(|profile| profile != "release") {
        return;
    }
    let top = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&top).join(SCRIPT);
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    // Functions whose code is the same are one: Rust promises no addresses of their own.
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all,-O2");
    // Almost all relocations of a PIE are relative: a bit each in DT_RELR
    // instead of 24 bytes. glibc reads them since 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
