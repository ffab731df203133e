//! The command line: arguments in, plain configuration out, and at the end one
//! line and an exit status that say what happened.

mod args;
mod companion;
mod ctl;
mod doctor;
mod image_commands;
mod jobs;
mod logger;
mod measure_command;
mod run;
mod spectrum;
mod target;

use args::{Args, ArgsError, Command, Level};
use clap::Parser;
use companion::Companion;
use ctl::CtlArgs;
use job::image::bar::Bar;
use job::{Job, Outcome};
use jobs::{ExecArgs, PsArgs, StopArgs};
use run::RunArgs;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use vmm::config::Config;
use vmm::console::{signals, terminal};
use vmm::control::ClientError;
use vmm::exit::{Exit, status};
use vmm::machine::Attached;
use vmm::{host, machine};

/// Why nothing ran, or why it ended early.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error(transparent)]
    Job(#[from] job::Error),
    /// About a job that is somebody else's to end.
    #[error(transparent)]
    Named(job::Error),
    #[error("signals: {}", vmm::plain(.0))]
    Signals(io::Error),
    #[error("standard output: {}", vmm::plain(.0))]
    Output(io::Error),
    #[error(transparent)]
    Image(#[from] job::image::Error),
    #[error(transparent)]
    Companion(#[from] companion::Error),
    #[error("{}", measure_command::told(.0, .1))]
    Report(PathBuf, io::Error),
    #[error(transparent)]
    Measure(#[from] measure::Error),
    #[error("configuration: {0}: JSON holds only UTF-8: rename the file")]
    Json(serde_json::Error),
}

impl Error {
    fn status(&self) -> u8 {
        match self {
            Self::Args(ArgsError::NoKernel) => status::USAGE,
            Self::Args(_) | Self::Json(_) | Self::Image(_) | Self::Control(_) | Self::Named(_) => {
                status::INPUT
            }
            Self::Report(..) | Self::Companion(_) => status::INPUT,
            Self::Measure(error) => error.status(),
            Self::Machine(error) => error.status(),
            Self::Job(error) => error.status(),
            Self::Signals(_) => status::INTERNAL,
            Self::Output(_) => status::OUTPUT_LOST,
        }
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(on_panic));
    let args = match Args::try_parse() {
        Ok(args) => args,
        // --help and --version come this way too.
        Err(told) if !told.use_stderr() => {
            let printed = told.print();
            return finish(printed.map(|()| status::OK).map_err(Error::Output));
        }
        Err(error) => {
            logger::say(&args::one_line(&error));
            let of_job = |word| word == "run" || word == "exec";
            let of_job = std::env::args_os().nth(1).is_some_and(of_job);
            // What a job itself may say is no status of ours.
            let status = if of_job { job::status::FAILED } else { status::USAGE };
            return ExitCode::from(status);
        }
    };
    finish(match args.command {
        Some(Command::Doctor { json }) => examine(json),
        Some(Command::Ctl(wanted)) => ask(wanted),
        Some(Command::Compare { words }) => Err(Companion::Compare.become_it(words).into()),
        Some(Command::Spectrum(wanted)) => wanted.run(),
        Some(Command::Run(wanted)) => run_job(*wanted),
        Some(Command::Exec(wanted)) => exec(wanted),
        Some(Command::Ps(wanted)) => list_jobs(&wanted),
        Some(Command::Stop(wanted)) => stop_job(&wanted),
        Some(Command::Image(command)) => image_commands::run(command),
        None => run(args),
    })
}

fn finish(result: Result<u8, Error>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        logger::say(&error.to_string());
        error.status()
    }))
}

fn run(args: Args) -> Result<u8, Error> {
    logger::install(args.log.into());
    let print_config = args.print_config;
    let config = args.into_config()?;
    if print_config {
        let text = serde_json::to_string_pretty(&config).map_err(Error::Json)?;
        return print(&(text + "\n")).map(|()| status::OK);
    }
    let exit = run_machine(&config)?;
    logger::say(&exit.to_string());
    Ok(exit.status())
}

fn run_machine(config: &Config) -> Result<Exit, Error> {
    // Before the first thread: threads take over which signals are blocked.
    let signals = signals::signal_fd().map_err(Error::Signals)?;
    if config.uses_stdio() && terminal::is_terminal(libc::STDIN_FILENO) {
        signals::block_job_control().map_err(Error::Signals)?;
        signals::block_resize().map_err(Error::Signals)?;
    }
    Ok(machine::run(config, Attached { signals: Some(signals), ..Attached::default() })?)
}

/// Ends as the job does.
fn run_job(wanted: RunArgs) -> Result<u8, Error> {
    logger::install(wanted.log.into());
    BROKEN.store(job::status::FAILED, Ordering::Relaxed);
    let mut bar = Bar::default();
    let job = Job::prepare(wanted.into_options(), &mut bar)?;
    drop(bar);
    Ok(end_as(job.run()?))
}

/// The exit status; or the signal, which returns only if it ends nobody.
fn end_as(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Exited(status) => status,
        Outcome::Signalled(signal) => {
            job::die_by(signal);
            status::SIGNAL_BASE.wrapping_add(signal)
        }
    }
}

/// Runs a program beside a job.
fn exec(wanted: ExecArgs) -> Result<u8, Error> {
    logger::install(Level::Warn.into());
    BROKEN.store(job::status::FAILED, Ordering::Relaxed);
    Ok(end_as(job::exec::run(wanted.into_options())?))
}

fn list_jobs(wanted: &PsArgs) -> Result<u8, Error> {
    let all = job::named::ask::list().map_err(Error::Named)?;
    match wanted.json {
        true => print_json(&jobs::as_json(&all))?,
        false => print(&jobs::table(&all))?,
    }
    Ok(status::OK)
}

fn stop_job(wanted: &StopArgs) -> Result<u8, Error> {
    if !wanted.stop().map_err(Error::Named)? {
        logger::say(&format!("{}: did not end by itself: killed", wanted.name));
    }
    Ok(status::OK)
}

/// Asks a running machine for something and prints its answer.
fn ask(wanted: CtlArgs) -> Result<u8, Error> {
    let answer = wanted.ask()?;
    print(&format!("{answer}\n")).map(|()| status::OK)
}

fn examine(json: bool) -> Result<u8, Error> {
    let report = host::doctor::examine();
    if json {
        print_json(&report)?;
    } else {
        print(&doctor::table(&report, style()))?;
    }
    Ok(if report.linux_guests { status::OK } else { status::HOST })
}

/// For standard output, whatever it is.
fn style() -> doctor::Style {
    let wrap = io::stdout().is_terminal();
    // NO_COLOR counts when it is not empty (no-color.org).
    let colour = wrap && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    doctor::Style { wrap, colour }
}

fn print_json(report: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(report).map_err(Error::Json)?;
    print(&(text + "\n"))
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}

/// The exit status for a fault of the monitor's own.
static BROKEN: AtomicU8 = AtomicU8::new(status::INTERNAL);

/// A fault of the monitor's own: one line, and the exit status that says so. By
/// now the terminal is as it was: its own hook runs before this one.
fn on_panic(info: &PanicHookInfo) {
    logger::say(&vmm::text::panic(info));
    // SAFETY: _exit has no preconditions. Destructors of other threads must not
    // run into what this one left half done.
    unsafe { libc::_exit(BROKEN.load(Ordering::Relaxed).into()) }
}
