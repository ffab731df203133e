//! The job's process: who it is, what it runs, and how it ends.

use crate::image;
use crate::streams::Stdio;
use crate::wire::Socket;
use guest::protocol::{Failure, How, Spec, Usage};
use guest::system::{About, Fault, c_string, check, pipe};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Where programs are looked for when the job has no `PATH` (`confstr(3)`).
const PATH: &[u8] = b"/bin:/usr/bin";
const NO_PROGRAM: &str = "no program: the image has none of its own: name one behind it";
/// The last signal there is.
const LAST_SIGNAL: libc::c_int = 64;

/// Why there is no job.
pub struct NoJob {
    /// Of which kind.
    pub kind: Failure,
    /// In words.
    pub text: String,
}

impl From<Fault> for NoJob {
    fn from(Fault(text): Fault) -> Self {
        Self { kind: Failure::Setup, text }
    }
}

/// What the child does once it is one: made before the fork, as little is safe
/// after it.
struct Plan<'a> {
    spec: &'a Spec,
    stdio: [RawFd; 3],
    /// A rank's socket, and the descriptor that it is to be.
    socket: Option<(RawFd, RawFd)>,
    terminal: bool,
    /// The program's possible places.
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
}

/// Steps of the child that can fail.
#[derive(Clone, Copy)]
enum Step {
    Identity,
    Directory,
    Execute,
}

/// Starts the job; its descriptors are closed here.
pub fn start(spec: &Spec, stdio: Stdio, rank: Option<Socket>) -> Result<libc::pid_t, NoJob> {
    let words = image::command(spec);
    let name = words.first().ok_or_else(|| Fault(NO_PROGRAM.to_owned()))?;
    let strings = |words: &[Vec<u8>]| -> io::Result<Vec<CString>> {
        words.iter().map(|word| c_string(word)).collect()
    };
    let plan = Plan {
        spec,
        stdio: stdio.each_ref().map(|fd| fd.as_ref().map_or(-1, OwnedFd::as_raw_fd)),
        socket: rank.as_ref().map(|rank| (rank.end.as_raw_fd(), rank.number)),
        terminal: spec.streams.terminal.is_some(),
        programs: strings(&places(name, &spec.environment)).about("program")?,
        arguments: strings(&words).about("arguments")?,
        environment: strings(&spec.environment).about("environment")?,
        directory: c_string(&spec.directory).about("working directory")?,
    };
    let (read, write) = pipe().about("pipe")?;
    let write = above(write, plan.socket.map_or(0, |(_, number)| number)).about("pipe")?;
    // SAFETY: there is one thread; the child makes system calls on what it finds
    // in `plan` and ends in exec or _exit.
    let pid = unsafe { check(libc::fork()).about("fork")? };
    if pid == 0 {
        let (step, error) = plan.become_job();
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
        let message = [step as u8, a, b, c, d];
        // SAFETY: the buffer is `message`; _exit has no preconditions.
        unsafe {
            libc::write(write.as_raw_fd(), message.as_ptr().cast(), message.len());
            libc::_exit(127);
        }
    }
    drop((write, stdio, rank));
    // Nothing comes when it runs: the pipe is closed by exec.
    let mut message = [0; 5];
    match File::from(read).read_exact(&mut message) {
        Err(_) => Ok(pid),
        Ok(()) => {
            // SAFETY: the child has ended or is about to.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            let [step, errno @ ..] = message;
            Err(explain(spec, name, step, &io::Error::from_raw_os_error(i32::from_le_bytes(errno))))
        }
    }
}

/// The same at a descriptor that is not in the way of one that is to be `number`.
fn above(fd: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() != number {
        return Ok(fd);
    }
    // SAFETY: fcntl takes numbers; the new descriptor is nobody else's.
    unsafe {
        let twin = check(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, number.saturating_add(1)))?;
        Ok(OwnedFd::from_raw_fd(twin))
    }
}

