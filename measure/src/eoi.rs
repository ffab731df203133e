//! The cost of saying that an interrupt is done.
//!
//! A guest has no way to do that without an interrupt, so it is the probe guest of
//! `microvm spectrum` that does, in the way of each mode.

use crate::Subject;
use crate::report::Value;
use vmm::config::{Config, Intr};
use vmm::host::spectrum::measure::{Cost, Operation};

/// What an EOI costs in a mode.
pub fn cost(subject: &Subject, costs: &[Cost]) -> Value {
    let mut config = Config::new("");
    subject.configure(&mut config);
    let (operation, note) = match config.choices().intr {
        Intr::User => (Operation::MmioWrite, "a store to a register of microvm's"),
        Intr::Kernel | Intr::Split => (Operation::EoiStore, "a store to KVM's local APIC"),
        Intr::Pv => {
            let why = "KVM's PV EOI clears a bit in the guest's memory: nothing to measure";
            return Value::Missing { why: why.to_owned() };
        }
    };
    match costs.iter().find(|cost| cost.operation == operation) {
        Some(cost) => Value::Measured {
            count: 1,
            // Less than the loop around it varies by is no figure.
            time: Some(cost.nanoseconds).filter(|time| *time > 0.0),
            cpu_time: Some(cost.nanoseconds).filter(|time| *time > 0.0),
            exits: cost.exits,
            user_exits: cost.user_exits,
            bytes: None,
            registers: Vec::new(),
            note: note.to_owned(),
        },
        None => Value::Missing { why: "the probe guest could not do it".to_owned() },
    }
}
