//! What each step of the spectrum buys: the same guest booted in every mode, and
//! what that took.
//!
//! ```text
//!  subject ─► configuration ─► vmm::machine with a recorder, init measures ─► Record
//!  Record ─► figures: boot, operations, anatomy ─┐
//!  names of registers ───────────────────────────┴─► Report ─► text, JSON, page
//! ```
//!
//! Nothing of the user's is written to: the root file system is mounted read-only,
//! what is overwritten is a file without a name, and packets go to this process.

mod eoi;
mod figures;
mod names;
mod page;
mod peer;
mod report;
mod run;
mod subject;
mod text;

pub use page::page;
pub use report::{
    Boot, Clock, Figure, Gap, Log, Milestone, Mode, Place, Reason, Register, Report, Step, Value,
};
pub use subject::Subject;
pub use text::table;

use serde::Serialize;
use std::path::PathBuf;
use vmm::config::Disk;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// A root file system to mount.
    pub rootfs: Option<Disk>,
    /// Words for the kernel.
    pub cmdline: String,
    /// The modes and variants of them, in the order of the report.
    pub subjects: Vec<Subject>,
    /// How much is measured.
    pub effort: Effort,
    /// What a unit of this host's clock is.
    pub clock: Clock,
}

/// How much is measured of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// The way to init alone.
    Boot,
    /// All, with few repetitions.
    Quick,
    /// All, with many.
    Full,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// The step.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// No machine can be made at all.
    #[error(transparent)]
    Machine(#[from] vmm::machine::Error),
    /// A process that measured a mode said so and ended.
    #[error("{text}")]
    Ended {
        /// Its exit status.
        status: u8,
        /// What it said.
        text: String,
    },
}

impl Error {
    /// The program's exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Host { .. } => vmm::exit::status::HOST,
            Self::Machine(error) => error.status(),
            Self::Ended { status, .. } => *status,
        }
    }
}

/// Measures every mode by `one`, which has another process do it
/// ([`measure_one`]), and puts them together: what a machine leaves behind in its
/// process is no other's. A mode that can't be measured is in the report with the
/// reason, unless none could be.
pub fn measure(
    options: &Options,
    one: impl FnMut(&Subject) -> Result<Mode, Error>,
) -> Result<Report, Error> {
    let modes = options.subjects.iter().map(one).collect::<Result<Vec<Mode>, Error>>()?;
    match modes.first() {
        Some(first) if modes.iter().all(|mode| mode.boot.is_none()) => {
            let text = first.problem.clone().unwrap_or_default();
            Err(Error::Ended { status: vmm::exit::status::HOST, text })
        }
        _ => Ok(Report::new(options, modes)),
    }
}

/// Boots the guest as `subject`, in this process.
pub fn measure_one(options: &Options, subject: &Subject) -> Result<Mode, Error> {
    let peer = peer::Peer::start().map_err(|source| Error::Host { what: "peer", source })?;
    let (_initramfs, initramfs) =
        job::init::initramfs(&[]).map_err(|source| Error::Host { what: "initramfs", source })?;
    run::Bench { options, initramfs: &initramfs, peer: peer.port }.run(subject)
}

// The recorder listens where the measuring guest speaks.
const _: () = {
    assert!(vmm::record::MARK_PORT == guest::measure::MARK_PORT);
    assert!(vmm::record::DATA_PORT == guest::measure::DATA_PORT);
};
