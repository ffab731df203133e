//! The figures as a table for people and as JSON for programs.

use rig::exits::{Report, cause};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What was measured of one monitor; each figure or why there is none.
pub struct Figures {
    /// The monitor.
    pub name: String,
    /// From exec to init's mark.
    pub instructions: Result<u64, String>,
    /// Exits of the whole run, of which the mark is the last but one.
    pub exits: Result<Report, String>,
    /// Processor time to the first `KVM_RUN`.
    pub first_run: Result<Duration, String>,
    /// PSS beyond guest RAM.
    pub memory_kib: Result<u64, String>,
    /// The program's size.
    pub program_bytes: Result<u64, String>,
}

const EXITS: &str = "kvm_exit";
const USER_EXITS: &str = "kvm_userspace_exit";

/// One row of the table: what it is called, and its figure.
type Row = (&'static str, fn(&Figures) -> Option<f64>, usize);

/// Rows, with the digits after the point.
const ROWS: [Row; 6] = [
    ("exec to init, million instructions", |f| millions(&f.instructions), 2),
    ("exits", |f| total(f, EXITS), 0),
    ("exits to user space", |f| total(f, USER_EXITS), 0),
    ("exec to first KVM_RUN, ms of processor time", |f| milliseconds(&f.first_run), 2),
    ("memory beyond guest RAM, KiB (PSS)", |f| f.memory_kib.as_ref().ok().map(|k| *k as f64), 0),
    ("program, KiB", |f| f.program_bytes.as_ref().ok().map(|b| *b as f64 / 1024.0), 0),
];

fn millions(value: &Result<u64, String>) -> Option<f64> {
    value.as_ref().ok().map(|n| *n as f64 / 1e6)
}

fn milliseconds(value: &Result<Duration, String>) -> Option<f64> {
    value.as_ref().ok().map(|d| d.as_secs_f64() * 1e3)
}

fn total(figures: &Figures, event: &str) -> Option<f64> {
    figures.exits.as_ref().ok().map(|report| report.total(event) as f64)
}

/// The table: a column a monitor, ratios to the first in parentheses.
pub fn table(all: &[Figures]) -> String {
    let mut text = String::new();
    let width = all.iter().map(|f| f.name.chars().count()).max().unwrap_or(0).max(16);
    let mut line = |name: &str, cells: &[String]| {
        let _ = write!(text, "{name:<44}");
        for cell in cells {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    };
    line("", &all.iter().map(|f| f.name.clone()).collect::<Vec<_>>());
    for (name, figure, digits) in ROWS {
        let first = all.first().and_then(figure);
        let cells = all.iter().enumerate().map(|(index, figures)| match (figure(figures), first) {
            (None, _) => "n/a".to_owned(),
            (Some(value), Some(first)) if index > 0 && first > 0.0 => {
                format!("{value:.digits$} ({:.2})", value / first)
            }
            (Some(value), _) => format!("{value:.digits$}"),
        });
        line(name, &cells.collect::<Vec<_>>());
    }
    for (title, event) in [("exits by cause:", EXITS), ("to user space:", USER_EXITS)] {
        line(title, &[]);
        for name in causes(all, event) {
            let cells = all.iter().map(|f| by_cause(f, event).get(&name).copied().unwrap_or(0));
            let cells: Vec<_> = cells.map(|count| count.to_string()).collect();
            line(&format!("  {name}"), &cells);
        }
    }
    for figures in all {
        for reason in failures(figures) {
            let _ = writeln!(text, "n/a: {}: {reason}", figures.name);
        }
    }
    text
}

fn by_cause(figures: &Figures, event: &str) -> BTreeMap<String, u64> {
    let Some(keys) = figures.exits.as_ref().ok().and_then(|r| r.events.get(event)) else {
        return BTreeMap::new();
    };
    keys.iter().map(|(key, count)| (cause(event, *key), *count)).collect()
}

/// All causes that any monitor has, the first monitor's most frequent first.
fn causes(all: &[Figures], event: &str) -> Vec<String> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for figures in all {
        for (name, count) in by_cause(figures, event) {
            *sums.entry(name).or_default() += count;
        }
    }
    let mut names: Vec<_> = sums.into_iter().collect();
    names.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
    names.into_iter().map(|(name, _)| name).collect()
}

fn failures(figures: &Figures) -> Vec<&String> {
    [
        figures.instructions.as_ref().err(),
        figures.exits.as_ref().err(),
        figures.first_run.as_ref().err(),
        figures.memory_kib.as_ref().err(),
        figures.program_bytes.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The same with nothing left out, and where each figure is from.
pub fn json(all: &[Figures]) -> Value {
    let subjects: Vec<Value> = all
        .iter()
        .map(|f| {
            json!({
                "name": f.name,
                "instructions_exec_to_init": f.instructions.as_ref().ok(),
                "exits": by_cause(f, EXITS),
                "exits_to_user_space": by_cause(f, USER_EXITS),
                "first_kvm_run_ns": f.first_run.as_ref().ok().map(|d| d.as_nanos() as u64),
                "memory_beyond_guest_kib": f.memory_kib.as_ref().ok(),
                "program_bytes": f.program_bytes.as_ref().ok(),
                "not_measured": failures(f),
            })
        })
        .collect();
    json!({
        "measured": {
            "instructions_exec_to_init": "counting rig (TCG, SVM, one processor), 256 MiB guest",
            "exits": "counting rig, the whole run: the guest restarts at its mark",
            "first_kvm_run_ns": "this host, median processor time of the whole process",
            "memory_beyond_guest_kib": "rig, PSS with an idle guest of 128 MiB",
        },
        "subjects": subjects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(name: &str, instructions: u64) -> Figures {
        let report = Report::parse("clock - 9\nkvm_exit 1024 5\nkvm_userspace_exit 2 3\n");
        Figures {
            name: name.to_owned(),
            instructions: Ok(instructions),
            exits: report.ok_or_else(String::new),
            first_run: Err("no /dev/kvm".to_owned()),
            memory_kib: Ok(2048),
            program_bytes: Ok(2 << 20),
        }
    }

    #[test]
    fn the_table_tells_ratios_and_what_is_missing() {
        let text = table(&[figures("a", 100_000_000), figures("b", 150_000_000)]);
        assert!(text.contains("150.00 (1.50)"), "{text}");
        assert!(text.contains("npf") && text.contains("n/a: b: no /dev/kvm"), "{text}");
    }

    #[test]
    fn json_holds_every_figure() {
        let value = json(&[figures("a", 7)]);
        let subject = &value["subjects"][0];
        assert_eq!(subject["instructions_exec_to_init"], 7);
        assert_eq!(subject["exits_to_user_space"]["io"], 3);
        assert!(subject["first_kvm_run_ns"].is_null());
        assert_eq!(subject["not_measured"][0], "no /dev/kvm");
    }
}
