//! `microvm doctor`: what this host offers, what it lacks, and how to mend it.
//!
//! Each check looks and does not touch; rendering is the caller's.

use super::{Backend, HostError, KVM_DEVICE, backend, open_kvm, probe};
use crate::config::Size;
use kvm_ioctls::{Cap, Kvm};
use probe::Verdict;
use serde::Serialize;
use std::fs;
use std::path::Path;

mod limits;
mod system;

/// How a check turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// Does not work.
    Fail,
    /// This host doesn't tell.
    Unknown,
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The part of the host that it belongs to.
    pub group: &'static str,
    /// What was looked at.
    pub name: &'static str,
    /// How it turned out.
    pub state: State,
    /// What was found.
    pub value: String,
    /// What would make it better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, value: impl Into<String>) -> Self {
        Self { group: "", name, state, value: value.into(), remedy: None }
    }

    fn ok(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(name, State::Ok, value)
    }

    fn unknown(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(name, State::Unknown, value)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }
}

/// What this host offers.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether Linux guests can run here: the probe guest has said so.
    pub linux_guests: bool,
    /// All checks, grouped.
    pub checks: Vec<Check>,
}

/// Looks at the host.
pub fn examine() -> Report {
    let opened = open_kvm(Path::new(KVM_DEVICE));
    let mut checks = Vec::new();
    let kvm = match opened {
        Ok(kvm) => {
            checks.push(Check::ok("device", format!("{KVM_DEVICE}, API 12")));
            Some(kvm)
        }
        Err(error) => {
            checks.push(device_failure(&error));
            None
        }
    };
    let backend = Backend::detect(kvm.as_ref());
    checks.push(backend_check(backend));
    let mut linux_guests = false;
    if let Some(kvm) = &kvm {
        let linux = linux_check(kvm, backend);
        linux_guests = linux.state == State::Ok;
        checks.push(linux);
        checks.extend(kvm_checks(kvm, backend));
    }
    let grouped = |group, checks: Vec<Check>| checks.into_iter().map(move |c| c.group(group));
    let checks = grouped("KVM", checks)
        .chain(grouped("Processor and time", system::processor()))
        .chain(grouped("Memory", limits::memory()))
        .chain(grouped("Network", system::network()))
        .chain(grouped("Limits and sandbox", limits::process()))
        .collect();
    Report { linux_guests, checks }
}

/// The error's last part is its remedy.
fn device_failure(error: &HostError) -> Check {
    let text = error.to_string();
    let (value, remedy) = text.rsplit_once(": ").unwrap_or((&text, ""));
    Check::new("device", State::Fail, value).remedy(remedy)
}

fn backend_check(backend: Backend) -> Check {
    match backend {
        Backend::Vmx | Backend::Svm => Check::ok("backend", backend.to_string()),
        Backend::Pagetable => Check::new("backend", State::Warn, backend.to_string())
            .remedy("ring 0 of guests is emulated, slowly and in part; use VT-x or SVM"),
        Backend::Unknown => {
            let value = if backend::cpu_flag().is_some() {
                "none; the processor has the extension, but no module uses it"
            } else {
                "none; this processor shows neither VT-x nor SVM"
            };
            Check::unknown("backend", value)
        }
    }
}

fn linux_check(kvm: &Kvm, backend: Backend) -> Check {
    let name = "Linux guests";
    match probe::run(kvm) {
        Ok(Verdict::CanRun) => Check::ok(name, "run: the probe guest came to its end"),
        Ok(Verdict::CannotRun(step)) => {
            Check::new(name, State::Fail, format!("can't run: {step} fails in ring 0"))
                .remedy(backend.remedy())
        }
        Err(error) => Check::new(name, State::Fail, error.to_string())
            .remedy("see the kernel's messages (dmesg) about kvm"),
    }
}

fn kvm_checks(kvm: &Kvm, backend: Backend) -> Vec<Check> {
    let nested_paging = match backend.nested_paging(kvm) {
        Some(true) => Check::ok("nested paging", "yes"),
        Some(false) => {
            let check = Check::new("nested paging", State::Warn, "no: shadow page tables, slow");
            match backend {
                Backend::Vmx => check.remedy("load kvm_intel with ept=1"),
                Backend::Svm => check.remedy("load kvm_amd with npt=1"),
                _ => check,
            }
        }
        None => Check::unknown("nested paging", "this kernel does not tell"),
    };
    let interrupts = match backend.interrupt_virtualization() {
        Some(true) => Check::ok("APICv or AVIC", "yes"),
        // Not worth a warning: everything works, and many processors lack it.
        Some(false) => Check::ok("APICv or AVIC", "no: interrupts cost exits"),
        None => Check::unknown("APICv or AVIC", "this kernel does not tell"),
    };
    let limit = kvm.get_max_vcpus();
    let vcpus = if limit >= crate::config::MAX_CPUS as usize {
        Check::ok("vCPUs", format!("up to {limit} a machine"))
    } else {
        Check::new("vCPUs", State::Warn, format!("at most {limit} a machine"))
    };
    vec![nested_paging, interrupts, vcpus, features_check(kvm)]
}

/// Capabilities that the fast path uses beside the required ones.
fn features_check(kvm: &Kvm) -> Check {
    let wanted = [
        (Cap::Irqchip, "irqchip"),
        (Cap::SplitIrqchip, "split irqchip"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
        (Cap::TscDeadlineTimer, "TSC deadline"),
        (Cap::X2ApicApi, "x2APIC"),
    ];
    let (have, lack): (Vec<_>, Vec<_>) =
        wanted.iter().partition(|(cap, _)| kvm.check_extension(*cap));
    let names = |list: Vec<&(Cap, &'static str)>| {
        list.into_iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    };
    if lack.is_empty() {
        Check::ok("features", names(have))
    } else {
        Check::new("features", State::Warn, format!("lacks {}", names(lack)))
            .remedy("use a newer kernel")
    }
}

/// A file of /proc or /sys, trimmed.
fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A size for people, rounded down to at most four digits.
fn human(bytes: u64) -> String {
    let unit = [40, 30, 20, 10].into_iter().find(|shift| bytes >> shift >= 10).unwrap_or(0);
    Size(bytes >> unit << unit).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_whole() {
        let report = examine();
        for check in &report.checks {
            assert!(!check.group.is_empty() && !check.value.is_empty(), "{check:?}");
            assert!(!check.value.contains('\n'), "{check:?}");
        }
        let linux = report.checks.iter().find(|c| c.name == "Linux guests");
        assert_eq!(report.linux_guests, linux.is_some_and(|c| c.state == State::Ok));
        assert!(report.checks.iter().filter(|c| c.name == "device").count() == 1);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(human(24_000 << 20), "23G");
        assert_eq!(human(8192 << 10), "8M");
        assert_eq!(human((9 << 20) + 5), "9M");
        assert_eq!(human(5), "5");
        assert_eq!(human(0), "0");
    }
}
