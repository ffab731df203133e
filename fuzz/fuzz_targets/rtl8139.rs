#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::legacy::nic::testing::hostile_rtl8139(data));
