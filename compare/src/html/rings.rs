//! Which ring of the processor runs what: 0 and 3 for a container, -1, 0 and 3 for a
//! virtual machine, with this host's figures on the arrows.

use super::escape;
use crate::catalog::Unit;
use crate::report::{Column, Report};
use crate::verdict::reach;
use std::fmt::Write;

/// The section.
pub fn write(page: &mut String, report: &Report, columns: &[&Column]) {
    let first = |names: &[&str]| {
        names.iter().find_map(|name| columns.iter().find(|c| c.subject == *name).copied())
    };
    let container = first(&["ns:sandbox", "ns:all", "crun", "runc", "bwrap", "podman", "native"]);
    let machine = first(&["vm:job", "vm:pv", "vm:pvhvm", "vm:hvm-pv", "vm:hvm"]);
    let Some(native) = report.native() else { return };
    page.push_str(
        "<section><h2>Which ring runs what</h2><p class=soft>A container is a process: what it asks for, the \
         host's kernel does. The guest of a virtual machine has a kernel of its own, and what is left of the \
         host's interface is what the monitor uses.</p><div class=rings>",
    );
    if let Some(column) = container {
        diagram(page, &shared(column, native));
    }
    if let Some(column) = machine {
        diagram(page, &own(report, column, native));
    }
    page.push_str("</div></section>");
}

/// A box: its class, its title, and a line below it.
struct Layer {
    class: &'static str,
    ring: String,
    title: String,
    below: String,
}

/// From one layer to the next.
struct Arrow([String; 2]);

struct Diagram {
    title: String,
    layers: Vec<Layer>,
    arrows: Vec<Arrow>,
}

fn figure(column: &Column, metric: &str, unit: Unit) -> String {
    let mark = if column.emulated && unit == Unit::Nanoseconds { "~" } else { "" };
    column.summary(metric).map_or("?".to_owned(), |s| format!("{mark}{}", unit.show(s.median)))
}

/// What a program's own ring is, as it has seen it.
fn program(column: &Column) -> Layer {
    let ring = column.facts.get("ring").map_or("3", String::as_str);
    Layer {
        class: "r3",
        ring: format!("ring {ring}"),
        title: "the program".to_owned(),
        below: format!("in {}", column.subject),
    }
}

fn call(column: &Column) -> Arrow {
    let time = |metric| figure(column, metric, Unit::Nanoseconds);
    Arrow([
        format!("system call: getpid {}", time("getpid")),
        format!("page fault {}, fork {}", time("page_fault"), time("fork")),
    ])
}

fn left(column: &Column, native: &Column) -> String {
    let (left, all) = reach(column, native);
    format!("{left} of {all} probes reach it")
}

fn shared(column: &Column, native: &Column) -> Diagram {
    Diagram {
        title: "A container".to_owned(),
        layers: vec![
            program(column),
            Layer {
                class: "r0",
                ring: "ring 0".to_owned(),
                title: "the host's kernel, shared by all".to_owned(),
                below: format!(
                    "{} kinds of system calls; {}",
                    figure(column, "kinds_work", Unit::Count),
                    left(column, native)
                ),
            },
        ],
        arrows: vec![call(column)],
    }
}

fn own(report: &Report, column: &Column, native: &Column) -> Diagram {
    let count = |metric| figure(column, metric, Unit::Count);
    let software = report.host.privileged_instructions != "VH";
    let guest = if software { "ring 0, interpreted" } else { "ring 0" };
    Diagram {
        title: "A virtual machine".to_owned(),
        layers: vec![
            program(column),
            Layer {
                class: "r0",
                ring: guest.to_owned(),
                title: "its own kernel".to_owned(),
                below: format!("there in {}", figure(column, "guest_kernel", Unit::Nanoseconds)),
            },
            Layer {
                class: "r1",
                ring: "ring \u{2212}1".to_owned(),
                title: "KVM in the host's kernel; microvm".to_owned(),
                below: format!(
                    "{} kinds of system calls; {}",
                    count("kinds_work"),
                    left(column, native)
                ),
            },
        ],
        arrows: vec![
            call(column),
            Arrow([
                format!(
                    "exits: {} for a read of 4 KiB, {} for a getpid",
                    figure(column, "exits_disk_read", Unit::Each),
                    figure(column, "exits_getpid", Unit::Each)
                ),
                format!(
                    "{} ioctls of KVM; filters let {} system calls through",
                    count("kvm_ioctls"),
                    count("kinds_allowed")
                ),
            ]),
        ],
    }
}

/// Sizes in units of the drawing.
const WIDTH: u32 = 400;
const BOX: u32 = 62;
const GAP: u32 = 64;

fn diagram(page: &mut String, diagram: &Diagram) {
    let count = diagram.layers.len() as u32;
    let height = count * BOX + (count - 1) * GAP + 8;
    let _ = write!(
        page,
        "<div class=card><h3>{}</h3><svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{}\">",
        escape(&diagram.title),
        escape(&diagram.title)
    );
    for (number, layer) in diagram.layers.iter().enumerate() {
        let y = 4 + number as u32 * (BOX + GAP);
        let _ = write!(
            page,
            "<rect class={} x=2 y={y} width={} height={BOX} />\
             <text class=t x=16 y={}>{}</text><text class=s x={} y={} text-anchor=end>{}</text>\
             <text class=s x=16 y={}>{}</text>",
            layer.class,
            WIDTH - 4,
            y + 26,
            escape(&layer.title),
            WIDTH - 16,
            y + 26,
            escape(&layer.ring),
            y + 47,
            escape(&layer.below),
        );
    }
    for (number, Arrow([first, second])) in diagram.arrows.iter().enumerate() {
        let top = 4 + BOX + number as u32 * (BOX + GAP);
        let end = top + GAP;
        let _ = write!(
            page,
            "<path d=\"M32 {top}V{}\" /><path class=tip d=\"M26 {}h12l-6 9z\" />\
             <text x=50 y={}>{}</text><text class=s x=50 y={}>{}</text>",
            end - 8,
            end - 10,
            top + 28,
            escape(first),
            top + 46,
            escape(second),
        );
    }
    page.push_str("</svg></div>");
}
