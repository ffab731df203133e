//! Images: what a job's root file system is made from.
//!
//! ```text
//!  "oci:dir:tag"  ─► Reference ─► OCI layout or archive
//!  "app.img"      ─► Reference ─► probe ─► directory, disk, SIF, archive
//! ```
//!
//! Whatever is read here may have been made to do harm: sizes, counts and
//! depths are capped, and nothing of an image is ever unpacked into the host's
//! file system.

pub mod error;
pub mod probe;
pub mod reference;

pub use error::{Error, Result};
pub use probe::{FileSystem, Kind, probe};
pub use reference::Reference;
