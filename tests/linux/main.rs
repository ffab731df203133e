//! Linux guests under the monitor, checked from inside.
//!
//! Runs directly where KVM can run Linux; anywhere else the whole program runs
//! again in the rig, with the same arguments.

mod balloon;
mod block;
mod boot;
mod compare;
mod console;
mod disk;
mod firmware;
mod guest;
mod hvc;
mod input;
mod job;
mod job_images;
mod job_names;
mod job_table;
mod kit;
mod lifecycle;
mod machine;
mod metrics;
mod mixtures;
mod modes;
mod net;
mod pci;
mod plug;
mod ranks;
mod share;
mod spectrum;
mod streams;
mod usernet;
mod vsock;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;
use std::time::Instant;

/// What a test returns: it held, it says why it can't run here, or it failed.
type Verdict = Result<Completion, Failed>;

/// One test by name. How long it took is told before its verdict, for [`LONG`].
fn trial(name: &'static str, test: fn() -> Verdict) -> Trial {
    Trial::ignorable_test(name, move || {
        let start = Instant::now();
        let verdict = test();
        print!("({} s) ", start.elapsed().as_secs());
        verdict
    })
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    if !args.list {
        if let Err(error) = kit::resolve() {
            eprintln!("guest kit: {error}");
            return ExitCode::FAILURE;
        }
        // Two at a time, unless it is only about a few of them.
        match rig::ensure_several(if args.filter.is_some() { 1 } else { 2 }) {
            Ok(None) => {}
            Ok(Some(code)) => return code,
            Err(error) => {
                eprintln!("rig: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    let tests = [
        compare::tests(),
        boot::tests(),
        machine::tests(),
        disk::tests(),
        block::tests(),
        net::tests(),
        usernet::tests(),
        pci::tests(),
        mixtures::tests(),
        modes::tests(),
        plug::tests(),
        ranks::tests(),
        vsock::tests(),
        metrics::tests(),
        share::tests(),
        streams::tests(),
        balloon::tests(),
        lifecycle::tests(),
        console::tests(),
        hvc::tests(),
        input::tests(),
        firmware::tests(),
        spectrum::tests(),
        job::tests(),
        job_images::tests(),
        job_names::tests(),
        job_table::tests(),
    ];
    let mut tests: Vec<Trial> = tests.into_iter().flatten().collect();
    tests.sort_by_key(|test| {
        LONG.iter().position(|name| test.name().starts_with(name)).unwrap_or(LONG.len())
    });
    match rig::claims() {
        Some(claims) => run_taken(&args, &claims, tests),
        None => libtest_mimic::run(&args, tests).exit_code(),
    }
}

/// Tests that take minutes where the host is emulated come first: the others make up
/// for them, in whichever of two hosts is done.
const LONG: [&str; 8] = [
    "compare::processes_containers_and_machines_side_by_side",
    "ranks::under_slurm_compute_and_end_as_it_says",
    "firmware::grub_boots_debian_from_an_ide_disk",
    "modes::any_mixture_of_switches_works",
    "job::a_table_of_cases_beside_crun_as_a_user",
    "job::a_table_of_cases_beside_crun_as_root",
    "block::a_killed_monitor_leaves_what_was_flushed",
    "spectrum::each_step_is_measured",
];

/// Runs those tests that no other host has taken, one after the other.
fn run_taken(args: &Arguments, claims: &rig::Claims, tests: Vec<Trial>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for test in tests {
        match claims.take(test.name()) {
            Ok(true) => {
                if libtest_mimic::run(args, vec![test]).has_failed() {
                    code = ExitCode::FAILURE;
                }
            }
            Ok(false) => {}
            Err(error) => {
                eprintln!("taking {}: {error}", test.name());
                return ExitCode::FAILURE;
            }
        }
    }
    code
}
