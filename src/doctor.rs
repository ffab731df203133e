//! `microvm doctor`, as people and programs read it.

use std::fmt::Write;
use vmm::host::doctor::{Check, Report, State};

/// Where lines end on a terminal.
pub const WIDTH: usize = 80;
/// Where values begin.
const INDENT: usize = 27;

/// How the report is written.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Lines are broken to fit a terminal; otherwise one is one.
    pub wrap: bool,
    /// States have colours.
    pub colour: bool,
}

/// The report as a table.
pub fn table(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let mut group = "";
    for check in &report.checks {
        if check.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = check.group;
            let _ = writeln!(out, "{gap}{}", paint(group, "1", style));
        }
        write_check(&mut out, check, style);
    }
    let (answer, colour) = match report.linux_guests {
        true => ("Linux guests can run on this host.", "32"),
        false => ("Linux guests can't run on this host.", "31"),
    };
    let _ = writeln!(out, "\n{}", paint(answer, colour, style));
    out
}

fn write_check(out: &mut String, check: &Check, style: Style) {
    let (word, colour) = match check.state {
        State::Ok => ("ok  ", "32"),
        State::Warn => ("warn", "33"),
        State::Fail => ("FAIL", "31"),
        State::Unknown => ("?   ", "36"),
    };
    let _ = write!(out, "  {}  {:<19}", paint(word, colour, style), check.name);
    write_text(out, &check.value, style);
    if let Some(remedy) = &check.remedy {
        let _ = write!(out, "{:INDENT$}", "");
        write_text(out, &format!("fix: {remedy}"), style);
    }
}

/// Writes text from INDENT on.
fn write_text(out: &mut String, text: &str, style: Style) {
    let mut column = INDENT;
    for (i, word) in text.split(' ').enumerate() {
        let width = word.chars().count();
        if i > 0 && style.wrap && column + 1 + width > WIDTH {
            let _ = write!(out, "\n{:INDENT$}", "");
            column = INDENT;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
}

/// `text` in a colour of the terminal's, if it may have one.
pub fn paint(text: &str, colour: &str, style: Style) -> String {
    if style.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let check = |state, value: &str, remedy: Option<&str>| Check {
            group: "KVM",
            name: "backend",
            state,
            value: value.into(),
            remedy: remedy.map(str::to_owned),
        };
        let long = "many words that go on and on ".repeat(6);
        Report {
            linux_guests: false,
            checks: vec![
                check(State::Ok, "fine", None),
                check(State::Fail, long.trim(), Some(long.trim())),
            ],
        }
    }

    #[test]
    fn a_terminal_gets_eighty_columns() {
        let text = table(&report(), Style { wrap: true, colour: false });
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("  ok    backend            fine\n"), "{text}");
        assert!(text.ends_with("\nLinux guests can't run on this host.\n"));
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        let text = table(&report(), Style { wrap: false, colour: false });
        assert!(!text.contains('\x1b'));
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn colours_do_not_change_the_text() {
        let style = Style { wrap: true, colour: true };
        let coloured = table(&report(), style);
        assert!(coloured.contains("\x1b[31mFAIL\x1b[0m"));
    }
}
