//! `cargo xtask rig`: one command in an emulated host.

use anyhow::Result;
use clap::Args;
use rig::job::Trace;
use rig::{Emulation, Options, Place};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Arguments of the command.
#[derive(Args)]
pub struct RigArguments {
    /// Emulate Intel's VT-x (Bochs) instead of AMD's SVM (QEMU)
    #[arg(long)]
    vtx: bool,
    /// Count: one nanosecond of the rig's clock is one instruction
    #[arg(long, conflicts_with = "vtx")]
    count: bool,
    /// Nested paging; 0 makes KVM keep shadow page tables
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    npt: u8,
    /// Processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory in MiB, or with a suffix M or G
    #[arg(long, default_value = "3G", value_parser = parse_memory)]
    memory: u32,
    /// Seconds after which everything is killed (exit status 124)
    #[arg(long)]
    timeout: Option<u64>,
    /// Forward standard input
    #[arg(long)]
    stdin: bool,
    /// Give the command the caller's terminal
    #[arg(long)]
    tty: bool,
    /// Pack this file or directory as well (--count, --vtx); may be repeated
    #[arg(long)]
    file: Vec<PathBuf>,
    /// Set a variable, NAME=VALUE; may be repeated
    #[arg(long, value_parser = parse_variable)]
    env: Vec<(OsString, OsString)>,
    /// Report when guests write to port 0x80, and the run's time
    #[arg(long)]
    marker: bool,
    /// Report exits by cause (which itself takes time), besides --marker
    #[arg(long)]
    exits: bool,
    /// Report exits by what was last written to port 0x80, from the first write on
    #[arg(long, conflicts_with = "exits")]
    phases: bool,
    /// Use the rig even where this host's own KVM could do it
    #[arg(long)]
    always: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl RigArguments {
    /// Runs it; returns the exit status.
    pub fn run(self) -> Result<u8> {
        let emulated = self.vtx || self.count || self.npt == 0 || self.always;
        let trace = match (self.exits, self.phases, self.marker) {
            (true, ..) => Trace::Exits,
            (false, true, _) => Trace::Phases,
            (false, false, true) => Trace::Marker,
            (false, false, false) => Trace::Nothing,
        };
        let emulated = emulated || trace != Trace::Nothing;
        let mut emulation = if self.vtx { Emulation::Vtx } else { Emulation::Svm };
        if !emulated {
            match rig::place()? {
                Place::Direct => return run_here(&self.command),
                Place::Rig(chosen) => emulation = chosen,
            }
        }
        let standard_limit = Options::default().limit;
        let options = Options {
            emulation,
            count: self.count,
            nested_paging: self.npt != 0,
            cpus: self.cpus,
            memory_mib: self.memory,
            limit: match self.timeout {
                Some(seconds) => Some(Duration::from_secs(seconds)),
                None if self.tty => None,
                None => standard_limit,
            },
            stdin: self.stdin,
            terminal: self.tty,
            files: self.file,
            trace,
            environment: self.env,
        };
        options.run(&self.command)
    }
}

/// Runs a command without any rig.
pub fn run_here(command: &[OsString]) -> Result<u8> {
    let (program, arguments) = command.split_first().unzip();
    let program = program.cloned().unwrap_or_default();
    let status = Command::new(program).args(arguments.unwrap_or_default()).status()?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => (128 + signal) as u8,
        (None, None) => 1,
    })
}

fn parse_variable(text: &str) -> Result<(OsString, OsString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn parse_memory(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
        _ => (text, 1),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|&mib| mib >= 256)
        .ok_or_else(|| "expected MiB, or a number with M or G, at least 256 MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        assert_eq!(parse_variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(parse_variable("=b").is_err());
        assert!(parse_variable("b").is_err());
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(parse_memory("3G"), Ok(3072));
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("1024"), Ok(1024));
        assert!(parse_memory("G").is_err());
        assert!(parse_memory("99999999G").is_err());
        assert!(parse_memory("").is_err());
    }
}
