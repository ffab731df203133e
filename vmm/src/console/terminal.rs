//! The user's terminal in raw mode, and back again on every path.
//!
//! Raw means that all keys reach the guest (`Ctrl-c`, `Ctrl-z` and `Ctrl-s`
//! too) and that its output reaches the terminal untouched: the guest ends its
//! lines with `\r\n` itself, and what it draws may be any bytes.
//!
//! ```text
//!  leaving `run`         drop of RawTerminal ─┐
//!  panic                 panic hook ──────────┼─► restore_now
//!  SIGSEGV, SIGBUS, …    handler ─────────────┘
//!  SIGKILL               nothing can: the user types `stty sane` or `reset`
//! ```
//!
//! Signal handlers can reach nothing but statics, so what the terminal was
//! like is kept in one, and everything else goes through it. The terminal is
//! always standard input.

use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// How the terminal was before. Set once, never freed: a handler may look at
/// it at any time.
static COOKED: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());
/// Whether the terminal is raw now, by our doing.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether a thread is making it raw.
static ENGAGING: AtomicBool = AtomicBool::new(false);
/// Whether the monitor has crashed: the terminal is never made raw again, by a
/// thread that still runs while the handler of another one ends the process.
static CRASHED: AtomicBool = AtomicBool::new(false);
/// How often the handler of a crash looks whether a thread is done with making
/// the terminal raw. It can be that thread's own, so this has an end.
const LOOKS: u32 = 10_000;

/// Signals that mean that the monitor itself is broken. `SIGSYS` comes from a
/// seccomp filter that traps.
const FATAL: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// The terminal while the guest has it; given back when this is dropped.
///
/// There may be one at a time.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Takes standard input, if it is a terminal, and makes it raw, if it is
    /// ours to change: as a background job it stays as it is until
    /// [`engage`] finds us in the foreground.
    pub fn stdin() -> Option<Self> {
        if !is_terminal(libc::STDIN_FILENO) {
            return None;
        }
        static GUARDS: Once = Once::new();
        GUARDS.call_once(|| {
            catch_fatal_signals();
            restore_on_panic();
        });
        engage();
        Some(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Makes the terminal raw unless it is already. Returns whether we are in the
/// foreground: if not, it must not be read either. For whoever reads the
/// terminal while there is a [`RawTerminal`], as all below.
pub fn engage() -> bool {
    if !is_foreground() {
        return false;
    }
    if !RAW.load(Ordering::SeqCst)
        && let Err(error) = make_raw()
    {
        log::warn!("terminal: can't be made raw: {error}");
    }
    true
}

/// After the process went on (`SIGCONT`). The terminal may have been changed in
/// the meantime, so what we believe of it doesn't count.
pub fn resume() {
    RAW.store(false, Ordering::SeqCst);
    engage();
}

/// Shows the user a text that is the monitor's, not the guest's.
pub fn tell(text: &str) {
    let text = format!("\r\n{}", text.replace('\n', "\r\n"));
    // Output may lead elsewhere; standard input is the terminal, but need not
    // be open for writing.
    let fd = [libc::STDERR_FILENO, libc::STDOUT_FILENO, libc::STDIN_FILENO]
        .into_iter()
        .find(|fd| is_terminal(*fd))
        .unwrap_or(libc::STDERR_FILENO);
    // SAFETY: the buffer lives across the call. A short write loses a line of
    // help, and nothing else.
    unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
}

/// Whether the terminal is raw: a line must then end with `\r\n`.
pub fn is_raw() -> bool {
    RAW.load(Ordering::Relaxed)
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: libc::c_int) -> bool {
    // SAFETY: isatty takes any number.
    unsafe { libc::isatty(fd) == 1 }
}

/// Gives the terminal back; [`resume`] takes it again. May be called at any time, also in a handler: it
/// uses nothing but atomics and the terminal's ioctls.
pub fn restore_now() {
    // Changing the terminal from the background would stop us (SIGTTOU), and
    // it is another job's by then.
    if RAW.swap(false, Ordering::SeqCst) && is_foreground() {
        let cooked = COOKED.load(Ordering::SeqCst);
        if !cooked.is_null() {
            // Not TCSADRAIN: it would wait for a terminal that takes no output.
            // SAFETY: COOKED points at a termios that is never freed.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, cooked) };
        }
    }
}

/// Whether our process group is the one that the terminal listens to.
fn is_foreground() -> bool {
    // SAFETY: neither call has preconditions.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// In the foreground: keeps what the terminal is like and makes it raw.
fn make_raw() -> io::Result<()> {
    // SAFETY: a termios is plain data.
    let mut now: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: tcgetattr writes to the struct that it is given.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if COOKED.load(Ordering::SeqCst).is_null() {
        // Not earlier than this: in the background it would be the line
        // editor of the shell whose settings we kept.
        COOKED.store(Box::leak(Box::new(now)), Ordering::SeqCst);
    }
    // SAFETY: cfmakeraw changes the struct that it is given.
    unsafe { libc::cfmakeraw(&mut now) };
    ENGAGING.store(true, Ordering::SeqCst);
    let outcome = match CRASHED.load(Ordering::SeqCst) {
        true => Ok(()),
        false => {
            // Before the change: a signal in between restores what did not change.
            RAW.store(true, Ordering::SeqCst);
            // SAFETY: the struct is initialized.
            match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &now) } {
                0 => Ok(()),
                _ => {
                    RAW.store(false, Ordering::SeqCst);
                    Err(io::Error::last_os_error())
                }
            }
        }
    };
    ENGAGING.store(false, Ordering::SeqCst);
    outcome
}

fn restore_on_panic() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // First, so that the message can be read.
        restore_now();
        previous(info);
    }));
}

fn catch_fatal_signals() {
    for signal in FATAL {
        // SAFETY: the action is plain data whose handler is safe to run at any
        // time. RESETHAND puts the default action back before it runs, so that
        // raising the signal again ends the process as it should; on the
        // alternate stack it also survives an overflow of the thread's own.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal_signal as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

/// Only async-signal-safe calls.
extern "C" fn on_fatal_signal(signal: libc::c_int) {
    CRASHED.store(true, Ordering::SeqCst);
    for _ in 0..LOOKS {
        if !ENGAGING.load(Ordering::SeqCst) {
            break;
        }
        // SAFETY: has no preconditions, and is async-signal-safe.
        unsafe { libc::sched_yield() };
    }
    restore_now();
    let text: &[u8] = match signal {
        libc::SIGSEGV => b"\nmicrovm: the monitor crashed: SIGSEGV\n",
        libc::SIGBUS => b"\nmicrovm: the monitor crashed: SIGBUS\n",
        libc::SIGABRT => b"\nmicrovm: the monitor crashed: SIGABRT\n",
        libc::SIGILL => b"\nmicrovm: the monitor crashed: SIGILL\n",
        libc::SIGFPE => b"\nmicrovm: the monitor crashed: SIGFPE\n",
        libc::SIGSYS => b"\nmicrovm: the monitor crashed: a system call was refused\n",
        _ => b"\nmicrovm: the monitor crashed\n",
    };
    // SAFETY: write and raise are async-signal-safe; the text is static.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::raise(signal);
    }
}

#[cfg(test)]
#[path = "terminal_test.rs"]
mod tests;
