//! What is found, as plain data: the JSON form is this.

use crate::{Effort, Options, Subject, eoi};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmm::host::processor;
use vmm::host::spectrum::{self, Row};

/// The version of the JSON form.
const VERSION: u32 = 2;

/// What a unit of the host's monotonic clock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// A nanosecond.
    Nanoseconds,
    /// An instruction: the host is emulated, and counts.
    Instructions,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this form.
    pub version: u32,
    /// Where it was measured.
    pub place: Place,
    /// Xen's table, as it is on this host.
    pub table: Vec<Row>,
    /// What the host's own columns rest on, in words.
    pub because: Vec<String>,
    /// The modes, in the order in which they were measured.
    pub modes: Vec<Mode>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub struct Place {
    /// What a unit of time is.
    pub clock: Clock,
    /// What stands behind KVM.
    pub backend: &'static str,
    /// The processor's own name.
    pub processor: String,
    /// The emulator that this host runs in, if it does: times are then no
    /// machine's.
    pub emulator: Option<&'static str>,
    /// Whether the host is a virtual machine.
    pub virtual_host: bool,
    /// The guest's kernel.
    pub kernel: String,
    /// How much was measured.
    pub effort: Effort,
}

/// One subject's figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mode {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Its row of the table, in words.
    pub row: String,
    /// The row of [`Report::table`] that it is, or is a variant of.
    pub table_row: String,
    /// Whether it is that row itself.
    pub is_row: bool,
    /// Why there is nothing, or not all.
    pub problem: Option<String>,
    /// From the first entry to init.
    pub boot: Option<Boot>,
    /// What operations cost.
    pub operations: Vec<Figure>,
    /// One disk read, step by step.
    pub read: Vec<Step>,
    /// One packet out and in again, step by step.
    pub packet: Vec<Step>,
    /// The kernel's messages.
    pub log: Vec<Log>,
}

/// From the first entry to init.
#[derive(Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Units of the clock.
    pub time: u64,
    /// Units of the clock of them in which the guest slept: what it waits for, but
    /// for what it waits for awake. Not where sleep is microvm's business, and not
    /// where KVM keeps no statistics.
    pub asleep: Option<u64>,
    /// Exits from the guest; not where KVM keeps no statistics.
    pub exits: Option<u64>,
    /// Exits to user space.
    pub user_exits: u64,
    /// Exits by reason; together they are `exits`.
    pub reasons: Vec<Reason>,
    /// Exits to user space by device; together they are `user_exits`.
    pub devices: BTreeMap<String, u64>,
    /// The registers that were touched most.
    pub registers: Vec<Register>,
    /// What happened when.
    pub milestones: Vec<Milestone>,
    /// The longest silences of the kernel's log.
    pub gaps: Vec<Gap>,
}

/// A reason for exits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reason {
    /// In words.
    pub name: String,
    /// How many.
    pub exits: u64,
    /// Whether they went to user space.
    pub user: bool,
}

/// A register and how often it was touched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Register {
    /// Port or address, in hexadecimal.
    pub address: String,
    /// Whose it is.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
}

/// A point on the way to init.
#[derive(Debug, Serialize, Deserialize)]
pub struct Milestone {
    /// Its name.
    pub name: String,
    /// When, in units of the clock since the first entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// What it was, or why it is not there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A silence of the kernel's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gap {
    /// Milliseconds of the guest's clock.
    pub ms: f64,
    /// What was said before it.
    pub before: String,
    /// And after it.
    pub after: String,
}

/// A message of the kernel's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log {
    /// Microseconds of the guest's clock.
    pub us: u64,
    /// Whether a driver speaks of a device.
    pub driver: bool,
    /// What it says.
    pub text: String,
}

/// The cost of an operation.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Which.
    pub operation: String,
    /// What it cost.
    #[serde(flatten)]
    pub value: Value,
}

/// What an operation cost, each time, or why that is not known.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// It was measured.
    Measured {
        /// Repetitions.
        count: u32,
        /// Units of the clock from begin to end; nothing where that is mostly
        /// waiting.
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<f64>,
        /// The same of the first vCPU's thread.
        #[serde(skip_serializing_if = "Option::is_none")]
        cpu_time: Option<f64>,
        /// Exits from the guest; not where KVM keeps no statistics.
        exits: Option<f64>,
        /// Exits to user space.
        user_exits: f64,
        /// Exits for registers of the processor: CPUID, MSRs, its APIC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        processor_exits: Option<f64>,
        /// Interrupts that KVM has given to the guest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interrupts: Option<f64>,
        /// Bytes moved.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// Registers that were touched.
        registers: Vec<Register>,
        /// What to know about it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
    /// It was not.
    Missing {
        /// Why.
        why: String,
    },
}

/// One exit to user space.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// When, in units of the clock since the begin.
    pub at: u64,
    /// Whose register.
    pub device: String,
    /// What was done.
    pub what: String,
}

impl Mode {
    /// A mode of which nothing is known but why.
    pub fn failed(subject: &Subject, problem: String) -> Self {
        Self {
            name: subject.name.to_owned(),
            about: subject.about.to_owned(),
            row: String::new(),
            table_row: subject.mode().to_string(),
            is_row: subject.is_row(),
            problem: Some(problem),
            boot: None,
            operations: Vec::new(),
            read: Vec::new(),
            packet: Vec::new(),
            log: Vec::new(),
        }
    }

