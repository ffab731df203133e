//! The console and the ways to end, with guests of a few instructions. Where no
//! guest can run, the first test runs all others in the rig, and there alone
//! they look.

use crate::guest::{self, ECHO, HELLO, SLEEP, can_run};
use crate::terminal::Pty;
use crate::{microvm, refused, stderr, stdout};
use rig::Place;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Longer than anything takes, in an emulated host too.
const PATIENCE: Duration = Duration::from_secs(60);

/// microvm with this guest.
fn guest(code: &[u8]) -> (Command, NamedTempFile) {
    let kernel = guest::kernel(code);
    let mut command = microvm();
    command.arg("--kernel").arg(kernel.path()).args(["--memory", "32M"]);
    (command, kernel)
}

/// Looks again and again until `look` finds something.
#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: the process is a child (of a child) that was not waited for.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// A guest on a terminal of its own.
struct Session {
    pty: Pty,
    child: Child,
    before: [u32; 4],
    shown: Vec<u8>,
    _kernel: NamedTempFile,
}

impl Session {
    fn new(code: &[u8]) -> Self {
        let (command, kernel) = guest(code);
        Self::with(command, kernel)
    }

    /// Starts `command` and waits until it has made its terminal raw.
    fn with(mut command: Command, kernel: NamedTempFile) -> Self {
        let pty = Pty::new();
        // SAFETY: sets a flag of a descriptor that is ours alone.
        unsafe { libc::fcntl(pty.master.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let before = pty.settings();
        pty.attach(&mut command);
        let child = command.spawn().expect("the binary starts");
        let mut session = Self { pty, child, before, shown: Vec::new(), _kernel: kernel };
        session.wait_until_raw();
        session
    }

    fn wait_until_raw(&mut self) {
        wait_for("raw mode", || {
            self.read();
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.text());
            (self.pty.settings()[3] & libc::ISIG == 0).then_some(())
        });
    }

    fn read(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = self.pty.master.read(&mut chunk) {
            self.shown.extend_from_slice(&chunk[..n]);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.pty.master.write_all(keys).unwrap();
    }

    #[track_caller]
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            assert!(start.elapsed() < PATIENCE, "{text:?} did not come after {:?}", self.text());
            std::thread::sleep(Duration::from_millis(5));
            self.read();
        }
    }

    /// Waits for the end; the terminal must be as it was.
    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_for("the end", || {
            self.read();
            self.child.try_wait().unwrap()
        });
        assert_eq!(self.pty.settings(), self.before, "the terminal was given back");
        self.read();
        (status, self.text())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Only if a test has failed is it still there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn in_the_rig_where_it_must_be() {
    let emulation = match rig::place().unwrap() {
        Place::Rig(emulation) => emulation,
        Place::Direct => return,
    };
    let program = std::env::current_exe().unwrap().into_os_string();
    let options = rig::Options { emulation, ..Default::default() };
    let output = options.output(&[program, "running::".into()]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status, 0, "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn signals_end_the_machine_and_give_the_terminal_back() {
    if !can_run() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let session = Session::new(SLEEP);
        kill(session.child.id(), signal);
        let (status, text) = session.end();
        assert_eq!(status.code(), Some(128 + signal), "{text}");
        assert_eq!(text, format!("microvm: stopped by signal {signal}\r\n"));
    }
}

#[test]
fn a_crash_of_the_monitor_gives_the_terminal_back() {
    if !can_run() {
        return;
    }
    for signal in [libc::SIGSEGV, libc::SIGABRT] {
        let session = Session::new(SLEEP);
        kill(session.child.id(), signal);
        let (status, text) = session.end();
        assert_eq!(status.signal(), Some(signal), "{text}");
        assert!(text.contains("the monitor crashed"), "{text}");
    }
}

#[test]
fn all_keys_reach_the_guest_but_the_escape_key() {
    if !can_run() {
        return;
    }
    let mut session = Session::new(ECHO);
    // Ctrl-c, Ctrl-z, Ctrl-\, Ctrl-s, Ctrl-q, Enter.
    session.type_keys(b"<\x03\x1a\x1c\x13\x11\r>");
    session.expect("<\x03\x1a\x1c\x13\x11\r>");
    session.type_keys(b"\x01h");
    session.expect("Ctrl-a x       leave");
    session.type_keys(b"[\x01\x01\x01a\x01z]");
    session.expect("[\x01\x01\x01z]");
    session.type_keys(b"\x01x");
    let (status, text) = session.end();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.ends_with("microvm: left by Ctrl-a x\r\n"), "{text:?}");
}

#[test]
fn a_reset_by_the_guest_ends_it() {
    if !can_run() {
        return;
    }
    let mut session = Session::new(ECHO);
    session.type_keys(b"q");
    let (status, text) = session.end();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(text, "microvm: guest rebooted\r\n");
}

