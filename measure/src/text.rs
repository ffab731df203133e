//! The report as people read it in a terminal: at most 80 columns.

use crate::Effort;
use crate::report::{Boot, Clock, Mode, Report, Value};
use std::fmt::Write;

/// The mode that the others are compared with.
const BASE: &str = "pv";
/// Registers of each mode that are told.
const REGISTERS: usize = 5;
const NAME: usize = 10;

/// An operation: its heading, and its name in the report.
type Operation = (&'static str, &'static str);
const COUNTED: [Operation; 5] = [
    ("read 4 KiB", "read"),
    ("write 4 KiB", "write"),
    ("packet", "packet"),
    ("timer tick", "tick"),
    ("IPI", "ipi"),
];
/// What a sleeper waits is not the timer's cost.
const TIMED: [Operation; 5] = [
    ("read 4 KiB", "read"),
    ("write 4 KiB", "write"),
    ("packet", "packet"),
    ("IPI", "ipi"),
    ("EOI", "eoi"),
];

/// A column: its heading, and what a mode has there.
struct Column<'a> {
    heading: &'a str,
    width: usize,
    value: &'a dyn Fn(&Mode) -> Option<f64>,
    show: &'a dyn Fn(f64) -> String,
    /// Whether it is told how many times as much as pv's it is.
    compared: bool,
}

/// The whole report.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", wrapped(&report.place.sentence()));
    if report.place.effort == Effort::Quick {
        out += "Few repetitions (--quick): counts are exact, times are rough.\n";
    }
    out += "In parentheses: how many times as much as pv.\n";
    write_boots(&mut out, report);
    if report.place.effort != Effort::Boot {
        write_costs(&mut out, report);
    }
    write_milestones(&mut out, report);
    write_registers(&mut out, report);
    write_missing(&mut out, report);
    out
}

/// The way to init.
fn write_boots(out: &mut String, report: &Report) {
    let clock = report.place.clock;
    let time = |value: f64| time(value, clock);
    let taken = boot(|boot| Some(boot.time));
    let asleep = boot(|boot| boot.asleep);
    let exits = boot(|boot| boot.exits);
    let user_exits = boot(|boot| Some(boot.user_exits));
    let columns = [
        Column { heading: "time", width: 18, value: &taken, show: &time, compared: true },
        // Of what hardly sleeps at all, nothing is many times as much.
        Column { heading: "of it asleep", width: 14, value: &asleep, show: &time, compared: false },
        Column { heading: "exits", width: 18, value: &exits, show: &amount, compared: true },
        Column {
            heading: "to microvm",
            width: 18,
            value: &user_exits,
            show: &amount,
            compared: true,
        },
    ];
    write_columns(out, "From the first instruction to init", report, &columns);
}

/// A number of the way to init.
fn boot(of: impl Fn(&Boot) -> Option<u64>) -> impl Fn(&Mode) -> Option<f64> {
    move |mode| of(mode.boot.as_ref()?).map(|value| value as f64)
}

/// What operations cost.
fn write_costs(out: &mut String, report: &Report) {
    let clock = report.place.clock;
    // Columns are narrow.
    let tight = |value: f64| time(value, clock).replace(' ', "");
    write_operations(out, "Exits of each", report, &COUNTED, &amount, |cost| cost.exits);
    let heading = "Of them to microvm";
    write_operations(out, heading, report, &COUNTED, &amount, |cost| cost.user_exits);
    let heading = match clock {
        Clock::Nanoseconds => "Time of each",
        Clock::Instructions => "Instructions of each",
    };
    write_operations(out, heading, report, &TIMED, &tight, |cost| cost.time);
    let rate = |operation: &'static str| move |mode: &Mode| rate(mode, operation);
    let (read, write, send) = (rate("read-stream"), rate("write-stream"), rate("send-stream"));
    let per = |value: f64| format!("{} MiB/s", amount(value / f64::from(1 << 20)));
    let column = |heading, value| Column { heading, width: 20, value, show: &per, compared: true };
    write_columns(
        out,
        match clock {
            Clock::Nanoseconds => "Throughput, 64 KiB at a time",
            Clock::Instructions => "Throughput, at a billion instructions a second",
        },
        report,
        &[column("disk, read", &read), column("disk, written", &write), column("TCP, sent", &send)],
    );
}

fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        if column + word.chars().count() > 78 {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
        }
        out += word;
        column += word.chars().count() + 1;
    }
    out
}

/// What an operation cost, as far as it is known.
#[derive(Default)]
struct Cost {
    time: Option<f64>,
    exits: Option<f64>,
    user_exits: Option<f64>,
}

impl Cost {
    fn of(mode: &Mode, operation: &str) -> Self {
        match mode.value(operation) {
            Some(Value::Measured { time, exits, user_exits, .. }) => {
                Self { time: *time, exits: *exits, user_exits: Some(*user_exits) }
            }
            _ => Self::default(),
        }
    }
}

/// A column for each operation.
fn write_operations(
    out: &mut String,
    heading: &str,
    report: &Report,
    operations: &[Operation],
    show: &dyn Fn(f64) -> String,
    of: impl Fn(Cost) -> Option<f64>,
) {
    let values: Vec<_> = operations
        .iter()
        .map(|(_, operation)| |mode: &Mode| of(Cost::of(mode, operation)))
        .collect();
    let columns: Vec<Column<'_>> = operations
        .iter()
        .zip(&values)
        .map(|((heading, _), value)| Column { heading, width: 14, value, show, compared: true })
        .collect();
    write_columns(out, heading, report, &columns);
}

/// Bytes in a second of the clock.
fn rate(mode: &Mode, operation: &str) -> Option<f64> {
    match mode.value(operation)? {
        Value::Measured { bytes: Some(bytes), time: Some(time), count, .. } => {
            let total = time * f64::from(*count);
            (total > 0.0).then_some(*bytes as f64 * 1e9 / total)
        }
        _ => None,
    }
}

