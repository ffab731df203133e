//! What the rig is to do: written by the caller into the initramfs, read by
//! the rig's init.
//!
//! It travels in the initramfs and not over the line because in a counting run
//! nothing may depend on when a byte from outside happens to arrive.
//!
//! The text form is `key=value` records, each ended by a NUL, the one byte that
//! neither an argument nor an environment variable can contain.

use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Where in the initramfs the job lies.
pub const JOB_PATH: &str = "rig/job";
/// Where in the initramfs the modules lie.
pub const MODULES_PATH: &str = "rig/modules";
/// Where in the initramfs a packed tree lies.
pub const TREE_PATH: &str = "tree";
/// The name of the virtio port, which init looks for.
pub const PORT_NAME: &str = "rig";
/// The tag under which the host's files are shared.
pub const HOST_TAG: &str = "host";

/// What the command sees as its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The host's own, over 9p.
    Host,
    /// The files packed into the initramfs: nothing from outside, ever.
    Packed,
}

/// The line frames travel on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A virtio-serial port: fast, both ways.
    Port,
    /// The second 16550: every emulator has one. Towards the caller only.
    Serial,
}

/// What is watched while the command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    Nothing,
    /// When guests write to the marker port.
    Marker,
    /// That, and every exit by cause.
    Exits,
    /// When they write to it, and every exit by the last value written; none
    /// before the first one.
    Phases,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// One command to run, and the place to run it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// The whole environment, as `NAME=value`.
    pub environment: Vec<OsString>,
    /// Working directory.
    pub directory: OsString,
    /// Root file system.
    pub root: Root,
    /// Line for the frames.
    pub line: Line,
    /// A terminal for the command, of this size; none means pipes.
    pub terminal: Option<Window>,
    /// Whether standard input comes from the caller (otherwise `/dev/null`).
    pub stdin: bool,
    /// What to watch and report.
    pub trace: Trace,
    /// Modules to load, in order, before the root is mounted: file name, then
    /// parameters.
    pub early_modules: Vec<String>,
    /// Modules to load before the command starts.
    pub modules: Vec<String>,
}

impl Job {
    /// The form init reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |key: &str, value: &OsStr| {
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        };
        for word in &self.command {
            put("command", word);
        }
        for variable in &self.environment {
            put("environment", variable);
        }
        put("directory", &self.directory);
        put(
            "root",
            OsStr::new(match self.root {
                Root::Host => "host",
                Root::Packed => "packed",
            }),
        );
        put(
            "line",
            OsStr::new(match self.line {
                Line::Port => "port",
                Line::Serial => "serial",
            }),
        );
        if let Some(window) = self.terminal {
            put("terminal", OsStr::new(&format!("{}x{}", window.rows, window.columns)));
        }
        if self.stdin {
            put("stdin", OsStr::new("yes"));
        }
        match self.trace {
            Trace::Nothing => {}
            Trace::Marker => put("trace", OsStr::new("marker")),
            Trace::Exits => put("trace", OsStr::new("exits")),
            Trace::Phases => put("trace", OsStr::new("phases")),
        }
        for module in &self.early_modules {
            put("early-module", OsStr::new(module));
        }
        for module in &self.modules {
            put("module", OsStr::new(module));
        }
        out
    }

    /// Reads what [`Job::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut job = Self {
            command: Vec::new(),
            environment: Vec::new(),
            directory: OsString::from("/"),
            root: Root::Host,
            line: Line::Port,
            terminal: None,
            stdin: false,
            trace: Trace::Nothing,
            early_modules: Vec::new(),
            modules: Vec::new(),
        };
        for record in bytes.split(|&b| b == 0).filter(|r| !r.is_empty()) {
            let equals =
                record.iter().position(|&b| b == b'=').context("a record of the job has no '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let word = || OsString::from_vec(value.to_vec());
            let text =
                || String::from_utf8(value.to_vec()).context("a setting of the job is not UTF-8");
            match key {
                b"command" => job.command.push(word()),
                b"environment" => job.environment.push(word()),
                b"directory" => job.directory = word(),
                b"root" => {
                    job.root = match value {
                        b"host" => Root::Host,
                        b"packed" => Root::Packed,
                        _ => bail!("unknown root in the job"),
                    }
                }
                b"line" => {
                    job.line = match value {
                        b"port" => Line::Port,
                        b"serial" => Line::Serial,
                        _ => bail!("unknown line in the job"),
                    }
                }
                b"terminal" => job.terminal = Some(parse_window(&text()?)?),
                b"trace" => {
                    job.trace = match value {
                        b"marker" => Trace::Marker,
                        b"exits" => Trace::Exits,
                        b"phases" => Trace::Phases,
                        _ => bail!("unknown trace in the job"),
                    }
                }
                b"stdin" => job.stdin = true,
                b"early-module" => job.early_modules.push(text()?),
                b"module" => job.modules.push(text()?),
                _ => bail!("unknown key {:?} in the job", String::from_utf8_lossy(key)),
            }
        }
        if job.command.is_empty() {
            bail!("the job names no command");
        }
        Ok(job)
    }
}

fn parse_window(text: &str) -> Result<Window> {
    let (rows, columns) = text.split_once('x').context("a window is ROWSxCOLUMNS")?;
    Ok(Window {
        rows: rows.parse().context("rows of the window")?,
        columns: columns.parse().context("columns of the window")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Job {
        Job {
            command: vec!["sh".into(), "-c".into(), "".into(), "a=b\nc".into()],
            environment: vec!["PATH=/bin".into(), "EMPTY=".into()],
            directory: "/a dir".into(),
            root: Root::Packed,
            line: Line::Serial,
            terminal: Some(Window { rows: 24, columns: 80 }),
            stdin: true,
            trace: Trace::Exits,
            early_modules: vec!["9p.ko".into()],
            modules: vec!["kvm-amd.ko npt=0".into()],
        }
    }

    #[test]
    fn survives_the_journey() {
        let job = sample();
        assert_eq!(Job::decode(&job.encode()).expect("own encoding"), job);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(Job::decode(b"").is_err());
        assert!(Job::decode(b"command=x\0colour=red\0").is_err());
        assert!(Job::decode(b"command=x\0terminal=24\0").is_err());
        assert!(Job::decode(b"nonsense\0").is_err());
    }

    proptest! {
        #[test]
        fn any_words_survive(words in prop::collection::vec(prop::collection::vec(1u8.., 0..40), 1..6)) {
            let mut job = sample();
            job.command = words.into_iter().map(OsString::from_vec).collect();
            prop_assert_eq!(Job::decode(&job.encode()).expect("own encoding"), job);
        }
    }
}
