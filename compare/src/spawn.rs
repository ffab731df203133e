//! Processes, started the same way for every subject, and followed to their end.

use crate::Error;
use crate::cgroup::Group;
use crate::namespaces::{STEPS, Setup, Step};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};
use vmm::console::signals::signal_fd;

/// `clone3(2)`'s `CLONE_PIDFD` and `CLONE_INTO_CGROUP`.
const PIDFD: u64 = 0x1000;
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// As much of what a subject says as is kept.
const MAX_OUTPUT: usize = 4 << 20;

/// What is to be started.
pub struct Order {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Namespaces, where they are ours to make.
    pub setup: Option<Setup>,
    /// Control groups to be in.
    pub group: Option<Group>,
    /// Whether its system calls are followed.
    pub traced: bool,
}

impl Order {
    /// A program by its path, with the caller's environment.
    pub fn new<S: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> io::Result<Self> {
        let c = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
        let variable = |(name, value): (OsString, OsString)| {
            c(&[name.as_os_str(), OsStr::new("="), value.as_os_str()]
                .iter()
                .copied()
                .collect::<OsString>())
        };
        let program = c(program.as_os_str())?;
        let mut words = vec![program.clone()];
        for argument in arguments {
            words.push(c(argument.as_ref())?);
        }
        Ok(Self {
            program,
            arguments: words,
            environment: std::env::vars_os().map(variable).collect::<io::Result<_>>()?,
            setup: None,
            group: None,
            traced: false,
        })
    }

    /// With a variable more in its environment, `NAME=VALUE`.
    pub fn with(mut self, variable: &CStr) -> Self {
        self.environment.push(variable.to_owned());
        self
    }
}

/// The signals that end a comparison, as something to wait for.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks them. Before the first thread.
    pub fn take() -> io::Result<Self> {
        signal_fd().map(|file| Self(file.into()))
    }

    /// An error if one has come.
    pub fn check(&self) -> Result<(), Error> {
        let mut buffer = [0u8; 128];
        // SAFETY: the buffer is as long as the call is told: one signalfd_siginfo.
        let n = unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), 128) };
        // The signal's number is its first field.
        if n == 128 { Err(Error::Interrupted(i32::from(buffer[0]))) } else { Ok(()) }
    }

    /// Waits for one of the descriptors, or the time, or a signal, which is an error.
    pub fn wait(&self, fds: &[RawFd], until: Instant) -> Result<Vec<bool>, Error> {
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut all: Vec<_> = fds.iter().copied().chain([self.0.as_raw_fd()]).map(poll).collect();
        let left = until.saturating_duration_since(Instant::now()).as_millis().min(60_000) as i32;
        // SAFETY: the array lives across the call, which is told its length.
        let n = unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, left) };
        let error = io::Error::last_os_error();
        if n < 0 && error.raw_os_error() != Some(libc::EINTR) {
            return Err(Error::host("poll")(error));
        }
        self.check()?;
        Ok(all.iter().take(fds.len()).map(|poll| poll.revents != 0).collect())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A pipe: where it is read, and where it is written.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: pipe2 fills in two descriptors, which are nobody else's.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// `struct clone_args` of `linux/sched.h`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A process of ours, which ends with this at the latest.
