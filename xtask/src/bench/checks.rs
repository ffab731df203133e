//! `cargo xtask bench checks`: what `microvm compare` measures of this host, beside
//! what well-known programs measure of the same, in turns.
//!
//! Native only: what is to be checked is the measuring, and in the other subjects the
//! same program measures. `microvm compare` tells medians, which what else runs on the
//! host does not move; those programs tell averages, with every pause in them. Both of
//! ours are shown.

use crate::workspace::{check, root, target_directory};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Arguments of the command.
#[derive(Args)]
pub struct ChecksArguments {
    /// Turns, of which the medians count
    #[arg(long, default_value_t = 7)]
    turns: usize,
}

/// Who tells the other figure.
type Other = fn(&Path) -> Result<f64>;

/// A figure of ours, what it is, who tells it otherwise, and in what way they differ
/// on purpose.
struct Row {
    metric: &'static str,
    title: &'static str,
    by: &'static str,
    other: Other,
    differs: &'static str,
}

const fn row(
    metric: &'static str,
    title: &'static str,
    by: &'static str,
    other: Other,
    differs: &'static str,
) -> Row {
    Row { metric, title, by, other, differs }
}

const ROWS: [Row; 9] = [
    row("command", "a loop of the shell, ms", "/usr/bin/time", time, ""),
    row("getpid", "getpid, ns", "perf bench syscall", syscall, "getppid, in perf"),
    row("context_switch", "context switch, ns", "perf bench sched pipe", switch, ""),
    row("memory_copy", "copy of 8 MiB, MiB/s", "perf bench mem", copy, ""),
    row("disk_random_read", "read of 4 KiB anywhere, ns", "fio", random, ""),
    row("disk_read", "read of 64 KiB, MiB/s", "fio", read, ""),
    row("disk_write", "write of 64 KiB, MiB/s", "fio", write, ""),
    row("disk_fsync", "write and fdatasync, ns", "fio", durable, ""),
    row("net_stream", "TCP, stream, MiB/s", "iperf3", stream, ""),
];

impl Row {
    fn is_rate(&self) -> bool {
        self.title.ends_with("/s")
    }
}

/// The user's command of both.
const LOOP: &str = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done";
/// As far apart as may be without a reason.
const NEAR: f64 = 0.10;

impl ChecksArguments {
    /// Measures and prints the table; returns the exit status.
    pub fn run(self) -> Result<u8> {
        rig::install_packages(&missing())?;
        check(Command::new("cargo").args(["build", "--bins"]).current_dir(root()))?;
        let place = target_directory().join("tmp/bench-checks");
        std::fs::create_dir_all(&place)?;
        let mut medians = vec![Vec::new(); ROWS.len()];
        let mut averages = vec![Vec::new(); ROWS.len()];
        let mut theirs = vec![Vec::new(); ROWS.len()];
        for turn in 1..=self.turns {
            eprintln!("turn {turn} of {}", self.turns);
            let report = compare(&place)?;
            for (at, row) in ROWS.iter().enumerate() {
                let samples = report.pointer(&format!("/subjects/0/values/{}/samples", row.metric));
                let samples: Vec<f64> = samples
                    .and_then(Value::as_array)
                    .with_context(|| format!("microvm compare has no {}", row.metric))?
                    .iter()
                    .filter_map(Value::as_f64)
                    .collect();
                averages[at].push(average(&samples, row.is_rate()));
                medians[at].push(median(samples)?);
                theirs[at].push((row.other)(&place).with_context(|| row.by)?);
            }
        }
        std::fs::remove_dir_all(&place)?;
        println!("{:<28}{:>10}{:>17}{:>17}  by", "", "other", "median", "average");
        for (at, row) in ROWS.iter().enumerate() {
            let theirs = median(theirs[at].clone())?;
            let scale = if row.metric == "command" { 1e-6 } else { 1.0 };
            let ours = [median(medians[at].clone())?, median(averages[at].clone())?];
            let [median, average] = ours.map(|ours| beside(ours * scale, theirs));
            let differs = if row.differs.is_empty() { "" } else { ", " };
            println!(
                "{:<28}{theirs:>10.0}{median:>17}{average:>17}  {}{differs}{}",
                row.title, row.by, row.differs
            );
        }
        Ok(0)
    }
}

/// A figure of ours and its ratio to another; a mark where they are far apart.
fn beside(ours: f64, theirs: f64) -> String {
    let ratio = ours / theirs;
    let far = if (ratio - 1.0).abs() > NEAR { "!" } else { " " };
    format!("{ours:.0} ({ratio:.2}){far}")
}

fn missing() -> Vec<&'static str> {
    let packages = [("perf", "linux-perf"), ("fio", "fio"), ("iperf3", "iperf3"), ("time", "time")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|p| p.join(program).is_file());
    packages.into_iter().filter(|(program, _)| !there(program)).map(|(_, p)| p).collect()
}

fn median(mut samples: Vec<f64>) -> Result<f64> {
    ensure!(!samples.is_empty(), "no samples");
    samples.sort_by(f64::total_cmp);
    Ok((samples[samples.len() / 2] + samples[(samples.len() - 1) / 2]) / 2.0)
}

