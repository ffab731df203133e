//! Memory of a monitor beyond its guest's RAM, once the guest has nothing to do.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::ffi::OsString;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Arguments of the command.
#[derive(Args)]
pub struct MemoryArguments {
    /// A mapping of at least this many KiB is the guest's RAM
    #[arg(long)]
    guest_kib: u64,
    /// The monitor and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The guest is idle when the monitor used no more than this in [`QUIET`].
const IDLE_TICKS: u64 = 2;
const QUIET: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(120);

impl MemoryArguments {
    /// Prints KiB (PSS); returns the exit status.
    pub fn run(self) -> Result<u8> {
        let (program, arguments) = self.command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the monitor")?;
        let outcome = until_idle(&mut child).and_then(|()| {
            let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
            Ok(proportional(&maps, self.guest_kib))
        });
        let _ = child.kill();
        let _ = child.wait();
        println!("{}", outcome?);
        Ok(0)
    }
}

fn until_idle(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut before = None;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("the monitor ended: {status}");
        }
        let now = ticks(child.id())?;
        if before.is_some_and(|before| now - before <= IDLE_TICKS && now > 0) {
            return Ok(());
        }
        before = Some(now);
        sleep(QUIET);
    }
    bail!("the guest was never idle")
}

/// User and system time of a process in clock ticks, `proc_pid_stat(5)`.
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit_once(')').context("a strange /proc/PID/stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    Ok(field(11).context("utime")? + field(12).context("stime")?)
}

/// The sum of PSS in KiB over all mappings smaller than `guest_kib`.
fn proportional(smaps: &str, guest_kib: u64) -> u64 {
    let mut size = 0;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (name, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Pss:"), Some(kib)) if size < guest_kib => sum += kib,
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_monitors() {
        let smaps = "1-2 rw-p 0 0:0 0\nSize: 131072 kB\nRss: 9 kB\nPss: 40000 kB\n\
                     3-4 rw-p 0 0:0 0\nSize: 132 kB\nPss: 12 kB\nPss_Dirty: 3 kB\n\
                     5-6 r-xp 0 0:0 0\nSize: 800 kB\nPss: 300 kB\n";
        assert_eq!(proportional(smaps, 65536), 312);
    }
}