fn explain(spec: &Spec, program: &[u8], step: u8, error: &io::Error) -> NoJob {
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let program = name(program);
    let missing = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
    let (kind, what) = match step {
        s if s == Step::Execute as u8 && missing => (Failure::NotFound, program),
        s if s == Step::Execute as u8 => (Failure::NotExecutable, program),
        s if s == Step::Directory as u8 => (Failure::Setup, name(&spec.directory)),
        _ => (Failure::Setup, "identity of the job".to_owned()),
    };
    let Fault(text) = Fault::new(what, error);
    NoJob { kind, text }
}

/// Where a program may be, as `execvp(3)` looks for it.
fn places(name: &[u8], environment: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') || name.is_empty() {
        return vec![name.to_vec()];
    }
    let path = environment.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
    path.unwrap_or(PATH)
        .split(|byte| *byte == b':')
        .map(|directory| match directory {
            b"" => name.to_vec(),
            directory => [directory, b"/", name].concat(),
        })
        .collect()
}

impl Plan<'_> {
    /// In the child; returns only if that can't be.
    fn become_job(&self) -> (Step, io::Error) {
        if let Err(error) = self.take_streams().and_then(|()| self.take_identity()) {
            return (Step::Identity, error);
        }
        // SAFETY: the strings end with NUL.
        unsafe {
            if libc::chdir(self.directory.as_ptr()) != 0 {
                if self.spec.directory_required {
                    return (Step::Directory, io::Error::last_os_error());
                }
                libc::chdir(c"/".as_ptr());
            }
        }
        self.take_signals();
        (Step::Execute, self.execute())
    }

    fn take_streams(&self) -> io::Result<()> {
        // SAFETY: all calls take numbers; the descriptors are this process's.
        unsafe {
            check(libc::setpgid(0, 0))?;
            // Above those that are to be replaced.
            let mut kept = [-1; 3];
            for (kept, fd) in kept.iter_mut().zip(self.stdio) {
                if fd >= 0 {
                    *kept = check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?;
                }
            }
            if self.terminal {
                // From the background this would stop us.
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                check(libc::tcsetpgrp(kept[0], libc::getpid()))?;
            }
            for (fd, kept) in (0..).zip(kept) {
                match kept {
                    -1 => drop(libc::close(fd)),
                    kept => drop(check(libc::dup2(kept, fd))?),
                }
            }
            match self.socket {
                // One that is in its place already must only outlive exec.
                Some((end, number)) if end == number => {
                    check(libc::fcntl(end, libc::F_SETFD, 0))?;
                }
                Some((end, number)) if number > 2 => drop(check(libc::dup2(end, number))?),
                _ => {}
            }
        }
        Ok(())
    }

    fn take_identity(&self) -> io::Result<()> {
        let identity = &self.spec.identity;
        // SAFETY: the calls take numbers, and structs and lists that outlive them.
        unsafe {
            for limit in &identity.limits {
                let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
                check(libc::setrlimit(limit.resource.into(), &value))?;
            }
            check(libc::setgroups(identity.groups.len(), identity.groups.as_ptr()))?;
            check(libc::setresgid(identity.gid, identity.gid, identity.gid))?;
            check(libc::setresuid(identity.uid, identity.uid, identity.uid))?;
            libc::umask(identity.umask);
        }
        Ok(())
    }

    fn take_signals(&self) {
        for signal in 1..=LAST_SIGNAL {
            let ignored = self.spec.identity.ignored >> (signal - 1) & 1 != 0;
            // SAFETY: default and ignore are no handlers; it fails for those that
            // can't be changed, and for those of the C library.
            unsafe {
                libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL });
            }
        }
        // SAFETY: the set is initialized before it is read.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        }
    }

    fn execute(&self) -> io::Error {
        let list = |words: &[CString], first: Option<[&CStr; 2]>| -> Vec<*const libc::c_char> {
            let skip = usize::from(first.is_some());
            let first = first.into_iter().flatten().map(CStr::as_ptr);
            let rest = words.iter().skip(skip).map(|word| word.as_ptr());
            first.chain(rest).chain([ptr::null()]).collect()
        };
        let environment = list(&self.environment, None);
        let arguments = list(&self.arguments, None);
        let mut failed = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.programs {
            // SAFETY: the lists end with null and their strings with NUL; they
            // outlive the calls.
            unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                // Another directory may have one that can be executed.
                Some(libc::EACCES) => failed = error,
                Some(libc::ENOEXEC) => {
                    // A script without its first line, as `execvp` runs it.
                    let script = list(&self.arguments, Some([c"/bin/sh", program]));
                    // SAFETY: as above.
                    unsafe {
                        libc::execve(c"/bin/sh".as_ptr(), script.as_ptr(), environment.as_ptr());
                    }
                    return error;
                }
                _ => return error,
            }
        }
        failed
    }
}