    /// The cost of an operation, if it was measured.
    pub fn value(&self, operation: &str) -> Option<&Value> {
        self.operations.iter().find(|figure| figure.operation == operation).map(|f| &f.value)
    }
}

impl Report {
    /// Puts the figures beside what the host is.
    pub fn new(options: &Options, mut modes: Vec<Mode>) -> Self {
        let host = spectrum::examine();
        let because = [host.privileged_instructions.because, host.page_tables.because].concat();
        let place = Place {
            clock: options.clock,
            backend: host.facts.backend,
            processor: processor(),
            emulator: emulator(),
            virtual_host: host.facts.host_is_virtual,
            kernel: options.kernel.display().to_string(),
            effort: options.effort,
        };
        for mode in modes.iter_mut().filter(|mode| !mode.operations.is_empty()) {
            let subject = options.subjects.iter().find(|subject| subject.name == mode.name);
            if let Some(subject) = subject {
                let value = eoi::cost(subject, mode, &host.costs);
                mode.operations.push(Figure { operation: "eoi".to_owned(), value });
            }
        }
        Self { version: VERSION, place, table: host.rows, because, modes }
    }
}

impl Place {
    /// Where it was measured, in a sentence.
    pub fn sentence(&self) -> String {
        let unit = match self.clock {
            Clock::Nanoseconds => "",
            Clock::Instructions => ", whose clock counts instructions",
        };
        match self.emulator {
            Some(emulator) => format!(
                "Measured in an emulated host ({emulator}{unit}): exits are a real machine's, times are not."
            ),
            None if self.virtual_host => {
                format!(
                    "Measured on {}, a host that is a virtual machine itself{unit}.",
                    self.processor
                )
            }
            None => format!("Measured on {}{unit}.", self.processor),
        }
    }
}

fn processor() -> String {
    processor::model().unwrap_or_else(|| "an unknown processor".to_owned())
}

/// The emulator that interprets this host's instructions, if it says so.
fn emulator() -> Option<&'static str> {
    match processor::hypervisor() {
        // Bochs has no such leaf, but its processors have its name.
        None => processor().contains("Bochs").then_some("Bochs"),
        Some(name) => (name == processor::TCG).then_some("QEMU's TCG"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn figure(operation: &'static str, exits: f64) -> Figure {
        let value = Value::Measured {
            count: 8,
            time: Some(exits * 1000.0),
            cpu_time: Some(exits * 900.0),
            exits: Some(exits),
            user_exits: exits / 2.0,
            processor_exits: Some(exits / 4.0),
            interrupts: Some(1.0),
            bytes: operation.ends_with("stream").then_some(8 << 16),
            registers: Vec::new(),
            note: String::new(),
        };
        Figure { operation: operation.to_owned(), value }
    }

    fn mode(name: &str, exits: u64) -> Mode {
        let mut mode = Mode::failed(&name.parse().unwrap(), String::new());
        mode.problem = None;
        mode.row = "disk and network VS".to_owned();
        let reason = |name: &str, exits, user| Reason { name: name.to_owned(), exits, user };
        let milestone = |name: &str, at, note: &str| Milestone {
            name: name.to_owned(),
            at: Some(at),
            note: note.to_owned(),
        };
        mode.boot = Some(Boot {
            time: exits * 10_000,
            asleep: Some(exits * 1000),
            exits: Some(exits),
            user_exits: exits / 2,
            reasons: vec![reason("port", exits / 2, true), reason("HLT", exits / 2, false)],
            devices: [("IDE".to_owned(), exits / 2)].into(),
            registers: vec![Register {
                address: "0x1f7".to_owned(),
                device: "IDE".to_owned(),
                name: "status or command".to_owned(),
                reads: 10.0,
                writes: 2.0,
            }],
            milestones: vec![milestone("entry", 0, ""), milestone("init", exits * 10_000, "<b>&")],
            gaps: Vec::new(),
        });
        mode.operations = ["read", "write", "read-stream", "write-stream", "send-stream", "tick"]
            .map(|operation| figure(operation, exits as f64 / 100.0))
            .into();
        let why = "no card </script><script>alert(1)</script>".to_owned();
        let value = Value::Missing { why };
        mode.operations.push(Figure { operation: "packet".to_owned(), value });
        mode.read = vec![Step { at: 10, device: "IDE".to_owned(), what: "OUT 0x1f7".to_owned() }];
        mode
    }

    /// A report that nobody measured.
    pub fn sample() -> Report {
        Report {
            version: VERSION,
            place: Place {
                clock: Clock::Nanoseconds,
                backend: "kvm_amd",
                processor: "a processor".to_owned(),
                emulator: Some("QEMU's TCG"),
                virtual_host: true,
                kernel: "/boot/vmlinux".to_owned(),
                effort: Effort::Quick,
            },
            table: Vec::new(),
            because: Vec::new(),
            modes: vec![mode("hvm", 4000), mode("pv", 1000)],
        }
    }
    /// What one process writes another reads.
    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in sample().modes {
            let text = serde_json::to_string(&mode).unwrap();
            let read: Mode = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
