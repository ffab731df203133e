//! `cargo xtask bench boot`: what it costs to come from exec to init.
//!
//! | figure | where |
//! | --- | --- |
//! | instructions from exec to a mark in init | the counting rig, where they repeat exactly |
//! | exits, by cause and to user space | the counting rig again: counting them takes time |
//! | processor time from exec to the first `KVM_RUN` | this host itself |
//! | memory beyond the guest's RAM, as PSS | the rig, a guest of 128 MiB that is idle |
//! | size of the program | the file |

use super::first_run;
use super::report::{self, Figures};
use super::subject::{Guest, Invocation, Subject};
use crate::kit::Kit;
use crate::workspace::target_directory;
use anyhow::{Context, Result, bail};
use clap::Args;
use rig::job::Trace;
use rig::{Options, Output};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of the command.
#[derive(Args)]
pub struct BootArguments {
    /// Another monitor: a program (microvm, Firecracker or QEMU) or a commit; may be repeated
    #[arg(long, value_name = "PROGRAM|COMMIT")]
    other: Vec<String>,
    /// Leave out QEMU's microvm machine
    #[arg(long)]
    no_qemu: bool,
    /// Starts to measure for the time to the first KVM_RUN, of which the median counts
    #[arg(long, default_value_t = 31)]
    starts: usize,
    /// Where the figures go as JSON [default: bench/boot.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What bench-init writes to the marker port.
const MARK: u64 = 0x7b;
const MEMORY_MIB: u32 = 256;
const SMALL_MIB: u32 = 128;

impl BootArguments {
    /// Measures, prints the table and writes the file.
    pub fn run(self) -> Result<u8> {
        let directory = target_directory().join("bench");
        fs::create_dir_all(&directory)?;
        let kit = Kit::prepare()?;
        let subjects = Subject::all(&self.other, !self.no_qemu)?;
        let bench = Bench { kit: &kit, scratch: &directory, starts: self.starts };
        let all: Vec<Figures> = subjects.iter().map(|subject| bench.measure(subject)).collect();
        print!("{}", report::table(&all));
        let path = self.json.unwrap_or_else(|| directory.join("boot.json"));
        let text = serde_json::to_string_pretty(&report::json(&all))? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("\nwritten to {}", path.display());
        Ok(0)
    }
}

struct Bench<'a> {
    kit: &'a Kit,
    scratch: &'a Path,
    starts: usize,
}

impl Bench<'_> {
    fn measure(&self, subject: &Subject) -> Figures {
        eprintln!("measuring {} …", subject.name);
        let words = |error: anyhow::Error| format!("{error:#}");
        Figures {
            name: subject.name.clone(),
            instructions: self.instructions(subject).map_err(words),
            exits: self.exits(subject).map_err(words),
            first_run: self.first_run(subject).map_err(words),
            memory_kib: self.memory(subject).map_err(words),
            program_bytes: fs::metadata(&subject.program)
                .map(|meta| meta.len())
                .map_err(|error| words(error.into())),
        }
    }

    fn guest(&self, memory_mib: u32, init: &'static str) -> Guest<'_> {
        Guest { kit: self.kit, memory_mib, init, peers: None }
    }

    fn invocation(&self, subject: &Subject) -> Result<Invocation> {
        subject.invocation(&self.guest(MEMORY_MIB, "/sbin/bench-init"), self.scratch)
    }

    fn counted(&self, subject: &Subject, trace: Trace) -> Result<Output> {
        if !subject.ends_by_reset() {
            bail!("it starts a guest again that resets");
        }
        let Invocation { command, files } = self.invocation(subject)?;
        let limit = Some(Duration::from_secs(300));
        let options = Options { count: true, trace, files, limit, ..Options::default() };
        let output = options.output(&command)?;
        if output.status != 0 {
            bail!("status {}: {}", output.status, last_line(&output.stderr));
        }
        Ok(output)
    }

    fn instructions(&self, subject: &Subject) -> Result<u64> {
        let output = self.counted(subject, Trace::Marker)?;
        let report = output.report.context("the rig sent no report")?;
        let mark = report.markers.iter().find(|(value, _)| *value == MARK);
        Ok(mark.context("the guest did not come to init")?.1)
    }

    fn exits(&self, subject: &Subject) -> Result<rig::exits::Report> {
        self.counted(subject, Trace::Exits)?.report.context("the rig sent no report")
    }

    fn first_run(&self, subject: &Subject) -> Result<Duration> {
        let mut command = self.invocation(subject)?.command;
        command.extend(subject.without_probe().iter().map(OsString::from));
        first_run::median(&command, self.starts)
    }

    fn memory(&self, subject: &Subject) -> Result<u64> {
        // A shell that nobody types at: idle for ever.
        let guest = self.guest(SMALL_MIB, "/bin/sh");
        let invocation = subject.invocation(&guest, self.scratch)?;
        let own = std::env::current_exe().context("finding this program")?;
        let least = (SMALL_MIB * 1024 / 2).to_string();
        let mut command = vec![own.into_os_string()];
        command.extend(["bench", "memory", "--guest-kib", &least, "--"].map(OsString::from));
        command.extend(invocation.command);
        let options = Options { limit: Some(Duration::from_secs(300)), ..Options::default() };
        let output = options.output(&command)?;
        if output.status != 0 {
            bail!("status {}: {}", output.status, last_line(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().with_context(|| format!("{text:?} is no number"))
    }
}

pub(super) fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned()
}
