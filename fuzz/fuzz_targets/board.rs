#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::legacy::testing::hostile(data));
