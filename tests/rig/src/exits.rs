//! What a guest cost: time, and exits by cause.

use std::collections::BTreeMap;
use std::fmt;

/// The tracepoints counted, each with the field it is counted by.
pub const EVENTS: [(&str, &str); 7] = [
    ("kvm_exit", "exit_reason"),
    ("kvm_userspace_exit", "reason"),
    ("kvm_pio", "port"),
    ("kvm_mmio", "gpa"),
    ("kvm_msr", "ecx"),
    ("kvm_cpuid", "function"),
    ("kvm_inj_virq", "vector"),
];

/// Where a guest writes to mark a point in time.
pub const MARKER_PORT: u16 = 0x80;

/// The report of a traced run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Nanoseconds from before the command's start to after its end; in a
    /// counting run, instructions.
    pub clock: u64,
    /// What guests wrote to [`MARKER_PORT`], and when on the same clock (to the
    /// microsecond, which is as fine as the trace buffer prints).
    pub markers: Vec<(u64, u64)>,
    /// For each of [`EVENTS`] seen: how often, by key.
    pub events: BTreeMap<String, BTreeMap<u64, u64>>,
    /// For each value written to [`MARKER_PORT`]: what happened until the next
    /// one, by event and then by cause, in words.
    pub phases: BTreeMap<u64, Counts>,
    /// For each value written to [`MARKER_PORT`]: for how many nanoseconds until
    /// the next one the host had nothing to do but wait for a timer. A counting
    /// run's clock goes on then, with no instruction.
    pub idle: BTreeMap<u64, u64>,
}

/// Counts by event and cause.
pub type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Report {
    /// Reads the text that the rig's init sends.
    pub fn parse(text: &str) -> Option<Self> {
        let mut report = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (name, key, value) = (words.next()?, words.next()?, words.next()?);
            let value = value.parse().ok()?;
            match name {
                "clock" => report.clock = value,
                "marker" => {
                    report.markers.push((hexadecimal(key)?, value));
                }
                "idle" => {
                    report.idle.insert(hexadecimal(key)?, value);
                }
                "phase" => {
                    let mut parts = key.split('/');
                    let (phase, event, cause) = (parts.next()?, parts.next()?, parts.next()?);
                    let events = report.phases.entry(hexadecimal(phase)?).or_default();
                    *events.entry(event.into()).or_default().entry(cause.into()).or_default() +=
                        value;
                }
                event => {
                    let keys = report.events.entry(event.to_owned()).or_default();
                    keys.insert(key.parse().ok()?, value);
                }
            }
        }
        Some(report)
    }

    /// How often an event happened in all.
    pub fn total(&self, event: &str) -> u64 {
        self.events.get(event).map_or(0, |keys| keys.values().sum())
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "clock {}", self.clock)?;
        for (value, at) in &self.markers {
            writeln!(f, "marker {value:#x} at {at}")?;
        }
        for (phase, time) in &self.idle {
            writeln!(f, "after {phase:#x}: idle for {time}")?;
        }
        for (phase, events) in &self.phases {
            for (event, causes) in events {
                writeln!(f, "after {phase:#x}: {event} {}", causes.values().sum::<u64>())?;
                for (cause, count) in causes {
                    writeln!(f, "  {count:>9}  {cause}")?;
                }
            }
        }
        for (event, _) in EVENTS {
            let Some(keys) = self.events.get(event) else {
                continue;
            };
            writeln!(f, "{event} {}", self.total(event))?;
            let mut sorted: Vec<_> = keys.iter().collect();
            sorted.sort_by_key(|&(key, count)| (std::cmp::Reverse(count), key));
            for (key, count) in sorted {
                writeln!(f, "  {count:>9}  {key:#x}{}", name(event, *key))?;
            }
        }
        Ok(())
    }
}

/// What a key means in words, or the number itself where there are none.
pub fn cause(event: &str, key: u64) -> String {
    match name(event, key).trim_start() {
        "" => format!("{key:#x}"),
        word => word.to_owned(),
    }
}

/// A word for a key, where numbers say little.
fn name(event: &str, key: u64) -> &'static str {
    match (event, key) {
        ("kvm_userspace_exit", 2) => " io",
        ("kvm_userspace_exit", 5) => " hlt",
        ("kvm_userspace_exit", 6) => " mmio",
        ("kvm_userspace_exit", 8) => " shutdown",
        ("kvm_userspace_exit", 10) => " intr",
        ("kvm_userspace_exit", 24) => " system_event",
        // AMD's numbers; Intel's are small and mean something else, but the
        // tracepoint does not say whose they are and this rig counts on AMD's.
        ("kvm_exit", 0x00) => " read_cr0",
        ("kvm_exit", 0x04) => " read_cr4",
        ("kvm_exit", 0x10) => " write_cr0",
        ("kvm_exit", 0x14) => " write_cr4",
        ("kvm_exit", 0x23) => " read_dr3",
        ("kvm_exit", 0x37) => " write_dr7",
        ("kvm_exit", 0x46) => " excp_ud",
        ("kvm_exit", 0x60) => " intr",
        ("kvm_exit", 0x64) => " vintr",
        ("kvm_exit", 0x65) => " cr0_sel_write",
        ("kvm_exit", 0x72) => " cpuid",
        ("kvm_exit", 0x78) => " hlt",
        ("kvm_exit", 0x7b) => " io",
        ("kvm_exit", 0x7c) => " msr",
        ("kvm_exit", 0x7f) => " shutdown",
        ("kvm_exit", 0x81) => " vmmcall",
        ("kvm_exit", 0x8d) => " xsetbv",
        ("kvm_exit", 0x400) => " npf",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_read_and_summed() {
        let text = "clock - 1000\nmarker 0x7b 600\nkvm_exit 123 4\nkvm_exit 1024 5\nkvm_pio 96 4\n";
        let report = Report::parse(text).expect("well-formed");
        assert_eq!(report.clock, 1000);
        assert_eq!(report.markers, [(0x7b, 600)]);
        assert_eq!(report.total("kvm_exit"), 9);
        assert_eq!(report.total("kvm_msr"), 0);
        assert!(report.to_string().contains("0x400 npf"));
        let text =
            "phase 0x10/kvm_exit/npf 7\nphase 0x10/kvm_exit/hlt 2\nphase 0x40/kvm_exit/io 1\n";
        let report = Report::parse(text).expect("well-formed");
        assert_eq!(report.phases[&0x10]["kvm_exit"]["npf"], 7);
        assert_eq!(report.phases[&0x40]["kvm_exit"].len(), 1);
        let report = Report::parse("idle 0x17 4000\n").expect("well-formed");
        assert_eq!(report.idle[&0x17], 4000);
        assert!(report.to_string().contains("after 0x17: idle for 4000"));
        assert_eq!(Report::parse("phase 0x10/kvm_exit 1"), None);
        assert_eq!(Report::parse("clock"), None);
        assert_eq!(Report::parse("kvm_exit x 1"), None);
    }
}
