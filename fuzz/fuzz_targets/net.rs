#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::virtio::testing::hostile::net(data));
