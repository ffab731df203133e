//! Jobs that have names: `microvm exec`, `ps` and `stop`.

use crate::console::{Session, expect_status};
use crate::job::{Job, Kit, complete};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("job::programs_beside_a_job_are_as_jobs_are", beside),
        trial("job::a_name_goes_with_its_job_however_that_ends", names),
        trial("job::many_at_a_time_some_of_them_killed_lose_and_leave_nothing", many),
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

/// How many jobs there are, unless the variable says how many.
const JOBS: usize = 9;
const JOBS_VARIABLE: &str = "MICROVM_TEST_JOBS";
const AT_A_TIME: usize = 3;

/// What there is of a kind in a directory.
fn entries(place: &str) -> BTreeSet<PathBuf> {
    fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn many() -> Verdict {
    let named = Named::new()?;
    let count = std::env::var(JOBS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(JOBS);
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let before = (mounts(), entries("/sys/class/net"), entries("/dev/shm"));
    let next = AtomicUsize::new(0);
    let work = || -> Result<usize, String> {
        let mut killed = 0;
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= count {
                return Ok(killed);
            }
            killed += usize::from(one_of_many(&named, number)?);
        }
    };
    let killed: Vec<Result<usize, String>> = thread::scope(|scope| {
        let all: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        all.into_iter().map(|one| one.join().unwrap_or(Err("panicked".to_owned()))).collect()
    });
    let killed: usize = killed.into_iter().sum::<Result<_, _>>()?;
    let (list, _) = named.told(&["ps", "--json"], b"", 0)?;
    let after = (mounts(), entries("/sys/class/net"), entries("/dev/shm"));
    if list.trim() != "[]" || !named.is_empty()? || before != after {
        return Err(format!("left: {list}, {before:?}, {after:?}").into());
    }
    if named.runtime.read_dir()?.count() != 1 {
        return Err("files are left".into());
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let program = fs::read_link(process.path().join("exe"));
        if program.is_ok_and(|program| program == Path::new(&named.kit.microvm)) {
            return Err(format!("{} is left", process.path().display()).into());
        }
    }
    if killed == 0 {
        return Err(format!("none of {count} was killed").into());
    }
    println!("{count} jobs, {killed} killed");
    Ok(Completion::Completed)
}

/// A job with output and a status of its own; every third is killed at some time.
fn one_of_many(named: &Named, number: usize) -> Result<bool, String> {
    let status = number % 100;
    let lines: String = (0..3000).map(|line| format!("job {number} line {line}\n")).collect();
    let script = format!(
        "i=0; while [ $i -lt 3000 ]; do echo job {number} line $i; i=$((i + 1)); done; exit {status}"
    );
    let name = format!("many-{number}");
    let mut command = named.kit.run(&["--name", &name], kit::root(), &["sh", "-c", &script]);
    command.env("XDG_RUNTIME_DIR", &named.runtime).env("TMPDIR", &named.runtime);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let mut output = child.stdout.take().ok_or("no pipe")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).map(|_| text)
    });
    // Anywhere from before there is a guest to after its end.
    let signal = number.is_multiple_of(3).then(|| {
        thread::sleep(Duration::from_millis(number as u64 * 7919 % 9000));
        let signal = if number.is_multiple_of(2) { libc::SIGKILL } else { libc::SIGTERM };
        // SAFETY: the child has not been waited for, so its pid is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        signal
    });
    let ended = crate::job::end(child)?;
    let text = reader.join().map_err(|_| "panicked")?.map_err(|e| e.to_string())?;
    let complete = ended.code() == Some(status as i32) && text == lines;
    let cut_short = signal.is_some() && ended.signal() == signal && lines.starts_with(&text);
    match complete || cut_short {
        true => Ok(cut_short),
        false => {
            let end: String = text.chars().rev().take(80).collect();
            Err(format!("job {number}, {signal:?}: {ended}, {} bytes, …{end}", text.len()))
        }
    }
}
