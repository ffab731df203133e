//! Every device model and the buses they sit on.
//!
//! A device is plain state plus behaviour. It never learns which hypervisor,
//! which transport or which event loop carries it: accesses reach it through
//! [`bus::BusDevice`], it raises [`irq::IrqLine`]s, and virtio devices see
//! queues ([`virtio::VirtioDevice`]). Everything that arrives here was written
//! by a guest and is hostile input.

pub mod backend;
pub mod bus;
pub mod irq;
pub mod legacy;
pub mod pci;
pub mod rate;
pub mod state;
pub mod virtio;
