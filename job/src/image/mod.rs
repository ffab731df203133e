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

pub mod bar;
pub mod blobs;
pub mod build;
pub mod built;
pub mod cache;
pub mod config;
pub mod content;
pub mod digest;
pub mod directory;
pub mod erofs;
pub mod error;
pub mod identity;
#[cfg(test)]
mod image_test;
pub mod inspect;
pub mod layer;
#[cfg(test)]
mod layer_test;
pub mod limits;
pub mod oci;
pub mod open;
pub mod probe;
pub mod progress;
pub mod reference;
pub mod sif;
pub mod source;
pub mod stream;
pub mod tar;
#[cfg(test)]
mod tar_test;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;

pub use error::{Error, Result};
pub use probe::{FileSystem, Kind, probe};
pub use reference::Reference;
