//! Where Linux guests run in tests: this host's own KVM if it can, and
//! otherwise the rig, a host emulated in software that has a true `/dev/kvm`.
//!
//! The rig runs any command of this machine: the emulated host shares its file
//! system, the command gets the caller's directory and environment, and its
//! output and exit status come back as if it had run here. So a test needs no
//! image of its own: it re-executes itself, see [`ensure`].

mod cache;
mod closure;
mod cpio;
pub mod exits;
pub mod frame;
mod init_binary;
mod initramfs;
pub mod job;
pub mod kit;
mod linux;
mod place;
mod run;
mod session;
mod several;
mod svm;
mod tally;
mod terminal;
mod tools;
mod vtx;

pub use cache::root as cache_directory;
pub use place::{Emulation, IN_RIG, Place, ensure, place};
pub use run::{Options, Output};
pub use session::TIMED_OUT;
pub use several::{Claims, claims, ensure_several};
pub use tally::Tally;
pub use tools::{find as find_program, install as install_packages};
