//! The command: started on pipes or on a terminal of its own.

use anyhow::{Context, Result};
use rig::job::{Job, Window};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A running command and our ends of its streams.
pub struct Child {
    /// Its process id.
    pub pid: libc::pid_t,
    /// Readable when it has ended.
    pub ended: OwnedFd,
    /// Where its standard input is fed, if it is.
    pub input: Option<File>,
    /// Its standard output, or its terminal.
    pub output: Option<File>,
    /// Its standard error; none with a terminal.
    pub error: Option<File>,
    /// Whether `input` and `output` are a terminal.
    pub terminal: bool,
}

impl Child {
    /// Starts the job's command. `scratch` becomes its `TMPDIR`.
    pub fn start(job: &Job, scratch: &str) -> Result<Self> {
        let (program, arguments) = job.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        for variable in &job.environment {
            let bytes = variable.as_bytes();
            // Search from the second byte: as in the shell, a name may not be empty.
            if let Some(equals) = bytes.iter().skip(1).position(|&b| b == b'=') {
                let (name, value) = bytes.split_at(equals + 1);
                command.env(OsStr::from_bytes(name), OsStr::from_bytes(&value[1..]));
            }
        }
        command.env("TMPDIR", scratch).env("MICROVM_IN_RIG", "1");
        if Path::new(&job.directory).is_dir() {
            command.current_dir(&job.directory);
        }
        match job.terminal {
            Some(window) => Self::on_terminal(command, program, window),
            None => Self::on_pipes(command, program, job.stdin),
        }
    }

    fn on_pipes(mut command: Command, program: &OsString, stdin: bool) -> Result<Self> {
        command
            .stdin(if stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Its own session, so that a signal reaches all it started.
        command.process_group(0);
        let mut child = spawn(&mut command, program)?;
        let pid = child.id() as libc::pid_t;
        Ok(Self {
            pid,
            ended: watch(pid)?,
            input: child.stdin.take().map(|s| File::from(OwnedFd::from(s))),
            output: child.stdout.take().map(|s| File::from(OwnedFd::from(s))),
            error: child.stderr.take().map(|s| File::from(OwnedFd::from(s))),
            terminal: false,
        })
    }

    fn on_terminal(mut command: Command, program: &OsString, window: Window) -> Result<Self> {
        let (master, slave) = open_terminal(window)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        // SAFETY: between fork and exec only async-signal-safe calls are made.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = spawn(&mut command, program)?;
        let pid = child.id() as libc::pid_t;
        // Close our copies of the slave, or the master would never see its end.
        drop(command);
        Ok(Self {
            pid,
            ended: watch(pid)?,
            input: Some(master.try_clone()?),
            output: Some(master),
            error: None,
            terminal: true,
        })
    }

    /// Tells the terminal its new size.
    pub fn resize(&self, window: Window) {
        if let (true, Some(terminal)) = (self.terminal, &self.output) {
            let size = winsize(window);
            // SAFETY: TIOCSWINSZ reads one `winsize`, which lives through the call.
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        }
    }

    /// Sends a signal to the command and what it started.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory involved; a vanished group is an error we ignore.
        unsafe { libc::kill(-self.pid, signal) };
    }
}

fn spawn(command: &mut Command, program: &OsString) -> Result<std::process::Child> {
    command.spawn().with_context(|| format!("cannot run {}", Path::new(program).display()))
}

fn watch(pid: libc::pid_t) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked below.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("watching the command");
    }
    // SAFETY: a fresh descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn winsize(window: Window) -> libc::winsize {
    libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn open_terminal(window: Window) -> Result<(File, File)> {
    let mut master = -1;
    let mut slave = -1;
    let size = winsize(window);
    // SAFETY: two valid integers to write to and one `winsize` to read; the
    // optional name and settings are null.
    let result = unsafe {
        libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size)
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("opening a terminal");
    }
    for fd in [master, slave] {
        // SAFETY: both are open descriptors of ours.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: fresh descriptors nobody else owns.
    Ok(unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) })
}
