//! A job as a user sees it: what it starts from and what it is given.
//!
//! ```text
//!  image reference ─► image (file system, configuration) ─► a machine of vmm's
//! ```

pub mod image;
mod init;
