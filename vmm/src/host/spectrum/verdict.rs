//! What facts and measurements say of the fourth column.
//!
//! | seen | means |
//! | --- | --- |
//! | ring 0 runs as fast as ring 3 | the processor runs ring 0: VH |
//! | ring 0 is many times slower | KVM interprets it: VS |
//! | INVLPG and CR3 loads cost no exit | the guest's page tables are the processor's business: VH |
//! | they cost exits, or KVM counts invalidations | KVM keeps shadow page tables: VS |
//!
//! What is seen counts for more than what is told, and both are shown.

use super::measure::{Cost, Operation};
use super::{Facts, How};
use crate::host::Backend;
use serde::Serialize;

/// One half of the fourth column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    /// The verdict.
    pub how: How,
    /// What it rests on, a sentence each.
    pub because: Vec<String>,
}

/// Ring 0 that is this many times slower than ring 3 does not run on the
/// processor: interpreters are thousands of times slower, and an emulated host
/// that translates code is a few times off either way.
const INTERPRETED: f64 = 50.0;
/// Exits or invalidations for each instruction: above one, below the other it
/// is clear whether the instruction causes them; chance exits lie below both.
const CAUSES: f64 = 0.5;
const CAUSES_NONE: f64 = 0.05;

fn find(costs: &[Cost], operation: Operation) -> Option<&Cost> {
    costs.iter().find(|cost| cost.operation == operation)
}

/// How many times slower ring 0 runs the same instructions.
fn slowdown(costs: &[Cost]) -> Option<f64> {
    let ring0 = find(costs, Operation::Ring0Loop)?.nanoseconds;
    let ring3 = find(costs, Operation::Ring3Loop)?.nanoseconds;
    (ring3 > 0.0).then(|| ring0 / ring3)
}

/// Who carries out privileged instructions.
pub(super) fn privileged_instructions(backend: Option<Backend>, costs: &[Cost]) -> Column {
    let mut because = Vec::new();
    let seen = slowdown(costs).map(|slowdown| {
        let interpreted = slowdown > INTERPRETED;
        because.push(match interpreted {
            true => format!("a loop in ring 0 takes {slowdown:.0} times as long as in ring 3"),
            false => format!("a loop in ring 0 takes {slowdown:.1} times as long as in ring 3"),
        });
        let emulated = find(costs, Operation::Ring0Loop).and_then(|cost| cost.emulated);
        if let Some(emulated) = emulated.filter(|emulated| *emulated > CAUSES) {
            because.push(format!(
                "KVM itself carried out {emulated:.1} instructions a round of it, which has two"
            ));
        }
        if interpreted { How::Software } else { How::Hardware }
    });
    let told = match backend {
        Some(Backend::Vmx | Backend::Svm) => Some(How::Hardware),
        Some(Backend::Pagetable) => Some(How::Software),
        Some(Backend::Unknown) | None => None,
    };
    if let (Some(backend), Some(_)) = (backend, told) {
        because.push(format!("the module that runs guests: {backend}"));
    }
    conclude(seen, told, because)
}

/// Who walks the guest's page tables.
pub(super) fn page_tables(facts: &Facts, costs: &[Cost]) -> Column {
    let mut because = Vec::new();
    let seen = shadow_tables(costs, &mut because);
    let told = told_page_tables(facts, &mut because);
    conclude(seen, told, because)
}

fn shadow_tables(costs: &[Cost], because: &mut Vec<String>) -> Option<How> {
    let invlpg = find(costs, Operation::Invlpg)?;
    if let Some(n) = invlpg.shadow_invalidations.filter(|n| *n > CAUSES) {
        because.push(format!("KVM's count of shadow invalidations rises by {n:.1} an INVLPG"));
        return Some(How::Software);
    }
    // An interpreter causes no exits: then none means nothing.
    if slowdown(costs).is_none_or(|slowdown| slowdown > INTERPRETED) {
        return None;
    }
    let exits = [invlpg.exits?, find(costs, Operation::LoadCr3)?.exits?];
    let [by_invlpg, by_cr3] = exits;
    because.push(format!("INVLPG costs {by_invlpg:.1} exits, and loading CR3 {by_cr3:.1}"));
    if exits.iter().all(|n| *n < CAUSES_NONE) {
        Some(How::Hardware)
    } else if exits.iter().any(|n| *n > CAUSES) {
        Some(How::Software)
    } else {
        None
    }
}

fn told_page_tables(facts: &Facts, because: &mut Vec<String>) -> Option<How> {
    let backend = facts.kind?;
    let parameter = facts.nested_paging_parameter.map(|on| {
        let name = if backend == Backend::Vmx { "kvm_intel ept" } else { "kvm_amd npt" };
        because.push(format!("{name}={}", if on { "Y" } else { "N" }));
        if on { How::Hardware } else { How::Software }
    });
    if facts.pre_fault_memory {
        because.push("KVM_CAP_PRE_FAULT_MEMORY is 1, as with nested paging alone".to_owned());
        return Some(How::Hardware);
    }
    if backend == Backend::Pagetable {
        because.push(format!("{backend}, keeps shadow page tables by its nature"));
        return Some(How::Software);
    }
    parameter
}

