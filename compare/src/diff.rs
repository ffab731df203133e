//! `microvm compare diff`: what two reports differ in.

use crate::catalog::{METRICS, PROBES, digits};
use crate::report::{Outcome, Report, VERSION};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Less than this is not told, even where intervals are apart.
const TOLD: f64 = 1.02;

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("{path}: {reason}: give a file that microvm compare --json has made", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a report.
pub fn read(path: &Path) -> Result<Report, Error> {
    let wrong = |reason: String| Error::File { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|error| wrong(vmm::plain(&error)))?;
    let report: Report = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    match report.version {
        VERSION => Ok(report),
        other => Err(wrong(format!("form {other}, not {VERSION}"))),
    }
}

/// What has changed from one to the other: figures whose intervals are apart, and
/// every outcome of a probe.
pub fn render(before: &Report, after: &Report) -> String {
    let mut out = String::new();
    let places = [&before.host, &after.host].map(|host| {
        (
            host.processor.clone(),
            host.processors,
            host.kernel.clone(),
            host.kvm.clone(),
            host.emulated,
        )
    });
    if places[0] != places[1] {
        let _ = writeln!(
            out,
            "Not of the same place: figures differ for that alone.\n  {} Linux {}, {}\n  {} Linux {}, {}",
            before.host.processor,
            before.host.kernel,
            before.host.kvm,
            after.host.processor,
            after.host.kernel,
            after.host.kvm
        );
    }
    let (mut compared, mut changed) = (0, 0);
    for new in &after.subjects {
        let Some(old) = before.subject(&new.subject) else {
            let _ = writeln!(out, "{}: only in the second", new.subject);
            continue;
        };
        if old.skipped != new.skipped {
            let told = |skipped: &Option<String>| {
                skipped.as_ref().map_or("measured".to_owned(), |why| format!("n/a: {why}"))
            };
            let _ = writeln!(
                out,
                "{}: {}, now {}",
                new.subject,
                told(&old.skipped),
                told(&new.skipped)
            );
        }
        for metric in METRICS {
            let (Some(a), Some(b)) = (old.summary(metric.name), new.summary(metric.name)) else {
                continue;
            };
            compared += 1;
            let factor = b.median / a.median;
            // One sample has no interval.
            let apart = a.count > 1 && b.count > 1 && a.differs_from(&b);
            if apart && factor.is_finite() && factor.max(1.0 / factor) > TOLD {
                changed += 1;
                let better = (factor < 1.0) != metric.unit.more_is_better();
                let _ = writeln!(
                    out,
                    "{:<15}{:<37}{:>11} -> {:>11}  {:>5} times  {}",
                    new.subject,
                    metric.title,
                    metric.unit.show(a.median),
                    metric.unit.show(b.median),
                    digits(factor),
                    if better { "better" } else { "worse" }
                );
            }
        }
        for probe in PROBES {
            let (a, b) = (old.probes.get(probe.name), new.probes.get(probe.name));
            if let (Some(a), Some(b)) = (a, b)
                && a != b
            {
                let _ = writeln!(
                    out,
                    "{:<15}{:<37}{} -> {}",
                    new.subject,
                    probe.title,
                    name(a),
                    name(b)
                );
            }
        }
    }
    for old in before.subjects.iter().filter(|old| after.subject(&old.subject).is_none()) {
        let _ = writeln!(out, "{}: only in the first", old.subject);
    }
    let _ = writeln!(out, "{changed} of {compared} figures have changed by more than chance.");
    out
}

fn name(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Host => "reaches the host".to_owned(),
        Outcome::Own => "its own".to_owned(),
        Outcome::No(why) => format!("no ({why})"),
        Outcome::Unknown(why) => format!("not known ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::tests::example;
    use crate::report::Value;

    #[test]
    fn only_what_has_changed_is_told() {
        let before = example();
        assert_eq!(render(&before, &before).lines().count(), 1);
        let mut after = before.clone();
        let native = &mut after.subjects[0];
        native.values.insert("getpid".into(), Value::Samples(vec![200.0; 9]));
        native.probes.insert("kexec".into(), Outcome::No("gone".into()));
        after.subjects.pop();
        let text = render(&before, &after);
        assert!(text.contains("getpid") && text.contains("2.00 times  worse"), "{text}");
        assert!(text.contains("loads another kernel") && text.contains("no (gone)"), "{text}");
        assert!(text.contains("only in the first") && text.contains("1 of "), "{text}");
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), serde_json::to_vec(&example()).unwrap()).unwrap();
        let read = read(file.path()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(example()).unwrap());
        fs::write(file.path(), "{}").unwrap();
        let error = super::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("missing field") && !error.contains('\n'), "{error}");
    }
}
