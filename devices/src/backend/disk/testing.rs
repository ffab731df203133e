//! Images for tests.

use imago::file::File;
use imago::format::builder::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use imago::storage::{Storage, StorageOpenOptions};
use std::path::Path;

/// An empty qcow2 image in the empty file at `path`.
pub fn make_qcow2(path: &Path, len: u64) {
    let builder = Qcow2::<File>::create_builder(storage(path));
    // The smallest clusters: a disk of a few sectors has many of them.
    builder.size(len).cluster_size(512).create().expect("a new image");
}

/// The same on a raw backing file.
pub fn make_qcow2_on(path: &Path, len: u64, base: &Path) {
    std::fs::write(path, []).expect("a new file");
    let base = base.to_str().expect("a path in UTF-8").to_owned();
    let builder = Qcow2::<File>::create_builder(storage(path)).backing(base, "raw".to_owned());
    builder.size(len).create().expect("a new image");
}

fn storage(path: &Path) -> File {
    File::open(StorageOpenOptions::new().filename(path).write(true)).expect("its file")
}
