//! The escape key of the console, `Ctrl-a`, as a pure state machine.

/// The escape key.
pub const CTRL_A: u8 = 0x01;

/// What `Ctrl-a h` prints.
pub const HELP: &str = "\
Ctrl-a x       leave: ends the monitor and the guest\n\
Ctrl-a h       this help\n\
Ctrl-a Ctrl-a  send Ctrl-a to the guest (so does Ctrl-a a)\n\
All other keys reach the guest.\n";

/// What the user typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed<'a> {
    /// These bytes are for the guest.
    Bytes(&'a [u8]),
    /// Tell the keys.
    Help,
    /// Leave the console.
    Leave,
}

/// Whether the last byte was a `Ctrl-a` that waits for its second key.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Escape {
    armed: bool,
}

impl Escape {
    /// Takes the next piece off `input`; `None` when nothing is left.
    ///
    /// A `Ctrl-a` at the end of the input waits for the key that follows,
    /// however much later it comes.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Typed<'a>> {
        while let Some((&first, rest)) = input.split_first() {
            if self.armed {
                self.armed = false;
                match first {
                    b'x' => {
                        *input = rest;
                        return Some(Typed::Leave);
                    }
                    b'h' => {
                        *input = rest;
                        return Some(Typed::Help);
                    }
                    b'a' | CTRL_A => *input = rest,
                    // Not ours: the guest gets both. `first` stays where it
                    // is, and can't be a Ctrl-a.
                    _ => {}
                }
                return Some(Typed::Bytes(&[CTRL_A]));
            }
            if first == CTRL_A {
                self.armed = true;
                *input = rest;
                continue;
            }
            let plain = input.iter().position(|b| *b == CTRL_A).unwrap_or(input.len());
            let (bytes, rest) = input.split_at(plain);
            *input = rest;
            return Some(Typed::Bytes(bytes));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the guest gets, and in capitals what the monitor was told.
    fn typed(chunks: &[&[u8]]) -> Vec<u8> {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(typed) = escape.next(&mut input) {
                match typed {
                    Typed::Bytes(bytes) => out.extend_from_slice(bytes),
                    Typed::Help => out.push(b'H'),
                    Typed::Leave => out.push(b'X'),
                }
            }
        }
        out
    }

    #[test]
    fn the_escape_key_has_three_uses_and_passes_the_rest() {
        for (keys, result) in [
            (&b"ab\x01xc"[..], &b"abXc"[..]),
            (b"\x01h", b"H"),
            (b"\x01\x01x", b"\x01x"),
            (b"\x01ax", b"\x01x"),
            (b"\x01qx", b"\x01qx"),
            (b"\x01X\x01H", b"\x01X\x01H"),
            (b"\x01\x01\x01x", b"\x01X"),
            (b"\x01", b""),
            (b"", b""),
        ] {
            assert_eq!(typed(&[keys]), result, "{keys:?}");
        }
    }

    proptest! {
        #[test]
        fn without_the_escape_key_all_bytes_pass(keys in proptest::collection::vec(2u8.., 0..200)) {
            prop_assert_eq!(typed(&[&keys]), keys);
        }

        #[test]
        fn how_the_input_is_cut_makes_no_difference(
            keys in proptest::collection::vec(
                prop_oneof![Just(CTRL_A), Just(b'x'), Just(b'h'), Just(b'a'), any::<u8>()], 0..60),
            size in 1usize..8,
        ) {
            let chunks: Vec<&[u8]> = keys.chunks(size).collect();
            prop_assert_eq!(typed(&chunks), typed(&[&keys]));
        }
    }
}
