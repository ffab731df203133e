//! The report for a terminal.

use crate::catalog::{Group, METRICS, Metric, PROBES, digits};
use crate::report::{Column, Host, Outcome, Report, Value, rows};
use crate::verdict;
use std::fmt::Write;

/// Where the figures begin.
const TITLE: usize = 37;
/// Of a subject.
const COLUMN: usize = 19;

/// The whole report, in lines of at most `width` characters where that can be.
pub fn render(report: &Report, width: Option<usize>) -> String {
    let mut out = host(&report.host);
    let _ = writeln!(out, "effort: {}", report.effort);
    if !report.command.is_empty() {
        let _ = writeln!(out, "command: {}", report.command.join(" "));
    }
    for column in report.subjects.iter().filter(|column| column.skipped.is_some()) {
        let _ = writeln!(
            out,
            "{}: n/a: {}",
            column.subject,
            column.skipped.as_deref().unwrap_or_default()
        );
    }
    let columns: Vec<&Column> = verdict::measured(report).collect();
    let at_once =
        width.map_or(columns.len(), |width| (width.saturating_sub(TITLE) / COLUMN).max(1));
    for part in columns.chunks(at_once.max(1)) {
        table(&mut out, report, part);
    }
    out += LEGEND;
    out.push('\n');
    for sentence in verdict::sentences(report) {
        wrap(&mut out, &sentence, width.unwrap_or(100));
    }
    out
}

const LEGEND: &str = "
Medians; in brackets how many times worse than natively. n is the number of
samples, ± half of the interval that holds the median with 95 % confidence (with
fewer than six samples, of all of them) and ? marks what is noisier than 15 %.
! reaches the host, or is allowed by its kernel; o is the subject's own; - is not
";

/// What the figures depend on.
pub fn host(host: &Host) -> String {
    let mut text = format!(
        "{}, {} of its processors, {} MiB; Linux {}\nKVM: {}; privileged instructions {}, page tables {}\n",
        host.processor,
        host.processors,
        host.memory,
        host.kernel,
        host.kvm,
        host.privileged_instructions,
        host.page_tables
    );
    if let Some(hypervisor) = &host.hypervisor {
        let _ = writeln!(text, "this host is a virtual machine: {hypervisor}");
    }
    if let Some(governor) = host.governor.as_deref().filter(|governor| *governor != "performance") {
        let _ = writeln!(text, "frequency governor: {governor}");
    }
    text
}

fn table(out: &mut String, report: &Report, columns: &[&Column]) {
    let _ = write!(out, "\n{:TITLE$}", "");
    for column in columns {
        let _ = write!(out, "{:>COLUMN$}", column.subject);
    }
    out.push('\n');
    let mut reasons: Vec<String> = Vec::new();
    for group in Group::ALL {
        let rows = rows(group, columns);
        if !rows.is_empty() {
            let _ = writeln!(out, "{}", group.title());
        }
        for metric in rows {
            let _ = write!(out, "  {:<width$}", metric.title, width = TITLE - 2);
            for column in columns {
                let _ = write!(out, "{:>COLUMN$}", cell(report, column, metric, &mut reasons));
            }
            out.push('\n');
        }
    }
    isolation(out, columns);
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(out, "  n/a {}: {reason}", number + 1);
    }
    for column in columns {
        for note in &column.notes {
            let _ = writeln!(out, "  {}: {note}", column.subject);
        }
    }
}

fn cell(report: &Report, column: &Column, metric: &Metric, reasons: &mut Vec<String>) -> String {
    if let Some(summary) = column.summary(metric.name) {
        let mark = if column.emulated { "~" } else { "" };
        let noisy = if summary.is_noisy() { "?" } else { "" };
        let factor = report.native().and_then(|native| column.factor(native, metric.name));
        let factor = factor.map(|factor| format!(" ({})", digits(factor))).unwrap_or_default();
        return format!("{mark}{}{noisy}{factor}", metric.unit.show(summary.median));
    }
    let reason = match column.values.get(metric.name) {
        Some(Value::Missing(reason)) => reason.as_str(),
        _ => "no samples",
    };
    let number = match reasons.iter().position(|known| known == reason) {
        Some(at) => at,
        None => {
            reasons.push(reason.to_owned());
            reasons.len() - 1
        }
    };
    format!("n/a {}", number + 1)
}

fn isolation(out: &mut String, columns: &[&Column]) {
    let _ = writeln!(out, "What it sees of the host, and may do");
    for probe in PROBES {
        let _ = write!(out, "  {:<width$}", probe.title, width = TITLE - 2);
        for column in columns {
            let mark = match column.probes.get(probe.name) {
                Some(Outcome::Host) => "!",
                Some(Outcome::Own) => "o",
                Some(Outcome::No(_)) => "-",
                Some(Outcome::Unknown(_)) | None => "?",
            };
            let _ = write!(out, "{mark:>COLUMN$}");
        }
        out.push('\n');
    }
}

fn wrap(out: &mut String, text: &str, width: usize) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > width {
            out.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += len;
    }
    out.push('\n');
}

/// Samples and intervals, a line for each figure: what brackets of the table rest on.
pub fn samples(report: &Report) -> String {
    let mut out = String::new();
    for column in verdict::measured(report) {
        for metric in METRICS {
            if let Some(s) = column.summary(metric.name) {
                let half = (s.high - s.low) / 2.0;
                let _ = writeln!(
                    out,
                    "{:<15}{:<18}{:>12} ± {:<12} n {:<5}{} to {}",
                    column.subject,
                    metric.name,
                    metric.unit.show(s.median),
                    metric.unit.show(half),
                    s.count,
                    metric.unit.show(s.least),
                    metric.unit.show(s.greatest)
                );
            }
        }
    }
    out
}
