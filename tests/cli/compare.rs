//! Subjects without a virtual machine, on the host itself, and what is left of them.

use crate::{microvm, refused, run, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

const SUBJECTS: &str = "ns";

/// What each namespace hides of what the host has hidden; all others, nothing.
const HIDES: [(&str, &[&str]); 9] = [
    ("native", &[]),
    ("ns:mount", &["host_file"]),
    ("ns:uts", &[]),
    ("ns:ipc", &["host_ipc"]),
    // Whom it does not see it can't signal; /proc is still the host's.
    ("ns:pid", &["host_signal"]),
    ("ns:network", &["host_port", "host_socket"]),
    // Keys belong to users of a namespace.
    ("ns:user", &["host_key"]),
    ("ns:cgroup", &[]),
    ("ns:time", &[]),
];

/// Everything outside of itself that a comparison could leave behind.
fn left(scratch: &Path, pid: u32) -> Vec<String> {
    let mut left: Vec<String> = fs::read_dir(scratch)
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains("microvm-compare")).map(str::to_owned));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(scratch.to_str().unwrap()) {
            left.push(format!("process {line}"));
        }
    }
    let name = format!("microvm-compare-{pid}-");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for path in own.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        for mount in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let place = mount.path().join(path.trim_start_matches('/'));
            let groups = fs::read_dir(place).into_iter().flatten().flatten();
            let groups =
                groups.filter(|group| group.file_name().to_string_lossy().starts_with(&name));
            left.extend(groups.map(|group| group.path().display().to_string()));
        }
    }
    left
}

fn start(scratch: &Path, effort: &str, words: &[&str]) -> Child {
    let mut command = microvm();
    command.env("TMPDIR", scratch).args(["compare", effort]).args(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn outcome<'a>(report: &'a Value, subject: &str, probe: &str) -> &'a Value {
    let columns = report["subjects"].as_array().unwrap();
    let column = columns.iter().find(|column| column["subject"] == subject).unwrap();
    &column["probes"][probe]
}

#[test]
fn namespaces_isolate_what_they_are_for_and_nothing_is_missing_or_left() {
    let scratch = tempfile::tempdir().unwrap();
    let page = tempfile::NamedTempFile::new().unwrap();
    let html = page.path().to_str().unwrap();
    let words = ["--subjects", SUBJECTS, "--json", "--html", html, "--command", "true"];
    let child = start(scratch.path(), "--quick", &words);
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let columns = report["subjects"].as_array().unwrap();
    assert_eq!(columns.len(), 11);
    // Starts are tried 2, 4, … at once, up to as many as there are processors.
    let processors = report["host"]["processors"].as_u64().unwrap();
    let measurements = 56 + (1..7).filter(|power| 1 << power < processors).count();
    for column in columns {
        if let Some(why) = column["skipped"].as_str() {
            // A host may not let its users do this; then it says so in one line.
            assert!(!why.contains('\n') && column["subject"] != "native", "{column}");
            continue;
        }
        let values = column["values"].as_object().unwrap();
        assert_eq!(values.len(), measurements, "{column}");
        let samples = |name: &str| values[name]["samples"].as_array().map_or(0, Vec::len);
        for name in ["start_exec", "start_end", "command", "getpid", "exec", "tlb", "net_stream"] {
            assert!(samples(name) >= 3, "{name}: {}", values[name]);
        }
        // The agent makes 154, and a few more to say so.
        let kinds = values["kinds_work"]["samples"][0].as_f64().unwrap();
        assert!((154.0..200.0).contains(&kinds), "{kinds}");
        // No probe finds what was not hidden.
        for (name, found) in column["probes"].as_object().unwrap() {
            assert!(found.get("unknown").is_none(), "{name}: {found}");
        }
    }
    // What the host has hidden is found where it is not hidden, and not where it is.
    for (subject, hides) in HIDES {
        let column = columns.iter().find(|column| column["subject"] == subject).unwrap();
        // An ordinary user's have a user namespace as well.
        if column["skipped"].is_null() && column["notes"].is_null() {
            for (probe, found) in column["probes"].as_object().unwrap() {
                if probe.starts_with("host_") {
                    let hidden = hides.contains(&probe.as_str());
                    assert_eq!(found == "host", !hidden, "{subject}: {probe}: {found}");
                }
            }
        }
    }
    // Natively everything that the host has hidden is found.
    for probe in ["host_process", "host_file", "host_socket", "host_port", "boot_id"] {
        assert_eq!(outcome(&report, "native", probe), "host", "{probe}");
    }
    for (subject, probe, isolated) in [
        ("ns:network", "host_socket", true),
        ("ns:network", "host_port", true),
        ("ns:network", "host_file", false),
        ("ns:uts", "hostname", true),
        ("ns:uts", "host_process", false),
        ("ns:all", "host_process", true),
        ("ns:all", "host_file", true),
        ("ns:all", "boot_id", false),
        ("ns:sandbox", "host_port", true),
        ("ns:sandbox", "set_time", true),
    ] {
        let column = columns.iter().find(|column| column["subject"] == subject).unwrap();
        if column["skipped"].is_null() {
            assert_eq!(outcome(&report, subject, probe) != "host", isolated, "{subject}: {probe}");
        }
    }
    let text = fs::read_to_string(page.path()).unwrap();
    assert!(text.starts_with("<!doctype html>") && text.contains("ns:sandbox"));
    assert_eq!(left(scratch.path(), pid), [""; 0]);

    // A report can be shown again, and does not differ from itself.
    let saved = tempfile::NamedTempFile::new().unwrap();
    fs::write(saved.path(), &output.stdout).unwrap();
    let saved = saved.path().to_str().unwrap();
    let shown = stdout(&run(&["compare", "show", saved]));
    assert!(shown.contains("What it sees of the host"), "{shown}");
    assert!(stdout(&run(&["compare", "diff", saved, saved])).starts_with("0 of "));
}

