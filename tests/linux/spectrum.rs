//! What `microvm spectrum` says where Linux runs.

use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::Value;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![trial("spectrum::the_processor_runs_ring_0_and_page_tables_are_as_the_module_says", table)]
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
