//! `microvm spectrum`: Xen's table of what is virtualized how, as it is on this
//! host.
//!
//! ```text
//!  what is told: modules, parameters, capabilities, MSRs ──┐
//!                                                          ├─► verdict ─► the fourth column
//!  what is seen: a guest measures its own instructions ────┘
//! ```
//!
//! The first three columns are the monitor's choice, one row a mode. The fourth,
//! privileged instructions and page tables, is the host's, and it is never
//! guessed: where nothing tells, it is unknown. After G. Dunlap, "The
//! Paravirtualization Spectrum", 2012; the cell is split because hosts split it.

pub mod measure;
pub mod verdict;

use super::{Backend, HostError, KVM_DEVICE, backend, open_kvm, probe};
use kvm_ioctls::{Cap, Kvm};
use measure::Cost;
use probe::Verdict;
use serde::Serialize;
use std::path::Path;
use verdict::Column;

/// How a part of the machine is virtualized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum How {
    /// In software: the guest is led to believe that it is real.
    #[serde(rename = "VS")]
    Software,
    /// By the processor.
    #[serde(rename = "VH")]
    Hardware,
    /// The guest knows, and asks the hypervisor.
    #[serde(rename = "P")]
    Paravirtual,
    /// This host doesn't tell.
    #[serde(rename = "?")]
    Unknown,
}

impl How {
    /// The table's letters.
    pub fn letters(self) -> &'static str {
        match self {
            Self::Software => "VS",
            Self::Hardware => "VH",
            Self::Paravirtual => "P",
            Self::Unknown => "?",
        }
    }
}

/// A mode of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub mode: &'static str,
    /// Disk and network.
    pub disk_and_network: How,
    /// Interrupts and timers.
    pub interrupts_and_timers: How,
    /// The emulated motherboard and legacy boot.
    pub motherboard_and_boot: How,
    /// Privileged instructions.
    pub privileged_instructions: How,
    /// Page tables.
    pub page_tables: How,
}

/// What the host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// What stands behind KVM.
    pub backend: &'static str,
    /// Whether this host is a virtual machine itself.
    pub host_is_virtual: bool,
    /// The module's parameter `ept` or `npt`.
    pub nested_paging_parameter: Option<bool>,
    /// `KVM_CAP_PRE_FAULT_MEMORY`: true only with nested paging, from Linux
    /// 6.11 on; false says nothing.
    pub pre_fault_memory: bool,
    /// `KVM_CAP_NESTED_STATE`: guests may be given VT-x or SVM.
    pub nested_state: bool,
    /// VT-x alone: whether it runs real mode by itself.
    pub unrestricted_guest: Option<bool>,
    /// APICv or AVIC: the processor delivers interrupts by itself.
    pub interrupt_virtualization: Option<bool>,
    /// Guest kernels can be run by the published interface of `kvm_pvm`.
    pub pvm_guests: bool,
    #[serde(skip)]
    kind: Option<Backend>,
}

/// Why a guest of Linux does or does not run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinuxGuests {
    /// Whether they run.
    pub run: bool,
    /// The instruction that fails in ring 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fails: Option<&'static str>,
}

/// The table and what it rests on.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The modes.
    pub rows: Vec<Row>,
    /// Privileged instructions, for kernels that don't know of `kvm_pvm`.
    pub privileged_instructions: Column,
    /// Page tables, for the same.
    pub page_tables: Column,
    /// What the host says.
    pub facts: Facts,
    /// What the probe guest measured.
    pub costs: Vec<Cost>,
    /// Whether Linux runs at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux_guests: Option<LinuxGuests>,
    /// Why there is nothing measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Report {
    /// Whether every cell is known.
    pub fn is_known(&self) -> bool {
        ![self.privileged_instructions.how, self.page_tables.how].contains(&How::Unknown)
    }
}

