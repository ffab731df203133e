//! Jobs that have names: `microvm exec`, `ps` and `stop`.

use crate::console::{Session, expect_status};
use crate::job::{Job, Kit, complete};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("job::programs_beside_a_job_are_as_jobs_are", beside),
        trial("job::a_name_goes_with_its_job_however_that_ends", names),
    ]
}

struct Named {
    kit: Kit,
    runtime: PathBuf,
}

impl Named {
    fn new() -> Result<Self, String> {
        let kit = Kit::new()?;
        let runtime = kit.path("runtime");
        fs::create_dir(&runtime).map_err(|e| e.to_string())?;
        Ok(Self { kit, runtime })
    }

    fn start(&self, name: &str, script: &str) -> Result<Job, String> {
        let mut command = self.kit.run(&["--name", name], kit::root(), &["sh", "-c", script]);
        command.env("XDG_RUNTIME_DIR", &self.runtime).env("OF_THE_JOB", "yes");
        let mut job = Job::start(command)?;
        job.expect("ready")?;
        Ok(job)
    }

    fn microvm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kit.microvm);
        command.args(words).env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    /// What a command prints, and what its status must be.
    fn told(&self, words: &[&str], input: &[u8], status: i32) -> Result<(String, String), String> {
        let told = complete(self.microvm(words), input.to_vec())?;
        if told.status != status {
            return Err(format!("{words:?}: status {:#x}: {}", told.status, told.stderr));
        }
        Ok((String::from_utf8_lossy(&told.stdout).into_owned(), told.stderr))
    }

    fn is_empty(&self) -> Result<bool, String> {
        let place = fs::read_dir(self.runtime.join("microvm")).map_err(|e| e.to_string())?;
        Ok(place.count() == 0)
    }
}

fn beside() -> Verdict {
    let named = Named::new()?;
    let mut job = named
        .start("one", "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done")?;
    let (list, _) = named.told(&["ps"], b"", 0)?;
    let lines: Vec<&str> = list.lines().collect();
    let pid = job.child.id().to_string();
    if lines.len() != 2
        || !["one ", &pid, "running", "sh -c trap"].iter().all(|w| lines[1].contains(w))
    {
        return Err(list.into());
    }
    let mut again = named.kit.run(&["--name", "one"], kit::root(), &["true"]);
    again.env("XDG_RUNTIME_DIR", &named.runtime);
    let again = complete(again, Vec::new())?;
    if again.status != 125 << 8 || !again.stderr.contains("one: a job with this name runs") {
        return Err(format!("the name again: {:#x} {}", again.status, again.stderr).into());
    }

    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let script = "echo $OF_THE_JOB $MORE $# >&2; umask >&2; cat; exit 7";
    let words = ["exec", "--env", "MORE=added", "one", "sh", "-c", script, "sh", "a", "b c"];
    let told = complete(named.microvm(&words), input.clone())?;
    if told.stdout != input || told.stderr != "yes added 2\n0022\n" || told.status != 7 << 8 {
        let len = told.stdout.len();
        return Err(format!("{len} bytes, {:#x}, {}", told.status, told.stderr).into());
    }
    named.told(&["exec", "one", "sh", "-c", "kill -USR1 $$"], b"", libc::SIGUSR1)?;
    let (_, text) = named.told(&["exec", "one", "/no/program"], b"", 127 << 8)?;
    let (_, other) = named.told(&["exec", "two", "true"], b"", 125 << 8)?;
    let (_, none) = named.told(&["stop", "two"], b"", 3 << 8)?;
    if !text.contains("/no/program: No such file")
        || !other.contains("two: no such job")
        || other != none
    {
        return Err(format!("{text}{other}{none}").into());
    }

    // Signals, stopping among them, without a terminal and with one.
    let traps = "trap 'echo got-usr2' USR2; echo ready-2; while :; do sleep 0.1; done";
    let mut program = Job::start(named.microvm(&["exec", "one", "sh", "-c", traps]))?;
    program.expect("ready-2")?;
    program.signal(libc::SIGUSR2);
    program.expect("got-usr2")?;
    program.signal(libc::SIGTSTP);
    program.stopped_by()?;
    program.signal(libc::SIGCONT);
    program.signal(libc::SIGTERM);
    let status = program.child.wait()?;
    if status.signal() != Some(libc::SIGTERM) {
        return Err(format!("a program that SIGTERM ends: {status}").into());
    }
    let script = "tty; stty size; trap 'echo interrupted' INT; echo name?; read name; \
        echo \"hello $name\"; sleep 1000; echo again; sleep 0.2; exit 5";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-mc", "\"$@\"; echo stop-$?; fg; echo end-$?", "sh"]).arg(&named.kit.microvm);
    shell.args(["exec", "one", "sh", "-c", script]).env("XDG_RUNTIME_DIR", &named.runtime);
    let mut session = Session::sized(shell, Some((31, 83)))?;
    session.expect("/dev/pts/")?;
    session.expect("31 83")?;
    session.expect("name?")?;
    session.send("world\n")?;
    session.expect("hello world")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    session.send("\x1a")?;
    session.expect("stop-148")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    session.send("\x03")?;
    session.expect("interrupted")?;
    session.expect("end-5")?;
    expect_status(session.end()?, 0)?;

    // The end of the job is the end of all.
    let mut program =
        Job::start(named.microvm(&["exec", "one", "sh", "-c", "echo ready-3; sleep 1000"]))?;
    program.expect("ready-3")?;
    named.told(&["stop", "one"], b"", 0)?;
    job.expect("told")?;
    let (job, program) = (job.child.wait()?, program.child.wait()?);
    if job.code() != Some(3) || program.signal() != Some(libc::SIGKILL) || !named.is_empty()? {
        return Err(format!("at the end: the job {job}, the program {program}").into());
    }
    Ok(Completion::Completed)
}

fn names() -> Verdict {
    let named = Named::new()?;
    let mut job = named.start("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done")?;
    let (_, text) = named.told(&["stop", "--time", "1", "deaf"], b"", 0)?;
    let status = job.child.wait()?;
    let killed = status.signal() == Some(libc::SIGKILL) && text.contains("killed");
    if !killed || !named.is_empty()? {
        return Err(format!("{status}: {text}").into());
    }
    let mut job = named.start("gone", "echo ready; sleep 1000")?;
    job.child.kill()?;
    job.child.wait()?;
    if named.is_empty()? {
        return Err("a runner that is killed can't have removed its name".into());
    }
    let (list, _) = named.told(&["ps", "--json"], b"", 0)?;
    if list.trim() != "[]" || !named.is_empty()? {
        return Err(format!("a name of the dead: {list}").into());
    }
    Ok(Completion::Completed)
}
