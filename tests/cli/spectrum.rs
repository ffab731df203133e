//! The table of this host: whatever it says, it must agree with the doctor and
//! with the kernel's own parameters.

use crate::{refused, run, stderr, stdout};
use serde_json::Value;
use std::path::Path;

fn report() -> (Value, i32) {
    let output = run(&["spectrum", "--json"]);
    let report = serde_json::from_str(&stdout(&output)).expect("JSON");
    (report, output.status.code().expect("it ends by itself"))
}

#[test]
fn the_exit_status_says_whether_the_fourth_column_is_known() {
    let (report, status) = report();
    let fourth = ["privileged_instructions", "page_tables"];
    let unknown = fourth.iter().any(|half| report[half]["how"] == "?");
    assert_eq!(status, if unknown { 4 } else { 0 });
    for half in fourth {
        assert!(!report[half]["because"].as_array().unwrap().is_empty(), "{report}");
        // Three rows and more have what an ordinary kernel gets.
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows[..3].iter().all(|row| row[half] == report[half]["how"]), "{report}");
    }
}

#[test]
fn the_fourth_column_is_what_the_modules_say() {
    let (report, _) = report();
    if report["problem"].is_string() {
        return;
    }
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    let parameter = ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"]
        .iter()
        .find_map(|name| std::fs::read_to_string(Path::new("/sys/module").join(name)).ok());
    let (instructions, tables) = match parameter.as_deref().map(str::trim) {
        Some("Y") => ("VH", "VH"),
        Some("N") => ("VH", "VS"),
        _ if loaded("kvm_pvm") => ("VS", "VS"),
        _ => return,
    };
    assert_eq!(report["privileged_instructions"]["how"], instructions, "{report}");
    assert_eq!(report["page_tables"]["how"], tables, "{report}");
}

#[test]
fn people_get_a_table() {
    let output = run(&["spectrum"]);
    let text = stdout(&output);
    assert_eq!(stderr(&output), "");
    for mode in ["hvm", "hvm-pv", "pvhvm", "pv"] {
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(mode));
        let row = row.unwrap_or_else(|| panic!("no {mode} in\n{text}"));
        assert_eq!(row.split_whitespace().count(), 6, "{row}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn what_can_not_be_measured_is_refused_in_one_line() {
    for (words, status, part) in [
        (&["--measure"][..], 2, "--kernel"),
        (&["--quick"], 2, "--measure"),
        (&["--measure", "--kernel", "k", "--modes", "hvm,xen"], 2, "hvm-pio"),
        (&["--measure", "--kernel", "/nonexistent/vmlinux"], 3, "/nonexistent/vmlinux"),
        (&["--measure", "--kernel", "k", "--html", "/nonexistent/page"], 3, "/nonexistent/page"),
        (&["--json", "/nonexistent/file"], 3, "--measure"),
    ] {
        let words: Vec<&str> = ["spectrum"].iter().chain(words).copied().collect();
        let text = refused(&run(&words), status);
        assert!(text.contains(part), "{text}");
    }
}