#[test]
fn a_shell_can_stop_it_and_take_it_back() {
    if !can_run() {
        return;
    }
    let kernel = guest::kernel(ECHO);
    let mut shell = Command::new("sh");
    // With job control (-m) the monitor is a job of its own.
    shell
        .args(["-mc", "\"$@\"; echo stopped; read line; fg; echo status=$?", "sh"])
        .arg(env!("CARGO_BIN_EXE_microvm"))
        .arg("--kernel")
        .arg(kernel.path());
    let mut session = Session::with(shell, kernel);
    let shell = session.child.id();
    let children = format!("/proc/{shell}/task/{shell}/children");
    let monitor: u32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill(monitor, libc::SIGTSTP);
    session.expect("stopped");
    assert_eq!(session.pty.settings(), session.before, "the shell has its terminal");
    session.type_keys(b"\n");
    session.wait_until_raw();
    session.type_keys(b"again\r");
    session.expect("again\r");
    session.type_keys(b"q");
    let (_, text) = session.end();
    assert!(text.contains("microvm: guest rebooted") && text.contains("status=0"), "{text}");
}

/// Bytes that a terminal would have made something of, and no `q`.
fn bytes() -> Vec<u8> {
    (0..6_000u32).map(|i| (i * 31 + i / 256) as u8).filter(|b| *b != b'q').collect()
}

#[test]
fn a_pipe_is_passed_byte_by_byte_in_both_directions() {
    if !can_run() {
        return;
    }
    let (mut command, _kernel) = guest(ECHO);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&[bytes(), b"q".to_vec()].concat()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == bytes(), "{} of {} bytes", output.stdout.len(), bytes().len());
}

#[test]
fn a_file_is_passed_too() {
    if !can_run() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[bytes(), b"q".to_vec()].concat()).unwrap();
    let (mut command, _kernel) = guest(ECHO);
    let output = command.stdin(File::open(file.path()).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == bytes());
}

#[test]
fn the_end_of_its_input_does_not_end_the_guest_and_costs_nothing() {
    if !can_run() {
        return;
    }
    let (mut command, _kernel) = guest(HELLO);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut hello = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut hello).unwrap();
    drop(child.stdin.take());
    let ticks = cpu_ticks(child.id());
    std::thread::sleep(Duration::from_secs(1));
    let busy = cpu_ticks(child.id()) - ticks;
    assert!(child.try_wait().unwrap().is_none(), "the guest goes on");
    kill(child.id(), libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + libc::SIGTERM), "{}", stderr(&output));
    assert!(busy < 20, "{busy} of 100 ticks");
}

/// `microvm ctl` with these words.
fn ctl(socket: &Path, words: &[&str]) -> Output {
    microvm().arg("ctl").arg(socket).args(words).output().unwrap()
}

#[test]
fn a_machine_is_asked_and_changed_over_its_control_socket() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (socket, image) = (dir.path().join("control"), dir.path().join("image"));
    std::fs::write(&image, [0; 8192]).unwrap();
    let (mut command, _kernel) = guest(SLEEP);
    command.args(["--transport", "pci", "--serial", "off", "--control"]).arg(&socket);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let ask = |words: &[&str]| ctl(&socket, words);
    let status = || stdout(&ask(&["status"]));
    wait_for("the control socket", || status().contains("rng0").then_some(()));

    let image = image.to_str().unwrap();
    let told = stdout(&ask(&["add-disk", image]));
    assert_eq!(told, "{\"name\":\"block0\",\"slot\":2}\n");
    assert!(refused(&ask(&["add-disk", image]), 3).contains("locked by"));
    let told = stdout(&ask(&["resize-disk", "block0", "16K"]));
    assert_eq!(told, "{\"name\":\"block0\",\"size\":16384}\n");
    assert!(refused(&ask(&["resize-disk", "rng0", "16K"]), 3).contains("only a disk"));
    assert!(refused(&ask(&["balloon", "1M"]), 3).contains("--balloon"));
    assert!(refused(&ask(&["remove", "rng0"]), 3).contains("only disks"));

    // Whoever sends no image gets no disk, and the next one is served.
    let mut plain = UnixStream::connect(&socket).unwrap();
    plain.write_all(b"{\"id\":1,\"command\":\"add-disk\",\"disk\":{\"path\":\"x\"}}\n").unwrap();
    let mut lines = BufReader::new(plain).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"version\":1}");
    assert!(lines.next().unwrap().unwrap().contains("SCM_RIGHTS"));

    // This guest does not let go of anything.
    let stays = refused(&ask(&["remove", "block0", "--timeout", "1"]), 3);
    assert!(stays.contains("has not let go"), "{stays}");
    assert!(status().contains("leaving"));
    let told = stdout(&ask(&["remove", "block0", "--timeout", "0", "--force"]));
    assert_eq!(told, "{\"forced\":true,\"name\":\"block0\"}\n");
    assert!(!status().contains("block0"));
    let told = stdout(&ask(&["add-disk", image]));
    assert_eq!(told, "{\"name\":\"block0\",\"slot\":3}\n", "not where one was torn out");

    assert_eq!(stdout(&ask(&["power-button"])), "{}\n");
    assert_eq!(stdout(&ask(&["quit"])), "{}\n");
    let end = wait_for("the end", || child.try_wait().unwrap());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(
        (end.code(), said.as_str()),
        (Some(0), "microvm: stopped over the control socket\n")
    );
    assert!(refused(&ask(&["status"]), 3).contains("No such file"), "the socket is gone");
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let field = |n: usize| after_name.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}
