#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| job::image::testing::hostile(data));
