//! `microvm spectrum`, as people read it.

use crate::doctor::{Style, paint};
use std::fmt::Write;
use vmm::host::spectrum::measure::{Cost, Operation};
use vmm::host::spectrum::verdict::Column;
use vmm::host::spectrum::{Facts, How, Report, Row};

const HEADING: &str = concat!(
    "           disk and   interrupts  motherboard  privileged    page\n",
    "           network    and timers  and boot     instructions  tables\n",
);

const LEGEND: &str = concat!(
    "  VS  virtualized in software: the guest sees what a real machine would have\n",
    "  VH  virtualized by the processor\n",
    "  P   paravirtualized: the guest knows, and asks\n",
);

/// The table, why it is so, and what was measured.
pub fn text(report: &Report, style: Style) -> String {
    let mut out = HEADING.to_owned();
    for row in &report.rows {
        write_row(&mut out, row, style);
    }
    let _ = write!(out, "\n{LEGEND}");
    if !report.is_known() {
        out += "  ?   this host does not tell\n";
    }
    write_column(&mut out, "Privileged instructions", &report.privileged_instructions, style);
    write_column(&mut out, "Page tables", &report.page_tables, style);
    let _ = writeln!(out, "\n{}", paint("What this host tells", "1", style));
    for (name, value) in facts(&report.facts) {
        let _ = writeln!(out, "  {name:<28}{value}");
    }
    if !report.costs.is_empty() {
        write_costs(&mut out, &report.costs, style);
    }
    if let Some(problem) = &report.problem {
        let _ = writeln!(out, "\nNot measured: {problem}");
    }
    if let Some(step) = report.linux_guests.as_ref().and_then(|linux| linux.fails) {
        let _ = writeln!(out, "\nLinux guests can't run on this host: {step} fails in ring 0.");
    }
    out
}

fn write_row(out: &mut String, row: &Row, style: Style) {
    let cells = [
        (row.disk_and_network, 11),
        (row.interrupts_and_timers, 12),
        (row.motherboard_and_boot, 13),
        (row.privileged_instructions, 14),
        (row.page_tables, 0),
    ];
    let _ = write!(out, "  {:<9}", row.mode);
    for (how, width) in cells {
        // Padded before it is painted: colours have no width.
        let _ = write!(out, "{}", paint(&format!("{:<width$}", how.letters()), colour(how), style));
    }
    out.push('\n');
}

fn colour(how: How) -> &'static str {
    match how {
        How::Software => "31",
        How::Hardware => "33",
        How::Paravirtual => "32",
        How::Unknown => "36",
    }
}

fn write_column(out: &mut String, name: &str, column: &Column, style: Style) {
    let _ = writeln!(out, "\n{}: {}", paint(name, "1", style), column.how.letters());
    for sentence in &column.because {
        let _ = writeln!(out, "  {sentence}");
    }
}

fn facts(facts: &Facts) -> Vec<(&'static str, String)> {
    let yes = |known: bool| if known { "yes" } else { "no" };
    let told = |known: Option<bool>| known.map_or("unknown", yes).to_owned();
    let mut lines = vec![
        ("behind KVM", facts.backend.to_owned()),
        ("host is a virtual machine", yes(facts.host_is_virtual).to_owned()),
        ("nested paging, by parameter", told(facts.nested_paging_parameter)),
        (
            "pre-faulting of memory",
            match facts.pre_fault_memory {
                true => "yes, so nested paging".to_owned(),
                false => "no: a kernel before 6.11, or no nested paging".to_owned(),
            },
        ),
        ("nested virtualization", yes(facts.nested_state).to_owned()),
        ("APICv or AVIC", told(facts.interrupt_virtualization)),
        ("kernels made for kvm_pvm", yes(facts.pvm_guests).to_owned()),
    ];
    if let Some(unrestricted) = facts.unrestricted_guest {
        lines.push(("VT-x runs real mode", yes(unrestricted).to_owned()));
    }
    lines
}

fn write_costs(out: &mut String, costs: &[Cost], style: Style) {
    let _ = writeln!(
        out,
        "\n{}\n  {:<28}{:>10}{:>10}{:>12}{:>12}",
        paint("What the probe guest measured", "1", style),
        "",
        "ns",
        "exits",
        "to microvm",
        "emulated"
    );
    for cost in costs {
        let counted = |value: Option<f64>| value.map_or("?".to_owned(), |n| format!("{n:.2}"));
        let _ = writeln!(
            out,
            "  {:<28}{:>10.1}{:>10}{:>12.2}{:>12}",
            name(cost.operation),
            cost.nanoseconds,
            counted(cost.exits),
            cost.user_exits,
            counted(cost.emulated)
        );
    }
}

fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Ring3Loop => "round of a loop, ring 3",
        Operation::Ring0Loop => "round of a loop, ring 0",
        Operation::RealModeLoop => "round of a loop, real mode",
        Operation::Cpuid => "CPUID",
        Operation::Rdmsr => "RDMSR",
        Operation::LoadCr3 => "MOV to CR3",
        Operation::Invlpg => "INVLPG",
        Operation::PageTableWrite => "page table entry, written",
        Operation::PortWrite => "OUT to microvm",
        Operation::MmioWrite => "store to a device of microvm",
        Operation::EoiStore => "EOI, a store to KVM's APIC",
        Operation::EoiMsr => "EOI, WRMSR to KVM's x2APIC",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::WIDTH;

    #[test]
    fn it_fits_a_terminal_and_colours_do_not_change_it() {
        let report = vmm::host::spectrum::examine();
        let plain = text(&report, Style { wrap: true, colour: false });
        for line in plain.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        let mut coloured = text(&report, Style { wrap: true, colour: true });
        for code in ["0", "1", "31", "32", "33", "36"] {
            coloured = coloured.replace(&format!("\x1b[{code}m"), "");
        }
        // The figures are the same report's, so all of the text is.
        assert_eq!(plain, coloured);
    }

    #[test]
    fn cells_stand_under_their_headings() {
        let row = Row {
            mode: "hvm-pv",
            disk_and_network: How::Paravirtual,
            interrupts_and_timers: How::Software,
            motherboard_and_boot: How::Software,
            privileged_instructions: How::Unknown,
            page_tables: How::Hardware,
        };
        let mut line = String::new();
        write_row(&mut line, &row, Style { wrap: true, colour: false });
        let heading = HEADING.lines().nth(1).unwrap();
        for (word, cell) in
            [("network", "P"), ("and timers", "VS"), ("and boot", "VS"), ("tables", "VH")]
        {
            let column = heading.find(word).unwrap();
            assert!(line[column..].starts_with(cell), "{heading}\n{line}");
        }
    }
}
