//! What the figures say, in sentences that follow from them alone.

use crate::catalog::{Group, METRICS, Unit, digits};
use crate::report::{Column, Outcome, Report};

/// Slower or faster than this can't be told from noise on most hosts.
const SAME: f64 = 1.05;

/// Fewer operations than this say nothing together.
const ENOUGH: usize = 6;

/// Sentences, the most important first.
pub fn sentences(report: &Report) -> Vec<String> {
    let Some(native) = report.native() else { return Vec::new() };
    let mut all = Vec::new();
    all.extend(warning(report));
    all.extend(start(report, native));
    all.extend(overhead(report, native));
    all.extend(isolation(report, native));
    all.extend(interface(report));
    all.extend(exits(report));
    all.extend(memory(report));
    all.extend(noise(report));
    all
}

/// Those that there are figures of.
pub fn measured(report: &Report) -> impl Iterator<Item = &Column> {
    report.subjects.iter().filter(|column| column.skipped.is_none())
}

/// What its figures must not be taken for.
pub fn warning(report: &Report) -> Option<String> {
    let host = &report.host;
    if host.emulated {
        return Some(
            "This whole host is emulated in software. Figures marked ~ are of virtual machines inside of it: \
             their times say nothing of real hardware, and are not compared with the others."
                .to_owned(),
        );
    }
    let machine = measured(report).any(|column| column.emulated);
    (host.virtualization_emulated && machine).then(|| {
        "This host's KVM interprets privileged instructions in software. Figures marked ~ are of virtual \
         machines, and are not compared with the others."
            .to_owned()
    })
}

fn time(value: f64) -> String {
    Unit::Nanoseconds.show(value)
}

fn start(report: &Report, native: &Column) -> Vec<String> {
    let Some(own) = native.summary("start_exec") else { return Vec::new() };
    let mut sentences = Vec::new();
    let of = |column: &Column| column.summary("start_exec").map(|summary| summary.median);
    let fastest = |machine: bool| {
        measured(report)
            .filter(|c| c.subject != "native" && c.subject.starts_with("vm:") == machine)
            // A single namespace is no container.
            .filter(|c| {
                machine
                    || !c.subject.starts_with("ns:")
                    || ["ns:all", "ns:sandbox"].contains(&c.subject.as_str())
            })
            .filter_map(|column| Some((column, of(column)?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
    };
    if let Some((column, median)) = fastest(false) {
        sentences.push(format!(
            "Starting a program takes {} natively, and {} in the container that starts fastest, {}: {} times as long.",
            time(own.median), time(median), column.subject, digits(median / own.median)
        ));
    }
    if let Some((column, median)) = fastest(true) {
        let end = match column.emulated {
            true => " (emulated: ~)".to_owned(),
            false => format!(", {} times as long as natively", digits(median / own.median)),
        };
        sentences.push(format!(
            "The virtual machine that starts fastest, {}, takes {}{end}.",
            column.subject,
            time(median)
        ));
    }
    sentences
}

/// Geometric mean of the factors of all operations of a running program that are not
/// noisy, their number, and the worst.
fn factors(column: &Column, native: &Column) -> Option<(f64, usize, f64, &'static str)> {
    let groups = [Group::Kernel, Group::Load];
    let factors: Vec<_> = METRICS
        .iter()
        .filter(|metric| groups.contains(&metric.group) && metric.unit != Unit::Percent)
        .filter(|metric| {
            let quiet = |c: &Column| c.summary(metric.name).is_some_and(|s| !s.is_noisy());
            quiet(column) && quiet(native)
        })
        .filter_map(|metric| Some((column.factor(native, metric.name)?, metric.title)))
        .collect();
    let (worst, title) = factors.iter().copied().max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let mean = (factors.iter().map(|(f, _)| f.ln()).sum::<f64>() / factors.len() as f64).exp();
    Some((mean, factors.len(), worst, title))
}

fn overhead(report: &Report, native: &Column) -> Vec<String> {
    let mut sentences = Vec::new();
    for name in ["ns:all", "ns:sandbox", "vm:job", "vm:pv", "vm:hvm"] {
        let column = measured(report).find(|column| column.subject == name);
        let Some((mean, count, worst, title)) = column.and_then(|c| factors(c, native)) else {
            continue;
        };
        let claim = match mean {
            _ if count < ENOUGH => "can't be told from noise",
            m if m < 1.0 / SAME => {
                "are faster than natively, which is noise or another kernel's doing"
            }
            m if m <= SAME => "cost what they cost natively",
            _ => "cost more than natively",
        };
        sentences.push(format!(
            "In {name}, system calls and computing {claim}: {} times, over {count} operations; the worst is {} times ({title}).",
            digits(mean), digits(worst)
        ));
    }
    sentences
}

/// How many of the probes reach the host, of those that natively do.
pub fn reach(column: &Column, native: &Column) -> (usize, usize) {
    let there = |column: &Column, name: &str| column.probes.get(name) == Some(&Outcome::Host);
    let shown: Vec<_> = native.probes.keys().filter(|name| there(native, name)).collect();
    (shown.iter().filter(|name| there(column, name)).count(), shown.len())
}

fn isolation(report: &Report, native: &Column) -> Option<String> {
    let (_, all) = reach(native, native);
    let list: Vec<_> = measured(report)
        .filter(|column| column.subject != "native" && !column.probes.is_empty())
        .map(|column| format!("{} {}", column.subject, reach(column, native).0))
        .collect();
    (all > 0 && !list.is_empty()).then(|| {
        format!(
            "Of {all} ways to see or change something of the host that a native process of this user has, so many are left: {}.",
            list.join(", ")
        )
    })
}

fn interface(report: &Report) -> Option<String> {
    let list: Vec<_> = measured(report)
        .filter_map(|column| {
            Some(format!("{} {:.0}", column.subject, column.summary("kinds_work")?.median))
        })
        .collect();
    (list.len() > 1).then(|| {
        format!(
            "A program that makes 154 different system calls makes its host's kernel see so many different ones: {}.",
            list.join(", ")
        )
    })
}

fn exits(report: &Report) -> Option<String> {
    let list: Vec<_> = measured(report)
        .filter_map(|column| {
            let (all, read) = (column.summary("exits_boot")?, column.summary("exits_disk_read")?);
            Some(format!("{} {:.0} and {}", column.subject, all.median, digits(read.median)))
        })
        .collect();
    (!list.is_empty()).then(|| {
        format!(
            "A virtual machine leaves its guest so many times until its program runs, and for a read of 4 KiB from its disk: {}.",
            list.join(", ")
        )
    })
}

fn memory(report: &Report) -> Option<String> {
    let list: Vec<_> = measured(report)
        .filter_map(|column| {
            let summary = column.summary("memory_pss")?;
            Some(format!("{} {}", column.subject, Unit::Kibibytes.show(summary.median)))
        })
        .collect();
    (list.len() > 1)
        .then(|| format!("Memory of an instance that does nothing: {}.", list.join(", ")))
}

fn noise(report: &Report) -> Option<String> {
    let (mut noisy, mut all) = (0, 0);
    for column in measured(report) {
        for metric in METRICS.iter().filter(|metric| metric.unit != Unit::Percent) {
            if let Some(summary) = column.summary(metric.name).filter(|summary| summary.count > 2) {
                all += 1;
                noisy += usize::from(summary.is_noisy());
            }
        }
    }
    (noisy * 10 > all).then(|| {
        format!("{noisy} of {all} figures are noisy (marked ?): something else runs on this host. Try again, or --full.")
    })
}
