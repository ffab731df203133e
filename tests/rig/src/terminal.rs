//! The caller's terminal and signals while a rig runs.

use crate::job::Window;
use anyhow::{Context, Result};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Size of the terminal on standard output, or the classic one.
pub fn window() -> Window {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: TIOCGWINSZ writes one `winsize`, for which zeroes are valid too.
    let size = unsafe {
        libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr());
        size.assume_init()
    };
    if size.ws_row == 0 || size.ws_col == 0 {
        return Window { rows: 24, columns: 80 };
    }
    Window { rows: size.ws_row, columns: size.ws_col }
}

/// Standard input in raw mode until dropped: every key belongs to the command.
pub struct RawMode(libc::termios);

impl RawMode {
    /// Switches to raw mode; none if standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let mut settings = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: tcgetattr writes one `termios`, for which zeroes are valid too.
        let saved = unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) != 0 {
                return None;
            }
            settings.assume_init()
        };
        let mut raw = saved;
        // SAFETY: both calls only touch the valid structure given.
        unsafe {
            libc::cfmakeraw(&mut raw);
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &raw);
        }
        Some(Self(saved))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // SAFETY: reads the structure saved above.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &self.0) };
    }
}

/// Write end of the pipe the signal handler uses; -1 when there is none.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

const CAUGHT: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH];

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; one valid byte is read. A full pipe
    // loses the byte, and by then there are others to act on.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// Signals as bytes on a pipe until dropped: the caller's death wish must not
/// leave an emulator behind, nor a terminal in raw mode.
pub struct Signals {
    read: OwnedFd,
    write: OwnedFd,
    saved: Vec<(libc::c_int, libc::sigaction)>,
}

impl Signals {
    /// Catches signals; none if another run of this process already does.
    pub fn catch() -> Result<Option<Self>> {
        let mut ends = [-1; 2];
        // SAFETY: writes two integers.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error()).context("making a pipe");
        }
        // SAFETY: fresh descriptors nobody else owns.
        let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        if SIGNAL_PIPE
            .compare_exchange(-1, write.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return Ok(None);
        }
        let mut saved = Vec::new();
        for signal in CAUGHT {
            // SAFETY: all zeroes is a valid `sigaction`; it is filled in before
            // use, and the handler only does what a handler may.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let mut old: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, &mut old);
                saved.push((signal, old));
            }
        }
        Ok(Some(Self { read, write, saved }))
    }

    /// To be polled.
    pub fn fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    /// The next caught signal.
    pub fn next(&self) -> Option<libc::c_int> {
        let mut byte = 0u8;
        // SAFETY: one valid byte to write to.
        let count = unsafe { libc::read(self.read.as_raw_fd(), (&raw mut byte).cast(), 1) };
        (count == 1).then_some(libc::c_int::from(byte))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, old) in &self.saved {
            // SAFETY: puts back what `sigaction` itself gave us.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
        let _ = SIGNAL_PIPE.compare_exchange(
            self.write.as_raw_fd(),
            -1,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
    }
}
