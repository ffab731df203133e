//! The comparison itself: what is measured, in which order, how often.
//!
//! Subjects take turns: whatever the host does meanwhile happens to all of them.

mod steps;

use crate::Error;
use crate::catalog::{Group, METRICS, Metric, PROBES, is_beyond};
use crate::command::{DISK, Work, Workshop};
use crate::host;
use crate::isolate::{self, Witnesses};
use crate::processes::end_others;
use crate::report::{Column, NO_GUEST, Report, VERSION, Value};
use crate::spawn::{Child, Ended, Signals, last_words};
use crate::subject::Subject;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Some seconds for a process or a container, and a start of each machine for each step.
    Quick,
    /// A few minutes.
    Normal,
    /// As much as intervals become narrow from.
    Full,
}

impl Effort {
    fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Normal => "normal",
            Self::Full => "full",
        }
    }

    fn amounts(self) -> Amounts {
        let of = |starts, seconds, rate, rounds, batch, batches, holders| Amounts {
            starts,
            patience: Duration::from_secs(seconds),
            rate: Duration::from_millis(rate),
            rounds,
            batch,
            batches,
            holders,
        };
        match self {
            Self::Quick => of(9, 2, 400, 2, "300", "15", 1),
            Self::Normal => of(21, 8, 1500, 3, "500", "31", 8),
            Self::Full => of(60, 40, 5000, 5, "1000", "51", 64),
        }
    }
}

/// Of one subject.
struct Amounts {
    starts: usize,
    /// Starts, once there are three of them, end when they have taken so long.
    patience: Duration,
    /// How long starts are counted, for each concurrency.
    rate: Duration,
    rounds: usize,
    /// Microseconds: shorter than a scheduler's turn, so that what else runs on the
    /// host falls into some of the batches and not into all.
    batch: &'static str,
    batches: &'static str,
    /// Instances at once, beside the first, whose memory is looked at.
    holders: usize,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is compared.
    pub subjects: Vec<Subject>,
    /// A program of the user's, or none.
    pub command: Vec<String>,
    /// How much is measured.
    pub effort: Effort,
    /// The kernel of guests; else it is looked for.
    pub kernel: Option<PathBuf>,
    /// This program.
    pub microvm: PathBuf,
}

/// Who is told how far it is.
pub trait Progress {
    /// `done` of `all` steps are done, and the next is `what`.
    fn step(&mut self, done: usize, all: usize, what: &str);
}

/// Longest wait for anything: machines may be emulated, and emulated twice.
const LIMIT: Duration = Duration::from_secs(180);

/// Measures all of it.
///
/// Before the first thread, as signals are blocked for all of them.
pub fn run(options: &Options, progress: &mut dyn Progress) -> Result<Report, Error> {
    let signals = Signals::take().map_err(Error::host("signals"))?;
    // SAFETY: prctl takes numbers. What runtimes leave behind comes to us.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let result = compare(options, &signals, progress);
    end_others(&[]);
    result
}

fn compare(
    options: &Options,
    signals: &Signals,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let host = host::examine();
    let emulated = host.emulated || host.virtualization_emulated;
    let columns = options.subjects.iter().map(|subject| Column {
        subject: subject.to_string(),
        emulated: subject.is_machine() && emulated,
        ..Column::default()
    });
    let mut run = Run {
        workshop: Workshop::new(options.microvm.clone(), options.kernel.clone())?,
        amounts: options.effort.amounts(),
        entries: options.subjects.iter().copied().zip(columns).collect(),
        signals,
        progress,
        done: 0,
        all: 0,
    };
    run.all(options)?;
    let subjects = run.entries.into_iter().map(|(_, column)| column).collect();
    Ok(Report {
        version: VERSION,
        host,
        effort: options.effort.name().to_owned(),
        command: options.command.clone(),
        subjects,
    })
}

struct Run<'a> {
    workshop: Workshop,
    amounts: Amounts,
    entries: Vec<(Subject, Column)>,
    signals: &'a Signals,
    progress: &'a mut dyn Progress,
    done: usize,
    all: usize,
}

