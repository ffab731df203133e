//! What `bench io` has measured, by kind of operation: as a table and as JSON.

use super::subject::Subject;
use rig::exits::Report;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A kind of operation. The guest's marks are 0x10 and its place in [`KINDS`]
/// before, 0x40 and its place after.
struct Kind {
    name: &'static str,
    /// How many operations there are of it for a count.
    operations: fn(u32) -> u32,
}

const KINDS: [Kind; 11] = [
    Kind { name: "write 64 KiB, in order", operations: |count| count / 4 },
    Kind { name: "read 64 KiB, in order", operations: |count| count / 4 },
    Kind { name: "read 4 KiB, anywhere", operations: |count| count },
    Kind { name: "write 4 KiB, anywhere", operations: |count| count },
    Kind { name: "UDP packet out, of 32", operations: |count| count },
    Kind { name: "UDP packet in, of 32", operations: |count| count },
    Kind { name: "UDP packet there and back", operations: |count| count },
    Kind { name: "TCP, MiB out", operations: mebibytes },
    Kind { name: "TCP, MiB in", operations: mebibytes },
    Kind { name: "vsock, MiB out", operations: mebibytes },
    Kind { name: "vsock, MiB in", operations: mebibytes },
];
const BEFORE: u64 = 0x10;
const AFTER: u64 = 0x40;
const VSOCK: usize = 9;

fn mebibytes(count: u32) -> u32 {
    count.div_ceil(250)
}

/// By cause, for one operation.
type Causes = BTreeMap<String, f64>;

/// One monitor's.
pub struct Figures {
    name: String,
    /// For each of [`KINDS`]; or why not.
    costs: Vec<Cost>,
}

struct Cost {
    instructions: Result<f64, String>,
    exits: Result<Exits, String>,
}

#[derive(Clone)]
struct Exits {
    all: Causes,
    to_user_space: Causes,
}

impl Figures {
    /// From the report of a run for instructions and one for exits, each with the
    /// count that its guest was told.
    pub fn new(
        subject: &Subject,
        marks: (Result<Report, String>, u32),
        exits: (Result<Report, String>, u32),
    ) -> Self {
        let missing = |kind| kind >= VSOCK && !subject.has_vsock();
        let costs = KINDS.iter().enumerate().map(|(number, kind)| {
            if missing(number) {
                let none = || "it has no vsock device of its own".to_owned();
                return Cost { instructions: Err(none()), exits: Err(none()) };
            }
            let each = |count| f64::from((kind.operations)(count));
            let instructions = marks.0.as_ref().map_err(String::clone);
            let exits_of = exits.0.as_ref().map_err(String::clone);
            Cost {
                instructions: instructions.and_then(|r| instructions_of(r, number, each(marks.1))),
                exits: exits_of.and_then(|r| exits_of_kind(r, number, each(exits.1))),
            }
        });
        Self { name: subject.name.clone(), costs: costs.collect() }
    }
}

/// Instructions for one of `operations` between the marks of a kind. The clock
/// also ran while everybody waited for a timer: that is no instruction.
fn instructions_of(report: &Report, number: usize, operations: f64) -> Result<f64, String> {
    let (from, to) = marks(report, number)?;
    let waited = report.idle.get(&(BEFORE + number as u64)).copied().unwrap_or(0);
    Ok(to.saturating_sub(from).saturating_sub(waited) as f64 / operations)
}

fn marks(report: &Report, number: usize) -> Result<(u64, u64), String> {
    let at = |mark| report.markers.iter().find(|(value, _)| *value == mark).map(|(_, at)| *at);
    let number = number as u64;
    match (at(BEFORE + number), at(AFTER + number)) {
        (Some(from), Some(to)) => Ok((from, to)),
        (Some(_), None) => Err("the guest met an error".to_owned()),
        _ => Err("the guest did not come to it".to_owned()),
    }
}

fn exits_of_kind(report: &Report, number: usize, operations: f64) -> Result<Exits, String> {
    marks(report, number)?;
    let phase = report.phases.get(&(BEFORE + number as u64));
    let causes = |event: &str| -> Causes {
        let causes = phase.and_then(|events| events.get(event)).into_iter().flatten();
        causes.map(|(cause, count)| (cause.clone(), *count as f64 / operations)).collect()
    };
    Ok(Exits { all: causes("kvm_exit"), to_user_space: causes("kvm_userspace_exit") })
}

