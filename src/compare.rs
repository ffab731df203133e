//! `microvm compare`: options in, a report out.

use ::compare::{Effort, Options, Progress, Report, Subject, Subjects, diff, html, text};
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use vmm::exit::status;

const EXAMPLES: &str = "\
Examples:
  microvm compare --quick --html report.html
      Native, containers and every mode of virtual machines, side by side.
  microvm compare --subjects ns,crun --full --json > today.json
      Every namespace by itself, all of them, and crun.
  microvm compare --command sh -c 'sort big >/dev/null'
      A program of your own, in everything that can run this host's programs.
  microvm compare diff yesterday.json today.json
      What has changed by more than chance.

Subjects:
  native        a process; always there, as all others are compared with it
  ns:NAME       one namespace: mount, uts, ipc, pid, network, user, cgroup, time
  ns:all        all of them
  ns:sandbox    and no capabilities, a system call filter, control groups
  bwrap, crun, runc, podman, systemd-nspawn, apptainer
                where they are installed
  vm:job        microvm run
  vm:MODE       a virtual machine of a mode: pv, pvhvm, hvm-pv, hvm
  ns, vm, all   all of those. The default is all but the single namespaces.
";

/// Compare virtual machines with containers on this host, by measuring
///
/// One small program runs in all of them: it times system calls, processor,
/// memory, disk and network, and tries what it can see and do of the host.
/// Nothing is left behind, whenever it is interrupted.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    next_line_help = true,
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    after_help = "microvm compare --help tells more: examples and subjects."
)]
pub struct CompareArgs {
    #[command(subcommand)]
    command: Option<CompareCommand>,

    /// What is compared: NAME[,NAME]… [default: all but single namespaces]
    #[arg(long, value_name = "LIST")]
    subjects: Option<Subjects>,

    /// Few repetitions: enough to see factors
    #[arg(long, conflicts_with = "full")]
    quick: bool,

    /// Until intervals are narrow: many minutes
    #[arg(long)]
    full: bool,

    /// Write a page with charts; it needs nothing else
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,

    /// Print everything, all samples too, as JSON
    #[arg(long)]
    json: bool,

    /// Print each figure with its interval instead of the table
    #[arg(long, conflicts_with = "json")]
    samples: bool,

    /// Guest kernel [default: as of microvm run]
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// A program of this host to be measured as well, and its arguments
    #[arg(long = "command", value_name = "PROGRAM…", num_args = 1.., allow_hyphen_values = true)]
    program: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum CompareCommand {
    /// Tell what has changed from one report to another
    Diff {
        /// What --json has printed before
        before: PathBuf,
        /// What --json has printed after
        after: PathBuf,
    },
    /// Print a report again, or make a page of it
    Show {
        /// What --json has printed
        report: PathBuf,
        /// Write a page with charts
        #[arg(long, value_name = "PATH")]
        html: Option<PathBuf>,
        /// Print each figure with its interval instead of the table
        #[arg(long)]
        samples: bool,
    },
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be measured.
    #[error(transparent)]
    Compare(#[from] ::compare::Error),
    /// A report can't be read.
    #[error(transparent)]
    Report(#[from] diff::Error),
    /// The page can't be written.
    #[error("html {path}: {}: choose another place", vmm::plain(.source), path = path.display())]
    Html {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Which program this is can't be told.
    #[error("/proc/self/exe: {}", vmm::plain(.0))]
    Own(io::Error),
}

impl Error {
    /// The exit status that says so.
    pub fn status(&self) -> u8 {
        match self {
            Self::Compare(::compare::Error::Interrupted(signal)) => {
                status::SIGNAL_BASE.wrapping_add(*signal as u8)
            }
            Self::Compare(_) => status::HOST,
            Self::Report(_) | Self::Html { .. } => status::INPUT,
            Self::Own(_) => status::INTERNAL,
        }
    }
}

/// What is printed.
pub enum Told {
    /// Text as it is.
    Text(String),
    /// The report as JSON.
    Json(Box<Report>),
}

impl CompareArgs {
    /// Does what is asked for.
    pub fn run(self) -> Result<Told, Error> {
        match self.command {
            Some(CompareCommand::Diff { before, after }) => {
                Ok(Told::Text(diff::render(&diff::read(&before)?, &diff::read(&after)?)))
            }
            Some(CompareCommand::Show { report, html, samples }) => {
                tell(diff::read(&report)?, html.as_deref(), false, samples)
            }
            None => self.measure(),
        }
    }

    fn measure(self) -> Result<Told, Error> {
        // Before an hour is spent on what can't be written.
        if let Some(path) = &self.html {
            write(path, "")?;
        }
        let effort = match (self.quick, self.full) {
            (true, _) => Effort::Quick,
            (_, true) => Effort::Full,
            _ => Effort::Normal,
        };
        let options = Options {
            subjects: self.subjects.map_or_else(Subject::few, |subjects| subjects.0),
            command: self.program,
            effort,
            kernel: self.kernel,
            microvm: std::env::current_exe().map_err(Error::Own)?,
        };
        let mut line = Line::default();
        let report = ::compare::run(&options, &mut line);
        line.clear();
        tell(report?, self.html.as_deref(), self.json, self.samples)
    }
}

fn tell(report: Report, page: Option<&Path>, json: bool, samples: bool) -> Result<Told, Error> {
    if let Some(path) = page {
        write(path, &html::render(&report))?;
    }
    Ok(match (json, samples) {
        (true, _) => Told::Json(Box::new(report)),
        (_, true) => Told::Text(text::samples(&report)),
        _ => Told::Text(text::render(&report, width())),
    })
}

fn write(path: &Path, page: &str) -> Result<(), Error> {
    std::fs::write(path, page).map_err(|source| Error::Html { path: path.to_owned(), source })
}

/// Of the terminal, if output is one.
fn width() -> Option<usize> {
    let terminal = io::stdout().is_terminal();
    let columns =
        || devices::backend::port::terminal_size(libc::STDOUT_FILENO).map(|(c, _)| c.into());
    terminal.then(|| columns().unwrap_or(crate::doctor::WIDTH))
}

/// How far it is: a line that is written over on a terminal, and elsewhere one for
/// each tenth.
#[derive(Default)]
struct Line {
    last: Option<(usize, OsString)>,
}

impl Line {
    fn clear(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

impl Progress for Line {
    fn step(&mut self, done: usize, all: usize, what: &str) {
        let percent = done * 100 / all.max(1);
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{percent:3} %  {what}");
            let _ = io::stderr().flush();
        } else if self.last.as_ref().is_none_or(|(last, _)| percent / 10 > last / 10) {
            eprintln!("{percent:3} %  {what}");
        } else {
            return;
        }
        self.last = Some((percent, what.into()));
    }
}
