//! A job from its options to its end.

use crate::caller::Caller;
use crate::options::Options;
use crate::plan::Plan;
use crate::relay::signals::Signals;
use crate::relay::{Finished, Relay, Report};
use crate::{Error, init, status};
use devices::backend::port::terminal_size;
use guest::protocol::{Failure, How, Window};
use vmm::console::terminal;
use vmm::ending::Ending;
use vmm::exit::Exit;
use vmm::machine::{self, Attached};

pub use crate::relay::signals::die_by;

/// How the runner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With the job's exit status.
    Exited(u8),
    /// By the job's signal ([`die_by`]).
    Signalled(u8),
}

/// Runs a job to its end. Before any other thread is started.
pub fn run(options: Options) -> Result<Outcome, Error> {
    let caller = Caller::this().map_err(Error::host("caller"))?;
    let plan = Plan::new(options.clone(), &caller, window(options.terminal, &caller))?;
    let signals = Signals::take().map_err(Error::host("signals"))?;
    let start = position(caller.rewinds);
    let (_initramfs, path) = init::initramfs().map_err(Error::host("initramfs"))?;
    let config = vmm::config::Config { initrd: Some(path), ..plan.config };
    let ending = Ending::new().map_err(Error::host("eventfd"))?;
    let (relay, streams) = Relay::start(plan.spec, signals, ending.clone())?;
    let attached = Attached { signals: None, streams: Some(streams), ending: Some(ending) };
    let exit = machine::run(&config, attached)?;
    let Finished { report, lost } = relay.finish();
    conclude(exit, report, lost, start)
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
