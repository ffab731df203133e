//! The machine: a configuration goes in, an [`exit::Exit`] comes out.
//!
//! ```text
//!  Config ──validate──► Machine (KVM, memory, vCPUs, devices) ──run──► Exit
//! ```

pub mod config;
pub mod console;
pub mod control;
pub mod ending;
pub mod events;
pub mod exit;
pub mod host;
pub mod intr;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod msi;
pub mod record;
pub mod sandbox;
pub mod vcpu;
pub mod vm;

/// Text of anybody's, fit for a terminal: control characters are escaped, so it
/// stays one line and moves no cursor.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => visible.extend(c.escape_default()),
            false => visible.push(c),
        }
    }
    visible
}

/// An error without Rust's `(os error N)`.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(plain, _)| plain.to_owned())
}
