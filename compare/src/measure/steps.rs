//! Single steps of a comparison: starts a second, memory, MPI, exits, system calls.

use super::{LIMIT, Run, take};
use crate::Error;
use crate::catalog::{Group, METRICS, at_once};
use crate::command::{DISK, Work};
use crate::namespaces::ALLOWED;
use crate::processes::end_others;
use crate::report::{Column, Value};
use crate::spawn::{Child, Ended, last_words};
use crate::subject::Subject;
use crate::{exits, host, memory, mpi, surface};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use vmm::sandbox::{self, Needs, VcpuNeeds};

impl Run<'_> {
    /// Starts a second: from one at a time to as many as there are processors.
    pub(super) fn rate(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        for (name, at_once) in at_once(host::processors()) {
            let known = column.values.get("starts_1");
            if at_once == 1
                && let Some(known) = known.cloned()
            {
                column.add(name, known);
                continue;
            }
            let value = match self.starts_a_second(subject, at_once) {
                Ok(rate) => Value::Samples(vec![rate]),
                Err(Error::Subject(why)) => Value::Missing(why),
                Err(other) => return Err(other),
            };
            column.add(name, value);
        }
        end_others(&[]);
        Ok(())
    }

    fn starts_a_second(&self, subject: Subject, at_once: usize) -> Result<f64, Error> {
        let start = Instant::now();
        let until = start + self.amounts.rate;
        let mut running: Vec<Child> = Vec::new();
        let mut count = 0;
        loop {
            while running.len() < at_once
                && (Instant::now() < until || count + running.len() < at_once)
            {
                let order = self.workshop.order(subject, Work::Agent(&["hello"]))?;
                let mut child = Child::start(order).map_err(Error::Subject)?;
                child.let_go();
                running.push(child);
            }
            if running.is_empty() {
                break;
            }
            let fds: Vec<_> = running.iter().map(Child::end_fd).collect();
            let ready = self.signals.wait(&fds, start + LIMIT)?;
            if !ready.contains(&true) && start.elapsed() > LIMIT {
                return Err(Error::Subject("does not end".to_owned()));
            }
            running.retain_mut(|child| {
                let over = child.reap(Instant::now());
                count += usize::from(over);
                !over
            });
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Holds some instances, and looks what they take.
    pub(super) fn memory(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        let mut held = Vec::new();
        let result = self.hold(subject, &mut held, column);
        // Those that hear of it end by themselves, and take with them what is theirs.
        for child in &mut held {
            child.let_go();
        }
        if !matches!(subject, Subject::Mode(_)) {
            for child in held.drain(..) {
                let _ = child.finish(self.signals, Duration::from_secs(20));
            }
        }
        drop(held);
        end_others(&[]);
        self.workshop.tidy();
        match result {
            Err(Error::Subject(why)) => {
                column.lack(&["memory_pss", "memory_host", "density"], &why);
                Ok(())
            }
            other => other,
        }
    }

    fn hold(
        &self,
        subject: Subject,
        held: &mut Vec<Child>,
        column: &mut Column,
    ) -> Result<(), Error> {
        let mut free: Vec<f64> = Vec::new();
        // A host that is used for something else as well keeps half of what it has left.
        let enough = |free: &[f64]| match (free.first(), free.last()) {
            (Some(first), Some(last)) => last * 2.0 < *first,
            _ => false,
        };
        while held.len() <= self.amounts.holders && !enough(&free) {
            let order = self.workshop.order(subject, Work::Agent(&["hold"]))?;
            let mut child = Child::start(order).map_err(Error::Subject)?;
            child.until("@ready", self.signals, LIMIT)?;
            held.push(child);
            // Until it is quiet.
            self.signals.wait(&[], Instant::now() + Duration::from_millis(100))?;
            free.extend(memory::available());
        }
        let all: Result<Vec<f64>, String> =
            held.iter().map(|child| memory::pss(child.pid)).collect();
        column.add("memory_pss", all.map_or_else(Value::Missing, Value::Samples));
        column.add("density", density(&free));
        // The first one brings what all share.
        let taken = free.windows(2).map(|pair| pair[0] - pair[1]).collect();
        column.add("memory_host", Value::Samples(taken));
        Ok(())
    }

    /// Two processes of MPI, where the host has one.
    pub(super) fn mpi(&mut self) -> Result<(), Error> {
        let command = mpi::command(self.workshop.place.path());
        self.each("MPI", |run, subject, column| {
            let ended = match &command {
                Ok(command) => run.parallel(subject, command),
                Err(why) => Err(Error::Subject(why.clone())),
            };
            match ended {
                Ok(ended) if ended.text.contains("@end") => take(column, &ended.text),
                Ok(ended) => {
                    let why = last_words(&ended.text).unwrap_or_else(|| "it says nothing".into());
                    column.lack(&mpi::METRICS, &why);
                }
                Err(Error::Subject(why)) => column.lack(&mpi::METRICS, &why),
                Err(other) => return Err(other),
            }
            end_others(&[]);
            Ok(())
        })
    }

    fn parallel(&self, subject: Subject, command: &[String]) -> Result<Ended, Error> {
        let order = self.workshop.order(subject, Work::Parallel(command))?;
        let mut child = Child::start(order).map_err(Error::Subject)?;
        child.let_go();
        child.finish(self.signals, LIMIT)
    }

    /// How often a machine leaves its guest.
    pub(super) fn exits(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        if !subject.is_machine() {
            return Ok(());
        }
        let counters = self.workshop.counters();
        let told = self
            .workshop
            .order(subject, Work::Counted(&["exits", DISK]))
            .and_then(|order| exits::measure(order, &counters, self.signals, LIMIT));
        end_others(&[]);
        match told {
            Ok(values) => {
                for (name, value) in values {
                    column.add(name, value);
                }
            }
            Err(Error::Subject(why)) => {
                let exits = METRICS.iter().filter(|metric| metric.group == Group::Exits);
                column.lack(&exits.map(|metric| metric.name).collect::<Vec<_>>(), &why);
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }

    /// Which of the host's system calls it makes.
    pub(super) fn surface(&mut self, subject: Subject, column: &mut Column) -> Result<(), Error> {
        for (work, names) in
            [("hello", ["calls_start", "kinds_start"]), ("surface", ["", "kinds_work"])]
        {
            let counted = self
                .workshop
                .order(subject, Work::Agent(&[work]))
                .and_then(|order| surface::count(order, self.signals, LIMIT));
            end_others(&[]);
            let counted = match counted {
                Ok(calls) if calls.text.contains("@ready") => Ok(calls),
                Ok(calls) => Err(last_words(&calls.text)
                    .unwrap_or_else(|| "it does not run while it is traced".into())),
                Err(Error::Subject(why)) => Err(why),
                Err(other) => return Err(other),
            };
            let [total, kinds] = names;
            match counted {
                Ok(calls) => {
                    let number = |n: f64| Value::Samples(vec![n]);
                    column.add(kinds, number(calls.kinds.len() as f64));
                    if !total.is_empty() {
                        column.add(total, number(calls.total as f64));
                    }
                    if subject.is_machine() {
                        column
                            .values
                            .insert("kvm_ioctls".to_owned(), number(calls.kvm.len() as f64));
                    }
                }
                Err(why) => {
                    for name in names.iter().filter(|name| !name.is_empty()) {
                        column.add(name, Value::Missing(why.clone()));
                    }
                }
            }
        }
        column.add("kinds_allowed", allowed(subject));
        Ok(())
    }
}

/// Instances that a GiB of the host's memory has room for, by what all that were held at
/// once, but the first, have taken together; from the KiB that were free after each.
fn density(free: &[f64]) -> Value {
    const GIB: f64 = 1_048_576.0;
    match free {
        [first, .., last] if first > last => {
            Value::Samples(vec![GIB * (free.len() - 1) as f64 / (first - last)])
        }
        _ => Value::Missing("instances take less than the host's noise".to_owned()),
    }
}

/// How many different system calls its filters let through; those of all threads
/// together.
fn allowed(subject: Subject) -> Value {
    let filters = match subject {
        Subject::Native | Subject::One(_) | Subject::All => {
            return Value::Missing("no filter: all".to_owned());
        }
        Subject::Sandbox => return Value::Samples(vec![ALLOWED as f64]),
        Subject::Tool(_) => return Value::Missing("not known".to_owned()),
        Subject::Job => vec![
            sandbox::vcpu(VcpuNeeds::default()),
            sandbox::event_loop(Needs { shares: true, streams: true, ..Needs::default() }),
            sandbox::relay(),
        ],
        Subject::Mode(mode) => vec![
            sandbox::vcpu(VcpuNeeds { board: mode != "pv", ..VcpuNeeds::default() }),
            sandbox::event_loop(Needs::default()),
            sandbox::console(),
        ],
    };
    let all: BTreeSet<_> = filters.iter().flat_map(|filter| filter.numbers()).collect();
    Value::Samples(vec![all.len() as f64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_is_told_only_where_there_is_more_than_noise() {
        // Noise on the way does not matter.
        assert_eq!(density(&[9096.0, 9100.0, 7048.0]), Value::Samples(vec![1024.0]));
        assert!(matches!(density(&[1024.0, 1028.0]), Value::Missing(_)));
        assert!(matches!(density(&[1024.0]), Value::Missing(_)));
    }

    #[test]
    fn a_machines_filters_let_through_a_part_of_what_a_container_has() {
        let count = |subject| match allowed(subject) {
            Value::Samples(samples) => samples[0],
            Value::Missing(why) => panic!("{why}"),
        };
        assert!(count(Subject::Mode("pv")) < count(Subject::Job));
        assert!(count(Subject::Job) < 150.0 && count(Subject::Sandbox) > 250.0);
    }
}
