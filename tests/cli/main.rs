//! The built binary, as a user calls it.

mod compare;
mod doctor;
mod guest;
mod images;
mod options;
mod running;
mod spectrum;
mod terminal;

use std::process::{Command, Output, Stdio};

/// The binary under test.
fn microvm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
fn run(words: &[&str]) -> Output {
    microvm().args(words).output().expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8 on standard output")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8 on standard error")
}

/// One line on standard error, nothing on standard output, this status.
#[track_caller]
fn refused(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("microvm: ") && text.ends_with('\n'), "{text}");
    assert_eq!(stdout(output), "");
    text
}
