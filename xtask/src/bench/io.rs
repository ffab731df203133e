//! `cargo xtask bench io`: what it costs to move data between guest and host.
//!
//! A guest ([`resources/rootfs/bench-io.c`]) moves data of each kind, with marks
//! before and after. Two runs of it in the counting rig, where everything repeats
//! exactly: one for instructions, and a shorter one for exits, which cost time to
//! watch. The rig has one processor, so an instruction is the guest's, the
//! monitor's, the host kernel's or the other end's ([`super::io_host`]), all
//! together.

use super::boot::last_line;
use super::io_host::TAP;
use super::io_report::{self, Figures};
use super::subject::{Guest, Invocation, Peers, Subject};
use crate::kit::Kit;
use crate::workspace::target_directory;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rig::Options;
use rig::exits::Report;
use rig::job::Trace;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Arguments of the command.
#[derive(Args)]
pub struct IoArguments {
    /// Another monitor: a program (microvm, Firecracker, Cloud Hypervisor or QEMU) or a commit;
    /// may be repeated
    #[arg(long, value_name = "PROGRAM|COMMIT")]
    other: Vec<String>,
    /// Also with devices on PCI, where a monitor leaves the choice
    #[arg(long)]
    pci: bool,
    /// Leave out QEMU's microvm machine
    #[arg(long)]
    no_qemu: bool,
    /// Operations of each kind whose instructions are counted; exits are, of a quarter
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    count: u32,
    /// Monitors at a time: each has a rig of its own, and counts the same beside others
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Where the figures go as JSON [default: bench/io.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const MEMORY_MIB: u32 = 256;
/// The size by which the guest knows the disk that it may write to.
const DISK_BYTES: u64 = 16 << 20;
/// Where monitors in the rig put their vsock.
const UDS: &str = "/tmp/bench.vsock";

impl IoArguments {
    /// Measures, prints the tables and writes the file.
    pub fn run(self) -> Result<u8> {
        let directory = target_directory().join("bench");
        fs::create_dir_all(&directory)?;
        let kit = Kit::prepare()?;
        let disk = directory.join("io.img");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let mut subjects = Subject::all(&self.other, !self.no_qemu)?;
        if self.pci {
            let more: Vec<_> = subjects.iter().filter_map(Subject::on_pci).collect();
            subjects.extend(more);
        }
        // A copy: a build meanwhile would take this program away.
        let own = directory.join("io-host");
        fs::copy(std::env::current_exe().context("finding this program")?, &own)?;
        let bench = Bench { kit: &kit, scratch: &directory, disk: &disk, own: &own };
        let all = self.measure(&bench, &subjects)?;
        print!("{}", io_report::table(&all));
        let path = self.json.unwrap_or_else(|| directory.join("io.json"));
        let text = serde_json::to_string_pretty(&io_report::json(&all))? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("\nwritten to {}", path.display());
        Ok(0)
    }
}

impl IoArguments {
    /// Of each subject, some at a time.
    fn measure(&self, bench: &Bench<'_>, subjects: &[Subject]) -> Result<Vec<Figures>> {
        let mut all = Vec::new();
        for some in subjects.chunks(self.jobs.into()) {
            let figures = thread::scope(|scope| {
                let threads: Vec<_> = some
                    .iter()
                    .map(|subject| scope.spawn(|| bench.measure(subject, self.count)))
                    .collect();
                threads.into_iter().map(|thread| thread.join()).collect::<Result<Vec<_>, _>>()
            });
            all.extend(figures.map_err(|_| anyhow!("a measurement panicked"))?);
        }
        Ok(all)
    }
}

struct Bench<'a> {
    kit: &'a Kit,
    scratch: &'a Path,
    disk: &'a Path,
    /// This program.
    own: &'a Path,
}

impl Bench<'_> {
    fn measure(&self, subject: &Subject, count: u32) -> Figures {
        eprintln!("measuring {} …", subject.name);
        let few = (count / 4).max(100);
        let words = |error: anyhow::Error| format!("{error:#}");
        let marks = self.counted(subject, Trace::Marker, count).map_err(words);
        let exits = self.counted(subject, Trace::Phases, few).map_err(words);
        Figures::new(subject, (marks, count), (exits, few))
    }

    fn counted(&self, subject: &Subject, trace: Trace, count: u32) -> Result<Report> {
        let end = if subject.ends_by_reset() { "reset" } else { "poweroff" };
        let guest = Guest {
            kit: self.kit,
            memory_mib: MEMORY_MIB,
            init: &format!("/sbin/bench-io bench_count={count} bench_end={end}"),
            peers: Some(Peers { disk: self.disk, tap: TAP, uds: UDS }),
        };
        let Invocation { command: monitor, mut files } =
            subject.invocation(&guest, self.scratch)?;
        files.push(subject.program.clone());
        let mut command = vec![self.own.as_os_str().to_owned()];
        command.extend(["bench", "io-host", "--uds", UDS, "--"].map(OsString::from));
        command.extend(monitor);
        let limit = Some(Duration::from_secs(1200));
        let options = Options { count: true, trace, files, limit, ..Options::default() };
        let output = options.output(&command)?;
        if output.status != 0 {
            bail!("status {}: {}", output.status, last_line(&output.stderr));
        }
        output.report.context("the rig sent no report")
    }
}
