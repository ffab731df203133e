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
        match rig::ensure_split(if args.filter.is_some() { 1 } else { 2 }) {
            Ok(None) => {}
            Ok(Some(code)) => return code,
            Err(error) => {
                eprintln!("rig: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    let tests = [
        // The longest first: what is shared out afterwards makes up for it.
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
    let (part, parts) = rig::part();
    let mine = shared_out(tests.into_iter().flatten().collect(), part, parts);
    libtest_mimic::run(&args, mine).exit_code()
}

/// Tests that take much longer than others: how many others each is worth. An average
/// one takes some twenty seconds in an emulated host beside another.
const LONG: [(&str, usize); 8] = [
    ("block::a_killed_monitor_leaves_what_was_flushed", 4),
    ("compare::processes_containers_and_machines_side_by_side", 40),
    ("job::a_table_of_cases_beside_crun_as_a_user", 7),
    ("job::a_table_of_cases_beside_crun_as_root", 4),
    ("modes::any_mixture_of_switches_works", 8),
    ("modes::hvm_is_a_pc_and_nothing_says_otherwise", 4),
    ("ranks::under_slurm_compute_and_end_as_it_says", 9),
    ("spectrum::each_step_is_measured", 5),
];

/// The tests of one of so many hosts: each goes to the one that has least to do.
fn shared_out(tests: Vec<Trial>, part: usize, parts: usize) -> Vec<Trial> {
    let mut loads = vec![0; parts];
    let mut mine = Vec::new();
    for test in tests {
        let long = LONG.iter().find(|(name, _)| test.name().starts_with(name));
        let least = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load);
        let Some((at, load)) = least else { break };
        *load += long.map_or(1, |(_, worth)| *worth);
        if at == part {
            mine.push(test);
        }
    }
    mine
}
