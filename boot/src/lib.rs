//! What the guest starts from: a kernel image, an initial RAM disk and a
//! command line, put into memory as the kernel's boot protocol wants them.
//!
//! ```text
//!  path ─► Kernel::open (checked, nothing touched) ─► load(memory) ─► arch::registers::Entry
//! ```

pub mod bzimage;
pub mod cmdline;
pub mod elf;
pub mod initrd;
pub mod kernel;
pub mod linux;
pub mod load;
pub mod pvh;
pub mod real16;

pub use initrd::Initrd;
pub use kernel::{Kernel, KernelError};
pub use load::{BootError, Payload, Way, load};

/// Guest memory, as it is loaded.
pub type Ram = vm_memory::GuestMemoryMmap<()>;

/// Opens a file that is to be loaded. A pipe must not make us wait for its
/// writer: it is refused a moment later.
fn open(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}
