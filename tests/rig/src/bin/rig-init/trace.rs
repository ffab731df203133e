//! What the kernel's tracepoints say about the command's guests.
//!
//! Histogram triggers count inside the kernel: no buffer can overflow, and in a
//! counting run the figures repeat exactly. They do cost instructions at every
//! exit, so exits and time are asked for separately.
//!
//! Exits between the marks of a guest ([`Trace::Phases`]) are kept one by one,
//! and counted afterwards: a histogram would not know which came when.

use anyhow::{Context, Result, bail};
use rig::exits::{EVENTS, MARKER_PORT};
use rig::job::Trace;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::time::Instant;

const TRACING: &str = "/sys/kernel/tracing";
/// Room for half a million exits.
const PHASES_KIB: &str = "49152";
/// What is counted by phase.
const PHASE_EVENTS: [&str; 2] = ["kvm_exit", "kvm_userspace_exit"];

/// The end of an idle time, as a state of [`IDLE`].
const AWAKE: &str = "4294967295";
const IDLE: &str = "power:cpu_idle";

/// Tracing in progress.
pub struct Tracing {
    what: Trace,
    started: Instant,
    started_mono: u128,
}

/// Starts tracing; the clock runs from here.
pub fn start(what: Trace) -> Result<Tracing> {
    let put = |file: &str, text: &str| {
        let path = format!("{TRACING}/{file}");
        fs::write(&path, text).with_context(|| format!("writing {text} to {path}"))
    };
    if what != Trace::Nothing {
        // Only the marker goes to the buffer, on the clock we read ourselves.
        put("trace_clock", "mono")?;
        put("events/kvm/kvm_pio/filter", &format!("port == {MARKER_PORT:#x}"))?;
        put("events/kvm/kvm_pio/enable", "1")?;
    }
    if what == Trace::Marker {
        // As below: what comes before the first mark costs nothing.
        let trigger = format!("enable_event:{IDLE}:1 if port == {MARKER_PORT:#x}");
        put("events/kvm/kvm_pio/trigger", &trigger)?;
    }
    if what == Trace::Exits {
        for (event, key) in EVENTS {
            let trigger = format!("hist:keys={key}:size=4096");
            put(&format!("events/kvm/{event}/trigger"), &trigger)?;
        }
    }
    if what == Trace::Phases {
        put("buffer_size_kb", PHASES_KIB)?;
        for event in PHASE_EVENTS {
            // What comes before the first mark is not even recorded.
            let trigger = format!("enable_event:kvm:{event}:1 if port == {MARKER_PORT:#x}");
            put("events/kvm/kvm_pio/trigger", &trigger)?;
        }
    }
    Ok(Tracing { what, started: Instant::now(), started_mono: monotonic_nanoseconds() })
}

impl Tracing {
    /// What was seen until now, in lines of `name key value`.
    pub fn report(&self) -> Result<String> {
        let mut text = format!("clock - {}\n", self.started.elapsed().as_nanos());
        if self.what == Trace::Nothing {
            return Ok(text);
        }
        if self.what == Trace::Phases {
            nothing_lost()?;
        }
        let mut phases: BTreeMap<String, u64> = BTreeMap::new();
        let (mut phase, mut asleep) = (None, None);
        let mut idle: BTreeMap<u64, u128> = BTreeMap::new();
        for line in BufReader::new(File::open(format!("{TRACING}/trace"))?).lines() {
            let line = line?;
            if let Some((at, value)) = parse_marker(&line) {
                let since = at.saturating_sub(self.started_mono);
                writeln!(text, "marker {value:#x} {since}")?;
                phase = Some(value);
            } else if let Some((at, awake)) = parse_idle(&line) {
                match (awake, asleep.take(), phase) {
                    (true, Some(since), Some(phase)) => {
                        *idle.entry(phase).or_default() += at.saturating_sub(since);
                    }
                    (true, ..) => {}
                    (false, ..) => asleep = Some(at),
                }
            } else if let (Some(phase), Some((event, cause))) = (phase, parse_exit(&line)) {
                *phases.entry(format!("{phase:#x}/{event}/{cause}")).or_default() += 1;
            }
        }
        for (phase, time) in idle {
            writeln!(text, "idle {phase:#x} {time}")?;
        }
        for (key, count) in phases {
            writeln!(text, "phase {key} {count}")?;
        }
        if self.what == Trace::Exits {
            for (event, _) in EVENTS {
                let path = format!("{TRACING}/events/kvm/{event}/hist");
                let table = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
                for (key, count) in table.lines().filter_map(parse_bucket) {
                    writeln!(text, "{event} {key} {count}")?;
                }
            }
        }
        Ok(text)
    }
}

/// An error if the buffer had to drop events.
fn nothing_lost() -> Result<()> {
    for cpu in fs::read_dir(format!("{TRACING}/per_cpu"))? {
        let text = fs::read_to_string(cpu?.path().join("stats"))?;
        let overrun = text.lines().find_map(|line| line.strip_prefix("overrun: "));
        if overrun.is_none_or(|count| count.trim() != "0") {
            bail!("more exits than the trace buffer holds");
        }
    }
    Ok(())
}

fn monotonic_nanoseconds() -> u128 {
    // SAFETY: `timespec` is plain data, written by the call.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now);
        now
    };
    now.tv_sec as u128 * 1_000_000_000 + now.tv_nsec as u128
}

/// `{ port:         96 } hitcount:         16`
fn parse_bucket(line: &str) -> Option<(u64, u64)> {
    let (key, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
    let key = key.split_once(':')?.1.trim();
    Some((key.parse().ok()?, count.trim().parse().ok()?))
}

/// `microvm-120 [000] d..1. 1.234567: kvm_pio: pio_write at 0x80 size 1 count 1 val 0x7b`
fn parse_marker(line: &str) -> Option<(u128, u64)> {
    let (before, after) = line.split_once(": kvm_pio: pio_write")?;
    let value = after.split_once("val 0x")?.1.split_whitespace().next()?;
    Some((parse_time(before)?, u64::from_str_radix(value, 16).ok()?))
}

/// The last word: seconds, in nanoseconds.
fn parse_time(before: &str) -> Option<u128> {
    let (seconds, fraction) = before.split_whitespace().last()?.split_once('.')?;
    let scale = 10u128.checked_pow(9u32.checked_sub(u32::try_from(fraction.len()).ok()?)?)?;
    Some(seconds.parse::<u128>().ok()? * 1_000_000_000 + fraction.parse::<u128>().ok()? * scale)
}

/// `<idle>-0 [000] d..1. 1.234567: cpu_idle: state=1 cpu_id=0`: when, and whether it ends.
fn parse_idle(line: &str) -> Option<(u128, bool)> {
    let (before, after) = line.split_once(": cpu_idle: state=")?;
    Some((parse_time(before)?, after.split(' ').next()? == AWAKE))
}

/// `microvm-120 [000] d..1. 1.234567: kvm_exit: vcpu 0 reason npf rip 0xffff info1 0x0 …` and
/// `… kvm_userspace_exit: reason KVM_EXIT_MMIO (6)`: the event and its cause.
fn parse_exit(line: &str) -> Option<(&'static str, String)> {
    PHASE_EVENTS.into_iter().find_map(|event| {
        let (_, words) = line.split_once(&format!(" {event}: "))?;
        let cause = words.split_once("reason ")?.1.split(' ').next()?.to_lowercase();
        Some((event, cause.trim_start_matches("kvm_exit_").replace('/', "-")))
    })
}
