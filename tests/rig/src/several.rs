//! Several rigs at once, because one keeps only one processor of this machine busy:
//! each takes the next test from one list.

use crate::cache::Scratch;
use crate::place::{Place, ensure, place};
use crate::tally::Tally;
use anyhow::{Context, Result};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

/// Names the directory of [`Claims`].
const CLAIMS: &str = "MICROVM_RIG_CLAIMS";

/// Which tests are taken: a directory for each, on the host, where all rigs see it.
pub struct Claims(PathBuf);

/// Those of this process, if it is in one of several rigs.
pub fn claims() -> Option<Claims> {
    std::env::var_os(CLAIMS).map(|path| Claims(path.into()))
}

impl Claims {
    /// Whether a test is this process's to run: nobody else has taken it.
    pub fn take(&self, test: &str) -> io::Result<bool> {
        // As a directory, because who makes one learns for certain if it was there.
        match std::fs::create_dir(self.0.join(test.replace('/', "_"))) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// As [`ensure`], in as many rigs at once. Each runs this program with the same
/// arguments, and [`claims`] tells it which tests are its own.
pub fn ensure_several(rigs: usize) -> Result<Option<ExitCode>> {
    if claims().is_some() || rigs < 2 || place()? == Place::Direct {
        return ensure();
    }
    let start = Instant::now();
    let program = std::env::current_exe().context("finding this program")?;
    // In a rig, directories for files that don't last are the rig's own.
    let directory = Scratch::below(program.parent().context("this program has no directory")?)?;
    let mut children = Vec::new();
    for _ in 0..rigs {
        children.push(start_one(&program, &directory)?);
    }
    let readers: Vec<_> = children
        .iter_mut()
        .filter_map(|child| child.stdout.take())
        .map(|output| std::thread::spawn(move || pass_lines(output, io::stdout())))
        .collect();
    let mut tally = Tally::default();
    for reader in readers {
        tally.add(reader.join().unwrap_or_default());
    }
    let mut failed = tally.failed > 0;
    for mut child in children {
        failed |= !child.wait().context("waiting for a rig")?.success();
    }
    let Tally { passed, failed: wrong, skipped } = tally;
    let verdict = if failed { "FAILED" } else { "ok" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {wrong} failed; {skipped} ignored; \
         finished in {} s",
        start.elapsed().as_secs()
    );
    Ok(Some(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }))
}

fn start_one(program: &Path, claims: &Scratch) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(CLAIMS, claims.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command.spawn().context("starting a rig")
}

/// Passes on whole lines only, or two rigs would write into each other's; what libtest
/// says around each single test is counted and left out.
fn pass_lines(output: impl Read, mut screen: impl Write) -> Tally {
    let mut tally = Tally::default();
    let mut reasons = false;
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.starts_with("test result: ") {
            tally.read(text);
            reasons = false;
            continue;
        }
        reasons |= text == "failures:";
        if !reasons && (text.is_empty() || text.starts_with("running ")) {
            continue;
        }
        let _ = screen.write_all(&[&line[..], b"\n"].concat()).and_then(|()| screen.flush());
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_taken_once() {
        let scratch = Scratch::new().unwrap();
        let (one, other) = (Claims(scratch.path().into()), Claims(scratch.path().into()));
        assert!(one.take("a::b").unwrap() && !other.take("a::b").unwrap());
        assert!(other.take("a::c").unwrap() && !one.take("a::c").unwrap());
        assert!(Claims("/nonexistent".into()).take("a").is_err());
    }

    #[test]
    fn tests_and_what_went_wrong_are_passed_on_and_the_rest_is_counted() {
        let said = "\nrunning 1 test\ntest a ... ok\n\n\
            test result: ok. 1 passed; 0 failed; 0 ignored; finished in 1s\n\n\
            \nrunning 1 test\ntest b ... FAILED\n\nfailures:\n\n---- b ----\nbecause\n\n\
            failures:\n    b\n\ntest result: FAILED. 0 passed; 1 failed; 2 ignored; finished\n";
        let mut screen = Vec::new();
        let tally = pass_lines(said.as_bytes(), &mut screen);
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 2 });
        let text = String::from_utf8(screen).unwrap();
        let wanted = "test a ... ok\ntest b ... FAILED\nfailures:\n\n---- b ----\nbecause\n\nfailures:\n    b\n\n";
        assert_eq!(text, wanted);
    }
}
