//! The binary on a pseudo-terminal: what it shows there, and that nothing which
//! ends early leaves a mark.

use crate::microvm;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// A terminal of 80 columns and both its ends.
pub struct Pty {
    pub master: File,
    pub slave: OwnedFd,
}

impl Pty {
    pub fn new() -> Self {
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave) = (0, 0);
        // SAFETY: openpty writes two descriptors that are new and only ours.
        unsafe {
            let done = libc::openpty(&mut master, &mut slave, ptr::null_mut(), ptr::null(), &size);
            assert_eq!(done, 0);
            Self { master: File::from_raw_fd(master), slave: OwnedFd::from_raw_fd(slave) }
        }
    }

    /// The terminal's settings, all of them.
    pub fn settings(&self) -> [u32; 4] {
        // SAFETY: a termios is plain data that the call fills in.
        let t = unsafe {
            let mut t: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &mut t), 0);
            t
        };
        [t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag]
    }

    /// Makes it the terminal of `command`.
    pub fn attach(&self, command: &mut Command) {
        let end = || self.slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: both calls are async-signal-safe; 0 is the slave.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
    }

    /// Runs `command` on it; the exit status and what was shown.
    fn run(mut self, mut command: Command) -> (Option<i32>, String) {
        let before = self.settings();
        self.attach(&mut command);
        let mut child = command.spawn().unwrap();
        drop(command);
        let status = child.wait().unwrap();
        assert_eq!(self.settings(), before, "the terminal was given back");
        drop(self.slave);
        let mut shown = Vec::new();
        // EIO is how the end of a terminal looks from the other side.
        let _ = self.master.read_to_end(&mut shown);
        (status.code(), String::from_utf8(shown).unwrap())
    }
}

#[test]
fn the_doctor_fits_eighty_columns_and_has_colours() {
    let mut command = microvm();
    command.arg("doctor").env_remove("NO_COLOR");
    let (_, shown) = Pty::new().run(command);
    assert!(shown.contains("\x1b["), "{shown}");

    let mut command = microvm();
    command.arg("doctor").env("NO_COLOR", "1");
    let (_, shown) = Pty::new().run(command);
    assert!(!shown.contains('\x1b'), "{shown}");
    for line in shown.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn a_refusal_leaves_the_terminal_as_it_was() {
    let mut command = microvm();
    command.args(["--kernel", "/nonexistent"]);
    let (status, shown) = Pty::new().run(command);
    assert_eq!(status, Some(3));
    assert!(shown.ends_with("\r\n") && shown.lines().count() == 1, "{shown}");
}
