//! The report about this host: whatever it says, it must agree with itself.

use crate::{refused, run, stderr, stdout};
use serde_json::Value;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

fn report() -> (Value, i32) {
    let output = run(&["doctor", "--json"]);
    let report = serde_json::from_str(&stdout(&output)).expect("JSON");
    (report, output.status.code().expect("it ends by itself"))
}

fn check<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name)
}

#[test]
fn the_exit_status_says_whether_linux_can_run() {
    let (report, status) = report();
    let runs = report["linux_guests"].as_bool().unwrap();
    assert_eq!(status, if runs { 0 } else { 4 });
    let probe = check(&report, "Linux guests").map(|check| check["state"] == "ok");
    assert_eq!(runs, probe.unwrap_or(false));
    for check in report["checks"].as_array().unwrap() {
        let bad = check["state"] == "fail";
        assert!(!bad || check["remedy"].is_string(), "no remedy: {check}");
    }
}

#[test]
fn the_backend_is_the_one_whose_module_is_there() {
    let (report, _) = report();
    let value = check(&report, "backend").unwrap()["value"].as_str().unwrap();
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    for module in ["kvm_intel", "kvm_amd", "kvm_pvm"] {
        if value.contains(module) {
            assert!(loaded(module), "{value}");
        }
    }
    if loaded("kvm_pvm") && !loaded("kvm_intel") && !loaded("kvm_amd") {
        assert!(value.contains("pagetable-based"), "{value}");
        assert_eq!(report["linux_guests"], false, "it emulates ring 0");
    }
    let device = std::fs::metadata("/dev/kvm").is_ok_and(|m| m.file_type().is_char_device());
    let state = &check(&report, "device").unwrap()["state"];
    assert!(device || state == "fail", "{state}");
}

#[test]
fn a_pipe_gets_the_same_in_plain_text() {
    let output = run(&["doctor"]);
    let text = stdout(&output);
    assert_eq!(stderr(&output), "");
    assert!(!text.contains('\x1b'));
    for group in ["KVM", "Processor and time", "Memory", "Network", "Limits and sandbox"] {
        assert!(text.lines().any(|line| line == group), "{text}");
    }
}

/// Before anything is touched: the machine's own refusal is the doctor's.
#[test]
fn a_host_that_cannot_run_linux_refuses_at_once() {
    let (report, _) = report();
    if report["linux_guests"] == true {
        return;
    }
    // What the user gave is looked at first, so the kernel has to be one.
    let kernel = crate::guest::kernel(&[0xf4]);
    let start = std::time::Instant::now();
    let output = run(&["--kernel", kernel.path().to_str().unwrap(), "--serial", "off"]);
    let text = refused(&output, 4);
    assert!(text.contains("/dev/kvm"), "{text}");
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
}
