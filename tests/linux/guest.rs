//! One guest under the monitor, from its arguments to its end.

use crate::kit;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// No guest of these tests needs longer, even with the machine emulated twice
/// over, all cores busy, and on half as fast a machine as ours: it only ends what
/// would never end.
pub const LIMIT: Duration = Duration::from_secs(300);

/// A guest that is being put together.
pub struct Guest {
    args: Vec<OsString>,
    cmdline: Vec<String>,
    scratch: tempfile::TempDir,
    stdin: Stdio,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Outcome {
    /// All that came out of the serial port.
    pub console: String,
    /// The monitor's own words.
    pub stderr: String,
    /// The monitor's exit status; 128 + n for signal n.
    pub status: i32,
}

impl Guest {
    /// Our kernel with nothing else.
    pub fn bare() -> Self {
        Self::with_kernel(&kit::vmlinux())
    }

    /// Some kernel with nothing else.
    pub fn with_kernel(kernel: &Path) -> Self {
        Self::empty().arg("--kernel").arg(kernel)
    }

    /// Nothing at all.
    pub fn empty() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        Self { args: Vec::new(), cmdline: Vec::new(), scratch, stdin: Stdio::null() }
    }

    /// Our kernel and the busybox root, read-only and shared by all tests.
    pub fn tiny() -> Self {
        Self::bare().rooted()
    }

    /// Adds the busybox root.
    pub fn rooted(self) -> Self {
        let root = format!("{},readonly=on", kit::root().display());
        self.arg("--rootfs").arg(root).quiet()
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds words to the kernel command line.
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.cmdline.push(word.into());
        self
    }

    /// Keeps the kernel's own messages off the console.
    pub fn quiet(self) -> Self {
        self.word("quiet")
    }

    /// Runs `script` in the guest. Its disk must be the guest's second, so this
    /// comes before other disks.
    pub fn script(self, script: &str) -> Self {
        self.script_on(script, "/dev/vdb")
    }

    /// The same where the guest calls its second disk `device`.
    pub fn script_on(self, script: &str, device: &str) -> Self {
        let path = self.scratch.path().join("script.disk");
        let mut bytes = format!("#!/bin/sh\n{script}\n").into_bytes();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        std::fs::write(&path, bytes).expect("writing the script's disk");
        self.arg("--disk")
            .arg(format!("path={},readonly=on", path.display()))
            .word(format!("microvm.run={device}"))
    }

    /// The monitor's standard input.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// A path for a file that goes away with the guest.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The monitor's command line.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(&self.args);
        if !self.cmdline.is_empty() {
            command.arg("--cmdline").arg(self.cmdline.join(" "));
        }
        command
    }

    /// Starts it with its streams on pipes.
    pub fn start(self) -> Started {
        self.start_with(|_| Ok(())).expect("starting the monitor")
    }

    /// The same after `prepare` has changed the command.
    pub fn start_with(
        mut self,
        prepare: impl FnOnce(&mut Command) -> std::io::Result<()>,
    ) -> std::io::Result<Started> {
        let stdin = std::mem::replace(&mut self.stdin, Stdio::null());
        let mut command = self.command();
        prepare(&mut command)?;
        let child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child?;
        let console = Reader::new(child.stdout.take().expect("a pipe"));
        let stderr = Reader::new(child.stderr.take().expect("a pipe"));
        let deadline = Instant::now() + LIMIT;
        Ok(Started { child, console, stderr, _scratch: self.scratch, deadline })
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Result<Outcome, String> {
        self.start().wait()
    }
}

/// Collects a stream on a thread of its own.
pub struct Reader {
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Reader {
    /// Reads `stream` to its end.
    pub fn new(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { chunks, seen: Vec::new() }
    }

    /// All that came so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until `text` has come; says what came instead if it does not.
    pub fn expect(&mut self, text: &str, deadline: Instant) -> Result<(), String> {
        while !self.text().contains(text) {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(e) => {
                    return Err(format!("{text:?} did not come ({e}); console:\n{}", self.text()));
                }
            }
        }
        Ok(())
    }

    /// Reads to the end of the stream.
    fn finish(&mut self, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        while let Ok(chunk) = self.chunks.recv_timeout(left()) {
            self.seen.extend(chunk);
        }
    }
}

/// A guest that runs.
pub struct Started {
    /// The monitor.
    pub child: Child,
    /// The serial console.
    pub console: Reader,
    stderr: Reader,
    _scratch: tempfile::TempDir,
    /// When the test gives up.
    pub deadline: Instant,
}

impl Started {
    /// Waits until `text` is on the console.
    pub fn expect(&mut self, text: &str) -> Result<(), String> {
        self.console.expect(text, self.deadline)
    }

    /// Sends the monitor a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its pid is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for the end, and then looks at files that go away with the guest.
    pub fn wait_with<T>(mut self, look: impl FnOnce() -> T) -> Result<(Outcome, T), String> {
        let empty = tempfile::tempdir().map_err(|e| e.to_string())?;
        let scratch = std::mem::replace(&mut self._scratch, empty);
        let outcome = self.wait()?;
        let seen = look();
        drop(scratch);
        Ok((outcome, seen))
    }

    /// Waits for the end; a guest that takes too long is killed and fails.
    pub fn wait(mut self) -> Result<Outcome, String> {
        let status = wait_until(&mut self.child, self.deadline);
        let drained = Instant::now() + Duration::from_secs(10);
        self.console.finish(drained);
        self.stderr.finish(drained);
        let (console, stderr) = (self.console.text(), self.stderr.text());
        match status {
            Some(status) => Ok(Outcome { console, stderr, status: number(status) }),
            None => Err(format!("still running after {LIMIT:?}; {stderr}\nconsole:\n{console}")),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls for the child's end; kills it at the deadline.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                return None;
            }
        }
    }
}

/// An exit status as a shell tells it.
pub fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Outcome {
    /// The whole story, for a failure.
    pub fn story(&self) -> String {
        format!("status {}, {}\nconsole:\n{}", self.status, self.stderr.trim_end(), self.console)
    }

    /// Fails unless the monitor ended with `status`.
    pub fn ended(self, status: i32) -> Result<Self, String> {
        if self.status == status {
            Ok(self)
        } else {
            Err(format!("expected status {status}; {}", self.story()))
        }
    }

    /// Fails unless the script in the guest ended with 0 and the guest powered off.
    pub fn script_passed(self) -> Result<Self, String> {
        let outcome = self.ended(0)?;
        if outcome.console.lines().any(|l| l.trim_end() == "EXIT 0") {
            Ok(outcome)
        } else {
            Err(format!("the script failed; {}", outcome.story()))
        }
    }

    /// The value of a `NAME=value` line that the script printed.
    pub fn value(&self, name: &str) -> Result<&str, String> {
        let found =
            self.console.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix('='));
        found.ok_or_else(|| format!("no {name}=; {}", self.story()))
    }

    /// The same as a number.
    pub fn count(&self, name: &str) -> Result<u64, String> {
        let value = self.value(name)?;
        value.parse().map_err(|_| format!("{name}={value}: not a number"))
    }
}

/// Fails with `what` and the outcome's story unless `holds`.
pub fn check(holds: bool, what: &str, outcome: &Outcome) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what}; {}", outcome.story())) }
}