/// Of all together, as whoever divides by the whole time tells it: batches are of equal
/// work, so that it is the harmonic mean of their rates.
fn average(samples: &[f64], rate: bool) -> f64 {
    let count = samples.len() as f64;
    match rate {
        true => count / samples.iter().map(|rate| 1.0 / rate).sum::<f64>(),
        false => samples.iter().sum::<f64>() / count,
    }
}

/// What it has printed, on both streams.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, text.trim());
    Ok(text)
}

fn compare(place: &Path) -> Result<Value> {
    let mut command = Command::new(target_directory().join("debug/microvm"));
    command.args(["compare", "--quick", "--json", "--subjects", "native"]);
    command.args(["--command", "/bin/sh", "-c", LOOP]).env("TMPDIR", place);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    ensure!(output.status.success(), "microvm compare: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Milliseconds, by hundredths of a second.
fn time(_: &Path) -> Result<f64> {
    let text = output(Command::new("/usr/bin/time").args(["-f", "%e", "/bin/sh", "-c", LOOP]))?;
    let seconds: f64 = text.trim().parse().context("seconds")?;
    Ok(seconds * 1e3)
}

/// The word before another one, as a number.
fn before(text: &str, unit: &str) -> Result<f64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == unit);
    let number = at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok());
    number.with_context(|| format!("no {unit} in {text:?}"))
}

fn syscall(_: &Path) -> Result<f64> {
    let text = output(Command::new("perf").args(["bench", "syscall", "basic", "-l", "500000"]))?;
    Ok(before(&text, "usecs/op")? * 1e3)
}

/// Both processes on one processor, and two switches for each operation, as ours.
fn switch(_: &Path) -> Result<f64> {
    let perf = ["-c", "0", "perf", "bench", "sched", "pipe", "-l", "50000"];
    let text = output(Command::new("taskset").args(perf))?;
    Ok(before(&text, "usecs/op")? * 1e3 / 2.0)
}

fn copy(_: &Path) -> Result<f64> {
    let perf = ["bench", "mem", "memcpy", "-s", "8MB", "-l", "200", "-f", "default"];
    // Its GB are GiB (tools/perf/bench/mem-functions.c, print_bps).
    Ok(before(&output(Command::new("perf").args(perf))?, "GB/sec")? * 1024.0)
}

/// One job of fio's on a file as large as ours.
fn fio(place: &Path, kind: &str, more: &[&str]) -> Result<Value> {
    let file = place.join("fio");
    let mut command = Command::new("fio");
    command.args(["--name=check", "--ioengine=psync", "--direct=1", "--size=8m"]);
    command.args(["--time_based", "--runtime=2", "--output-format=json", "--randrepeat=0"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--rw={kind}")).args(more);
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let report: Value = serde_json::from_slice(&output.stdout)?;
    report.pointer("/jobs/0").cloned().context("no job")
}

fn number(job: &Value, path: &str) -> Result<f64> {
    job.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"))
}

fn random(place: &Path) -> Result<f64> {
    Ok(1e9 / number(&fio(place, "randread", &["--bs=4k", "--norandommap"])?, "/read/iops")?)
}

/// Its bw is in KiB/s.
fn read(place: &Path) -> Result<f64> {
    Ok(number(&fio(place, "read", &["--bs=64k"])?, "/read/bw")? / 1024.0)
}

fn write(place: &Path) -> Result<f64> {
    Ok(number(&fio(place, "write", &["--bs=64k", "--overwrite=1"])?, "/write/bw")? / 1024.0)
}

fn durable(place: &Path) -> Result<f64> {
    let job = fio(place, "write", &["--bs=4k", "--fdatasync=1", "--overwrite=1"])?;
    Ok(1e9 / number(&job, "/write/iops")?)
}

const PORT: &str = "52017";

fn stream(_: &Path) -> Result<f64> {
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-B", "127.0.0.1", "-p", PORT]);
    let server = server.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let _server = Ends(server);
    let mut client = Command::new("iperf3");
    client.args(["-c", "127.0.0.1", "-p", PORT, "-t", "2", "-l", "64K", "-J"]);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let output = client.stdin(Stdio::null()).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        if let Some(bits) = bits.filter(|_| output.status.success()) {
            return Ok(bits / 8.0 / (1 << 20) as f64);
        }
    }
    bail!("its server does not answer")
}

/// A process that is gone when this is.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_before_their_units() {
        let text =
            "     Total time: 0.017 [sec]\n\n       0.173660 usecs/op\n        5758378 ops/sec";
        assert_eq!(before(text, "usecs/op").unwrap(), 0.173_66);
        assert_eq!(before(text, "ops/sec").unwrap(), 5_758_378.0);
        assert!(before(text, "GB/sec").is_err() && before("GB/sec", "GB/sec").is_err());
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]).unwrap(), 2.5);
        assert!(median(vec![]).is_err());
    }

    #[test]
    fn a_pause_is_in_the_average() {
        // Two MiB at 1 and 4 MiB/s take 1.25 s; two operations take 1 and 4 ns.
        assert_eq!(average(&[1.0, 4.0], true), 1.6);
        assert_eq!(average(&[1.0, 4.0], false), 2.5);
        assert_eq!(beside(12.0, 10.0), "12 (1.20)!");
    }
}
