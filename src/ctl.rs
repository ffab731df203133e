//! `microvm ctl`: a running machine is changed, or asked how it is.

use clap::{Args, Subcommand};
use std::path::PathBuf;
use vmm::config::{Disk, Net, Size};
use vmm::control::request::PATIENCE;
use vmm::control::{self, Client, ClientError};

/// Change a running machine, or ask how it is
///
/// PATH is what the machine was started with: --control PATH. What the
/// machine answers is printed as a line of JSON. Images and TAPs are
/// opened by this command, with the rights of whoever calls it.
///
/// Exits with 0 when it is done, 2 if the command line can't be read, 3
/// with a line that says why if not.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, disable_help_subcommand = true)]
pub struct CtlArgs {
    /// The machine's control socket
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What to do
    #[command(subcommand)]
    what: Ctl,
}

impl CtlArgs {
    /// Asks the machine; returns its answer.
    pub fn ask(self) -> Result<String, ClientError> {
        Ok(Client::connect(&self.path)?.ask(self.what.into())?.to_string())
    }
}

/// What a running machine can be asked.
#[derive(Debug, Subcommand)]
pub enum Ctl {
    /// Its devices, by name, and their states
    Status,
    /// Add a disk
    ///
    /// Fields as of --disk. The guest finds it by itself.
    AddDisk {
        /// The image, as for --disk
        #[arg(value_name = "path=PATH[,FIELD=VALUE]…")]
        disk: Disk,
    },
    /// Add a network card on a TAP
    AddNet {
        /// The interface, as for --net
        #[arg(value_name = "tap=NAME[,mac=ADDRESS]")]
        net: Net,
    },
    /// Have the guest let go of a disk or a network card, and remove it
    Remove {
        /// Its name, as in status: block1, net0
        name: String,
        /// How long the guest has for it
        #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE)]
        timeout: u32,
        /// Remove it when that is over, at the guest's peril
        #[arg(long)]
        force: bool,
    },
    /// Make a disk and its image larger or smaller
    ResizeDisk {
        /// Its name, as in status
        name: String,
        /// Its new size [default: what its image has become]
        size: Option<Size>,
    },
    /// Have the guest give back memory by its balloon
    Balloon {
        /// How much in all, like 64M; 0 gives all of it to the guest
        size: Size,
    },
    /// Press the power button: an orderly guest shuts down
    PowerButton,
    /// End the machine at once
    Quit,
}

impl From<Ctl> for control::Command {
    fn from(what: Ctl) -> Self {
        match what {
            Ctl::Status => Self::Status {},
            Ctl::AddDisk { disk } => Self::AddDisk { disk, files: 1 },
            Ctl::AddNet { net } => Self::AddNet { net, mtu: None },
            Ctl::Remove { name, timeout, force } => Self::Remove { name, timeout, force },
            Ctl::ResizeDisk { name, size } => Self::ResizeDisk { name, size },
            Ctl::Balloon { size } => Self::Balloon { size },
            Ctl::PowerButton => Self::PowerButton {},
            Ctl::Quit => Self::Quit {},
        }
    }
}
