//! A job as a user sees it: what it starts from and what it is given.
//!
//! ```text
//!  image reference ─► image (file system, configuration) ─┐
//!  options, caller ───────────────────────────────────────┴─► plan ─► a machine of vmm's
//!                        standard streams, signals, status ◄─► relay ◄─► its init
//! ```

pub mod caller;
mod error;
pub mod image;
pub mod init;
mod isolation;
pub mod kernel;
pub mod options;
mod plan;
mod relay;
mod run;
mod shares;
pub mod size;
mod source;

pub use error::{Error, status};
pub use isolation::Isolation;
pub use options::{Bind, Options};
pub use run::{Job, Outcome, die_by};

/// An error without Rust's `(os error N)`.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