/// Which of its namespaces are not the host's, by the links of `/proc/self/ns`.
fn own_namespaces(of: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
    let all = ["mnt", "uts", "ipc", "pid", "net", "user", "cgroup", "time"];
    all.into_iter()
        .filter(|name| {
            let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            of(name).is_some_and(|link| link != host.to_string_lossy())
        })
        .collect()
}

#[test]
fn each_namespace_is_what_unshare_makes() {
    let scratch = tempfile::tempdir().unwrap();
    let child = start(scratch.path(), "--quick", &["--subjects", "ns", "--json"]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut tried = 0;
    for column in report["subjects"].as_array().unwrap() {
        let subject = column["subject"].as_str().unwrap();
        let name = match subject.strip_prefix("ns:") {
            None | Some("all" | "sandbox") => continue,
            Some("network") => "net",
            Some(name) => name,
        };
        // Times and processes are of children.
        let script = "for n in /proc/self/ns/*; do readlink $n; done";
        let unshare = Command::new("unshare")
            .args([&format!("--{name}"), "--fork", "sh", "-c", script])
            .output();
        let Ok(unshare) = unshare else {
            println!("skipped: there is no unshare");
            return;
        };
        if let (Some(why), false) = (column["skipped"].as_str(), unshare.status.success()) {
            println!("{subject}: neither of both: {why}");
            continue;
        }
        let links = stdout(&unshare);
        let theirs = own_namespaces(|name| {
            links.lines().find(|l| l.starts_with(&format!("{name}:"))).map(str::to_owned)
        });
        let facts = &column["facts"];
        let ours = own_namespaces(|name| facts[format!("ns_{name}")].as_str().map(str::to_owned));
        if unshare.status.success() {
            assert_eq!(ours, theirs, "{subject}: {}", stderr(&unshare));
            assert_eq!(ours.len(), 1, "{subject}");
            tried += 1;
        }
    }
    println!("{tried} namespaces compared");
}

#[test]
fn nothing_is_left_after_an_interrupt_at_any_moment() {
    for milliseconds in [5, 60, 150, 300, 500, 900, 1400, 2500, 4000, 6000] {
        let scratch = tempfile::tempdir().unwrap();
        let words = ["--subjects", "ns:all,ns:sandbox,bwrap,crun,runc"];
        // It must not come to its end before.
        let child = start(scratch.path(), "--full", &words);
        let pid = child.id();
        thread::sleep(Duration::from_millis(milliseconds));
        // SAFETY: the child has not been waited for, so its pid is its own.
        unsafe { libc::kill(pid as i32, libc::SIGINT) };
        let output = child.wait_with_output().unwrap();
        // The first milliseconds are before it has taken its signals.
        let by_signal = output.status.signal() == Some(libc::SIGINT);
        assert!(output.status.code() == Some(130) || by_signal, "{output:?}");
        assert_eq!(left(scratch.path(), pid), [""; 0], "after {milliseconds} ms");
    }
}

#[test]
fn what_cannot_be_compared_is_told() {
    let text = refused(&run(&["compare", "--subjects", "xen"]), 2);
    assert!(text.contains("vm:hvm"), "{text}");
    refused(&run(&["compare", "--quick", "--full"]), 2);
    let text = refused(&run(&["compare", "--html", "/nonexistent/page"]), 3);
    assert!(text.contains("/nonexistent/page"), "{text}");
    let text = refused(&run(&["compare", "diff", "/dev/null", "/dev/null"]), 3);
    assert!(text.contains("/dev/null"), "{text}");
}
