//! `microvm compare`: what isolates how much, and what it costs, on this host.
//!
//! ```text
//!  subjects ─► commands ─► processes ─► samples, outcomes ─► report ─► text, HTML, JSON
//!     one program of ours (the agent) runs in all of them ┘       └─► difference of two
//! ```

mod catalog;
mod cgroup;
mod command;
pub mod diff;
mod exits;
mod host;
pub mod html;
mod isolate;
mod measure;
mod memory;
mod mpi;
mod namespaces;
mod place;
mod processes;
pub mod report;
mod spawn;
mod stats;
mod subject;
mod surface;
pub mod text;
mod verdict;

pub use measure::{Effort, Options, Progress, run};
pub use report::Report;
pub use subject::{Subject, Subjects};

/// Why there is no comparison, or none of one subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signal came.
    #[error("ended by signal {0}: nothing is left behind")]
    Interrupted(i32),
    /// The host refuses something that all need.
    #[error("{what}: {}", vmm::plain(.source))]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// One subject can't be measured.
    #[error("{0}")]
    Subject(String),
}

impl Error {
    fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}
