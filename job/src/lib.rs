//! A job as a user sees it: what it starts from and what it is given.
//!
//! ```text
//!  image reference ─► image (file system, configuration) ─┐
//!  options, caller ───────────────────────────────────────┴─► plan ─► a machine of vmm's
//!                        standard streams, signals, status ◄─► relay ◄─► its init
//!  microvm exec, ps, stop ─► name ─► the runner's desk, which hands streams on
//! ```

pub mod caller;
mod error;
pub mod exec;
pub mod image;
pub mod init;
mod isolation;
pub mod kernel;
mod launcher;
pub mod modules;
pub mod named;
pub mod options;
mod plan;
mod relay;
mod run;
mod shares;
pub mod size;
mod source;

pub use error::{Error, status};
pub use isolation::Isolation;
pub use options::{Bind, Card, Join, Options, User};
pub use run::{Job, Outcome, die_by};

/// Tells with `--log debug` when something was done: microseconds of the host's
/// monotonic clock (`clock_gettime(2)`), which whoever has started us can read, too.
fn mark(what: &str) {
    if log::log_enabled!(log::Level::Debug) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call fills in the struct that it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        log::debug!("job at {} us: {what}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000);
    }
}
