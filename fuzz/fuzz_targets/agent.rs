#![no_main]

use guest::protocol::{Decoder, Error, MAX_TO_GUEST, MAX_TO_HOST, ToGuest, ToHost};
use std::fmt::Debug;

/// Takes all messages of `bytes`, which come in pieces of `step`.
fn take<T>(
    bytes: &[u8],
    step: usize,
    max: u32,
    next: fn(&mut Decoder) -> Result<Option<T>, Error>,
) -> Vec<T> {
    let (mut decoder, mut all) = (Decoder::new(max), Vec::new());
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Ok(message) = next(&mut decoder) {
            let Some(message) = message else { break };
            all.push(message);
        }
    }
    all
}

/// What was understood is said in one way only, and understood again.
fn check<T: PartialEq + Debug>(
    bytes: &[u8],
    step: usize,
    max: u32,
    next: fn(&mut Decoder) -> Result<Option<T>, Error>,
    encode: fn(&T) -> Vec<u8>,
) {
    let all = take(bytes, step, max, next);
    let again: Vec<u8> = all.iter().flat_map(encode).collect();
    assert_eq!(take(&again, 7, max, next), all);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let step = usize::from(first >> 1) + 1;
    match first & 1 {
        0 => check(data, step, MAX_TO_GUEST, ToGuest::next, ToGuest::encode),
        _ => check(data, step, MAX_TO_HOST, ToHost::next, ToHost::encode),
    }
});
