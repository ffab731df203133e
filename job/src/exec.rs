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
use crate::named::{Name, ask};
use crate::relay::signals::Signals;
use crate::relay::{Finished, Others, Relay};
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
    let signals = Signals::take().map_err(Error::host("signals"))?;
    let start = position(caller.rewinds);
    let ending = Ending::new().map_err(Error::host("eventfd"))?;
    let others = Others { desk: None, deadline: Some(Instant::now() + PATIENCE) };
    let (relay, streams) = Relay::start(spec, signals, ending, others)?;
    // All of them, in order: those that the guest does not come for end with the
    // runner's side.
    let mut all = Vec::new();
    for number in port::CONTROL..port::CONTROL + port::COUNT {
        let found = streams.iter().find(|(port, _)| *port == number);
        all.push(match found {
            Some((_, stream)) => stream.try_clone().map_err(Error::host("socket"))?,
            None => std::os::unix::net::UnixStream::pair().map_err(Error::host("socket"))?.0,
        });
    }
    drop(streams);
    ask::attach(&options.name, &all.iter().collect::<Vec<_>>())?;
    drop(all);
    let Finished { report, lost } = relay.finish();
    match report {
        // As everything else that ran in the machine.
        None => Ok(Outcome::Signalled(libc::SIGKILL as u8)),
        Some(report) => outcome(report, lost, start),
    }
}

fn spec(options: &Options, caller: &Caller) -> Result<Spec, Error> {
    let value = |name: &str| caller.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v);
    let entry = |name: &str, value: &[u8]| [name.as_bytes(), b"=", value].concat();
    let mut environment = Vec::new();
    let term = value("TERM").filter(|_| options.terminal != Some(false));
    environment.extend(term.map(|term| entry("TERM", term.as_bytes())));
    for given in &options.env {
        environment.push(match given.split_once('=') {
            Some((name, _)) if !name.is_empty() => given.clone().into_bytes(),
            Some(_) => return Err(Error::Env(given.clone())),
            None => {
                let value = value(given).ok_or_else(|| Error::Env(given.clone()))?;
                entry(given, value.as_bytes())
            }
        });
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
