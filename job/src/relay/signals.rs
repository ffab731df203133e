//! Signals to the runner, which are the job's.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// What is handed on. All others do to the runner what they would do to the job:
/// end it, stop it (`SIGSTOP`, `SIGKILL`) or nothing.
const FORWARDED: [libc::c_int; 11] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGXCPU,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// A signal that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// It came from a terminal, and so to all of the process group.
    pub group: bool,
}

/// Where they are read.
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks them on this thread and all that it starts. Those that are ignored
    /// stay so, for the job as well.
    pub fn take() -> io::Result<Self> {
        // SAFETY: the set is plain data that sigemptyset initializes; the calls
        // read it. The descriptor is nobody else's.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in FORWARDED {
                if !is_ignored(signal) {
                    libc::sigaddset(&mut set, signal);
                }
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            match libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(File::from_raw_fd(fd))),
            }
        }
    }

    /// The next one, if any has come.
    pub fn next(&self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of_val(&info);
        // SAFETY: read writes at most `size` bytes to `info`.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if got != size as isize {
            return None;
        }
        // SAFETY: the kernel has filled it in whole.
        let info = unsafe { info.assume_init() };
        Some(Signal { number: info.ssi_signo as i32, group: info.ssi_code == SI_KERNEL })
    }
}

/// `SI_KERNEL`: sent by the kernel itself.
const SI_KERNEL: i32 = 0x80;

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: the action is plain data that the call fills in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Ends this process by `signal`, as the job was; returns where that can't be.
pub fn die_by(signal: u8) {
    let signal = signal.into();
    // SAFETY: the set is initialized before it is read; the default action is no
    // handler.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_with_who_they_are_for() {
        let signals = Signals::take().unwrap();
        assert_eq!(signals.next(), None);
        // To this thread alone: others belong to other tests.
        // SAFETY: the thread is the calling one.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
        assert_eq!(signals.next(), Some(Signal { number: libc::SIGUSR1, group: false }));
        assert_eq!(signals.next(), None);
    }
}
