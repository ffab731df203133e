//! What stands behind a device: disk images, taps, Unix sockets, the host's
//! entropy and console.

pub mod console;
pub mod disk;
pub mod port;
pub mod prepared;
pub mod share;
pub mod tap;
pub mod vsock;
