#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::backend::user::hostile::run(data));
