#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::legacy::nic::testing::hostile_ne2000(data));
