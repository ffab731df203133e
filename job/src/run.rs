//! A job from its options to its end.

use crate::caller::Caller;
use crate::exec::{self, Beside, Side};
use crate::image::progress::Progress;
use crate::isolation::{self, Isolation, Reachable, Situation, Tried};
use crate::launcher::{self, Launcher};
use crate::modules::{self, Needs};
use crate::named::desk::{About, Desk};
use crate::named::{Entry, Name};
use crate::options::Options;
use crate::plan::Plan;
use crate::relay::signals::Signals;
use crate::relay::{Dialer, Finished, Others, Relay, Report, Station};
use crate::{Error, init, status};
use devices::backend::port::terminal_size;
use devices::backend::prepared::{Later, Prepared};
use devices::backend::segment::socket_path;
use guest::protocol::{Failure, How, Window, port};
use std::ffi::{OsStr, OsString};
use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, SystemTime};
use vmm::config::{Config, NetBackend};
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
    /// What its kernel needs to know its devices.
    needs: Needs,
    rewinds: bool,
    image: OsString,
    place: Place,
}

/// Where it runs.
enum Place {
    /// In a machine of its own, which others may find.
    Own {
        entry: Option<Entry>,
        /// Its PMIx server, if it is a rank.
        server: Option<SocketAddrV4>,
    },
    /// In that of another rank, as long as there is one.
    Others { name: Name, server: Option<SocketAddrV4> },
}

/// How often a rank looks whether the machine of others that are about to end has
/// gone.
const PAUSE: Duration = Duration::from_millis(50);

impl Job {
    /// Opens and checks all that the user has named; `progress` is told of an image
    /// that has to be made first. Before anything else of this process is changed.
    pub fn prepare(options: Options, progress: &mut dyn Progress) -> Result<Self, Error> {
        let caller = Caller::this().map_err(Error::host("caller"))?;
        let (isolation, terminal) = (options.isolation, window(options.terminal, &caller));
        let (name, image) = (options.name.clone(), options.image.clone());
        let (plan, needs) = Plan::new(options, &caller, terminal, progress)?;
        let server = caller.launcher.as_ref().and_then(|launcher| launcher.server);
        // The last of all that can fail before there is a machine.
        let place = match (caller.launcher, name) {
            (Some(launcher), name) if plan.spec.wire.shared => {
                let name = name.unwrap_or_else(|| ranks_of(&launcher, &plan));
                Place::Others { name, server }
            }
            (_, name) => {
                let entry = name.map(|name| Entry::new(&name)).transpose()?;
                Place::Own { entry, server }
            }
        };
        Ok(Self { plan, isolation, needs, rewinds: caller.rewinds, image, place })
    }

    /// Runs it to its end. Before any other thread is started.
    pub fn run(mut self) -> Result<Outcome, Error> {
        loop {
            match self.place {
                Place::Own { entry, server } => {
                    self.place = Place::Own { entry: None, server };
                    return self.host(entry, server);
                }
                Place::Others { ref name, server } => match Entry::take(name)? {
                    // The first of its host.
                    Some(entry) => self.place = Place::Own { entry: Some(entry), server },
                    None => {
                        if let Some(outcome) = self.join(name)? {
                            return Ok(outcome);
                        }
                    }
                },
            }
        }
    }

    /// Runs it in a machine that is there. `None`: the machine has gone.
    fn join(&self, name: &Name) -> Result<Option<Outcome>, Error> {
        let mut spec = self.plan.spec.clone();
        // The machine's first rank has that for all.
        spec.wire.listener = None;
        let side = Side { deadline: None, wait: true };
        match exec::beside(name, spec, self.rewinds, side)? {
            Beside::Ended(outcome) => Ok(Some(outcome)),
            Beside::Never(why) => {
                log::debug!("{name}: {}", why.map_or_else(String::new, |why| why.to_string()));
                thread::sleep(PAUSE);
                Ok(None)
            }
        }
    }

