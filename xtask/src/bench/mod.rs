//! `cargo xtask bench`: figures, never in tests, and each from one place.

mod boot;
mod first_run;
mod memory;
mod report;
mod subject;

use anyhow::Result;
use clap::Subcommand;

/// What there is to measure.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// The way from exec to the guest's init, beside other monitors
    Boot(boot::BootArguments),
    /// For `boot`, inside the rig: memory of a monitor whose guest is idle
    #[command(hide = true)]
    Memory(memory::MemoryArguments),
}

impl BenchCommand {
    /// Measures; returns the exit status.
    pub fn run(self) -> Result<u8> {
        match self {
            Self::Boot(arguments) => arguments.run(),
            Self::Memory(arguments) => arguments.run(),
        }
    }
}