pub struct Child {
    /// Its number.
    pub pid: libc::pid_t,
    /// When it was started.
    pub start: Instant,
    pidfd: OwnedFd,
    output: File,
    faults: File,
    input: Option<OwnedFd>,
    text: Vec<u8>,
    /// When there was something of it last.
    at: Instant,
    ended: Option<(i32, Instant)>,
    _group: Option<Group>,
}

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// As of `wait(2)`.
    pub status: i32,
    /// Its output.
    pub text: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Child {
    /// Starts it. Its input is a pipe that ends when this does.
    pub fn start(order: Order) -> Result<Self, String> {
        let plain = |error: io::Error| vmm::plain(&error);
        let (output, to_output) = pipe().map_err(plain)?;
        let (faults, to_faults) = pipe().map_err(plain)?;
        let (from_input, input) = pipe().map_err(plain)?;
        nonblocking(&output).map_err(plain)?;
        let list = |words: &[CString]| -> Vec<*const libc::c_char> {
            words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
        };
        let (arguments, environment) = (list(&order.arguments), list(&order.environment));
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: PIDFD | order.setup.as_ref().map_or(0, |setup| setup.flags),
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        if let Some(directory) = order.group.as_ref().and_then(Group::unified) {
            args.flags |= INTO_CGROUP;
            args.cgroup = directory as u64;
        }
        let stdio = [from_input.as_raw_fd(), to_output.as_raw_fd(), to_output.as_raw_fd()];
        let start = Instant::now();
        // SAFETY: without CLONE_VM the child has memory of its own; it makes system
        // calls on what is prepared, and ends in execve or _exit.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
        if pid == 0 {
            let step = order.become_it(stdio, &arguments, &environment);
            // SAFETY: errno is this thread's own; the message outlives the call.
            unsafe {
                let [a, b, c, d] = (*libc::__errno_location()).to_le_bytes();
                let message = [step as u8, a, b, c, d];
                libc::write(to_faults.as_raw_fd(), message.as_ptr().cast(), message.len());
                libc::_exit(127);
            }
        }
        if pid < 0 {
            return Err(format!("clone3: {}", plain(io::Error::last_os_error())));
        }
        Ok(Self {
            pid: pid as libc::pid_t,
            start,
            // SAFETY: the kernel has just made it for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            output: File::from(output),
            faults: File::from(faults),
            input: Some(input),
            text: Vec::new(),
            at: start,
            ended: None,
            _group: order.group,
        })
    }

    /// Waits until it has said a line that begins so; how long it took.
    pub fn until(
        &mut self,
        word: &str,
        signals: &Signals,
        limit: Duration,
    ) -> Result<Duration, Error> {
        self.until_any(&[word], signals, limit)
    }

    /// The same with any of some lines.
    pub fn until_any(
        &mut self,
        words: &[&str],
        signals: &Signals,
        limit: Duration,
    ) -> Result<Duration, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if words.iter().any(|word| self.line(word).is_some()) {
                // Never later than its end, which may be seen in the same moment.
                return Ok(self.at - self.start);
            }
            if self.ended.is_some() {
                return Err(Error::Subject(self.why("ended before it said anything")));
            }
            if !self.step(signals, deadline)? {
                return Err(Error::Subject(self.why("does not start")));
            }
        }
    }

    /// Waits for its end.
    pub fn finish(mut self, signals: &Signals, limit: Duration) -> Result<Ended, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((status, at)) = self.ended {
                let text = String::from_utf8_lossy(&self.text).into_owned();
                let fault = self.fault();
                return match fault {
                    Some(fault) => Err(Error::Subject(fault)),
                    None => Ok(Ended { status, text, took: at - self.start }),
                };
            }
            if !self.step(signals, deadline)? {
                return Err(Error::Subject(self.why("does not end")));
            }
        }
    }

    /// Gives it a line to read.
    pub fn tell(&self, line: &str) -> Result<(), Error> {
        let input = self.input.as_ref().ok_or_else(|| Error::Subject("it has no input".into()))?;
        let whole = format!("{line}\n");
        // SAFETY: the buffer outlives the call, and is as long as it says.
        let written = unsafe { libc::write(input.as_raw_fd(), whole.as_ptr().cast(), whole.len()) };
        match usize::try_from(written) {
            Ok(n) if n == whole.len() => Ok(()),
            _ => Err(Error::Subject("it reads no more".to_owned())),
        }
    }

    /// Ends its input, which ends those that hold on to it.
    pub fn let_go(&mut self) {
        self.input = None;
    }

    /// What is waited for when it is to end.
    pub fn end_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }

    /// A line of its output that begins so.
    pub fn line(&self, word: &str) -> Option<String> {
        // A whole one, and wherever a console's own lines have left it.
        let text = String::from_utf8_lossy(&self.text);
        let whole = text.rfind('\n').and_then(|end| text.get(..end))?;
        whole
            .lines()
            .find(|line| line.trim_start().starts_with(word))
            .map(|line| line.trim().to_owned())
    }

    /// Takes in what there is; false if the time is over.
    fn step(&mut self, signals: &Signals, deadline: Instant) -> Result<bool, Error> {
        let ready = signals.wait(&[self.output.as_raw_fd(), self.end_fd()], deadline)?;
        let at = Instant::now();
        self.at = at;
        if ready.get(1) == Some(&true) {
            self.reap(at);
        }
        let more = self.take_output();
        if !more && self.ended.is_none() {
            // Its output has ended before it has: only the end is left.
            let ready = signals.wait(&[self.end_fd()], deadline)?;
            if ready.first() == Some(&true) {
                self.reap(Instant::now());
            }
        }
        Ok(self.ended.is_some() || at < deadline)
    }

    /// False at the end of it.
    fn take_output(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.output.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) if self.text.len() < MAX_OUTPUT => {
                    self.text.extend_from_slice(buffer.get(..n).unwrap_or_default());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Notes its end, if it has.
    pub fn reap(&mut self, at: Instant) -> bool {
        let mut status = 0;
        if self.ended.is_none() {
            // SAFETY: the pid is a child of ours that has not been waited for.
            let done = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
            if done == self.pid {
                self.ended = Some((status, at));
            }
        }
        self.ended.is_some()
    }

    /// Somebody else has waited for it.
    pub fn was_reaped(&mut self, status: i32) {
        self.ended = Some((status, Instant::now()));
        self.take_output();
    }

    /// What could not be done before the program was there.
    fn fault(&mut self) -> Option<String> {
        let mut message = [0; 5];
        self.faults.read_exact(&mut message).ok()?;
        let [step, errno @ ..] = message;
        let error = io::Error::from_raw_os_error(i32::from_le_bytes(errno));
        let step = STEPS.get(usize::from(step)).copied().unwrap_or("start");
        Some(format!("{step}: {}", vmm::plain(&error)))
    }

    /// The reason that it gave itself, or ours.
    fn why(&mut self, otherwise: &str) -> String {
        self.take_output();
        if self.ended.is_some()
            && let Some(fault) = self.fault()
        {
            return fault;
        }
        last_words(&String::from_utf8_lossy(&self.text)).unwrap_or_else(|| otherwise.to_owned())
    }
}

