//! The machine: a configuration goes in, an [`exit::Exit`] comes out.
//!
//! ```text
//!  Config ──validate──► Machine (KVM, memory, vCPUs, devices) ──run──► Exit
//! ```

pub mod config;
pub mod exit;
