//! A program beside a job, in the machine of that job: `microvm exec`.
//!
//! ```text
//!  standard streams, signals ◄─► relay ◄─► sockets ─┐
//!                      name ─► the runner's desk ◄──┴─► its vsock ◄─► another init
//! ```
//!
//! The conversation is the one of a job with its init. The runner only joins its
//! two ends.

use crate::Error;
use crate::caller::Caller;
use crate::launcher;
use crate::named::{Name, ask};
use crate::relay::signals::Signals;
use crate::relay::{Finished, Others, Relay, Report};
use crate::run::{Outcome, outcome, position, window};
use guest::protocol::{Spec, Streams, port};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmm::ending::Ending;

/// How long a guest may take to start its side.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a user asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The job.
    pub name: Name,
    /// The program and its arguments.
    pub arguments: Vec<OsString>,
    /// `NAME=value`, or `NAME` for what the caller has, beside the job's own.
    pub env: Vec<String>,
    /// The working directory; else the caller's, where the job has it.
    pub pwd: Option<PathBuf>,
    /// Whether there is a terminal; else as the caller's streams are.
    pub terminal: Option<bool>,
}

/// Runs a program to its end. Before any thread is started.
pub fn run(options: Options) -> Result<Outcome, Error> {
    let caller = Caller::this().map_err(Error::host("caller"))?;
    let spec = spec(&options, &caller)?;
    let side = Side { deadline: Some(Instant::now() + PATIENCE), wait: false };
    match beside(&options.name, spec, caller.rewinds, side)? {
        Beside::Ended(outcome) => Ok(outcome),
        Beside::Never(Some(error)) => Err(error),
        // As everything else that ran in the machine.
        Beside::Never(None) => Ok(Outcome::Signalled(libc::SIGKILL as u8)),
    }
}

/// How a session is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Side {
    /// When its guest must have answered.
    pub deadline: Option<Instant>,
    /// The machine may not be there yet.
    pub wait: bool,
}

/// What has become of a session.
pub enum Beside {
    /// It ran.
    Ended(Outcome),
    /// It never did: the job is not there, or has gone meanwhile.
    Never(Option<Error>),
}

/// Runs a program beside the job of that name. Before any thread is started, or after
/// one that never ran.
pub fn beside(name: &Name, spec: Spec, rewinds: bool, side: Side) -> Result<Beside, Error> {
    let socket = spec.wire.descriptor.map(launcher::twin).transpose();
    let socket = socket.map_err(Error::host("PMI socket"))?;
    let signals = Signals::take().map_err(Error::host("signals"))?;
    let start = position(rewinds);
    let ending = Ending::new().map_err(Error::host("eventfd"))?;
    let Side { deadline, wait } = side;
    let others = Others { guest_of_another: true, deadline, ..Others::default() };
    let (relay, mut streams) = Relay::start(spec, signals, ending, others)?;
    streams.extend(socket.map(|socket| (port::WIRE, socket)));
    let refused = ask::attach(name, &streams, wait).err();
    // Those that the guest does not come for end with this side.
    drop(streams);
    let Finished { report, lost, started } = relay.finish();
    match (report, refused) {
        (Some(Report::Killed(signal)), _) => Ok(Beside::Ended(Outcome::Signalled(signal))),
        (_, Some(error)) => Ok(Beside::Never(Some(error))),
        (Some(report), None) => outcome(report, lost, start).map(Beside::Ended),
        (None, None) if started => Ok(Beside::Ended(Outcome::Signalled(libc::SIGKILL as u8))),
        (None, None) => Ok(Beside::Never(None)),
    }
}

fn spec(options: &Options, caller: &Caller) -> Result<Spec, Error> {
    let entry =
        |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let mut environment = Vec::new();
    let term = caller.variable("TERM").ok().filter(|_| options.terminal != Some(false));
    environment.extend(term.map(entry));
    for given in &options.env {
        environment.push(entry(caller.variable(given)?));
    }
    let (directory, directory_required) = match &options.pwd {
        Some(pwd) if !pwd.is_absolute() => return Err(Error::Pwd(pwd.clone())),
        Some(pwd) => (pwd.clone(), true),
        None => (caller.directory.clone().unwrap_or_else(|| "/".into()), false),
    };
    Ok(Spec {
        identity: caller.identity.clone(),
        arguments: options.arguments.iter().map(|word| word.clone().into_vec()).collect(),
        environment,
        directory: directory.into_os_string().into_vec(),
        directory_required,
        streams: Streams {
            terminal: window(options.terminal, caller),
            closed: caller.closed,
            merged: caller.merged,
            rewinds: caller.rewinds,
        },
        ..Spec::default()
    })
}
