//! What stands behind a device: disk images, taps, the host's entropy and console.

pub mod console;
pub mod disk;
pub mod tap;
