//! What `microvm spectrum` says where Linux runs, and what it measures there.

use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("spectrum::the_processor_runs_ring_0_and_page_tables_are_as_the_module_says", table),
        trial("spectrum::each_step_is_measured_and_leaves_out_what_it_says", measured),
    ]
}

/// Every row of the table, quickly. What is compared here are counts, and only
/// those that no slow host can change.
///
/// Now and then a guest in the emulated host sleeps for a few milliseconds and is
/// never woken, nor are those that come after it in that host. It is not known why,
/// and a fault of ours is not excluded. All that is seen here is that a mode did
/// not end: in an emulated host the test is then skipped, which would hide such a
/// fault; directly on KVM it fails.
fn measured() -> Verdict {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page.html");
    let mut reports = Vec::new();
    for mode in ["hvm", "hvm-pv", "pvhvm", "pv"] {
        let report = measure(mode, &page)?;
        let problem = report["modes"][0]["problem"].as_str().unwrap_or_default();
        if report["place"]["emulator"].is_string() && problem.starts_with(SLEPT) {
            let why = format!(
                "{mode}: no end within the time; cause unknown, a fault of ours not excluded"
            );
            return Ok(Completion::ignored_with(why));
        }
        reports.push(report);
    }
    let modes: Vec<&Value> = reports.iter().map(|report| &report["modes"][0]).collect();
    let check = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{what}: {modes:#?}")),
    };
    for mode in &modes {
        check(mode["problem"].is_null(), "every mode was measured")?;
        check_sums(mode).map_err(|what| format!("{}: {what}: {mode:#}", mode["name"]))?;
    }
    let count = |mode: usize, name: &str| modes[mode]["boot"][name].as_u64().unwrap_or(0);
    let (hvm, pvhvm, pv) = (0, 2, 3);
    check(count(hvm, "exits") > count(pv, "exits"), "a PC takes more exits")?;
    check(count(hvm, "user_exits") > 4 * count(pv, "user_exits"), "most of them to microvm")?;
    let virtio = |mode: &Value| mode["boot"]["devices"].to_string().contains("virtio");
    check(!virtio(modes[hvm]), "hvm has no virtio device")?;
    check(modes[1..].iter().all(|mode| virtio(mode)), "the others do")?;
    let steps = |mode: usize| modes[mode]["read"].to_string();
    check(steps(hvm).contains("READ DMA"), "a drive is told to read")?;
    check(steps(pvhvm) == "[]", "a doorbell and a message need no exit to microvm")?;
    let page = std::fs::read_to_string(page)?;
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    check(!outside.contains("http") && !outside.contains("src="), "the page needs nothing else")?;
    let emulated = reports[pv]["place"]["emulator"].is_string();
    check(page.contains("emulated host (") == emulated, "an emulated host is marked")?;
    Ok(Completion::Completed)
}

/// What a report says of a machine that did not come to its end.
const SLEPT: &str = "it took too long";

/// One mode's report; and its page.
///
/// A guest that is not told that it is one checks its timer within milliseconds, and
/// panics where an emulated host lets them pass without a turn for it: in such a host
/// it has a second try, which is told.
fn measure(mode: &str, page: &Path) -> Result<Value, String> {
    match try_measure(mode, page) {
        Err(told) if told.contains(PANICKED) && std::env::var_os(rig::IN_RIG).is_some() => {
            eprintln!("once more: {told}");
            try_measure(mode, page)
        }
        other => other,
    }
}

/// What is said of a guest that has panicked, with the time of a first tick.
const PANICKED: &str = "guest kernel panicked; the console's last line: [    0.00";

fn try_measure(mode: &str, page: &Path) -> Result<Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_microvm"))
        .args(["spectrum", "--measure", "--quick", "--json", "--modes", mode])
        .arg("--html")
        .arg(page)
        .arg("--kernel")
        .arg(kit::vmlinux())
        .arg("--rootfs")
        .arg(kit::root())
        .output()
        .map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{mode}: status {:?}: {e}: {told}", output.status.code()))
}

/// What holds in every mode.
fn check_sums(mode: &Value) -> Result<(), String> {
    let check = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
    let boot = &mode["boot"];
    let numbers = |values: &mut dyn Iterator<Item = &Value>| values.filter_map(Value::as_u64).sum();
    let reasons: u64 =
        numbers(&mut boot["reasons"].as_array().into_iter().flatten().map(|r| &r["exits"]));
    check(Some(reasons) == boot["exits"].as_u64(), "reasons are all exits".to_owned())?;
    let devices: u64 =
        numbers(&mut boot["devices"].as_object().into_iter().flat_map(|d| d.values()));
    check(Some(devices) == boot["user_exits"].as_u64(), "devices are all to microvm".to_owned())?;
    let milestones = boot["milestones"].as_array().ok_or("no milestones")?;
    let mut last = 0;
    for name in ["entry", "start_kernel", "first driver", "root mounted", "init"] {
        let milestone = milestones.iter().find(|milestone| milestone["name"] == name);
        let at = milestone.and_then(|milestone| milestone["at"].as_u64());
        let at = at.ok_or_else(|| format!("no {name}"))?;
        check(at >= last, format!("{name} comes after what is before it"))?;
        last = at;
    }
    for operation in [
        "read",
        "write",
        "read-stream",
        "write-stream",
        "packet",
        "send-stream",
        "tick",
        "ipi",
        "eoi",
    ] {
        let all = mode["operations"].as_array().ok_or("no operations")?;
        let figure = all.iter().find(|figure| figure["operation"] == operation);
        let figure = figure.ok_or_else(|| format!("{operation} is missing"))?;
        // KVM's own end of interrupt is no instruction that could be measured.
        let measured = figure["user_exits"].is_number();
        let reason = figure["why"].as_str().is_some_and(|why| !why.is_empty());
        let holds = measured || (operation == "eoi" && reason);
        check(holds, format!("{operation} is measured, or it is said why not"))?;
    }
    Ok(())
}

fn table() -> Verdict {
    let output =
        Command::new(env!("CARGO_BIN_EXE_microvm")).args(["spectrum", "--json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let how = |half: &str| report[half]["how"].as_str().unwrap_or_default().to_owned();
    let parameter = ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"]
        .iter()
        .find_map(|name| std::fs::read_to_string(format!("/sys/module/{name}")).ok());
    let tables = match parameter.as_deref().map(str::trim) {
        Some("N") => "VS",
        _ => "VH",
    };
    let found = (output.status.code(), how("privileged_instructions"), how("page_tables"));
    if found != (Some(0), "VH".to_owned(), tables.to_owned()) {
        return Err(format!("found {found:?}, expected page tables {tables}: {report:#}").into());
    }
    Ok(Completion::Completed)
}
