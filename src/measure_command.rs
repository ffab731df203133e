//! `microvm spectrum`: the host's table, or with `--measure` what its rows cost.

use crate::args::ArgsError;
use crate::target::Target;
use crate::{Error, print, print_json, style};
use clap::Args;
use measure::{Clock, Effort, Mode, Options, Subject};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vmm::config::Disk;
use vmm::exit::status;
use vmm::host;

/// Show what is virtualized how: Xen's table, as it is on this host
///
/// A guest of a few instructions measures what the host does about
/// privileged instructions and page tables, in less than a second. Exits
/// with 0 if that is known, with 4 if not.
///
/// With --measure the same Linux guest boots in every mode, and the report
/// says what each step buys: exits by reason and by register, the way to
/// init, the cost of disk requests, packets, timers and interrupts, and one
/// disk read access by access. The root file system is only read; no network
/// of the host's is used. Exits with 0 if every mode was measured, with 4 if
/// some could not be.
#[derive(Debug, Args)]
#[command(next_line_help = true, verbatim_doc_comment)]
pub struct SpectrumArgs {
    /// Print the report as JSON; with --measure, to a file if one is named
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// Boot a guest in every mode and measure
    #[arg(long, requires = "kernel")]
    measure: bool,
    /// The kernel that is measured: a vmlinux or a bzImage with drivers for
    /// what is measured built in, as resources/kernel/build.sh makes it
    #[arg(long, value_name = "FILE", requires = "measure", verbatim_doc_comment)]
    kernel: Option<PathBuf>,
    /// A root file system to mount on the way to init; it is only read
    #[arg(long, value_name = "FILE", requires = "measure")]
    rootfs: Option<String>,
    /// Words for the kernel
    #[arg(
        long,
        value_name = "WORDS",
        requires = "measure",
        default_value = "",
        hide_default_value = true
    )]
    cmdline: String,
    /// Only some of them: hvm-pio (hvm whose processor moves every byte),
    /// hvm-user (hvm with interrupts in microvm), hvm, hvm-pv, pvhvm, pv
    #[arg(
        long,
        value_name = "MODE,…",
        value_delimiter = ',',
        requires = "measure",
        verbatim_doc_comment
    )]
    modes: Vec<Subject>,
    /// Write a page with figures, which needs nothing else
    #[arg(long, value_name = "FILE", requires = "measure")]
    html: Option<PathBuf>,
    /// Fewer repetitions: the same counts, rougher times
    #[arg(long, requires = "measure")]
    quick: bool,
    /// Measure only the way to init
    #[arg(long, requires = "measure", conflicts_with_all = ["quick", "html"])]
    boot: bool,
    /// This host's clock counts instructions (cargo xtask rig --count)
    #[arg(long, requires = "measure", hide = true)]
    counted: bool,
    /// Measure this mode in this process, and print what is found as JSON
    #[arg(
        long,
        value_name = "MODE",
        requires = "measure",
        conflicts_with_all = ["json", "modes", "html"],
        hide = true
    )]
    one: Option<Subject>,
}

impl SpectrumArgs {
    /// Does it; returns the exit status.
    pub fn run(self) -> Result<u8, Error> {
        match (&self.kernel, &self.json) {
            (Some(kernel), _) if self.measure => self.measure(kernel),
            (_, Some(Some(path))) => Err(Error::Report(
                path.clone(),
                io::Error::new(io::ErrorKind::InvalidInput, "only --measure writes to a file"),
            )),
            (_, json) => show(json.is_some()),
        }
    }

    fn measure(&self, kernel: &Path) -> Result<u8, Error> {
        let to_output = self.json == Some(None);
        let refused = |(path, error)| Error::Report(path, error);
        let json = self.json.iter().flatten().map(|path| Target::open(path)).next().transpose();
        let json = json.map_err(refused)?;
        let html = self.html.as_deref().map(Target::open).transpose().map_err(refused)?;
        let rootfs = self.rootfs.as_deref().map(str::parse::<Disk>).transpose();
        let rootfs = rootfs.map_err(ArgsError::from)?;
        let subjects = if self.modes.is_empty() { Subject::ALL.into() } else { self.modes.clone() };
        let options = Options {
            kernel: kernel.to_owned(),
            rootfs,
            cmdline: self.cmdline.clone(),
            subjects,
            effort: match (self.boot, self.quick) {
                (true, _) => Effort::Boot,
                (false, true) => Effort::Quick,
                (false, false) => Effort::Full,
            },
            clock: if self.counted { Clock::Instructions } else { Clock::Nanoseconds },
        };
        if let Some(subject) = &self.one {
            print_json(&measure::measure_one(&options, subject)?)?;
            return Ok(status::OK);
        }
        let report = measure::measure(&options, |subject| self.measure_apart(kernel, subject))?;
        if to_output {
            print_json(&report)?;
        } else {
            print(&measure::table(&report))?;
        }
        if let Some(json) = json {
            let text = serde_json::to_string_pretty(&report).map_err(Error::Json)?;
            json.write(&(text + "\n")).map_err(refused)?;
        }
        if let Some(html) = html {
            html.write(&measure::page(&report).map_err(Error::Json)?).map_err(refused)?;
        }
        let all = report.modes.iter().all(|mode| mode.problem.is_none());
        Ok(if all { status::OK } else { status::HOST })
    }
}

impl SpectrumArgs {
    /// Has this program measure one mode in a process of its own.
    fn measure_apart(&self, kernel: &Path, subject: &Subject) -> Result<Mode, measure::Error> {
        if io::stderr().is_terminal() {
            eprintln!("microvm: measuring {} …", subject.name);
        }
        let mut own = Command::new("/proc/self/exe");
        own.args(["spectrum", "--measure", "--one", subject.name]);
        // Values may look like options.
        let mut with_name = OsString::from("--kernel=");
        with_name.push(kernel);
        own.arg(with_name).arg(format!("--cmdline={}", self.cmdline));
        own.args(self.rootfs.iter().map(|rootfs| format!("--rootfs={rootfs}")));
        own.args(self.quick.then_some("--quick"));
        own.args(self.boot.then_some("--boot"));
        own.args(self.counted.then_some("--counted"));
        let output = own.stdin(Stdio::null()).output();
        let output = output.map_err(|source| measure::Error::Host { what: "microvm", source })?;
        if output.status.success() {
            let mode = serde_json::from_slice(&output.stdout).map_err(io::Error::from);
            return mode.map_err(|source| measure::Error::Host { what: subject.name, source });
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let told = told.trim().strip_prefix("microvm: ").unwrap_or(told.trim()).to_owned();
        let status = output.status.code().and_then(|code| u8::try_from(code).ok());
        let status = status.unwrap_or(status::INTERNAL);
        // What the user gave is as wrong for the next mode.
        if [status::INPUT, status::USAGE].contains(&status) {
            return Err(measure::Error::Ended { status, text: told });
        }
        Ok(Mode::failed(subject, told))
    }
}

fn show(json: bool) -> Result<u8, Error> {
    let report = host::spectrum::examine();
    if json {
        print_json(&report)?;
    } else {
        print(&crate::spectrum::text(&report, style()))?;
    }
    Ok(if report.is_known() { status::OK } else { status::HOST })
}

/// A report that can't be written, in a line.
pub fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {}", path.display(), vmm::plain(error))
}
