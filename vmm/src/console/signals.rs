//! Signals from other processes, as something to read instead of handlers.
//!
//! `main` blocks them before it starts any thread, so that no thread is ever
//! interrupted by one; the event loop reads them from signalfds.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

/// End the machine.
const STOP: &[libc::c_int] = &[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
/// Stop and continue a job of a shell.
const JOB: &[libc::c_int] = &[libc::SIGTSTP, libc::SIGCONT];

/// A descriptor to read the signals that end a machine from. They are blocked
/// on this thread, and on all that it starts from now on.
///
/// One that is ignored stays so (`nohup`, a shell's background jobs): blocked,
/// it would be kept and read. `SIGPIPE` needs nothing: Rust ignores it before
/// `main`, so that a reader of our output who goes away is an error of write.
pub fn signal_fd() -> io::Result<File> {
    let set = not_ignored(STOP)?;
    mask(libc::SIG_BLOCK, &set)?;
    descriptor(&set)
}

/// Blocks what a shell's job control sends, for a [`JobControl`] to read. Only
/// for a machine that has the terminal: others stop and go on by themselves.
pub fn block_job_control() -> io::Result<()> {
    mask(libc::SIG_BLOCK, &not_ignored(JOB)?)
}

/// Blocks the signal of a terminal that has another size, for [`resize_fd`].
pub fn block_resize() -> io::Result<()> {
    mask(libc::SIG_BLOCK, &set_of(&[libc::SIGWINCH]))
}

/// A descriptor that is readable when the terminal has another size.
pub fn resize_fd() -> io::Result<File> {
    descriptor(&set_of(&[libc::SIGWINCH]))
}

/// A descriptor that is readable when a process of ours has stopped or ended: that
/// signal is blocked on this thread from now on.
pub fn children_fd() -> io::Result<File> {
    let set = set_of(&[libc::SIGCHLD]);
    mask(libc::SIG_BLOCK, &set)?;
    descriptor(&set)
}

/// What signals of a set are read from.
fn descriptor(set: &libc::sigset_t) -> io::Result<File> {
    // SAFETY: the set is initialized.
    let fd = unsafe { libc::signalfd(-1, set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and only ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: a sigset_t is plain data, written by the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialized; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Those of `signals` that are not ignored.
fn not_ignored(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t and sigaction are plain data, written by the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(*signal, ptr::null(), &mut action) != 0 {
                return Err(io::Error::last_os_error());
            }
            if action.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&mut set, *signal);
            }
        }
        Ok(set)
    }
}

/// The number of the next signal in a signalfd, if any has come.
pub fn read(fd: &impl AsRawFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of_val(&info);
    // SAFETY: read writes at most `size` bytes to `info`.
    let got = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if got != size as isize {
        return None;
    }
    // SAFETY: the kernel has filled it in whole.
    Some(unsafe { info.assume_init() }.ssi_signo as i32)
}

/// What a shell wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Stop for now: give the terminal back, then call [`stop_now`].
    Suspend,
    /// Gone on after a stop: take the terminal again.
    Continue,
}

/// Reads what [`block_job_control`] keeps from being delivered.
#[derive(Debug)]
pub struct JobControl(File);

impl JobControl {
    /// A descriptor that is readable when a signal has come.
    pub fn new() -> io::Result<Self> {
        let set = not_ignored(JOB)?;
        // SAFETY: the set is initialized.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and only ours.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal, if any has come.
    pub fn read(&self) -> Option<Job> {
        match read(&self.0)? {
            libc::SIGTSTP => Some(Job::Suspend),
            _ => Some(Job::Continue),
        }
    }
}

impl AsRawFd for JobControl {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Stops this process as `SIGTSTP` does when it is not blocked, which includes
/// that nothing happens where no shell could continue it. Returns when it has
/// gone on.
pub fn stop_now() {
    // SAFETY: the set is plain data; raise has no preconditions.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTSTP);
        let unblocked = mask(libc::SIG_UNBLOCK, &set);
        libc::raise(libc::SIGTSTP);
        unblocked.and_then(|()| mask(libc::SIG_BLOCK, &set))
    };
    if let Err(error) = result {
        log::warn!("signal mask: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signals to the process would reach other tests' threads: each test has
    /// its own thread and sends to that alone.
    fn send(signal: libc::c_int) {
        // SAFETY: the thread is the calling one.
        unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
    }

    #[test]
    fn signals_that_end_the_machine_are_read() {
        let signals = signal_fd().unwrap();
        assert_eq!(read(&signals), None);
        send(libc::SIGTERM);
        assert_eq!(read(&signals), Some(libc::SIGTERM));
        assert_eq!(read(&signals), None);
    }

    #[test]
    fn job_control_is_read() {
        block_job_control().unwrap();
        let job = JobControl::new().unwrap();
        send(libc::SIGTSTP);
        assert_eq!(job.read(), Some(Job::Suspend));
        send(libc::SIGCONT);
        assert_eq!(job.read(), Some(Job::Continue));
        assert_eq!(job.read(), None);
    }

    #[test]
    fn rust_has_set_sigpipe_to_be_ignored() {
        // SAFETY: the action is plain data that the call fills in.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, ptr::null(), &mut action);
            action
        };
        assert_eq!(action.sa_sigaction, libc::SIG_IGN);
    }
}