/// Looks, and measures.
pub fn examine() -> Report {
    let (kvm, mut problem) = match open_kvm(Path::new(KVM_DEVICE)) {
        Ok(kvm) => (Some(kvm), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let facts = facts(kvm.as_ref());
    let mut told = |result: Result<_, HostError>| result.map_err(|e| problem = Some(e.to_string()));
    let costs = kvm.as_ref().and_then(|kvm| told(measure::measure(kvm)).ok()).unwrap_or_default();
    let linux_guests = kvm.as_ref().and_then(|kvm| probe::run(kvm).ok()).map(|ran| match ran {
        Verdict::CanRun => LinuxGuests { run: true, fails: None },
        Verdict::CannotRun(step) => LinuxGuests { run: false, fails: Some(step) },
    });
    let privileged_instructions = verdict::privileged_instructions(facts.kind, &costs);
    let page_tables = verdict::page_tables(&facts, &costs);
    let rows = rows(privileged_instructions.how, page_tables.how, facts.pvm_guests);
    Report { rows, privileged_instructions, page_tables, facts, costs, linux_guests, problem }
}

/// The modes, on a host that virtualizes the fourth column so.
fn rows(instructions: How, tables: How, pvm_guests: bool) -> Vec<Row> {
    use How::{Paravirtual as P, Software as VS};
    // The last mode may be more than the others: a kernel made for the host.
    let (pv_instructions, pv_tables) = if pvm_guests { (P, P) } else { (instructions, tables) };
    [
        ("hvm", VS, VS, VS, instructions, tables),
        ("hvm-pv", P, VS, VS, instructions, tables),
        ("pvhvm", P, P, VS, instructions, tables),
        ("pv", P, P, P, pv_instructions, pv_tables),
    ]
    .map(|(mode, devices, interrupts, board, instructions, tables)| Row {
        mode,
        disk_and_network: devices,
        interrupts_and_timers: interrupts,
        motherboard_and_boot: board,
        privileged_instructions: instructions,
        page_tables: tables,
    })
    .into()
}

/// MSRs of the published pagetable-based KVM, `MSR_PVM_LINEAR_ADDRESS_RANGE` to
/// `MSR_PVM_RETU_RIP`.
const PVM_MSRS: std::ops::RangeInclusive<u32> = 0x4b56_4df0..=0x4b56_4df5;
/// `KVM_CAP_NESTED_STATE`.
const KVM_CAP_NESTED_STATE: libc::c_ulong = 157;

fn facts(kvm: Option<&Kvm>) -> Facts {
    let kind = Backend::detect(kvm);
    let has = |cap| kvm.is_some_and(|kvm| kvm.check_extension_raw(cap) > 0);
    let lists_pvm = |kvm: &Kvm| {
        let msrs = kvm.get_msr_index_list();
        msrs.is_ok_and(|list| list.as_slice().iter().any(|msr| PVM_MSRS.contains(msr)))
    };
    Facts {
        backend: kind.name(),
        host_is_virtual: backend::cpu_is_virtual(),
        nested_paging_parameter: kind.nested_paging_parameter(),
        pre_fault_memory: has(backend::KVM_CAP_PRE_FAULT_MEMORY),
        nested_state: has(KVM_CAP_NESTED_STATE),
        unrestricted_guest: kind.unrestricted_guest(),
        interrupt_virtualization: kvm
            .filter(|kvm| kvm.check_extension(Cap::Irqchip))
            .and_then(|_| kind.interrupt_virtualization()),
        pvm_guests: kvm.is_some_and(lists_pvm),
        kind: Some(kind).filter(|_| kvm.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_made_for_it_is_paravirtual_in_the_fourth_column() {
        for pvm_guests in [false, true] {
            let rows = rows(How::Software, How::Unknown, pvm_guests);
            let fourth = |row: &Row| (row.privileged_instructions, row.page_tables);
            for row in &rows[..3] {
                assert_eq!(fourth(row), (How::Software, How::Unknown));
            }
            let paravirtual = fourth(&rows[3]) == (How::Paravirtual, How::Paravirtual);
            assert_eq!(paravirtual, pvm_guests);
        }
    }

    /// Each mode has one more P than the one above it.
    #[test]
    fn the_rows_are_a_spectrum() {
        let rows = rows(How::Hardware, How::Hardware, false);
        let count = |row: &Row| {
            let cells = [row.disk_and_network, row.interrupts_and_timers, row.motherboard_and_boot];
            cells.iter().filter(|cell| **cell == How::Paravirtual).count()
        };
        assert_eq!(rows.iter().map(count).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn this_host_is_told_without_contradiction() {
        let report = examine();
        if report.problem.is_some() {
            assert_eq!(report.privileged_instructions.how, How::Unknown);
            return;
        }
        assert!(report.costs.len() >= 3, "{:?}", report.costs);
        let linux = report.linux_guests.expect("the probe ran");
        if report.privileged_instructions.how == How::Hardware {
            assert!(linux.run, "{linux:?}");
        }
        if report.facts.pre_fault_memory {
            assert_eq!(report.page_tables.how, How::Hardware);
        }
    }
}
