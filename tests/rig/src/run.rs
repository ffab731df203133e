//! The interface: a command, some options, a run.

use crate::cache::Scratch;
use crate::exits::Report;
use crate::job::{Job, Line, Root, Trace};
use crate::place::Emulation;
use crate::session::{self, Ended, Terms};
use crate::{svm, terminal, vtx};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How a rig is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Processor to emulate.
    pub emulation: Emulation,
    /// Make a nanosecond of the rig's clock one instruction, and every run
    /// alike. One processor, and only packed files (see `files`).
    pub count: bool,
    /// Nested paging; without, KVM keeps shadow page tables.
    pub nested_paging: bool,
    /// Processors. They take turns: with threads of their own QEMU 7.2 now and
    /// then runs code that another processor has just patched away, and the
    /// rig's kernel dies of a stray `int3`.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Longest time from start to end.
    pub limit: Option<Duration>,
    /// Forward standard input (otherwise the command gets `/dev/null`).
    pub stdin: bool,
    /// Give the command a terminal: the caller's, end to end.
    pub terminal: bool,
    /// Files and directories to pack where the host's are out of reach
    /// (`count`, VT-x), besides those the command line names.
    pub files: Vec<PathBuf>,
    /// What to watch while the command runs; shown at the end, or returned by
    /// [`Options::output`].
    pub trace: Trace,
    /// Variables to set, besides the caller's environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            emulation: Emulation::Svm,
            count: false,
            nested_paging: true,
            cpus: 1,
            memory_mib: 3072,
            limit: Some(Duration::from_secs(900)),
            stdin: false,
            terminal: false,
            files: Vec::new(),
            trace: Trace::Nothing,
            environment: Vec::new(),
        }
    }
}

/// What a command in the rig said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status as a shell would say it.
    pub status: u8,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// Everything on standard error.
    pub stderr: Vec<u8>,
    /// What tracing saw, if that was asked for.
    pub report: Option<Report>,
}

impl Options {
    /// Runs a command on the caller's own output streams; returns its status.
    pub fn run(&self, command: &[OsString]) -> Result<u8> {
        let ended = self.run_on(command, &mut io::stdout(), &mut io::stderr())?;
        if let Some(report) = self.report(&ended)? {
            eprint!("{report}");
        }
        Ok(ended.status)
    }

    /// Runs a command and collects what it says.
    pub fn output(&self, command: &[OsString]) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ended = self.run_on(command, &mut stdout, &mut stderr)?;
        let report = self.report(&ended)?;
        Ok(Output { status: ended.status, stdout, stderr, report })
    }

    fn report(&self, ended: &Ended) -> Result<Option<Report>> {
        // A run cut short by a signal or its time limit has none.
        if self.trace == Trace::Nothing || ended.report.is_empty() {
            return Ok(None);
        }
        let report = Report::parse(&ended.report).context("the rig's report is garbled")?;
        Ok(Some(report))
    }

    fn run_on(
        &self,
        command: &[OsString],
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Ended> {
        if command.is_empty() {
            bail!("no command to run in the rig");
        }
        if self.is_packed() && (self.stdin || self.terminal) {
            bail!("a counting or VT-x rig takes no input: neither --stdin nor --tty");
        }
        let scratch = Scratch::new()?;
        let job = self.job(command)?;
        let (command, feed) = match self.emulation {
            Emulation::Svm => svm::prepare(self, job, &scratch)?,
            Emulation::Vtx => vtx::prepare(self, job, &scratch)?,
        };
        let terms = Terms {
            stdout,
            stderr,
            stdin: self.stdin || self.terminal,
            terminal: self.terminal,
            limit: self.limit,
            console: &scratch.path().join("console"),
        };
        session::run(command, feed, terms)
    }

    /// Whether the command sees only what is packed for it.
    fn is_packed(&self) -> bool {
        self.count || self.emulation == Emulation::Vtx
    }

    fn job(&self, command: &[OsString]) -> Result<Job> {
        Ok(Job {
            command: command.to_vec(),
            environment: self.environment(),
            directory: std::env::current_dir()
                .context("finding the working directory")?
                .into_os_string(),
            root: Root::Host,
            line: Line::Port,
            terminal: self.terminal.then(terminal::window),
            stdin: self.stdin,
            trace: self.trace,
            early_modules: Vec::new(),
            modules: Vec::new(),
        })
    }

    fn environment(&self) -> Vec<OsString> {
        // A packed command gets a small, fixed environment: even the length of
        // a variable moves its stack, and then no two callers count alike.
        let fixed = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
        ];
        let mut variables: Vec<(OsString, OsString)> = if self.is_packed() {
            fixed.map(|(name, value)| (name.into(), value.into())).into()
        } else {
            std::env::vars_os().collect()
        };
        variables.extend(self.environment.iter().cloned());
        variables
            .into_iter()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name
            })
            .collect()
    }
}
