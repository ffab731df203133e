//! How much of the host's interface a subject uses: which system calls its processes
//! make, followed with `ptrace(2)`.
//!
//! Counted from the first program that is executed on: what we do ourselves to make
//! namespaces is not.

use crate::Error;
use crate::spawn::{Child, Order, Signals};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::mem;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use vmm::console::signals::children_fd;

/// System calls of a subject's processes.
#[derive(Debug, Default)]
pub struct Calls {
    /// How many.
    pub total: u64,
    /// Which numbers.
    pub kinds: BTreeSet<u64>,
    /// Which requests of KVM's.
    pub kvm: BTreeSet<u64>,
    /// What the subject said.
    pub text: String,
}

const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_EXITKILL;

/// All of what this thread traces, and nothing of other threads' children.
const FLAGS: libc::c_int = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;

/// The type of KVM's ioctls (`linux/kvm.h`).
const KVMIO: u64 = 0xae;

/// Until a process of ours stops or ends, or a moment: another thread may have taken
/// the signal.
fn wait(stops: &mut File, signals: &Signals) -> Result<(), Error> {
    let moment = Instant::now() + Duration::from_millis(100);
    if signals.wait(&[stops.as_raw_fd()], moment)? == [true] {
        // One signal; which it was, waitpid tells.
        let _ = stops.read(&mut [0; size_of::<libc::signalfd_siginfo>()]);
    }
    Ok(())
}

/// Runs it to its end and counts.
pub fn count(mut order: Order, signals: &Signals, limit: Duration) -> Result<Calls, Error> {
    order.traced = true;
    let mut stops = children_fd().map_err(Error::host("signals"))?;
    let mut child = Child::start(order).map_err(Error::Subject)?;
    child.let_go();
    let deadline = Instant::now() + limit;
    let mut calls = Calls::default();
    // Whose first stop has been seen.
    let mut seen: BTreeSet<libc::pid_t> = BTreeSet::new();
    let mut known = false;
    loop {
        signals.check()?;
        if Instant::now() > deadline {
            return Err(Error::Subject("does not end while it is traced".to_owned()));
        }
        let mut status = 0;
        // SAFETY: the call fills in an int.
        let pid = unsafe { libc::waitpid(-1, &mut status, FLAGS) };
        if pid == 0 {
            // Asleep, and not in turns with it: each of them would cost a guest on one
            // processor an exit, and an emulated one what it knows of its pages.
            wait(&mut stops, signals)?;
            continue;
        }
        if pid < 0 {
            return Err(Error::Subject("it was lost while it was traced".to_owned()));
        }
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            seen.remove(&pid);
            if pid == child.pid {
                child.was_reaped(status);
                break;
            }
            continue;
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        if !mem::replace(&mut known, true) {
            // SAFETY: the process is stopped and ours.
            unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, OPTIONS) };
        }
        let signal = libc::WSTOPSIG(status);
        let pass = match signal {
            // A system call begins or ends.
            s if s == libc::SIGTRAP | 0x80 => {
                note(pid, &mut calls);
                0
            }
            // Of ptrace itself; and the first stop of what has just been made.
            libc::SIGTRAP => 0,
            libc::SIGSTOP if seen.insert(pid) => 0,
            other => other,
        };
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, pass) };
    }
    let ended = child.finish(signals, limit)?;
    calls.text = ended.text;
    Ok(calls)
}

/// `struct ptrace_syscall_info`: the operation, two addresses, and for an entry the
/// number and the arguments.
type Info = [u64; 12];
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u64 = 1;

fn note(pid: libc::pid_t, calls: &mut Calls) {
    let mut info: Info = [0; 12];
    // SAFETY: the process is stopped; the call fills in as many bytes as it is told.
    let got = unsafe { libc::ptrace(GET_SYSCALL_INFO, pid, size_of::<Info>(), info.as_mut_ptr()) };
    let [operation, _, _, number, _, request, ..] = info;
    if got <= 0 || operation & 0xff != ENTRY {
        return;
    }
    calls.total += 1;
    calls.kinds.insert(number);
    if number == libc::SYS_ioctl as u64 && request >> 8 & 0xff == KVMIO {
        calls.kvm.insert(request & 0xffff_ffff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    /// The same program counted by strace, which also sees the first execve.
    #[test]
    fn strace_counts_the_same() {
        let script = "echo @ready; /bin/true; (exit 0) & wait";
        let counted = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/stdout", "sh", "-c", script])
            .output();
        let Ok(counted) = counted.map(|output| output.stdout) else {
            println!("skipped: there is no strace");
            return;
        };
        let text = String::from_utf8_lossy(&counted).into_owned();
        let calls = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, call)| {
            let call = call.trim_start();
            let name = call.split_once('(').map_or("", |(name, _)| name);
            !name.is_empty() && !name.starts_with(['-', '+', '<'])
        });
        let theirs = calls.count() as u64;
        let signals = Signals::take().unwrap();
        let order = Order::new(Path::new("/bin/sh"), ["-c", script]).unwrap();
        let ours = count(order, &signals, Duration::from_secs(60)).unwrap();
        assert!(ours.text.contains("@ready"), "{}", ours.text);
        assert!(ours.total > 50 && ours.kvm.is_empty());
        // A wait that was interrupted is counted twice by either.
        assert!(
            (ours.total + 1).abs_diff(theirs) <= theirs / 10,
            "{} against {theirs}",
            ours.total
        );
    }
}
