//! `cargo xtask run`: the monitor, fresh from this checkout, with a guest.

use crate::kit::Kit;
use crate::workspace;
use anyhow::{Context, Result};
use clap::Args;
use rig::{Options, Place};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Arguments of the command.
#[derive(Args)]
pub struct RunArguments {
    /// More arguments for the monitor
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

impl RunArguments {
    /// Runs it; returns the monitor's exit status.
    pub fn run(self) -> Result<u8> {
        let monitor = workspace::build_monitor()?;
        let kit = Kit::prepare()?;
        let mut command = vec![
            monitor.into_os_string(),
            "--kernel".into(),
            kit.kernel.into_os_string(),
            "--rootfs".into(),
            kit.root.into_os_string(),
        ];
        command.extend(self.arguments);
        let emulation = match rig::place()? {
            Place::Direct => {
                // Become the monitor: terminal, signals and status are then its own.
                let error = Command::new(&command[0]).args(&command[1..]).exec();
                return Err(error).context("starting the monitor");
            }
            Place::Rig(emulation) => emulation,
        };
        eprintln!(
            "This host's KVM cannot run Linux: starting an emulated host first (about 10 s), \
             in which everything is some 20 times slower."
        );
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let options =
            Options { emulation, terminal, stdin: !terminal, limit: None, ..Options::default() };
        options.run(&command)
    }
}
