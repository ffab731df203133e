//! PID 1 of the rig: makes an empty machine look like the caller's, with a
//! true `/dev/kvm`, runs one command there and reports how it ended.
//!
//! A compiled init and not a shell script: the frames, the terminal and the
//! exact exit status need system calls a shell does not have, and every process
//! a script would start costs milliseconds under emulation.

mod child;
mod relay;
mod system;
mod trace;

use anyhow::{Context, Result};
use rig::frame::Kind;
use rig::job::{self, Job, Root, Trace};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Where the new root is put together.
const NEW_ROOT: &str = "/new";
/// Local scratch space, in memory; the command finds it in `TMPDIR`.
const SCRATCH: &str = "/run/microvm-rig";
/// What a shell says of a command it cannot start.
const COMMAND_NOT_FOUND: u8 = 127;

fn main() {
    let outcome = run();
    if let Err(error) = outcome {
        // With no line to the caller, the kernel console is what is left.
        eprintln!("rig-init: {error:#}");
        let _ = fs::write("/dev/kmsg", format!("rig-init: {error:#}\n"));
    }
    // The caller stops the machine when it has read the last frame. If it went
    // away instead, power off rather than let PID 1 end in a panic.
    std::thread::sleep(Duration::from_secs(30));
    system::power_off();
}

fn run() -> Result<()> {
    system::mount("devtmpfs", "/dev", "devtmpfs", "")?;
    system::mount("proc", "/proc", "proc", "")?;
    system::mount("sysfs", "/sys", "sysfs", "")?;
    let bytes = fs::read(Path::new("/").join(job::JOB_PATH)).context("reading the job")?;
    let job = Job::decode(&bytes)?;
    let mut line = relay::Line::open(&job)?;
    if let Err(error) = prepare(&job) {
        return line.send(Kind::Failure, format!("{error:#}").as_bytes());
    }
    line.send(Kind::Started, b"")?;
    let tracing = match trace::start(job.trace) {
        Ok(tracing) => tracing,
        Err(error) => return line.send(Kind::Failure, format!("{error:#}").as_bytes()),
    };
    let status = match child::Child::start(&job, SCRATCH) {
        Ok(child) => relay::run(child, &mut line)?,
        Err(error) => {
            line.send(Kind::Stderr, format!("{error:#}\n").as_bytes())?;
            COMMAND_NOT_FOUND
        }
    };
    if job.trace != Trace::Nothing {
        line.send(Kind::Report, tracing.report()?.as_bytes())?;
    }
    system::sync();
    line.send(Kind::Exit, &[status])
}

fn prepare(job: &Job) -> Result<()> {
    system::load_modules(&job.early_modules)?;
    // The rest of the modules load while the mounts wait for the host.
    std::thread::scope(|scope| {
        let modules = scope.spawn(|| system::load_modules(&job.modules));
        assemble_root(job)?;
        match modules.join() {
            Ok(loaded) => loaded,
            Err(_) => anyhow::bail!("loading modules panicked"),
        }
    })?;
    system::enter_root(NEW_ROOT)?;
    // Device nodes of the modules exist only now; devtmpfs shows them by itself.
    system::loopback_up()?;
    system::set_host_name("rig")?;
    let _ = fs::write("/proc/sys/kernel/printk", "4 4 1 4");
    Ok(())
}

fn assemble_root(job: &Job) -> Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    match job.root {
        Root::Host => system::mount(
            job::HOST_TAG,
            NEW_ROOT,
            "9p",
            "trans=virtio,version=9p2000.L,msize=524288,cache=loose,access=any",
        )?,
        Root::Packed => system::bind(&format!("/{}", job::TREE_PATH), NEW_ROOT)?,
    }
    let at = |path: &str| format!("{NEW_ROOT}{path}");
    if job.root == Root::Packed {
        for directory in ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc"] {
            fs::create_dir_all(at(directory))?;
        }
    }
    system::mount("proc", &at("/proc"), "proc", "")?;
    system::mount("sysfs", &at("/sys"), "sysfs", "")?;
    system::mount("devtmpfs", &at("/dev"), "devtmpfs", "")?;
    for (kind, target, options) in [
        ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("cgroup2", "/sys/fs/cgroup", ""),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
    ] {
        if !target.starts_with("/sys") {
            fs::create_dir_all(at(target))?;
        }
        system::mount(kind, &at(target), kind, options)?;
    }
    // As systemd does: limits for those who make groups.
    let _ = fs::write(at("/sys/fs/cgroup/cgroup.subtree_control"), "+memory +pids");
    fs::create_dir_all(at(SCRATCH))?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, at(link));
    }
    Ok(())
}
