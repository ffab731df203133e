//! The cost of saying that an interrupt is done.
//!
//! A guest has no way to do that without an interrupt, so it is the probe guest of
//! `microvm spectrum` that does, in the way of each mode. With KVM's own way, a bit
//! in the guest's memory, there is nothing that could be done alone: there the ticks
//! of a guest with and without it tell what it saves.

use crate::Subject;
use crate::report::{Mode, Value};
use vmm::config::{Config, Intr};
use vmm::host::spectrum::measure::{Cost, Operation};

/// The figure of ticks in a machine whose interrupts end as on a real one.
pub const PLAIN_TICK: &str = "tick-eoi-off";
const TICK: &str = "tick";

/// What an EOI costs in a mode, of which all else is known.
pub fn cost(subject: &Subject, mode: &Mode, costs: &[Cost]) -> Value {
    let mut config = Config::new("");
    subject.configure(&mut config);
    let choices = config.choices();
    let (operation, note) = match choices.intr {
        _ if choices.paravirtual => return paravirtual(mode, costs),
        Intr::User => (Operation::MmioWrite, "a store to a register of microvm's"),
        Intr::Kernel | Intr::Split | Intr::Pv => {
            (Operation::EoiStore, "a store to KVM's local APIC")
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
            processor_exits: None,
            interrupts: None,
            bytes: None,
            registers: Vec::new(),
            note: note.to_owned(),
        },
        None => missing("the probe guest could not do it"),
    }
}

fn missing(why: &str) -> Value {
    Value::Missing { why: why.to_owned() }
}

/// Exits for registers of the processor in a tick, and interrupts.
fn tick(mode: &Mode, name: &str) -> Result<(u32, f64, f64), String> {
    match mode.value(name) {
        Some(Value::Measured {
            count,
            processor_exits: Some(exits),
            interrupts: Some(interrupts),
            ..
        }) if *interrupts > 0.0 => Ok((*count, *exits, *interrupts)),
        Some(Value::Missing { why }) => Err(format!("of its ticks: {why}")),
        _ => Err("KVM has no statistics of ticks".to_owned()),
    }
}

/// The exits of the other way that ticks still take: those of a WRMSR to the EOI
/// register, less what is saved for each interrupt.
fn paravirtual(mode: &Mode, costs: &[Cost]) -> Value {
    let plain = costs.iter().find(|cost| cost.operation == Operation::EoiMsr);
    let Some(plain) = plain.and_then(|cost| cost.exits) else {
        return missing("the probe guest could not do it in the other way");
    };
    let ((count, with, _), (_, without, interrupts)) =
        match (tick(mode, TICK), tick(mode, PLAIN_TICK)) {
            (Ok(with), Ok(without)) => (with, without),
            (Err(why), _) | (_, Err(why)) => return missing(&why),
        };
    let saved = (without - with) / interrupts;
    Value::Measured {
        count,
        time: None,
        cpu_time: None,
        exits: Some((plain - saved).max(0.0)),
        user_exits: 0.0,
        processor_exits: None,
        interrupts: None,
        bytes: None,
        registers: Vec::new(),
        note: format!(
            "KVM's PV EOI, a bit in memory: a tick takes {with:.2} exits for CPUID, MSRs and \
             APIC, and {without:.2} with --pv-features eoi=off"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    fn ticks(name: &str, exits: f64) -> Figure {
        let value = Value::Measured {
            count: 10,
            time: None,
            cpu_time: None,
            exits: Some(exits + 3.0),
            user_exits: 0.0,
            processor_exits: Some(exits),
            interrupts: Some(1.0),
            bytes: None,
            registers: Vec::new(),
            note: String::new(),
        };
        Figure { operation: name.to_owned(), value }
    }

    fn probe(exits: f64) -> [Cost; 1] {
        let (emulated, shadow_invalidations) = (None, None);
        let operation = Operation::EoiMsr;
        let (nanoseconds, exits, user_exits) = (1000.0, Some(exits), 0.0);
        [Cost { operation, nanoseconds, exits, user_exits, emulated, shadow_invalidations }]
    }

    fn exits(value: &Value) -> Option<f64> {
        match value {
            Value::Measured { exits, .. } => *exits,
            Value::Missing { .. } => None,
        }
    }

    #[test]
    fn what_ticks_save_is_what_it_is_cheaper_by() {
        let subject: Subject = "pv".parse().unwrap();
        let mut mode = Mode::failed(&subject, String::new());
        mode.operations = vec![ticks(TICK, 1.25), ticks(PLAIN_TICK, 2.0)];
        assert_eq!(exits(&cost(&subject, &mode, &probe(1.0))), Some(0.25));
        // Where the processor does it, nothing is left to be saved.
        mode.operations = vec![ticks(TICK, 1.0), ticks(PLAIN_TICK, 1.0)];
        assert_eq!(exits(&cost(&subject, &mode, &probe(0.0))), Some(0.0));
        mode.operations.pop();
        assert_eq!(exits(&cost(&subject, &mode, &probe(1.0))), None);
        assert_eq!(exits(&cost(&subject, &mode, &[])), None);
    }
}