fn write_columns(out: &mut String, heading: &str, report: &Report, columns: &[Column<'_>]) {
    let _ = write!(out, "\n{heading}\n  {:NAME$}", "");
    for column in columns {
        let _ = write!(out, "{:>width$}", column.heading, width = column.width);
    }
    out.push('\n');
    let base = report.modes.iter().find(|mode| mode.name == BASE);
    for mode in &report.modes {
        let _ = write!(out, "  {:NAME$}", mode.name);
        for Column { width, value, show, compared, .. } in columns {
            let least = base.filter(|_| *compared).and_then(value);
            let text = match value(mode) {
                None => "-".to_owned(),
                Some(value) if mode.name == BASE => show(value),
                Some(value) => match least.filter(|least| *least > 0.0) {
                    Some(least) => format!("{} ({})", show(value), factor(value / least)),
                    None => show(value),
                },
            };
            // Of the width of what is seen, not of its bytes.
            let _ = write!(out, "{:>width$}", text, width = *width);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
}

/// What is not there is told once for all modes that lack it for the same reason.
fn write_missing(out: &mut String, report: &Report) {
    let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
    let mut add = |what: String, mode| match reasons.iter_mut().find(|(reason, _)| *reason == what)
    {
        Some((_, modes)) => modes.push(mode),
        None => reasons.push((what, vec![mode])),
    };
    for mode in &report.modes {
        if let Some(problem) = &mode.problem {
            add(problem.clone(), mode.name.as_str());
        }
        for figure in &mode.operations {
            if let Value::Missing { why } = &figure.value {
                add(format!("{}: {why}", figure.operation), mode.name.as_str());
            }
        }
    }
    if !reasons.is_empty() {
        out.push_str("\nNot measured\n");
    }
    for (reason, modes) in reasons {
        let line = format!("{} ({})", reason, modes.join(", "));
        for part in wrapped(&line).lines() {
            let _ = writeln!(out, "  {part}");
        }
    }
}

fn write_milestones(out: &mut String, report: &Report) {
    let names = ["first register", "start_kernel", "first driver", "root mounted", "init"];
    let _ = write!(out, "\nOn the way\n  {:NAME$}", "");
    for name in names {
        let _ = write!(out, "{name:>14}");
    }
    out.push('\n');
    for mode in &report.modes {
        let _ = write!(out, "  {:NAME$}", mode.name);
        let milestones = mode.boot.iter().flat_map(|boot| &boot.milestones);
        let milestones: Vec<_> = milestones.collect();
        for name in names {
            let at = milestones.iter().find(|milestone| milestone.name == name);
            let at = at.and_then(|milestone| milestone.at);
            let text = at.map_or("-".to_owned(), |at| time(at as f64, report.place.clock));
            let _ = write!(out, "{text:>14}");
        }
        out.push('\n');
    }
}

fn write_registers(out: &mut String, report: &Report) {
    out.push_str("\nThe registers that were touched most until init\n");
    for mode in &report.modes {
        let Some(boot) = &mode.boot else { continue };
        for (number, register) in boot.registers.iter().take(REGISTERS).enumerate() {
            let name = if number == 0 { mode.name.as_str() } else { "" };
            let count = register.reads + register.writes;
            let _ = writeln!(
                out,
                "  {name:NAME$}{count:>8} {:<12} {} {}",
                register.address, register.device, register.name
            );
        }
    }
}

/// `26×`.
fn factor(factor: f64) -> String {
    match factor {
        f if f < 0.095 => format!("{f:.2}×"),
        f if f < 9.95 => format!("{f:.1}×"),
        f => format!("{f:.0}×"),
    }
}

/// A number in four places or so.
fn amount(value: f64) -> String {
    match value {
        v if v == v.trunc() && v < 100_000.0 => format!("{v:.0}"),
        v if v < 100.0 => format!("{v:.1}"),
        v if v < 100_000.0 => format!("{v:.0}"),
        v if v < 10_000_000.0 => format!("{:.0}k", v / 1e3),
        v => format!("{:.0}M", v / 1e6),
    }
}

/// A time, or a number of instructions.
fn time(value: f64, clock: Clock) -> String {
    let units = match clock {
        Clock::Nanoseconds => [" ns", " µs", " ms", " s"],
        Clock::Instructions => ["", "k", "M", "G"],
    };
    let mut value = value;
    for unit in units {
        if value < 999.5 || unit == units[3] {
            let decimals = match value {
                v if v < 9.995 => 2,
                v if v < 99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$}{unit}");
        }
        value /= 1000.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn numbers_are_short() {
        let time = |value| time(value, Clock::Nanoseconds);
        for (value, text) in [(0.5, "0.50 ns"), (12.34, "12.3 ns"), (1234.0, "1.23 µs")] {
            assert_eq!(time(value), text);
        }
        assert_eq!((time(5e9), time(123e9)), ("5.00 s".to_owned(), "123 s".to_owned()));
        assert_eq!(super::time(2.5e6, Clock::Instructions), "2.50M");
        assert_eq!((amount(26.0), amount(14.5)), ("26".to_owned(), "14.5".to_owned()));
        assert_eq!((amount(1_234_567.0), factor(3.84)), ("1235k".to_owned(), "3.8×".to_owned()));
        assert_eq!(factor(1043.2), "1043×");
    }

    #[test]
    fn the_table_fits_a_terminal_and_compares_with_pv() {
        let text = table(&sample());
        for line in text.lines() {
            assert!(line.chars().count() <= 84, "{line}");
        }
        assert!(text.contains("emulated host"), "{text}");
        assert!(text.contains("(4.0×)"), "{text}");
        assert!(text.contains("no card"), "{text}");
    }
}
