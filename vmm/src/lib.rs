//! The machine: a configuration goes in, an [`exit::Exit`] comes out.
//!
//! ```text
//!  Config ──validate──► Machine (KVM, memory, vCPUs, devices) ──run──► Exit
//! ```

pub mod config;
pub mod console;
pub mod control;
pub mod ending;
pub mod events;
pub mod exit;
pub mod host;
pub mod intr;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod msi;
pub mod record;
pub mod sandbox;
pub mod text;
pub mod vcpu;
pub mod vm;

pub use text::{plain, visible};
