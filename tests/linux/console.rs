//! The interactive console, over a pseudo-terminal and over pipes.

use crate::guest::{Guest, LIMIT, Reader, check, number, wait_until};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Instant;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("console::a_shell_over_a_terminal", shell),
        trial("console::ctrl_a_x_leaves_and_ctrl_a_h_helps", escape),
        trial("console::ctrl_c_reaches_the_guest", interrupt),
        trial("console::four_kib_of_input_arrive_whole", input),
        trial("console::a_slow_reader_loses_nothing", slow_reader),
    ]
}

/// The monitor on a pseudo-terminal of its own.
pub struct Session {
    /// The user's end of it.
    pub master: File,
    screen: Reader,
    child: Child,
    deadline: Instant,
    before: libc::termios,
    slave: OwnedFd,
    /// What goes away with it.
    kept: Option<Guest>,
}

fn modes(fd: &impl AsRawFd) -> Result<libc::termios, String> {
    // SAFETY: termios is plain data that tcgetattr fills in.
    unsafe {
        let mut modes = std::mem::zeroed();
        match libc::tcgetattr(fd.as_raw_fd(), &mut modes) {
            0 => Ok(modes),
            _ => Err(std::io::Error::last_os_error().to_string()),
        }
    }
}

impl Session {
    /// Starts a guest.
    pub fn start(guest: Guest) -> Result<Self, String> {
        let mut session = Self::of(guest.command())?;
        session.kept = Some(guest);
        Ok(session)
    }

    /// Starts any command.
    pub fn of(command: Command) -> Result<Self, String> {
        Self::sized(command, None)
    }

    /// Starts any command on a terminal of so many rows and columns.
    pub fn sized(mut command: Command, size: Option<(u16, u16)>) -> Result<Self, String> {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: openpty writes two descriptors; the other pointers may be null.
        if unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        // SAFETY: both are new and owned by nobody else.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        if let Some((ws_row, ws_col)) = size {
            let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the struct lives across the call, which only reads it.
            unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        }
        let end = || slave.try_clone().map_err(|e| e.to_string());
        let before = modes(&slave)?;
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| e.to_string())?;
        let screen = Reader::new(master.try_clone().map_err(|e| e.to_string())?);
        Ok(Self {
            master,
            screen,
            child,
            deadline: Instant::now() + LIMIT,
            before,
            slave,
            kept: None,
        })
    }

    /// Waits until `text` is on the screen.
    pub fn expect(&mut self, text: &str) -> Result<(), String> {
        self.screen.expect(text, self.deadline)
    }

    /// What has been on the screen.
    pub fn screen(&self) -> String {
        self.screen.text()
    }

    /// Types.
    pub fn send(&mut self, keys: &str) -> Result<(), String> {
        self.master.write_all(keys.as_bytes()).map_err(|e| e.to_string())
    }

    /// The monitor's status; the terminal must be as it was.
    pub fn end(mut self) -> Result<i32, String> {
        let status = wait_until(&mut self.child, self.deadline);
        let status =
            status.ok_or_else(|| format!("it did not end; screen:\n{}", self.screen.text()))?;
        let key = |t: &libc::termios| (t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_cc);
        if key(&self.before) != key(&modes(&self.slave)?) {
            return Err(format!("the terminal is not as it was; screen:\n{}", self.screen.text()));
        }
        Ok(number(status))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.kept = None;
    }
}

/// Fails unless the monitor ended as it should.
pub fn expect_status(got: i32, wanted: i32) -> Result<Completion, libtest_mimic::Failed> {
    if got == wanted {
        Ok(Completion::Completed)
    } else {
        Err(format!("status {got}, not {wanted}").into())
    }
}

fn shell() -> Verdict {
    let mut session = Session::start(Guest::tiny())?;
    session.expect("# ")?;
    session.send("echo $((6 * 7))-answers\n")?;
    session.expect("42-answers")?;
    session.send("poweroff\n")?;
    session.expect("guest powered off")?;
    expect_status(session.end()?, 0)
}

fn escape() -> Verdict {
    let mut session = Session::start(Guest::tiny())?;
    session.expect("# ")?;
    session.send("\u{1}h")?;
    session.expect("Ctrl-a x")?;
    session.send("\u{1}x")?;
    expect_status(session.end()?, 0)
}

fn interrupt() -> Verdict {
    let mut session = Session::start(Guest::tiny())?;
    session.expect("# ")?;
    session.send("sleep 1000; echo status $?\n")?;
    session.expect("sleep 1000")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    session.send("\u{3}")?;
    session.send("\necho still-$((1 + 1))\n")?;
    session.expect("still-2")?;
    session.send("poweroff\n")?;
    expect_status(session.end()?, 0)
}

fn input() -> Verdict {
    let text: String = (0..64).map(|i| format!("line {i:02} {}\n", "x".repeat(55))).collect();
    let script = "stty -echo; echo ready; head -n 64 >/tmp/got; echo bytes=$(wc -c </tmp/got)";
    let (reader, mut writer) = std::io::pipe()?;
    let mut guest = Guest::tiny().script(script).stdin(reader).start();
    guest.expect("ready")?;
    writer.write_all(text.as_bytes())?;
    let outcome = guest.wait()?.script_passed()?;
    check(outcome.count("bytes")? == text.len() as u64, "every byte arrives once", &outcome)?;
    Ok(Completion::Completed)
}

/// Nobody reads for a while; the guest writes more than a pipe holds.
fn slow_reader() -> Verdict {
    let guest = Guest::tiny().script("i=0; while [ $i -lt 3000 ]; do echo \"line $i of a long text that fills pipes\"; i=$((i + 1)); done");
    let mut child = guest
        .command()
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        std::io::Read::read_to_string(&mut out, &mut text)?;
    }
    let status = number(child.wait()?);
    let lines = text.lines().filter(|l| l.starts_with("line ")).count();
    if (status, lines) == (0, 3000) {
        Ok(Completion::Completed)
    } else {
        Err(format!("status {status}, {lines} of 3000 lines").into())
    }
}