/// Forks: returns in the child, which leads a session. The parent remains init.
///
/// A process group is one that `SIGTSTP` stops only if a parent of one of its
/// members is in the same session, in another group, and not init
/// (`will_become_orphaned_pgrp` of the kernel).
pub fn leave_orphans_to_init() {
    // SAFETY: there is one thread; waitpid may be given no place for a status.
    unsafe {
        match libc::fork() {
            0 => drop(check(libc::setsid())),
            child => loop {
                let ended = libc::waitpid(-1, ptr::null_mut(), 0);
                if ended == child || ended < 0 {
                    crate::system::power_off();
                }
            },
        }
    }
}

/// Makes this process the leader of a session of its own.
pub fn lead_session() {
    // SAFETY: setsid has no preconditions; it fails for a process that leads already.
    unsafe { libc::setsid() };
}

/// What has become of a child.
pub enum Change {
    /// The job was stopped by this signal.
    Stopped(u8),
    /// The job has ended.
    Ended(How),
    /// Something else: a process that was left to init.
    Other,
}

/// Waits until a child's state changes, but takes no note of it: a pid is not used
/// again before that is done.
pub fn wait() -> io::Result<()> {
    // SAFETY: siginfo is plain data that the call fills in.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let what = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
        check(libc::waitid(libc::P_ALL, 0, &mut info, what)).map(drop)
    }
}

/// Takes note of what [`wait`] has seen.
pub fn take_change(job: libc::pid_t) -> Change {
    let mut status = 0;
    // SAFETY: the call fills in an int.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) };
    if pid != job {
        return Change::Other;
    }
    if libc::WIFSTOPPED(status) {
        return Change::Stopped(libc::WSTOPSIG(status) as u8);
    }
    Change::Ended(match libc::WIFSIGNALED(status) {
        true => How::Signalled(libc::WTERMSIG(status) as u8),
        false => How::Exited(libc::WEXITSTATUS(status) as u8),
    })
}

/// Ends whatever still runs.
pub fn end_all() {
    // SAFETY: this reaches every process but this one and init; waitpid may be given
    // no place for a status.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
        while libc::waitpid(-1, ptr::null_mut(), 0) > 0 {}
    }
}

/// What the job and its children took.
pub fn usage() -> Usage {
    // SAFETY: a rusage is plain data that the call fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let micros = |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec) as u64;
    Usage {
        user: micros(usage.ru_utime),
        system: micros(usage.ru_stime),
        resident: usage.ru_maxrss as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        let at = |name: &str, path: &str| -> Vec<String> {
            let environment = [b"A=1".to_vec(), format!("PATH={path}").into_bytes()];
            let found = places(name.as_bytes(), &environment);
            found.into_iter().map(|p| String::from_utf8(p).unwrap()).collect()
        };
        assert_eq!(at("ls", "/bin:/usr/bin"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(at("ls", "/bin::x"), ["/bin/ls", "ls", "x/ls"]);
        assert_eq!(at("./ls", "/bin"), ["./ls"]);
        assert_eq!(at("", "/bin"), [""]);
        assert_eq!(places(b"ls", &[]), [b"/bin/ls".to_vec(), b"/usr/bin/ls".to_vec()]);
    }
}
