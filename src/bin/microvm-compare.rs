//! `microvm-compare`, what `microvm compare` becomes: options in, a report out.
//!
//! It is a program of its own so that system call tracing, namespaces, statistics
//! and pages of charts are no part of the one that guests can attack. Its first
//! argument is the microvm that it starts machines and jobs with:
//!
//! ```text
//!  microvm-compare MICROVM [OPTION]…
//! ```

#[path = "../target.rs"]
mod target;

use ::compare::{Effort, Options, Progress, Report, Subject, Subjects, diff, html, text};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use target::Target;
use vmm::exit::status;
use vmm::host::find_command;

const EXAMPLES: &str = "\
Examples:
  microvm compare --quick --html report.html
      Native, containers and every mode of virtual machines, side by side.
  microvm compare --subjects ns,crun --full --json > today.json
      Every namespace by itself, all of them, and crun.
  microvm compare --command 'sort big >/dev/null'
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
#[derive(Debug, Parser)]
#[command(
    name = "microvm compare",
    bin_name = "microvm compare",
    verbatim_doc_comment,
    next_line_help = true,
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    after_help = "microvm compare --help tells more: examples and subjects."
)]
struct CompareArgs {
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

    /// A program and its arguments, to be measured too, or a line for sh
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
enum Error {
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
    /// Nobody reads what is printed.
    #[error("standard output: {}", vmm::plain(.0))]
    Output(io::Error),
    /// A report that JSON has no words for.
    #[error("report: {0}")]
    Json(serde_json::Error),
}

impl Error {
    /// The exit status that says so.
    fn status(&self) -> u8 {
        match self {
            Self::Compare(::compare::Error::Interrupted(signal)) => {
                status::SIGNAL_BASE.wrapping_add(*signal as u8)
            }
            Self::Compare(_) => status::HOST,
            Self::Report(_) | Self::Html { .. } => status::INPUT,
            Self::Output(_) => status::OUTPUT_LOST,
            Self::Json(_) => status::INTERNAL,
        }
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        say(&vmm::text::panic(info));
        std::process::exit(status::INTERNAL.into());
    }));
    let mut words = std::env::args_os().skip(1);
    let Some(microvm) = words.next().filter(|path| Path::new(path).is_absolute()) else {
        say("microvm-compare: is a part of microvm compare: call that");
        return ExitCode::from(status::USAGE);
    };
    let wanted =
        CompareArgs::try_parse_from([OsString::from("microvm compare")].into_iter().chain(words));
    let told = match wanted {
        Ok(wanted) => wanted.run(microvm.into()),
        // --help and --version come this way too.
        Err(told) if !told.use_stderr() => told.print().map_err(Error::Output),
        Err(error) => {
            let complaint = vmm::text::complaint(&error.to_string());
            say(&format!("{complaint}: see microvm compare --help"));
            return ExitCode::from(status::USAGE);
        }
    };
    match told {
        Ok(()) => ExitCode::from(status::OK),
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(error.status())
        }
    }
}

fn say(text: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "microvm: {}", vmm::visible(text));
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}

impl CompareArgs {
    /// Does what is asked for.
    fn run(self, microvm: PathBuf) -> Result<(), Error> {
        match self.command {
            Some(CompareCommand::Diff { before, after }) => {
                print(&diff::render(&diff::read(&before)?, &diff::read(&after)?))
            }
            Some(CompareCommand::Show { report, html, samples }) => {
                let page = html.as_deref().map(open).transpose()?;
                tell(diff::read(&report)?, page, false, samples)
            }
            None => self.measure(microvm),
        }
    }

    fn measure(self, microvm: PathBuf) -> Result<(), Error> {
        // Before an hour is spent on what can't be written.
        let page = self.html.as_deref().map(open).transpose()?;
        let effort = match (self.quick, self.full) {
            (true, _) => Effort::Quick,
            (_, true) => Effort::Full,
            _ => Effort::Normal,
        };
        let options = Options {
            subjects: self.subjects.map_or_else(Subject::few, |subjects| subjects.0),
            command: shell_line(self.program),
            effort,
            kernel: self.kernel,
            microvm,
        };
        let mut line = Line::default();
        let report = ::compare::run(&options, &mut line);
        line.clear();
        tell(report?, page, self.json, self.samples)
    }
}

/// A single word with blanks that is no program's name is a line for the shell.
fn shell_line(words: Vec<String>) -> Vec<String> {
    match words.as_slice() {
        [line] if line.contains(char::is_whitespace) && find_command(line).is_none() => {
            vec!["sh".to_owned(), "-c".to_owned(), line.clone()]
        }
        _ => words,
    }
}

fn tell(report: Report, page: Option<Target>, json: bool, samples: bool) -> Result<(), Error> {
    if let Some(page) = page {
        page.write(&html::render(&report)).map_err(refused)?;
    }
    match (json, samples) {
        (true, _) => {
            let text = serde_json::to_string_pretty(&report).map_err(Error::Json)?;
            print(&(text + "\n"))
        }
        (_, true) => print(&text::samples(&report)),
        _ => print(&text::render(&report, width())),
    }
}

fn open(path: &Path) -> Result<Target, Error> {
    Target::open(path).map_err(refused)
}

fn refused((path, source): target::Refusal) -> Error {
    Error::Html { path, source }
}

/// Columns of a terminal that does not tell.
const WIDTH: usize = 80;

/// Of the terminal, if output is one.
fn width() -> Option<usize> {
    let terminal = io::stdout().is_terminal();
    let columns =
        || devices::backend::port::terminal_size(libc::STDOUT_FILENO).map(|(c, _)| c.into());
    terminal.then(|| columns().unwrap_or(WIDTH))
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_word_with_blanks_is_a_line_for_the_shell() {
        let line = |words: &[&str]| shell_line(words.iter().map(|w| (*w).to_owned()).collect());
        assert_eq!(line(&["sort big"]), ["sh", "-c", "sort big"]);
        assert_eq!(line(&["sort", "big file"]), ["sort", "big file"]);
        assert_eq!(line(&["sort"]), ["sort"]);
        assert!(line(&[]).is_empty());
    }

    #[test]
    fn the_command_line_is_consistent_and_its_help_fits_a_terminal() {
        let mut command = CompareArgs::command();
        command.clone().debug_assert();
        for help in [command.render_help(), command.render_long_help()] {
            let help = help.to_string();
            let long = help.lines().find(|line| line.chars().count() > WIDTH);
            assert_eq!(long, None);
        }
    }
}
