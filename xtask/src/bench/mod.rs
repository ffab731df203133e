//! `cargo xtask bench`: figures, never in tests, and each from one place.

mod boot;
mod checks;
mod devices;
mod first_run;
mod io;
mod io_host;
mod io_report;
mod job;
mod memory;
mod report;
mod spectrum;
mod subject;

use anyhow::Result;
use clap::Subcommand;

/// What there is to measure.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// The way from exec to the guest's init, beside other monitors
    Boot(boot::BootArguments),
    /// What it costs to move data through disk, network and vsock, beside other monitors
    Io(io::IoArguments),
    /// Exits of every mode to init, beside QEMU's on the same board
    Spectrum(spectrum::SpectrumArguments),
    /// What a request costs each device with no guest, and cost at an earlier commit
    Devices(devices::DevicesArguments),
    /// Start and end of a job, beside podman, crun and bubblewrap, and where the time goes
    Job(job::JobArguments),
    /// What microvm compare measures, beside fio, iperf3, perf and time
    Checks(checks::ChecksArguments),
    /// For `job`, inside the rig
    #[command(hide = true)]
    JobHost(job::HostArguments),
    /// For `io`, inside the rig: the host's end of the guest's connections
    #[command(hide = true)]
    IoHost(io_host::HostArguments),
    /// Processor time from exec to the first KVM_RUN of any command, in microseconds
    #[command(hide = true)]
    FirstRun {
        /// Starts, of which the median counts
        #[arg(long, default_value_t = 31)]
        starts: usize,
        /// The monitor and its arguments
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// For `boot`, inside the rig: memory of a monitor whose guest is idle
    #[command(hide = true)]
    Memory(memory::MemoryArguments),
}

impl BenchCommand {
    /// Measures; returns the exit status.
    pub fn run(self) -> Result<u8> {
        match self {
            Self::Boot(arguments) => arguments.run(),
            Self::Devices(arguments) => arguments.run(),
            Self::Spectrum(arguments) => arguments.run(),
            Self::Io(arguments) => arguments.run(),
            Self::IoHost(arguments) => arguments.run(),
            Self::Job(arguments) => arguments.run(),
            Self::Checks(arguments) => arguments.run(),
            Self::JobHost(arguments) => arguments.run(),
            Self::FirstRun { starts, command } => {
                println!("{}", first_run::median(&command, starts)?.as_micros());
                Ok(0)
            }
            Self::Memory(arguments) => arguments.run(),
        }
    }
}
