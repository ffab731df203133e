//! The developer's commands: see `cargo xtask help`.

mod bench;
mod ci;
mod fuzz;
mod kit;
mod rig_command;
mod run;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command in an emulated host with a true /dev/kvm
    Rig(rig_command::RigArguments),
    /// Build the guest kernel and root file system, print their paths
    Kit,
    /// Build the monitor and run it with a small Linux guest
    Run(run::RunArguments),
    /// Run all tests, wherever on this machine each of them can run
    Test(test::TestArguments),
    /// Fuzz what a guest can write, guided by coverage
    Fuzz(fuzz::FuzzArguments),
    /// Measure, beside other monitors
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Format, lints, licences, and all tests
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Rig(arguments) => arguments.run(),
        Task::Kit => kit::run(),
        Task::Run(arguments) => arguments.run(),
        Task::Test(arguments) => arguments.run(),
        Task::Fuzz(arguments) => arguments.run(),
        Task::Bench(command) => command.run(),
        Task::Ci => ci::run(),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