/// What is seen, else what is told; a contradiction is told as well.
fn conclude(seen: Option<How>, told: Option<How>, mut because: Vec<String>) -> Column {
    if let (Some(seen), Some(told)) = (seen, told)
        && seen != told
    {
        because.push(format!(
            "what was measured ({}) contradicts what the host tells ({})",
            seen.letters(),
            told.letters()
        ));
    }
    let how = seen.or(told).unwrap_or(How::Unknown);
    if how == How::Unknown {
        because.push("neither the host nor a measurement tells".to_owned());
    }
    Column { how, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cost as figures: nanoseconds, exits, invalidations.
    fn cost(operation: Operation, nanoseconds: f64, exits: f64, invalidations: f64) -> Cost {
        Cost {
            operation,
            nanoseconds,
            exits: Some(exits),
            user_exits: 0.0,
            emulated: Some(0.0),
            shadow_invalidations: Some(invalidations),
        }
    }

    fn costs(ring0: f64, exits: f64, invalidations: f64) -> Vec<Cost> {
        vec![
            cost(Operation::Ring3Loop, 0.3, 0.0, 0.0),
            cost(Operation::Ring0Loop, ring0, 0.0, 0.0),
            cost(Operation::LoadCr3, 10.0, exits, 0.0),
            cost(Operation::Invlpg, 10.0, exits, invalidations),
        ]
    }

    fn facts(kind: Backend, parameter: Option<bool>, pre_fault_memory: bool) -> Facts {
        Facts {
            backend: kind.name(),
            host_is_virtual: false,
            nested_paging_parameter: parameter,
            pre_fault_memory,
            nested_state: false,
            unrestricted_guest: None,
            interrupt_virtualization: None,
            pvm_guests: false,
            kind: Some(kind),
        }
    }

    fn both(facts: &Facts, costs: &[Cost]) -> (How, How) {
        let instructions = privileged_instructions(facts.kind, costs);
        let tables = page_tables(facts, costs);
        for column in [&instructions, &tables] {
            assert!(!column.because.is_empty(), "{column:?}");
        }
        (instructions.how, tables.how)
    }

    #[test]
    fn each_kind_of_host_is_told_from_the_others() {
        use How::{Hardware as VH, Software as VS};
        let nested = costs(0.3, 0.0, 0.0);
        // SVM without nested paging, as measured: INVLPG and CR3 exit.
        let shadow = costs(0.35, 1.0, 1.0);
        // A pagetable-based KVM, as measured: the interpreter causes no exits.
        let interpreted = costs(1060.0, 0.003, 1.0);
        for (kind, parameter, seen, wanted) in [
            (Backend::Vmx, Some(true), &nested, (VH, VH)),
            (Backend::Svm, Some(true), &nested, (VH, VH)),
            (Backend::Vmx, Some(false), &shadow, (VH, VS)),
            (Backend::Svm, Some(false), &shadow, (VH, VS)),
            (Backend::Pagetable, None, &interpreted, (VS, VS)),
            (Backend::Unknown, None, &nested, (VH, VH)),
            (Backend::Unknown, None, &shadow, (VH, VS)),
            (Backend::Unknown, None, &interpreted, (VS, VS)),
        ] {
            let facts = facts(kind, parameter, false);
            assert_eq!(both(&facts, seen), wanted, "{kind} {parameter:?}");
            // What the host tells is enough where nothing could be measured.
            if kind != Backend::Unknown {
                assert_eq!(both(&facts, &[]), wanted, "{kind} {parameter:?}");
            }
        }
    }

    #[test]
    fn what_nobody_tells_is_unknown() {
        let mut facts = facts(Backend::Unknown, None, false);
        assert_eq!(both(&facts, &[]), (How::Unknown, How::Unknown));
        facts.pre_fault_memory = true;
        assert_eq!(both(&facts, &[]).1, How::Hardware);
        // Without KVM nothing is told, whatever modules there are.
        facts.kind = None;
        assert_eq!(both(&facts, &[]), (How::Unknown, How::Unknown));
        // VT-x without its parameter and without statistics.
        facts.kind = Some(Backend::Vmx);
        facts.pre_fault_memory = false;
        let mut silent = costs(0.3, 0.0, 0.0);
        for cost in &mut silent {
            (cost.exits, cost.shadow_invalidations, cost.emulated) = (None, None, None);
        }
        assert_eq!(both(&facts, &silent), (How::Hardware, How::Unknown));
    }

    #[test]
    fn an_interpreter_without_exits_proves_no_nested_paging() {
        let facts = facts(Backend::Unknown, None, false);
        assert_eq!(both(&facts, &costs(1060.0, 0.003, 0.0)), (How::Software, How::Unknown));
    }

    #[test]
    fn a_contradiction_is_told_and_the_measurement_counts() {
        let facts = facts(Backend::Svm, Some(true), false);
        let column = page_tables(&facts, &costs(0.3, 1.0, 1.0));
        assert_eq!(column.how, How::Software);
        assert!(column.because.last().unwrap().contains("contradicts"), "{column:?}");
    }
}
