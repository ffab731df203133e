//! The developer's commands: run, test, bench, guest

mod rig_command;

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
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Rig(arguments) => arguments.run(),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