/// The last line that is not the agent's.
pub fn last_words(text: &str) -> Option<String> {
    let line =
        text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with('@'))?;
    let clean: String = line.chars().filter(|c| !c.is_control()).take(160).collect();
    Some(clean)
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl takes numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // SAFETY: the pid is a child of ours that has not been waited for, and
            // its group has its number or does not exist yet.
            unsafe {
                libc::kill(-self.pid, libc::SIGKILL);
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
            }
        }
    }
}

impl Order {
    /// In the child: system calls only. Comes back where it failed.
    fn become_it(
        &self,
        stdio: [RawFd; 3],
        arguments: &[*const libc::c_char],
        environment: &[*const libc::c_char],
    ) -> Step {
        // SAFETY: numbers, and pointers to what outlives the calls.
        unsafe {
            // A group of its own: the terminal's signals are ours to handle.
            if libc::setpgid(0, 0) != 0 {
                return Step::Group;
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            // Rust ignores it, which programs would inherit.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            for (number, fd) in stdio.iter().enumerate() {
                if libc::dup2(*fd, number as i32) < 0 {
                    return Step::Streams;
                }
            }
            if self.group.as_ref().is_some_and(|group| !group.join()) {
                return Step::Group;
            }
            if self.traced && libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                return Step::Trace;
            }
            if let Some(setup) = &self.setup
                && let Err(step) = setup.apply()
            {
                return step;
            }
            libc::execve(self.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        }
        Step::Execute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::processes;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Order {
        Order::new(Path::new("/bin/sh"), ["-c", script]).unwrap()
    }

    #[test]
    fn a_child_is_followed_from_its_first_word_to_its_end() {
        let signals = Signals::take().unwrap();
        let mut child = Child::start(shell("echo noise; echo @ready 1; read x; exit 3")).unwrap();
        let ready = child.until("@ready", &signals, LIMIT).unwrap();
        child.let_go();
        let ended = child.finish(&signals, LIMIT).unwrap();
        assert!(libc::WIFEXITED(ended.status) && libc::WEXITSTATUS(ended.status) == 3);
        assert!(ready <= ended.took, "{ready:?} {ended:?}");
        assert_eq!(ended.text, "noise\n@ready 1\n");
    }

    #[test]
    fn who_cannot_start_says_why() {
        let signals = Signals::take().unwrap();
        let absent = Order::new(Path::new("/nonexistent"), [""; 0]).unwrap();
        let ended = Child::start(absent).unwrap().finish(&signals, LIMIT);
        assert_eq!(ended.unwrap_err().to_string(), "executing: No such file or directory");
        let mut child = Child::start(shell("echo no permission >&2; exit 1")).unwrap();
        let error = child.until("@ready", &signals, LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "no permission");
    }

    #[test]
    fn who_is_dropped_is_gone() {
        let child = Child::start(shell("sleep 60 & wait")).unwrap();
        let pid = child.pid;
        std::thread::sleep(Duration::from_millis(50));
        drop(child);
        // SAFETY: signal 0 only asks.
        let gone = unsafe { libc::kill(-pid, 0) };
        // What it started is in its group, and may still be a zombie of init's.
        assert!(gone != 0 || processes().iter().all(|(p, _)| *p != pid));
    }
}
