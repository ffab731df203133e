//! The report as one page that needs nothing else: no scripts, no fonts, no network.
//!
//! Subjects stand in the order of the spectrum, from the one that emulates most:
//! HVM, paravirtualized, containers, native.

mod chart;
mod rings;
mod tables;

use crate::report::{Column, Report};
use crate::{text, verdict};
use std::fmt::Write;

const STYLE: &str = include_str!("html/style.css");

/// The page.
pub fn render(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <title>microvm compare</title><style>{STYLE}</style><main>\
         <h1>Virtual machines and containers, side by side</h1>"
    );
    for line in text::host(&report.host).lines() {
        let _ = write!(page, "<div class=soft>{}</div>", escape(line));
    }
    let _ = write!(
        page,
        "<div class=soft>microvm {}, {} effort, {}</div>",
        escape(&report.host.program),
        escape(&report.effort),
        date(report.host.time)
    );
    if !report.command.is_empty() {
        let _ =
            write!(page, "<p>The command: <code>{}</code></p>", escape(&report.command.join(" ")));
    }
    let warning = verdict::warning(report);
    if let Some(warning) = &warning {
        let _ = write!(page, "<p class=warn>{}</p>", escape(warning));
    }
    page.push_str("<h2>What the figures say</h2><ul class=verdict>");
    for sentence in verdict::sentences(report).iter().filter(|s| Some(*s) != warning.as_ref()) {
        let _ = write!(page, "<li>{}</li>", escape(sentence));
    }
    page.push_str("</ul>");
    let columns = ordered(report);
    rings::write(&mut page, report, &columns);
    chart::write(&mut page, report, &columns);
    tables::isolation(&mut page, report, &columns);
    tables::figures(&mut page, report, &columns);
    tables::notes(&mut page, report);
    page.push_str("</main></html>\n");
    page
}

/// Those that there are figures of, in the order of the spectrum.
fn ordered(report: &Report) -> Vec<&Column> {
    let mut columns: Vec<_> = verdict::measured(report).collect();
    columns.reverse();
    columns
}

/// What a subject is coloured as.
fn class(column: &Column) -> &'static str {
    match column.subject.as_str() {
        "native" => "native",
        name if name.starts_with("vm:") => "vm",
        _ => "box",
    }
}

/// Text inside of elements and of attributes in quotes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A day of the Gregorian calendar (Howard Hinnant's civil_from_days).
fn date(seconds: u64) -> String {
    let days = seconds / 86400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{day:02}", era * 400 + year + later)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::catalog::{METRICS, PROBES};
    use crate::report::{Host, Outcome, VERSION, Value};
    use crate::subject::Subject;

    /// A report with a figure in every place.
    pub fn example() -> Report {
        let host = Host {
            processor: "A <fast> processor".into(),
            processors: 2,
            memory: 4096,
            kernel: "6.12".into(),
            hypervisor: None,
            kvm: "SVM, kvm_amd".into(),
            privileged_instructions: "VH".into(),
            page_tables: "VH".into(),
            emulated: false,
            virtualization_emulated: false,
            governor: None,
            uid: 0,
            time: 1_700_000_000,
            program: "0".into(),
        };
        let column = |(number, subject): (usize, &Subject)| {
            let mut column = Column { subject: subject.to_string(), ..Column::default() };
            for metric in METRICS {
                let value = 100.0 + number as f64;
                column.add(metric.name, Value::Samples(vec![value; 9]));
            }
            for probe in PROBES {
                let outcome =
                    if number == 0 { Outcome::Host } else { Outcome::No("refused".into()) };
                column.probes.insert(probe.name.into(), outcome);
            }
            column.facts.insert("ring".into(), "3".into());
            column
        };
        let subjects = Subject::few();
        let subjects = subjects.iter().enumerate().map(column).collect();
        Report { version: VERSION, host, effort: "quick".into(), command: Vec::new(), subjects }
    }

    #[test]
    fn the_page_holds_everything_and_is_well_formed() {
        let mut report = example();
        report.subjects[3].skipped = Some("not <installed>".into());
        report.subjects[1].values.insert("tlb".into(), Value::Missing("no & memory".into()));
        let page = render(&report);
        for metric in METRICS.iter().filter(|metric| metric.name != "command") {
            assert!(page.contains(&escape(metric.title)), "{}", metric.title);
        }
        for probe in PROBES {
            assert!(page.contains(&escape(probe.title)), "{}", probe.title);
        }
        for text in
            ["A &lt;fast&gt; processor", "not &lt;installed&gt;", "no &amp; memory", "2023-11-14"]
        {
            assert!(page.contains(text), "{text}");
        }
        // Nothing comes from elsewhere.
        for text in ["<script", "http:", "https:", "@import", "NaN", "inf"] {
            assert!(!page.contains(text), "{text}");
        }
        for tag in
            ["div", "span", "table", "tr", "td", "svg", "ul", "li", "section", "p", "h2", "h3"]
        {
            let count = |what: &str| page.matches(what).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn emulated_figures_are_marked_and_not_compared() {
        let mut report = example();
        report.host.emulated = true;
        let machines =
            report.subjects.iter_mut().filter(|column| column.subject.starts_with("vm:"));
        machines.for_each(|column| column.emulated = true);
        let page = render(&report);
        assert!(page.contains("emulated in software") && page.contains("class=\"bar vm emu\""));
        let text = text::render(&report, None);
        let row = text.lines().find(|line| line.contains("getpid")).unwrap();
        assert_eq!(row.matches('~').count(), 5, "{row}");
        let native = report.native().unwrap();
        let factors = report.subjects.iter().filter_map(|column| column.factor(native, "getpid"));
        assert_eq!(row.matches('(').count(), factors.count());
        // Verdicts compare nothing of them either.
        assert!(!text.contains("In vm:"), "{text}");
    }
}