impl Run<'_> {
    fn all(&mut self, options: &Options) -> Result<(), Error> {
        let phases = 9 + self.amounts.rounds + usize::from(!options.command.is_empty());
        self.all = phases * self.entries.len();
        self.each("trial", Self::trial)?;
        self.starts(Work::Agent(&["hello"]))?;
        if !options.command.is_empty() {
            self.starts(Work::Command(&options.command))?;
        }
        self.each("starts a second", Self::rate)?;
        self.each("memory", Self::memory)?;
        self.rounds()?;
        self.mpi()?;
        self.each("exits", Self::exits)?;
        self.each("host's interface", Self::surface)?;
        self.isolation()?;
        self.complete(!options.command.is_empty());
        Ok(())
    }

    /// One step of every subject that works.
    fn each(
        &mut self,
        what: &str,
        mut step: impl FnMut(&mut Self, Subject, &mut Column) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for at in 0..self.entries.len() {
            self.turn(at, what, &mut step)?;
        }
        Ok(())
    }

    fn turn(
        &mut self,
        at: usize,
        what: &str,
        step: &mut impl FnMut(&mut Self, Subject, &mut Column) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some((subject, mut column)) = self.entries.get(at).cloned() else { return Ok(()) };
        self.progress.step(self.done.min(self.all), self.all, &format!("{subject}: {what}"));
        self.done += 1;
        if column.skipped.is_some() {
            return Ok(());
        }
        step(self, subject, &mut column)?;
        if let Some(entry) = self.entries.get_mut(at) {
            entry.1 = column;
        }
        Ok(())
    }

    /// The first start, which warms up, tells whether there is anything to measure.
    fn trial(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        match self.agent(subject, &["hello"]) {
            Ok(ended) if ended.text.contains("@ready") => {}
            Ok(ended) => {
                let why =
                    last_words(&ended.text).unwrap_or_else(|| "its program says nothing".into());
                column.skipped = Some(why);
            }
            Err(Error::Subject(why)) => column.skipped = Some(why),
            Err(other) => return Err(other),
        }
        end_others(&[]);
        if let (Subject::Sandbox, Err(why)) = (subject, &self.workshop.groups) {
            column.notes.push(format!("without limits of control groups: {why}"));
        }
        // SAFETY: geteuid has no preconditions.
        let ordinary = unsafe { libc::geteuid() } != 0;
        if ordinary && matches!(subject, Subject::One(one) if one.name != "user") {
            column
                .notes
                .push("and a user namespace, without which only root may make it".to_owned());
        }
        Ok(())
    }

    /// Runs the agent in a subject, to its end.
    fn agent(&self, subject: Subject, words: &[&str]) -> Result<Ended, Error> {
        let order = self.workshop.order(subject, Work::Agent(words))?;
        let mut child = Child::start(order).map_err(Error::Subject)?;
        child.let_go();
        child.finish(self.signals, LIMIT)
    }

    /// Starts each in turn, until there are enough or it takes too long.
    fn starts(&mut self, work: Work) -> Result<(), Error> {
        let mut spent: Vec<Duration> = vec![Duration::ZERO; self.entries.len()];
        for round in 0..self.amounts.starts {
            let count = self.entries.len();
            for i in 0..count {
                // Another one begins each time.
                let at = (i + round) % count;
                let over = round >= 3 && spent.get(at).is_some_and(|s| *s > self.amounts.patience);
                if over || self.entries.get(at).is_none_or(|(_, column)| column.skipped.is_some()) {
                    continue;
                }
                if round > 0 {
                    self.done -= 1;
                }
                let began = Instant::now();
                self.turn(at, "starts", &mut |run, subject, column| {
                    run.start(subject, column, work)
                })?;
                if let Some(spent) = spent.get_mut(at) {
                    *spent += began.elapsed();
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, subject: Subject, column: &mut Column, work: Work) -> Result<(), Error> {
        let (timed, names): (_, &[&str]) = match work {
            Work::Command(_) | Work::Parallel(_) => {
                (self.time_command(subject, work), &["command"])
            }
            Work::Agent(_) | Work::Counted(_) => {
                (self.time(subject, work), &["start_exec", "start_made", "start_exit", "start_end"])
            }
        };
        match timed {
            Ok(parts) => {
                for (name, nanoseconds) in parts {
                    column.add(name, Value::Samples(vec![nanoseconds]));
                }
                Ok(())
            }
            Err(Error::Subject(why)) => {
                column.lack(names, &why);
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// From start to the end of a program of the user's.
    fn time_command(&self, subject: Subject, work: Work) -> Result<Parts, Error> {
        let mut child =
            Child::start(self.workshop.order(subject, work)?).map_err(Error::Subject)?;
        child.let_go();
        let ended = child.finish(self.signals, LIMIT)?;
        let status = ended.status;
        if libc::WIFEXITED(status) && [126, 127].contains(&libc::WEXITSTATUS(status)) {
            let why = last_words(&ended.text).unwrap_or_else(|| "can't be executed".into());
            return Err(Error::Subject(why));
        }
        Ok(vec![("command", nanoseconds(ended.took))])
    }

    /// From start to the agent's first line and to the end, and where the time goes: the
    /// agent tells how long the kernel that it runs on had been up when it began, which
    /// in a guest is the guest's own.
    fn time(&self, subject: Subject, work: Work) -> Result<Parts, Error> {
        let order = self.workshop.order(subject, work)?;
        let before = host::uptime();
        let mut child = Child::start(order).map_err(Error::Subject)?;
        child.let_go();
        let ready = nanoseconds(child.until("@ready", self.signals, LIMIT)?);
        let line = child.line("@ready").unwrap_or_default();
        let up: Option<f64> = line.split_whitespace().nth(1).and_then(|time| time.parse().ok());
        let all = nanoseconds(child.finish(self.signals, LIMIT)?.took);
        let mut parts =
            vec![("start_exec", ready), ("start_exit", all), ("start_end", all - ready)];
        match up {
            Some(up) if subject.is_machine() => {
                parts.extend([("start_made", ready - up), ("guest_kernel", up)]);
            }
            Some(up) => parts.push(("start_made", up - before)),
            None => {}
        }
        Ok(parts)
    }

    /// Operations, each subject in turn, again until there is enough or it takes too
    /// long.
    fn rounds(&mut self) -> Result<(), Error> {
        let mut spent: Vec<Duration> = vec![Duration::ZERO; self.entries.len()];
        let patience = self.amounts.patience;
        for _ in 0..self.amounts.rounds {
            for (at, spent) in spent.iter_mut().enumerate() {
                if *spent <= patience * 2 {
                    let began = Instant::now();
                    self.turn(at, "operations", &mut Self::operations)?;
                    *spent += began.elapsed();
                } else {
                    self.done += 1;
                }
            }
        }
        Ok(())
    }

    /// The agent's own measurements.
    fn operations(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        let groups: Vec<_> = Group::ALL.iter().filter_map(|group| group.of_agent()).collect();
        let words = ["measure", &groups.join(","), self.amounts.batch, self.amounts.batches, DISK];
        match self.agent(subject, &words) {
            Ok(ended) => take(column, &ended.text),
            Err(Error::Subject(why)) => {
                for metric in METRICS.iter().filter(|metric| metric.group.of_agent().is_some()) {
                    column.add(metric.name, Value::Missing(why.clone()));
                }
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }

    /// Hides what is to be found, and lets all look for it.
    fn isolation(&mut self) -> Result<(), Error> {
        let witnesses = Witnesses::hide(&self.workshop, self.signals)?;
        let path = witnesses.path.to_string_lossy().into_owned();
        let port = witnesses.port.to_string();
        let words = ["probe", witnesses.nonce.as_str(), path.as_str(), port.as_str()];
        let host = isolate::facts(&self.agent(Subject::Native, &words)?.text);
        self.each("isolation", |run, subject, column| {
            let told = match run.agent(subject, &words) {
                Ok(ended) => isolate::facts(&ended.text),
                Err(Error::Subject(why)) => {
                    column.notes.push(format!("isolation: {why}"));
                    BTreeMap::new()
                }
                Err(other) => return Err(other),
            };
            column.probes = isolate::outcomes(&told, &host);
            let probe =
                |name: &str| PROBES.iter().any(|probe| probe.name == name) && name != "boot_id";
            column.facts = told;
            column.facts.retain(|name, _| !name.starts_with("control_") && !probe(name));
            end_others(&[witnesses.process()]);
            Ok(())
        })
    }

    /// No measurement is missing in silence.
    fn complete(&mut self, command: bool) {
        let processors = host::processors();
        for (subject, column) in &mut self.entries {
            if column.skipped.is_some() {
                continue;
            }
            for metric in METRICS.iter().filter(|metric| command || metric.name != "command") {
                let there = column.values.contains_key(metric.name);
                if !there && !is_beyond(metric.name, processors) {
                    column.add(metric.name, Value::Missing(why_not(*subject, metric)));
                }
            }
        }
    }
}

fn why_not(subject: Subject, metric: &Metric) -> String {
    match metric.name {
        "guest_kernel" | "kvm_ioctls" if !subject.is_machine() => NO_GUEST.to_owned(),
        _ if metric.group == Group::Exits && !subject.is_machine() => NO_GUEST.to_owned(),
        _ => "it did not say".to_owned(),
    }
}

/// Measurements of one start, in nanoseconds.
type Parts = Vec<(&'static str, f64)>;

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// The agent's lines.
fn take(column: &mut Column, text: &str) {
    for line in text.lines().map(str::trim) {
        if let Some((name, values)) = line.strip_prefix("@m ").and_then(|line| line.split_once(' '))
        {
            let values = values.split_whitespace().filter_map(|value| value.parse().ok());
            column.add(name, Value::Samples(values.collect()));
        } else if let Some((name, why)) =
            line.strip_prefix("@n ").and_then(|line| line.split_once(' '))
        {
            column.add(name, Value::Missing(why.to_owned()));
        }
    }
    if !text.contains("@end") {
        let why = last_words(text).unwrap_or_else(|| "it ended too early".into());
        column.notes.push(format!("operations: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_lines_become_samples_or_reasons() {
        let mut column = Column::default();
        take(&mut column, "noise\r\n@m getpid 1.5 2.5\r\n@n disk_fsync Read-only file system\n");
        take(&mut column, "@m getpid 3.5\n@end\n");
        assert_eq!(column.values["getpid"], Value::Samples(vec![1.5, 2.5, 3.5]));
        assert_eq!(column.values["disk_fsync"], Value::Missing("Read-only file system".to_owned()));
        assert_eq!(column.notes, ["operations: noise"]);
    }
}
