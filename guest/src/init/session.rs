//! Sessions beside the job: this program once more, told by its arguments where
//! its ports are, with the job's environment as its own.

use guest::protocol::Spec;
use guest::system::{About, Fault, c_string, check};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where the initramfs has this program.
const PROGRAM: &str = "/init";
/// The first argument of a session.
const WORD: &str = "session";

/// The ports of the session that this process is, if it is one.
pub fn ports() -> Option<u32> {
    let mut arguments = std::env::args_os().skip(1);
    let is_session = arguments.next().is_some_and(|word| word == WORD);
    arguments.next().filter(|_| is_session)?.to_str()?.parse().ok()
}

/// The job's environment, with what the session adds to it.
pub fn with_environment(mut spec: Spec) -> Spec {
    let own = std::env::vars_os().map(|(name, value)| {
        [name, OsString::from("="), value].map(OsStringExt::into_vec).concat()
    });
    spec.environment = merge(own.collect(), spec.environment);
    spec
}

fn merge(mut all: Vec<Vec<u8>>, added: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let name = |entry: &[u8]| entry.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    for entry in added {
        match all.iter_mut().find(|old| name(old) == name(&entry)) {
            Some(old) => *old = entry,
            None => all.push(entry),
        }
    }
    all
}

/// Starts sessions.
pub struct Launcher {
    /// Kept open: its name is out of reach once the root file system is another.
    program: File,
    environment: Vec<CString>,
    /// Held by whoever starts one or says that there will be no more.
    open: Mutex<bool>,
}

impl Launcher {
    /// While the program can be reached by its name.
    pub fn new() -> Result<Self, Fault> {
        let program = File::open(PROGRAM).about(PROGRAM)?;
        Ok(Self { program, environment: Vec::new(), open: Mutex::new(true) })
    }

    /// Gives sessions this environment.
    pub fn with(self, environment: &[Vec<u8>]) -> Self {
        let strings = environment.iter().filter_map(|entry| c_string(entry).ok());
        Self { environment: strings.collect(), ..self }
    }

    /// Starts one. If that can't be, nobody comes to its ports, which the host sees
    /// by the time that passes.
    pub fn start(&self, ports: u32) {
        let open = self.lock();
        if !*open {
            return;
        }
        let words =
            ["microvm-init", WORD, &ports.to_string()].map(|word| c_string(word.as_bytes()));
        let words: io::Result<Vec<CString>> = words.into_iter().collect();
        let Ok(words) = words else { return };
        let list = |words: &[CString]| -> Vec<*const libc::c_char> {
            words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
        };
        let (arguments, environment) = (list(&words), list(&self.environment));
        // SAFETY: there are other threads, so the child makes nothing but system
        // calls on what was made before: lists that end with null, of strings that
        // end with NUL, and a limit; it ends in exec or _exit.
        unsafe {
            if check(libc::fork()).is_ok_and(|pid| pid == 0) {
                // The environment may be as large as the job's.
                let limit =
                    libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
                libc::setrlimit(libc::RLIMIT_STACK, &limit);
                libc::syscall(
                    libc::SYS_execveat,
                    self.program.as_raw_fd(),
                    c"".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
                libc::_exit(127);
            }
        }
        drop(open);
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts no more.
    pub fn close(&self) {
        *self.lock() = false;
    }

    /// Waits until all that were started have ended, and starts no more. The job
    /// has: the children of this process are sessions.
    pub fn wait_for_all(&self) {
        loop {
            // SAFETY: waitpid may be given no place for a status.
            let more = |how| unsafe { libc::waitpid(-1, ptr::null_mut(), how) } >= 0;
            if more(0) {
                continue;
            }
            let mut open = self.lock();
            if !more(libc::WNOHANG) {
                *open = false;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_adds_counts() {
        let words = |words: &[&str]| -> Vec<Vec<u8>> { words.iter().map(|&w| w.into()).collect() };
        let all = merge(words(&["A=1", "B=2=3", "C="]), words(&["B=4", "D=5", "A="]));
        assert_eq!(all, words(&["A=", "B=4", "C=", "D=5"]));
    }
}
