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

/// What a test returns: it held, it says why it can't run here, or it failed.
type Verdict = Result<Completion, Failed>;

/// One test by name.
fn trial(name: &'static str, test: fn() -> Verdict) -> Trial {
    Trial::ignorable_test(name, test)
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
        compare::tests(),
        job::tests(),
        job_images::tests(),
        job_names::tests(),
        job_table::tests(),
    ];
    let (part, parts) = rig::part();
    let mine = tests.into_iter().flatten().enumerate().filter(|(i, _)| i % parts == part);
    libtest_mimic::run(&args, mine.map(|(_, test)| test).collect()).exit_code()
}
