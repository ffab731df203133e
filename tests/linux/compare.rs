//! `microvm compare` where virtual machines run: every subject, every measurement,
//! and what each can see of the host.

use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::Value;
use std::fs;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![trial("compare::processes_containers_and_machines_side_by_side", side_by_side)]
}

/// All of them, in their order. What single namespaces are about is seen without a
/// virtual machine, in `tests/cli`.
const SUBJECTS: [&str; 14] = [
    "native",
    "ns:all",
    "ns:sandbox",
    "bwrap",
    "crun",
    "runc",
    "podman",
    "systemd-nspawn",
    "apptainer",
    "vm:job",
    "vm:pv",
    "vm:pvhvm",
    "vm:hvm-pv",
    "vm:hvm",
];
/// Those of other projects: where they are not installed, or this host does not let them
/// run, is theirs to say.
const TOOLS: [&str; 6] = ["bwrap", "crun", "runc", "podman", "systemd-nspawn", "apptainer"];
/// All measurements but the command's, where there is one processor.
const MEASUREMENTS: usize = 55;

/// And with more of them: starts are tried 2, 4, … at once.
fn measurements(report: &Value) -> usize {
    let processors = report["host"]["processors"].as_u64().unwrap_or(1);
    MEASUREMENTS + (1..7).filter(|power| 1 << power < processors).count()
}

fn side_by_side() -> Verdict {
    // Short: podman takes no run-time directory of more than 50 characters.
    let scratch =
        tempfile::Builder::new().prefix("c").tempdir_in("/run").or_else(|_| tempfile::tempdir())?;
    let page = scratch.path().join("page.html");
    let work = scratch.path().join("work");
    fs::create_dir(&work)?;
    let output = Command::new(env!("CARGO_BIN_EXE_microvm"))
        .args(["compare", "--quick", "--json"])
        .arg("--kernel")
        .arg(kit::vmlinux())
        .arg("--html")
        .arg(&page)
        .env("TMPDIR", &work)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}: {said}", output.status).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let columns = report["subjects"].as_array().ok_or("no subjects")?;
    let mut wrong = Vec::new();
    for column in columns {
        check(column, &report, &mut wrong);
    }
    let names: Vec<_> = columns.iter().filter_map(|column| column["subject"].as_str()).collect();
    if names != SUBJECTS {
        wrong.push(format!("subjects {names:?}"));
    }
    wrong.extend(namespaces(columns));
    let left: Vec<_> = fs::read_dir(&work)?.flatten().map(|entry| entry.path()).collect();
    if !left.is_empty() {
        wrong.push(format!("left behind: {left:?}"));
    }
    let page = fs::read_to_string(page)?;
    let marked = page.contains("emulated in software");
    if marked != (report["host"]["emulated"] == true) || !page.contains("vm:job") {
        wrong.push("the page does not say what was measured".to_owned());
    }
    match wrong.is_empty() {
        true => Ok(Completion::Completed),
        false => Err(wrong.join("\n").into()),
    }
}

/// What crun has of its own by default, ours has too.
fn namespaces(columns: &[Value]) -> Vec<String> {
    let fact = |subject: &str, name: &str| {
        let column = columns.iter().find(|column| column["subject"] == subject);
        column.and_then(|column| column["facts"][name].as_str()).map(str::to_owned)
    };
    if fact("crun", "ns_mnt").is_none() {
        return Vec::new();
    }
    ["mnt", "uts", "ipc", "pid", "net", "cgroup"]
        .iter()
        .filter_map(|name| {
            let name = format!("ns_{name}");
            let host = fact("native", &name);
            let (crun, ours) = (fact("crun", &name), fact("ns:sandbox", &name));
            (crun != host && ours == host).then(|| format!("{name}: crun isolates it, we do not"))
        })
        .collect()
}

/// One subject: everything is there, and it sees what it should.
fn check(column: &Value, report: &Value, wrong: &mut Vec<String>) {
    let name = column["subject"].as_str().unwrap_or_default();
    let machine = name.starts_with("vm:");
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("{name}: {what}"));
        }
    };
    if TOOLS.contains(&name) && column["skipped"].is_string() {
        println!("{name}: {}", column["skipped"]);
        return;
    }
    expect(column["skipped"].is_null(), "skipped");
    // Where limits are not this user's to give, it says so.
    let noted = name == "ns:sandbox" && std::env::var_os(rig::IN_RIG).is_none();
    expect(column["notes"].is_null() || noted, "notes");
    expect(column["emulated"] == (machine && report["host"]["emulated"] == true), "mark");
    let values = column["values"].as_object().cloned().unwrap_or_default();
    expect(values.len() == measurements(report), "measurements");
    // Where native has an MPI, all have that can run programs of the host's.
    let mpi = report["subjects"][0]["values"]["mpi_stream"]["samples"].is_array();
    let hosts = name != "apptainer" && (!machine || name == "vm:job");
    let least = |name: &str| {
        let samples = values.get(name).and_then(|value| value["samples"].as_array());
        samples.and_then(|all| all.iter().filter_map(Value::as_f64).min_by(f64::total_cmp))
    };
    for (measurement, value) in &values {
        let reason = value["missing"].as_str();
        let expected = match measurement.as_str() {
            "guest_kernel" | "kvm_ioctls" => !machine,
            "kinds_allowed" => !machine && name != "ns:sandbox",
            // A disk of a machine has no file system, and its guest no programs.
            "create_unlink" => machine && name != "vm:job",
            "mpi_round_trip" | "mpi_stream" => !(mpi && hosts),
            // Where instances take less than what else the host does meanwhile.
            "density" => reason.is_some(),
            exits if exits.starts_with("exits_") => !machine,
            _ => false,
        };
        let samples = value["samples"].as_array().map_or(0, Vec::len);
        let complete = if expected { samples == 0 && reason.is_some() } else { samples > 0 };
        expect(complete, &format!("{measurement}: {}", reason.unwrap_or("it has samples")));
    }
    // What the kernel underneath cannot do faster than a few instructions.
    for timed in ["getpid", "fork", "page_fault", "context_switch", "net_round_trip", "start_exec"]
    {
        expect(least(timed).is_some_and(|value| value > 1.0), timed);
    }
    if machine {
        // A request to a disk can't be without a doorbell, a sleep not without a timer.
        for (exits, fewest) in
            [("exits_boot", 50.0), ("exits_disk_read", 0.9), ("exits_timer", 0.5)]
        {
            expect(least(exits).is_some_and(|value| value >= fewest), exits);
        }
        // Nothing of the monitor's is in the way of a system call.
        expect(least("exits_getpid").is_some_and(|value| value < 0.1), "exits_getpid");
    }
    let kinds = least("kinds_work").unwrap_or_default();
    expect(if machine { kinds < 100.0 } else { kinds >= 154.0 }, "host system calls");
    let probes = column["probes"].as_object().cloned().unwrap_or_default();
    for (probe, outcome) in &probes {
        expect(outcome.get("unknown").is_none(), probe);
        // A job has its host's name; nothing else of it.
        let reached = outcome == "host" && probe != "hostname";
        expect(!(machine && reached), probe);
        if !probe.starts_with("host_") {
            continue;
        }
        // A control for each of them: natively it is found. Runtimes of OCI leave a
        // user's keys to user namespaces.
        let key = TOOLS.contains(&name) && probe == "host_key";
        expect(if name == "native" { reached } else { !reached || key }, probe);
    }
    expect(probes.len() == 30, "probes");
}
