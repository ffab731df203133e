#![no_main]

use devices::virtio::testing::{Bench, hostile};
use std::sync::LazyLock;

static DIRECTORY: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::fs::<Bench>(data, DIRECTORY.path()));
