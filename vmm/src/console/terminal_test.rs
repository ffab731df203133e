//! A child on a pseudo-terminal of its own takes the terminal and ends in every
//! way there is; the terminal must be as it was.

use super::*;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

const MODE: &str = "MICROVM_TERMINAL_TEST";

fn openpty() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: openpty writes two descriptors, and asks for nothing else; both
    // are new and only ours.
    unsafe {
        let done = libc::openpty(
            &mut master,
            &mut slave,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
        );
        assert_eq!(done, 0);
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

fn termios(fd: &impl AsRawFd) -> libc::termios {
    // SAFETY: a termios is plain data that the call fills in.
    unsafe {
        let mut termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(fd.as_raw_fd(), &mut termios), 0);
        termios
    }
}

fn flags(t: &libc::termios) -> [u32; 4] {
    [t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag]
}

/// Runs `child` in `mode` on a terminal; `act` gets its process id once it has
/// the terminal. Returns how it ended.
fn run(mode: &str, act: impl FnOnce(i32)) -> ExitStatus {
    let (master, slave) = openpty();
    let before = flags(&termios(&slave));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "console::terminal::tests::child", "--ignored", "--nocapture"])
        .env(MODE, mode)
        .stdin(slave.try_clone().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the slave.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "{mode}");
    let during = flags(&termios(&slave));
    assert_ne!(during, before, "{mode}: the terminal was raw");
    assert_eq!(during[1] & libc::OPOST, 0);
    assert_eq!(during[3] & (libc::ISIG | libc::ICANON | libc::ECHO), 0);
    // SAFETY: writes one byte, from a live buffer.
    assert_eq!(unsafe { libc::write(master.as_raw_fd(), b"g".as_ptr().cast(), 1) }, 1);
    act(child.id() as i32);
    let status = child.wait().unwrap();
    assert_eq!(flags(&termios(&slave)), before, "{mode}: the terminal was given back");
    drop(master);
    status
}

/// Not a test: what `run` starts.
#[test]
#[ignore = "started by the others on a terminal of its own"]
fn child() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let terminal = RawTerminal::stdin().unwrap();
    assert!(is_raw());
    println!("\nready");
    // One byte means that the other end has seen enough; it sends no second.
    let mut terminal_file = File::open("/dev/tty").unwrap();
    let mut wait = || io::Read::read(&mut terminal_file, &mut [0]);
    wait().unwrap();
    match mode.as_str() {
        "drop" => drop(terminal),
        "panic" => {
            std::mem::forget(terminal);
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
            std::process::exit(7);
        }
        "abort" => std::process::abort(),
        // SAFETY: it is meant to crash.
        "overflow" => unsafe { ptr::null_mut::<u8>().wrapping_add(8).write_volatile(1) },
        _ => drop(wait()),
    }
}

#[test]
fn it_is_given_back_when_the_guard_is_dropped() {
    assert!(run("drop", |_| ()).success());
}

#[test]
fn it_is_given_back_by_the_panic_hook_alone() {
    assert_eq!(run("panic", |_| ()).code(), Some(7));
}

#[test]
fn it_is_given_back_by_a_crash_which_stays_a_crash() {
    assert_eq!(run("abort", |_| ()).signal(), Some(libc::SIGABRT));
    assert_eq!(run("overflow", |_| ()).signal(), Some(libc::SIGSEGV));
}

#[test]
fn it_is_given_back_when_another_process_sends_a_fatal_signal() {
    for signal in FATAL {
        // SAFETY: the process is the child that `run` waits for.
        let status = run("wait", |pid| unsafe {
            libc::kill(pid, signal);
        });
        assert_eq!(status.signal(), Some(signal));
    }
}
