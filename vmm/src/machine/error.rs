//! Why a machine could not be built, and which exit status says so.

use crate::config::ConfigError;
use crate::exit::status;
use crate::host::HostError;
use crate::memory::MemoryError;
use crate::sandbox::SandboxError;
use crate::vm::VmError;
use std::io;

/// Why there is no machine. Each message names the thing and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel image.
    #[error(transparent)]
    Kernel(#[from] boot::KernelError),
    /// The firmware image.
    #[error(transparent)]
    Firmware(#[from] boot::FirmwareError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] boot::initrd::InitrdError),
    /// Kernel, initrd and command line in this memory.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] arch::acpi::AcpiError),
    /// A disk or its image.
    #[error(transparent)]
    Disk(#[from] devices::backend::disk::DiskError),
    /// A network card or its TAP.
    #[error(transparent)]
    Net(#[from] devices::backend::tap::TapError),
    /// The kernel's data path of a network card.
    #[error(
        "net {net}: vhost=on: {device}: {source}: load the module (modprobe vhost_net) and ask for \
         access, or give vhost=off",
        device = devices::backend::vhost::VHOST_NET_DEVICE
    )]
    Vhost {
        /// The card.
        net: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// A user-mode network.
    #[error(transparent)]
    UserNet(#[from] devices::backend::user::UserNetError),
    /// A segment among machines.
    #[error(transparent)]
    Segment(#[from] devices::backend::segment::SegmentError),
    /// A user-mode network that passt was to serve.
    #[error(transparent)]
    Passt(#[from] devices::backend::passt::PasstError),
    /// The host's sockets of a vsock.
    #[error(transparent)]
    Vsock(#[from] devices::backend::vsock::VsockError),
    /// A shared directory.
    #[error(transparent)]
    Share(#[from] devices::backend::share::ShareError),
    /// Where counters are reported.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::ServeError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] crate::control::ControlError),
    /// The host's side of a console's port.
    #[error(transparent)]
    Port(#[from] devices::backend::port::PortError),
    /// The file that the serial console goes to.
    #[error("serial {path}: {source}")]
    Serial {
        /// The file.
        path: String,
        /// What the host said.
        source: io::Error,
    },
    /// This host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What was to be given up could not be.
    #[error("{0}")]
    Confine(io::Error),
    /// The system call filters.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Something that no host in order refuses.
    #[error("{what}: {source}")]
    Internal {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// Two devices in one place.
    #[error(transparent)]
    Bus(#[from] devices::bus::BusError),
}

impl Error {
    pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Internal { what, source }
    }

    pub(super) fn events(error: impl std::fmt::Debug) -> Self {
        Self::Internal { what: "event loop", source: io::Error::other(format!("{error:?}")) }
    }

    /// The exit status for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Vm(VmError::TooManyCpus { .. }) => status::INPUT,
            Self::Host(_) | Self::Vm(_) | Self::Memory(_) | Self::Sandbox(_) | Self::Confine(_) => {
                status::HOST
            }
            Self::Internal { .. } | Self::Bus(_) => status::INTERNAL,
            _ => status::INPUT,
        }
    }
}