    /// Runs it in a machine of its own.
    fn host(self, entry: Option<Entry>, server: Option<SocketAddrV4>) -> Result<Outcome, Error> {
        let listed = entry.map(|entry| (entry, about(&self.plan, &self.image)));
        let Self { plan, isolation, needs, rewinds, .. } = self;
        let modules = modules::find(&plan.config.kernel, &needs)?;
        crate::mark("image and kernel are found");
        let signals = Signals::take().map_err(Error::host("signals"))?;
        let start = position(rewinds);
        // Before there is a second thread.
        let tried = isolation::separate(Situation {
            shares: !plan.config.shares.is_empty(),
            network: !plan.config.nets.is_empty() || server.is_some(),
        });
        let (_initramfs, path) = init::initramfs(&modules).map_err(Error::host("initramfs"))?;
        let config = Config { initrd: Some(path), ..plan.config };
        let ending = Ending::new().map_err(Error::host("eventfd"))?;
        let later = Later::default();
        let desk = listed.map(|(entry, about)| Desk::new(entry, about, later.clone()));
        let dialer = server.map(|server| Dialer::new(server, later.clone()));
        let station = config.nets.iter().find_map(station);
        let others = Others { desk, dialer, station, ..Others::default() };
        let socket = plan.spec.wire.descriptor.map(launcher::twin).transpose();
        let socket = socket.map_err(Error::host("PMI socket"))?;
        later.extend(socket.map(|socket| (port::WIRE, socket)));
        let (relay, streams) = Relay::start(plan.spec, signals, ending.clone(), others)?;
        later.extend(streams);
        let attached = Attached {
            streams: Some(Prepared::of(later).map_err(Error::host("epoll"))?),
            ending: Some(ending),
            confine: Some(confine(isolation, &config, tried)),
            ..Attached::default()
        };
        let exit = machine::run(&config, attached);
        crate::mark("machine is gone");
        // Without a machine there is nobody at the other end, which ends this, too.
        let Finished { report, lost, .. } = relay.finish();
        conclude(exit?, report, lost, start)
    }
}

/// The socket of a card's station, if it has one.
fn station(card: &vmm::config::Net) -> Option<Station> {
    match &card.backend {
        NetBackend::Segment(own) => Some(Station(socket_path(&own.path, own.station))),
        _ => None,
    }
}

/// What the machine of these ranks is called: others have other machines.
fn ranks_of(launcher: &Launcher, plan: &Plan) -> Name {
    let (config, spec) = (&plan.config, &plan.spec);
    let machine = (config, &spec.root, &spec.shares, &spec.scratch, &spec.hostname);
    Name::of_ranks(launcher::short(&format!("{} {machine:?}", launcher.program)))
}

/// Gives up all but what this machine shares.
fn confine(level: Isolation, config: &Config, tried: Tried) -> Confine {
    let reachable = |share: &vmm::config::Share| Reachable {
        path: share.path.clone(),
        writable: !share.readonly,
    };
    let shares: Vec<Reachable> = config.shares.iter().map(reachable).collect();
    let network = !config.nets.is_empty();
    Box::new(move || {
        crate::mark("machine is made");
        isolation::apply(level, &shares, network, tried)
    })
}

/// The terminal that the job gets: by default, if input and output are one.
pub(crate) fn window(wanted: Option<bool>, caller: &Caller) -> Option<Window> {
    let is = |fd: i32| !caller.closed[fd as usize] && terminal::is_terminal(fd);
    let there = is(libc::STDIN_FILENO) && is(libc::STDOUT_FILENO);
    if !wanted.unwrap_or(there) || !is(libc::STDIN_FILENO) {
        return None;
    }
    let (columns, rows) = terminal_size(libc::STDIN_FILENO).unwrap_or((80, 24));
    Some(Window { columns, rows })
}

/// What others are told of it.
fn about(plan: &Plan, image: &OsStr) -> About {
    /// Characters of a command that say what it is.
    const ENOUGH: usize = 200;
    let words = plan.spec.arguments.iter().map(|word| String::from_utf8_lossy(word).into_owned());
    let command = words.collect::<Vec<_>>().join(" ");
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    About {
        pid: std::process::id(),
        started: since.map_or(0, |since| since.as_secs()),
        image: image.to_string_lossy().into_owned(),
        command: command.chars().take(ENOUGH).collect(),
        cpus: plan.config.cpus,
        memory: plan.config.memory.0,
        state: String::new(),
    }
}

pub(crate) fn position(rewinds: bool) -> Option<i64> {
    // SAFETY: lseek takes numbers, and moves nothing here.
    rewinds.then(|| unsafe { libc::lseek(libc::STDIN_FILENO, 0, libc::SEEK_CUR) })
}

fn conclude(
    exit: Exit,
    report: Option<Report>,
    lost: Option<Error>,
    start: Option<i64>,
) -> Result<Outcome, Error> {
    match report {
        None => Err(Error::GuestGone { how: exit.to_string() }),
        Some(report) => outcome(report, lost, start),
    }
}

/// What is left to do once the guest's last word is known.
pub(crate) fn outcome(
    report: Report,
    lost: Option<Error>,
    start: Option<i64>,
) -> Result<Outcome, Error> {
    let refused = |status, text| Err(Error::Refused { status, text });
    match report {
        Report::Wrong(why) => Err(Error::Protocol(why)),
        Report::Killed(signal) => Ok(Outcome::Signalled(signal)),
        Report::Failed(kind, text) => match kind {
            Failure::Setup => refused(status::FAILED, format!("guest: {text}")),
            Failure::NotExecutable => refused(status::NOT_EXECUTABLE, text),
            Failure::NotFound => refused(status::NOT_FOUND, text),
        },
        Report::Ended { how, usage, input } => {
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
