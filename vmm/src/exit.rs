//! How a machine ends, and the exit status that says so.

use std::fmt;

/// Exit statuses of the monitor, a contract with scripts and batch systems.
pub mod status {
    /// The guest powered off or rebooted, or the user left with `Ctrl-a x` or over
    /// the control socket.
    pub const OK: u8 = 0;
    /// The command line can't be read.
    pub const USAGE: u8 = 2;
    /// A file or value that the user gave can't be used.
    pub const INPUT: u8 = 3;
    /// This host can't run the machine.
    pub const HOST: u8 = 4;
    /// The guest's kernel panicked.
    pub const GUEST_PANIC: u8 = 5;
    /// The guest crashed: a triple fault, or KVM gave up on it.
    pub const GUEST_CRASH: u8 = 6;
    /// The monitor itself failed.
    pub const INTERNAL: u8 = 7;
    /// The guest ended as it should, but console output could not be written.
    pub const OUTPUT_LOST: u8 = 8;
    /// Ended by signal `n`: 128 + n.
    pub const SIGNAL_BASE: u8 = 128;
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reboot,
    /// The guest reported a kernel panic (pvpanic).
    Panic,
    /// A vCPU can't go on.
    Crash {
        /// Which vCPU.
        vcpu: u32,
        /// Where its instruction pointer was, when it could still be read.
        rip: Option<u64>,
        /// What happened.
        reason: String,
    },
    /// The user left the console.
    Quit,
    /// The monitor was told to stop over its control socket.
    Told,
    /// The monitor was told to stop by a signal.
    Signal(i32),
    /// The console's output could not be written.
    OutputLost {
        /// Bytes that were dropped.
        bytes: u64,
        /// What the host said.
        error: String,
    },
}

impl Exit {
    /// The exit status for this end.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Reboot | Self::Quit | Self::Told => status::OK,
            Self::Panic => status::GUEST_PANIC,
            Self::Crash { .. } => status::GUEST_CRASH,
            Self::Signal(n) => status::SIGNAL_BASE.wrapping_add((*n & 0x7f) as u8),
            Self::OutputLost { .. } => status::OUTPUT_LOST,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "guest powered off"),
            Self::Reboot => write!(f, "guest rebooted"),
            Self::Panic => write!(f, "guest kernel panicked"),
            Self::Crash { vcpu, rip: Some(rip), reason } => {
                write!(f, "guest crashed: vCPU {vcpu} at rip {rip:#x}: {reason}")
            }
            Self::Crash { vcpu, rip: None, reason } => {
                write!(f, "guest crashed: vCPU {vcpu}: {reason}")
            }
            Self::Quit => write!(f, "left by Ctrl-a x"),
            Self::Told => write!(f, "stopped over the control socket"),
            Self::Signal(n) => write!(f, "stopped by signal {n}"),
            Self::OutputLost { bytes, error } => {
                write!(f, "console output lost: {bytes} bytes: {error}")
            }
        }
    }
}
