//! What stands behind a device: disk images, taps, user-mode networks, Unix sockets, the host's
//! entropy and console.

pub mod console;
pub mod disk;
mod link;
pub mod passt;
pub mod port;
pub mod prepared;
pub mod segment;
pub mod share;
pub mod tap;
pub mod user;
pub mod vhost;
pub mod vsock;
