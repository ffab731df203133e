//! Bars, one chart for each measurement that tells most.

use super::{class, escape};
use crate::catalog::{Metric, Unit, digits, metric_of};
use crate::report::{Column, Report};
use std::fmt::Write;

/// Which measurements, in order, and what stands above the bars.
const SHOWN: [(&str, &str); 18] = [
    ("command", "The command, from start to end"),
    ("start_exec", "Start, to the program's first line"),
    ("starts_n", "Starts a second, on all processors"),
    ("memory_pss", "Memory of an instance"),
    ("kinds_work", "Kinds of system calls that the host sees"),
    ("getpid", "System call (getpid)"),
    ("context_switch", "Context switch"),
    ("fork", "fork, exit and wait"),
    ("exec", "fork, exec, exit and wait"),
    ("page_fault", "Page fault"),
    ("tlb", "Load from another page each time"),
    ("memory_copy", "Copy of memory"),
    ("disk_random_read", "Disk, read of 4 KiB anywhere"),
    ("disk_fsync", "Disk, write of 4 KiB and fdatasync"),
    ("net_round_trip", "Loopback, a byte there and back"),
    ("exits_boot", "Exits, to the program's first line"),
    ("exits_disk_read", "Exits for a read of 4 KiB"),
    ("noise", "Equal work that took longer"),
];
/// Above the greatest median.
const ROOM: f64 = 1.15;
/// Greatest by least: above it, bars are logarithmic.
const WIDE: f64 = 30.0;

/// The section.
pub fn write(page: &mut String, report: &Report, columns: &[&Column]) {
    page.push_str(
        "<section><h2>What it costs</h2><div class=key>\
         <span><i class=\"bar vm\"></i>virtual machine</span>\
         <span><i class=\"bar box\"></i>container, namespaces</span>\
         <span><i class=\"bar native\"></i>native</span>",
    );
    if columns.iter().any(|column| column.emulated) {
        page.push_str("<span><i class=\"bar vm emu\"></i>~ emulated: not comparable</span>");
    }
    page.push_str(
        "</div><p class=soft>Medians, and a line across the end of each bar for the interval that holds the \
         median with 95 % confidence. × is how many times worse than natively.</p><div class=cards>",
    );
    for (name, title) in SHOWN {
        if let Some(metric) = metric_of(name) {
            chart(page, report, columns, metric, title);
        }
        if name == "start_exec" {
            parts(page, columns);
        }
    }
    page.push_str("</div></section>");
}

fn chart(page: &mut String, report: &Report, columns: &[&Column], metric: &Metric, title: &str) {
    let values: Vec<_> =
        columns.iter().filter_map(|c| Some((*c, c.summary(metric.name)?))).collect();
    // Intervals may lead out of the chart: one that is wide must not flatten all.
    let most = values.iter().map(|(_, s)| s.median).fold(0.0, f64::max) * ROOM;
    let positive = values.iter().map(|(_, s)| s.median).filter(|median| *median > 0.0);
    let least = positive.fold(f64::INFINITY, f64::min);
    if values.len() < 2 || most <= 0.0 {
        return;
    }
    let scale = Scale { least, most, logarithmic: most / least > WIDE };
    let better = if metric.unit.more_is_better() { "more is better" } else { "less is better" };
    let kind = if scale.logarithmic { ", logarithmic" } else { "" };
    let _ = write!(
        page,
        "<div class=card><h3>{}</h3><div class=soft>{better}{kind}</div>",
        escape(title)
    );
    for (column, summary) in values {
        let (emulated, mark) = if column.emulated { (" emu", "~") } else { ("", "") };
        let factor = report.native().and_then(|native| column.factor(native, metric.name));
        let factor = factor.map(|f| format!(" <small>×{}</small>", digits(f))).unwrap_or_default();
        let (from, to) = (scale.place(summary.low), scale.place(summary.high));
        let _ = write!(
            page,
            "<div class=row><span class=name>{}</span><span class=track>\
             <span class=\"bar {}{emulated}\" style=\"width:{:.1}%\"></span>\
             <span class=ci style=\"left:{from:.1}%;width:{:.1}%\"></span></span>\
             <span class=val>{mark}{}{factor}</span></div>",
            escape(&column.subject),
            class(column),
            scale.place(summary.median),
            (to - from).max(0.0),
            metric.unit.show(summary.median),
        );
    }
    page.push_str("</div>");
}

/// Where the time of a start goes: each bar is all of it.
fn parts(page: &mut String, columns: &[&Column]) {
    let median = |column: &Column, name: &str| column.summary(name).map(|summary| summary.median);
    let shown: Vec<_> = columns
        .iter()
        .filter_map(|column| {
            let of = |name| median(column, name);
            let (made, line, end) = (of("start_made")?, of("start_exec")?, of("start_exit")?);
            (end > 0.0).then_some((*column, made.min(line), line.min(end), end))
        })
        .collect();
    if shown.len() < 2 {
        return;
    }
    page.push_str(
        "<div class=card><h3>Where the time of a start goes</h3><div class=soft>\
         dark: before its kernel or program; then to its first line; pale: from there to the end of all</div>",
    );
    for (column, made, line, end) in shown {
        let percent = |time: f64| time.max(0.0) / end * 100.0;
        let _ = write!(
            page,
            "<div class=row><span class=name>{}</span><span class=\"track {}\">",
            escape(&column.subject),
            class(column),
        );
        for (number, from, to) in [(1, 0.0, made), (2, made, line), (3, line, end)] {
            let _ = write!(
                page,
                "<span class=\"part p{number}\" style=\"left:{:.1}%;width:{:.1}%\"></span>",
                percent(from),
                percent(to) - percent(from),
            );
        }
        let mark = if column.emulated { "~" } else { "" };
        let all = Unit::Nanoseconds.show(end);
        let _ = write!(page, "</span><span class=val>{mark}{all}</span></div>");
    }
    page.push_str("</div>");
}

struct Scale {
    least: f64,
    most: f64,
    logarithmic: bool,
}

impl Scale {
    /// In percent of the track. A logarithmic one begins a little below the least.
    fn place(&self, value: f64) -> f64 {
        let part = match self.logarithmic {
            true => {
                let start = (self.least / 2.0).ln();
                (value.max(self.least).ln() - start) / (self.most.ln() - start)
            }
            false => value / self.most,
        };
        part.clamp(0.0, 1.0) * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_inside_and_keep_their_order() {
        for logarithmic in [false, true] {
            let scale = Scale { least: 2.0, most: 2000.0, logarithmic };
            let places: Vec<_> = [0.0, 2.0, 20.0, 200.0, 2000.0].map(|v| scale.place(v)).into();
            assert!(places.is_sorted() && places[4] == 100.0 && places[0] >= 0.0, "{places:?}");
        }
        let even = Scale { least: 2.0, most: 200.0, logarithmic: true };
        let step = even.place(20.0) - even.place(2.0);
        assert!((even.place(200.0) - even.place(20.0) - step).abs() < 1e-9);
    }

    #[test]
    fn what_is_shown_is_measured() {
        assert!(SHOWN.iter().all(|(name, _)| metric_of(name).is_some()));
    }
}