/// A table: what it is called, the figure, digits after the point.
type Table = (&'static str, fn(&Cost) -> Option<f64>, usize);

const TABLES: [Table; 3] = [
    ("thousand instructions", |c| c.instructions.as_ref().ok().map(|n| n / 1e3), 1),
    ("exits", |c| c.exits.as_ref().ok().map(|e| e.all.values().sum()), 2),
    ("exits to user space", |c| c.exits.as_ref().ok().map(|e| e.to_user_space.values().sum()), 2),
];

/// The tables: a column a monitor, ratios to the first in parentheses.
pub fn table(all: &[Figures]) -> String {
    let mut text = String::new();
    let width = all.iter().map(|f| f.name.chars().count()).max().unwrap_or(0).max(16);
    let mut line = |name: &str, cells: &[String]| {
        let _ = write!(text, "{name:<28}");
        for cell in cells {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    };
    for (title, figure, digits) in TABLES {
        line(title, &all.iter().map(|f| f.name.clone()).collect::<Vec<_>>());
        for (number, kind) in KINDS.iter().enumerate() {
            let value = |f: &Figures| f.costs.get(number).and_then(figure);
            let first = all.first().and_then(value);
            let cells = all.iter().enumerate().map(|(i, f)| match (value(f), first) {
                (None, _) => "n/a".to_owned(),
                (Some(value), Some(first)) if i > 0 && first > 0.0 => {
                    format!("{value:.digits$} ({:.2})", value / first)
                }
                (Some(value), _) => format!("{value:.digits$}"),
            });
            line(&format!("  {}", kind.name), &cells.collect::<Vec<_>>());
        }
    }
    for reason in failures(all) {
        let _ = writeln!(text, "n/a: {reason}");
    }
    text
}

/// Why figures are missing, each reason of a monitor once.
fn failures(all: &[Figures]) -> Vec<String> {
    let mut reasons = Vec::new();
    for figures in all {
        for (kind, cost) in KINDS.iter().zip(&figures.costs) {
            for reason in [cost.instructions.as_ref().err(), cost.exits.as_ref().err()] {
                let Some(reason) = reason else { continue };
                let text = format!("{}: {}: {reason}", figures.name, kind.name);
                if !reasons.contains(&text) {
                    reasons.push(text);
                }
            }
        }
    }
    reasons
}

/// The same with exits by cause, and where each figure is from.
pub fn json(all: &[Figures]) -> Value {
    let kind = |(kind, cost): (&Kind, &Cost)| {
        let exits = cost.exits.as_ref().ok();
        let reason = cost.instructions.as_ref().err().or(cost.exits.as_ref().err());
        json!({
            "operation": kind.name,
            "instructions": cost.instructions.as_ref().ok(),
            "exits": exits.map(|e| &e.all),
            "exits_to_user_space": exits.map(|e| &e.to_user_space),
            "not_measured": reason,
        })
    };
    let subjects: Vec<Value> = all
        .iter()
        .map(|f| {
            let operations: Vec<_> = KINDS.iter().zip(&f.costs).map(kind).collect();
            json!({"name": f.name, "operations": operations})
        })
        .collect();
    json!({
        "measured": "counting rig (TCG, SVM, one processor), 256 MiB guest of one vCPU: for one \
                     operation, of guest, monitor, host kernel and the other end together",
        "subjects": subjects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: &str = "marker 0x10 1000\nmarker 0x40 501000\nmarker 0x11 501500\n";

    fn figures(name: &str, each: f64) -> Figures {
        let all = Causes::from([("npf".to_owned(), each)]);
        let exits = Exits { all: all.clone(), to_user_space: all };
        let costs =
            KINDS.iter().map(|_| Cost { instructions: Ok(each * 1e3), exits: Ok(exits.clone()) });
        Figures { name: name.to_owned(), costs: costs.collect() }
    }

    #[test]
    fn a_cost_is_what_lies_between_two_marks() {
        let report = Report::parse(MARKS).unwrap();
        assert_eq!(instructions_of(&report, 0, 250.0), Ok(2000.0));
        let waited = Report::parse(&format!("{MARKS}idle 0x10 250000\n")).unwrap();
        assert_eq!(instructions_of(&waited, 0, 250.0), Ok(1000.0));
        assert!(instructions_of(&report, 1, 250.0).unwrap_err().contains("error"));
        assert!(instructions_of(&report, 2, 250.0).unwrap_err().contains("did not come"));
    }

    #[test]
    fn exits_after_the_second_mark_are_not_the_operations() {
        let text = format!("{MARKS}phase 0x10/kvm_exit/npf 500\nphase 0x40/kvm_exit/npf 9\n");
        let report = Report::parse(&text).unwrap();
        let exits = exits_of_kind(&report, 0, 250.0).unwrap();
        assert_eq!(exits.all, Causes::from([("npf".to_owned(), 2.0)]));
        assert!(exits.to_user_space.is_empty());
        assert!(exits_of_kind(&report, 1, 250.0).is_err());
    }

    #[test]
    fn the_table_tells_ratios_and_what_is_missing() {
        let mut other = figures("b", 3.0);
        other.costs[10].exits = Err("no vsock".to_owned());
        let text = table(&[figures("a", 2.0), other]);
        assert!(text.contains("3.0 (1.50)") && text.contains("3.00 (1.50)"), "{text}");
        assert!(text.contains("n/a: b: vsock, MiB in: no vsock"), "{text}");
    }

    #[test]
    fn json_holds_every_figure() {
        let value = json(&[figures("a", 2.0)]);
        let operation = &value["subjects"][0]["operations"][3];
        assert_eq!(operation["operation"], "write 4 KiB, anywhere");
        assert_eq!(operation["instructions"], 2000.0);
        assert_eq!(operation["exits"]["npf"], 2.0);
        assert!(operation["not_measured"].is_null());
    }
}
