//! A job from its options to its end.

use crate::caller::Caller;
use crate::image::progress::Progress;
use crate::isolation::{self, Isolation, Reachable};
use crate::options::Options;
use crate::plan::Plan;
use crate::relay::signals::Signals;
use crate::relay::{Finished, Relay, Report};
use crate::{Error, init, status};
use devices::backend::port::terminal_size;
use guest::protocol::{Failure, How, Window};
use vmm::config::Config;
use vmm::console::terminal;
use vmm::ending::Ending;
use vmm::exit::Exit;
use vmm::machine::{self, Attached, Confine};

pub use crate::relay::signals::die_by;

/// How the runner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With the job's exit status.
    Exited(u8),
    /// By the job's signal ([`die_by`]).
    Signalled(u8),
}

/// A job that only has to be started.
pub struct Job {
    plan: Plan,
    isolation: Isolation,
    rewinds: bool,
}

impl Job {
    /// Opens and checks all that the user has named; `progress` is told of an image
    /// that has to be made first. Before anything else of this process is changed.
    pub fn prepare(options: Options, progress: &mut dyn Progress) -> Result<Self, Error> {
        let caller = Caller::this().map_err(Error::host("caller"))?;
        let (isolation, terminal) = (options.isolation, window(options.terminal, &caller));
        let plan = Plan::new(options, &caller, terminal, progress)?;
        Ok(Self { plan, isolation, rewinds: caller.rewinds })
    }

    /// Runs it to its end. Before any other thread is started.
    pub fn run(self) -> Result<Outcome, Error> {
        let Self { plan, isolation, rewinds } = self;
        let signals = Signals::take().map_err(Error::host("signals"))?;
        let start = position(rewinds);
        let (_initramfs, path) = init::initramfs().map_err(Error::host("initramfs"))?;
        let config = Config { initrd: Some(path), ..plan.config };
        let ending = Ending::new().map_err(Error::host("eventfd"))?;
        let (relay, streams) = Relay::start(plan.spec, signals, ending.clone())?;
        let attached = Attached {
            streams: Some(streams),
            ending: Some(ending),
            confine: Some(confine(isolation, &config)),
            ..Attached::default()
        };
        let exit = machine::run(&config, attached)?;
        let Finished { report, lost } = relay.finish();
        conclude(exit, report, lost, start)
    }
}

/// Gives up all but what this machine shares.
fn confine(level: Isolation, config: &Config) -> Confine {
    let reachable = |share: &vmm::config::Share| Reachable {
        path: share.path.clone(),
        writable: !share.readonly,
    };
    let shares: Vec<Reachable> = config.shares.iter().map(reachable).collect();
    let network = !config.nets.is_empty();
    Box::new(move || isolation::apply(level, &shares, network))
}

/// The terminal that the job gets: by default, if input and output are one.
fn window(wanted: Option<bool>, caller: &Caller) -> Option<Window> {
    let is = |fd: i32| !caller.closed[fd as usize] && terminal::is_terminal(fd);
    let there = is(libc::STDIN_FILENO) && is(libc::STDOUT_FILENO);
    if !wanted.unwrap_or(there) || !is(libc::STDIN_FILENO) {
        return None;
    }
    let (columns, rows) = terminal_size(libc::STDIN_FILENO).unwrap_or((80, 24));
    Some(Window { columns, rows })
}

fn position(rewinds: bool) -> Option<i64> {
    // SAFETY: lseek takes numbers, and moves nothing here.
    rewinds.then(|| unsafe { libc::lseek(libc::STDIN_FILENO, 0, libc::SEEK_CUR) })
}

fn conclude(
    exit: Exit,
    report: Option<Report>,
    lost: Option<Error>,
    start: Option<i64>,
) -> Result<Outcome, Error> {
    let refused = |status, text| Err(Error::Refused { status, text });
    match report {
        None => Err(Error::GuestGone { how: exit.to_string() }),
        Some(Report::Wrong(why)) => Err(Error::Protocol(why)),
        Some(Report::Killed(signal)) => Ok(Outcome::Signalled(signal)),
        Some(Report::Failed(kind, text)) => match kind {
            Failure::Setup => refused(status::FAILED, format!("guest: {text}")),
            Failure::NotExecutable => refused(status::NOT_EXECUTABLE, text),
            Failure::NotFound => refused(status::NOT_FOUND, text),
        },
        Some(Report::Ended { how, usage, input }) => {
            log::info!("job: {how:?}, {usage:?}");
            if let (Some(start), Ok(input)) = (start, i64::try_from(input)) {
                let next = start.saturating_add(input);
                // What nobody has read is the next reader's.
                // SAFETY: lseek takes numbers.
                unsafe { libc::lseek(libc::STDIN_FILENO, next, libc::SEEK_SET) };
            }
            match (how, lost) {
                (How::Exited(0), Some(lost)) => Err(lost),
                (How::Exited(status), _) => Ok(Outcome::Exited(status)),
                (How::Signalled(signal), Some(lost)) if i32::from(signal) == libc::SIGPIPE => {
                    Err(lost)
                }
                (How::Signalled(signal), _) => Ok(Outcome::Signalled(signal)),
            }
        }
    }
}
