//! `cargo xtask bench devices`: what a request costs each device with no guest,
//! here and at an earlier commit.
//!
//! The benchmark is [`devices/benches/path.rs`]. Time is criterion's, and as good
//! as the machine is quiet; instructions are valgrind's, and repeat.

use super::subject;
use crate::workspace::{cargo, check, target_directory};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments of the command.
#[derive(Args)]
pub struct DevicesArguments {
    /// A commit to compare with; may be repeated
    #[arg(long, value_name = "COMMIT")]
    other: Vec<String>,
    /// Leave out the time: instructions only
    #[arg(long)]
    no_time: bool,
}

/// Turns of the two runs whose difference is counted.
const TURNS: [u64; 2] = [200, 1200];
const BUILD: [&str; 8] = [
    "bench",
    "--quiet",
    "--package=devices",
    "--features=testing",
    "--bench=path",
    "--no-run",
    "--message-format=json",
    "--config=profile.bench.strip=false",
];

/// One commit's.
struct Figures {
    name: String,
    /// Name, nanoseconds, instructions of a turn.
    turns: Vec<(String, Option<f64>, Option<f64>)>,
}

impl DevicesArguments {
    /// Measures and prints the tables.
    pub fn run(self) -> Result<u8> {
        let directory = target_directory().join("bench");
        fs::create_dir_all(&directory)?;
        if !counts() {
            eprintln!("no instructions: install Debian's valgrind to have them counted");
        }
        let program = build(&crate::workspace::root(), &target_directory())?;
        let mut all = vec![self.measure("this checkout", &program, &directory)?];
        for other in &self.other {
            let commit = subject::commit(other)?;
            let target = directory.join("target");
            let built = subject::in_worktree(&commit, |tree| build(tree, &target));
            let program = built.with_context(|| format!("{other}: building its benchmark"))?;
            all.push(self.measure(&commit[..10], &program, &directory)?);
        }
        print!("{}", table(&all));
        Ok(0)
    }

    fn measure(&self, name: &str, program: &Path, directory: &Path) -> Result<Figures> {
        eprintln!("measuring {name} …");
        let home = directory.join("criterion");
        if !self.no_time {
            let mut command = Command::new(program);
            command.args(["--bench", "--noplot", "--quiet"]).env("CRITERION_HOME", &home);
            check(&mut command)?;
        }
        let names = output(program, &["list"])?;
        let mut turns = Vec::new();
        for turn in names.lines() {
            let time = if self.no_time { None } else { estimate(&home, turn) };
            let instructions = if counts() { Some(instructions(program, turn)?) } else { None };
            turns.push((turn.to_owned(), time, instructions));
        }
        Ok(Figures { name: name.to_owned(), turns })
    }
}

/// Builds the benchmark of a checkout; returns the program.
fn build(tree: &Path, target: &Path) -> Result<PathBuf> {
    let mut command = cargo(&BUILD);
    command.current_dir(tree).env("CARGO_TARGET_DIR", target);
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    executable(&text).context("cargo says of no program that it built it")
}

/// The program among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|m| {
        let ours = m["target"]["name"] == "path";
        m["executable"].as_str().filter(|_| ours).map(PathBuf::from)
    })
}

fn output(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        bail!("{}: {}", program.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Criterion's median in nanoseconds.
fn estimate(home: &Path, name: &str) -> Option<f64> {
    let directories = fs::read_dir(home.join("path")).ok()?;
    directories.flatten().find_map(|entry| {
        let read = |file: &str| -> Option<Value> {
            let text = fs::read_to_string(entry.path().join("new").join(file)).ok()?;
            serde_json::from_str(&text).ok()
        };
        (read("benchmark.json")?["function_id"] == name)
            .then(|| read("estimates.json")?["median"]["point_estimate"].as_f64())?
    })
}

fn counts() -> bool {
    let found = Command::new("valgrind").arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

/// Instructions of one turn: of many turns less those of few.
fn instructions(program: &Path, name: &str) -> Result<f64> {
    let run = |turns: u64| -> Result<u64> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg(program).args([OsStr::new("count"), name.as_ref()]).arg(turns.to_string());
        let output = command.output().context("starting valgrind")?;
        let text = String::from_utf8_lossy(&output.stderr);
        collected(&text).with_context(|| format!("valgrind of {name:?} says no number: {text}"))
    };
    let [few, many] = TURNS;
    Ok(run(many)?.saturating_sub(run(few)?) as f64 / (many - few) as f64)
}

/// `==7== Collected : 1234`
fn collected(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

/// The tables: a column a commit, ratios to the first in parentheses.
fn table(all: &[Figures]) -> String {
    type Column = fn(&(String, Option<f64>, Option<f64>)) -> Option<f64>;
    let tables: [(&str, Column); 2] = [("nanoseconds", |t| t.1), ("instructions", |t| t.2)];
    let mut text = String::new();
    for (title, column) in tables {
        let _ = write!(text, "{title:<34}");
        all.iter().for_each(|figures| {
            let _ = write!(text, "  {:>16}", figures.name);
        });
        text.push('\n');
        for first in all.first().iter().flat_map(|figures| &figures.turns) {
            let _ = write!(text, "  {:<32}", first.0);
            for (i, figures) in all.iter().enumerate() {
                let turn = figures.turns.iter().find(|turn| turn.0 == first.0);
                let cell = match (turn.and_then(column), column(first)) {
                    (Some(value), Some(first)) if i > 0 && first > 0.0 => {
                        format!("{value:.0} ({:.2})", value / first)
                    }
                    (Some(value), _) => format!("{value:.0}"),
                    (None, _) => "n/a".to_owned(),
                };
                let _ = write!(text, "  {cell:>16}");
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_and_valgrind_say_is_found() {
        let messages = "{\"target\":{\"name\":\"devices\"},\"executable\":null}\nnonsense\n\
                        {\"target\":{\"name\":\"path\"},\"executable\":\"/a/path-1\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/a/path-1")));
        assert_eq!(executable("{}"), None);
        assert_eq!(collected("==1== \n==1== Collected : 42\n"), Some(42));
        assert_eq!(collected("==1== Killed\n"), None);
    }

    #[test]
    fn estimates_are_found_by_name() {
        let home = target_directory().join(format!("estimates-{}", std::process::id()));
        let new = home.join("path/net_ frame out/new");
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("benchmark.json"), r#"{"function_id":"net, frame out"}"#).unwrap();
        fs::write(new.join("estimates.json"), r#"{"median":{"point_estimate":1.5}}"#).unwrap();
        let found = (estimate(&home, "net, frame out"), estimate(&home, "net, frame in"));
        fs::remove_dir_all(&home).unwrap();
        assert_eq!(found, (Some(1.5), None));
    }

    #[test]
    fn the_table_compares_by_name() {
        let turn = |name: &str, ns| (name.to_owned(), Some(ns), None);
        let here = Figures { name: "here".into(), turns: vec![turn("a", 10.0), turn("b", 20.0)] };
        let there = Figures { name: "there".into(), turns: vec![turn("b", 30.0)] };
        let text = table(&[here, there]);
        assert!(text.contains("30 (1.50)") && text.contains("n/a"), "{text}");
    }
}
