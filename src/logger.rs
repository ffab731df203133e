//! Reports on standard error: one write a line, also while the terminal is raw.

use log::{LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use vmm::console::terminal;

struct Logger;

static LOGGER: Logger = Logger;

/// Whether standard error is a terminal. Asked once: the system call filter of
/// a vCPU's thread would not let it ask.
static ON_TERMINAL: AtomicBool = AtomicBool::new(false);

/// Reports what is at least as important as `level`.
pub fn install(level: LevelFilter) {
    ON_TERMINAL.store(terminal::is_terminal(libc::STDERR_FILENO), Ordering::Relaxed);
    // Fails only if there is a logger already, and there is no other.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_ascii_lowercase();
        let mut text = format!("{level}: ");
        // Where it comes from is for those who look for a fault.
        if log::max_level() >= LevelFilter::Debug {
            let _ = write!(text, "{}: ", record.target());
        }
        let _ = write!(text, "{}", record.args());
        say(&text);
    }

    fn flush(&self) {}
}

/// Writes `microvm: text` and the end of the line to standard error.
pub fn say(text: &str) {
    let raw = terminal::is_raw() && ON_TERMINAL.load(Ordering::Relaxed);
    let line = line(text, raw);
    // Nobody is left to tell if this fails.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A raw terminal needs to be told to go back to the first column; and a line
/// is one line, whatever a file name holds.
fn line(text: &str, raw: bool) -> String {
    format!("microvm: {}{}", vmm::visible(text), if raw { "\r\n" } else { "\n" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_printable_characters() {
        assert_eq!(line("a: b", false), "microvm: a: b\n");
        assert_eq!(line("a: b", true), "microvm: a: b\r\n");
        assert_eq!(line("x\n\u{1b}[31my", false), "microvm: x\\n\\u{1b}[31my\n");
    }
}
