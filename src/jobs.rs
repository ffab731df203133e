//! `microvm exec`, `ps` and `stop`: what can be done about jobs that have names.

use clap::Args;
use job::exec;
use job::named::Name;
use job::named::ask::{self, Found};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Run a program beside a job, in its virtual machine
///
/// NAME is what the job was started with: microvm run --name NAME. The
/// program has the job's environment, and this command's user, groups,
/// limits, umask and, where the job has it, working directory. Input,
/// output, terminal, signals and exit status are as with microvm run. What
/// still runs when the job ends is killed.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, next_line_help = true)]
pub struct ExecArgs {
    /// The job
    pub name: Name,

    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub arguments: Vec<OsString>,

    /// Set a variable, or take the caller's; may be given more than once
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,

    /// Working directory [default: the same as outside]
    #[arg(long, visible_alias = "cwd", value_name = "PATH")]
    pub pwd: Option<PathBuf>,

    /// Give the program a terminal [default: if input and output are one]
    #[arg(short = 't', long, overrides_with = "no_tty")]
    pub tty: bool,

    /// Give the program no terminal
    #[arg(long)]
    pub no_tty: bool,
}

impl ExecArgs {
    /// The program that these options ask for.
    pub fn into_options(self) -> exec::Options {
        exec::Options {
            name: self.name,
            arguments: self.arguments,
            env: self.env,
            pwd: self.pwd,
            terminal: crate::run::wanted_terminal(self.tty, self.no_tty),
        }
    }
}

/// List the jobs of this user that have names
///
/// Names that a killed microvm has left are removed.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PsArgs {
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
}

/// Stop a job, and wait for its end
///
/// It gets SIGTERM, and SIGKILL when the time is up. Exits with 0 when the
/// job has ended, with 3 if there is none of that name.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct StopArgs {
    /// The job
    pub name: Name,

    /// How long it has to end by itself
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
    pub time: u32,
}

impl StopArgs {
    /// Stops it; returns whether it ended by itself.
    pub fn stop(&self) -> Result<bool, job::Error> {
        ask::stop(&self.name, Duration::from_secs(self.time.into()))
    }
}

/// All jobs, for programs.
pub fn as_json(all: &[Found]) -> Value {
    let one = |found: &Found| json!({ "name": found.name, "pid": found.pid, "job": found.about });
    all.iter().map(one).collect()
}

/// All jobs, for people.
pub fn table(all: &[Found]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let heads = ["NAME", "PID", "STATE", "FOR", "CPUS", "MEMORY", "IMAGE", "COMMAND"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(all.iter().map(|found| row(found, now)));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row(found: &Found, now: u64) -> [String; 8] {
    let (name, pid) = (found.name.clone(), found.pid.to_string());
    let Some(about) = &found.about else {
        return [
            name,
            pid,
            "no answer".to_owned(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
        ];
    };
    // A name or command is anybody's text, a terminal no place for its controls.
    let [state, image, command] =
        [&about.state, &about.image, &about.command].map(|text| vmm::visible(text));
    let seconds = now.saturating_sub(about.started);
    let memory = format!("{}M", about.memory >> 20);
    [name, pid, state, time(seconds), about.cpus.to_string(), memory, image, command]
}

fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_line_for_each_job() {
        let about = job::named::desk::About {
            pid: 7,
            started: 0,
            image: "a\u{1b}.img".to_owned(),
            command: "sleep 9".to_owned(),
            cpus: 2,
            memory: 1 << 30,
            state: "running".to_owned(),
        };
        let found = |name: &str, about| Found { name: name.to_owned(), pid: 7, about };
        let text = table(&[found("long-name", Some(about)), found("b", None)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME       PID  STATE"), "{text}");
        assert!(
            lines[1].contains("1024M") && lines[1].ends_with("a\\u{1b}.img  sleep 9"),
            "{text}"
        );
        assert_eq!(lines[2], "b          7    no answer");
        assert_eq!(["59s", "1m01s", "2h00m", "1d00h"], [59, 61, 7200, 86_400].map(time));
    }
}
