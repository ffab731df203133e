//! Everything, in tables.

use super::escape;
use crate::catalog::{Group, METRICS, PROBES, digits};
use crate::report::{Column, Outcome, Report, Value, rows};
use std::fmt::Write;

/// What each subject sees and may do.
pub fn isolation(page: &mut String, report: &Report, columns: &[&Column]) {
    page.push_str(
        "<section><h2>What it sees of the host, and may do</h2><div class=key>\
         <span class=h><b>&nbsp;!&nbsp;</b> reaches the host, or its kernel allows it</span>\
         <span class=o><b>&nbsp;o&nbsp;</b> it is the subject's own</span>\
         <span>– no</span><span>? not known</span></div>\
         <p class=soft>The host hides a word in a process, a file, a socket, a port, shared memory and a key; \
         under a wrong word, nobody may find it. Published ways out are tried up to where they would do harm. \
         Where native has no mark, this host or this user can't do it at all.</p>\
         <div class=scroll><table class=matrix><thead><tr><th>probe</th>",
    );
    for column in columns {
        let _ = write!(page, "<th><span>{}</span></th>", escape(&column.subject));
    }
    page.push_str("</tr></thead><tbody>");
    for probe in PROBES {
        let _ = write!(page, "<tr><td>{}</td>", escape(probe.title));
        for column in columns {
            let (class, mark, why) = match column.probes.get(probe.name) {
                Some(Outcome::Host) => ("m h", "<b>!</b>", ""),
                Some(Outcome::Own) => ("m o", "<b>o</b>", ""),
                Some(Outcome::No(why)) => ("m", "–", why.as_str()),
                Some(Outcome::Unknown(why)) => ("m", "?", why.as_str()),
                None => ("m", "?", ""),
            };
            let _ = write!(page, "<td class=\"{class}\" title=\"{}\">{mark}</td>", escape(why));
        }
        page.push_str("</tr>");
    }
    let native = report.native();
    page.push_str("<tr><td>left of what native reaches</td>");
    for column in columns {
        let left = native.map_or(0, |native| crate::verdict::reach(column, native).0);
        let _ = write!(page, "<td class=m>{left}</td>");
    }
    page.push_str("</tr></tbody></table></div></section>");
}

/// Every figure.
pub fn figures(page: &mut String, report: &Report, columns: &[&Column]) {
    page.push_str(
        "<section><h2>All figures</h2><p class=soft>Medians; in brackets how many times worse than natively. \
         Point at one for its interval and its samples. ? is noisier than 15 %.</p>\
         <div class=scroll><table><thead><tr><th></th>",
    );
    for column in columns {
        let _ = write!(page, "<th>{}</th>", escape(&column.subject));
    }
    page.push_str("</tr></thead><tbody>");
    for group in Group::ALL {
        let rows = rows(group, columns);
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "<tr><th colspan={}>{}</th></tr>",
            columns.len() + 1,
            escape(group.title())
        );
        for metric in rows {
            let _ = write!(page, "<tr><td>{}</td>", escape(metric.title));
            for column in columns {
                page.push_str(&cell(report, column, metric));
            }
            page.push_str("</tr>");
        }
    }
    page.push_str("</tbody></table></div></section>");
}

fn cell(report: &Report, column: &Column, metric: &crate::catalog::Metric) -> String {
    let Some(summary) = column.summary(metric.name) else {
        let why = match column.values.get(metric.name) {
            Some(Value::Missing(why)) => why.as_str(),
            _ => "no samples",
        };
        return format!("<td class=na title=\"{}\">n/a</td>", escape(why));
    };
    let show = |value| metric.unit.show(value);
    let factor = report.native().and_then(|native| column.factor(native, metric.name));
    let factor = factor.map(|factor| format!(" ({})", digits(factor))).unwrap_or_default();
    format!(
        "<td title=\"{} to {}, n {}, all from {} to {}\">{}{}{}{factor}</td>",
        show(summary.low),
        show(summary.high),
        summary.count,
        show(summary.least),
        show(summary.greatest),
        if column.emulated { "~" } else { "" },
        show(summary.median),
        if summary.is_noisy() { "?" } else { "" },
    )
}

/// What is not there and why, and how it was measured.
pub fn notes(page: &mut String, report: &Report) {
    page.push_str("<section><h2>Notes</h2><ul class=\"verdict soft\">");
    for column in &report.subjects {
        if let Some(why) = &column.skipped {
            let _ = write!(page, "<li>{}: n/a: {}</li>", escape(&column.subject), escape(why));
        }
        for note in &column.notes {
            let _ = write!(page, "<li>{}: {}</li>", escape(&column.subject), escape(note));
        }
        let mut reasons: Vec<_> = METRICS
            .iter()
            .filter_map(|metric| match column.values.get(metric.name)? {
                Value::Missing(why) => Some((why, metric.title)),
                Value::Samples(_) => None,
            })
            .collect();
        reasons.dedup_by(|a, b| a.0 == b.0);
        for (why, title) in reasons {
            let _ = write!(
                page,
                "<li>{}: {}: {}</li>",
                escape(&column.subject),
                escape(title),
                escape(why)
            );
        }
    }
    page.push_str(
        "<li>One static program does the measuring in every subject. Start is from clone3 to its first line of \
         output, and to the end of the process that was started. Subjects take turns, after a trial of each.</li>\
         <li>A machine's disk is a file of the host's behind its own block device; that of the others is a file. \
         Both past the page cache where the file system can. Each network is the subject's own loopback.</li>\
         <li>Host system calls are counted with ptrace, of all processes of a subject, from the first program that \
         is executed on.</li></ul></section>",
    );
}
