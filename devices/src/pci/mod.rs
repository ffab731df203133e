//! PCI (PCI Local Bus 3.0): one bus, reached through configuration mechanism #1
//! and a window of memory.
//!
//! ```text
//!  ports 0xcf8..0xd00 ─► ConfigPorts ─┐
//!                                     ├─► Root ─► function 00:NN.0
//!  memory window ──────► Window ──────┘   (whoever decodes the address now)
//! ```
//!
//! Functions come and go by ACPI ([`hotplug`]).
//! virtio's functions interrupt by messages only ([`msix`]); cards of real machines
//! have interrupt pins ([`intx`]).

pub mod config;
pub mod hotplug;
pub mod intx;
pub mod msix;
pub mod root;

#[cfg(test)]
mod tests;
