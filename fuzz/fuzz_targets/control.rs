#![no_main]

use vmm::control::lines::Lines;
use vmm::control::request::Request;

// The first byte says how the rest is cut into pieces.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((step, text)) = data.split_first() else { return };
    let mut lines = Lines::default();
    for piece in text.chunks(usize::from(*step).max(1)) {
        lines.push(piece);
        while let Ok(Some(line)) = lines.take_line() {
            let Ok(request) = Request::parse(&line) else { continue };
            let again = request.line().expect("a request is JSON");
            assert_eq!(Request::parse(again.trim_end().as_bytes()), Ok(request));
        }
    }
});
