//! Processor time from exec to the first `KVM_RUN`, on this host itself.
//!
//! A seccomp filter stops the monitor at that ioctl and nowhere else, so that
//! everything before it runs at its own speed; then the process's processor
//! clock is read and the process killed. No guest instruction is executed.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const KVM_RUN: u32 = 0xae80;
/// A monitor that takes longer than this to start is not starting.
const STOPS: u32 = 10_000;

/// The median of `count` starts.
pub fn median(command: &[OsString], count: usize) -> Result<Duration> {
    let mut times = (0..count).map(|_| once(command)).collect::<Result<Vec<_>>>()?;
    times.sort();
    times.get(count / 2).copied().context("no starts to measure")
}

fn once(command: &[OsString]) -> Result<Duration> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: only system calls, which are async-signal-safe, with pointers to
    // data of the closure's own.
    unsafe { command.pre_exec(be_traced) };
    let mut child = command.spawn().context("starting the monitor")?;
    let pid = child.id() as libc::pid_t;
    let outcome = until_first_run(pid);
    let _ = child.kill();
    // Threads that stand at a trace stop must be let go for the end to come.
    while let Ok(Some(_)) = wait() {}
    outcome
}

/// Stops at every `ioctl(_, KVM_RUN, _)`, for whoever traces the process.
fn be_traced() -> io::Result<()> {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const TRACE: u32 = libc::SECCOMP_RET_TRACE;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let unless = |k, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, k);
    let answer = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    // `struct seccomp_data`: the number at 0, the second argument at 24.
    let filter = [
        load(0),
        unless(libc::SYS_ioctl as u32, 3),
        load(24),
        unless(KVM_RUN, 1),
        answer(TRACE),
        answer(ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program and its filter outlive the calls, which read them.
    let failed = unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for anything to happen to any thread of what this thread has started;
/// `None` when there is none left.
fn wait() -> io::Result<Option<(libc::pid_t, i32)>> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    match unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) } {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            e => Err(e),
        },
        pid => Ok(Some((pid, status))),
    }
}

fn until_first_run(pid: libc::pid_t) -> Result<Duration> {
    let Some((_, status)) = wait()? else { bail!("the monitor is gone") };
    if !libc::WIFSTOPPED(status) {
        bail!("the monitor could not be started");
    }
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: the process is ours and stopped; the options are a number.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } != 0 {
        return Err(io::Error::last_os_error()).context("PTRACE_SETOPTIONS");
    }
    let start = processor_time(pid)?;
    let mut at = (pid, 0);
    for _ in 0..STOPS {
        let (thread, signal) = at;
        // SAFETY: the thread stands at a trace stop; the signal is a number.
        unsafe { libc::ptrace(libc::PTRACE_CONT, thread, 0, signal) };
        let Some((thread, status)) = wait()? else { break };
        if status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_SECCOMP << 8) {
            return Ok(processor_time(pid)?.saturating_sub(start));
        }
        if libc::WIFSTOPPED(status) {
            let signal = libc::WSTOPSIG(status);
            let ours = matches!(signal, libc::SIGTRAP | libc::SIGSTOP);
            at = (thread, if ours { 0 } else { signal });
        } else if thread == pid {
            bail!("the monitor ended before its first KVM_RUN: try it by hand");
        }
    }
    bail!("the monitor never came to KVM_RUN")
}

/// What all threads of `pid` have used so far.
fn processor_time(pid: libc::pid_t) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: `timespec` is plain data for which zeroes are valid; both
    // pointers are valid for their calls.
    let (failed, now) = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        let failed = libc::clock_getcpuclockid(pid, &mut clock) != 0
            || libc::clock_gettime(clock, &mut now) != 0;
        (failed, now)
    };
    if failed {
        bail!("reading the processor clock of process {pid}");
    }
    Ok(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_kvm_never_gets_there() {
        let told = once(&["/bin/true".into()]).unwrap_err().to_string();
        assert!(told.contains("ended before"), "{told}");
    }
}
