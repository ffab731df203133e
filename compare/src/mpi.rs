//! Two processes of MPI in a subject, with whatever MPI the host has: a small program
//! of ours, compiled by its `mpicc` and started by its `mpirun`, in one container or
//! machine.

use crate::spawn::last_words;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use vmm::host::find_command;

const SOURCE: &str = include_str!("pingpong.c");
/// The figures that it tells.
pub const METRICS: [&str; 2] = ["mpi_round_trip", "mpi_stream"];

/// What starts it, or why nothing does.
pub fn command(place: &Path) -> Result<Vec<String>, String> {
    let (source, program) = (place.join("pingpong.c"), place.join("pingpong"));
    let found = |name: &str| find_command(name).ok_or(format!("no {name} on this host"));
    let (compiler, launcher) = (found("mpicc")?, found("mpirun")?);
    // Whichever it is: a container need not have the links that lead to it.
    let launcher = fs::canonicalize(&launcher).unwrap_or(launcher);
    if !program.exists() {
        fs::write(&source, SOURCE).map_err(|error| vmm::plain(&error))?;
        let mut compile = Command::new(compiler);
        compile.arg("-O2").arg("-o").arg(&program).arg(&source).stdin(Stdio::null());
        let made = compile.output().map_err(|error| vmm::plain(&error))?;
        if !made.status.success() {
            let text = String::from_utf8_lossy(&made.stderr);
            return Err(last_words(&text).unwrap_or_else(|| "mpicc fails".to_owned()));
        }
    }
    let words = [
        "env",
        // Open MPI, where it would refuse: as root, and where one processor is all.
        "OMPI_ALLOW_RUN_AS_ROOT=1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        &launcher.to_string_lossy(),
        "-np",
        "2",
        &program.to_string_lossy(),
    ];
    Ok(words.map(str::to_owned).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_an_mpi_two_processes_measure_it() {
        let place = tempfile::tempdir().unwrap();
        let words = match command(place.path()) {
            Ok(words) => words,
            Err(why) => return println!("skipped: {why}"),
        };
        let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        for name in METRICS {
            let line = text.lines().find(|line| line.starts_with(&format!("@m {name} ")));
            let values = line.unwrap_or_default().split(' ').skip(2);
            let values: Vec<f64> = values.map(|value| value.parse().unwrap()).collect();
            assert!(values.len() == 15 && values.iter().all(|value| *value > 1.0), "{output:?}");
        }
    }
}
