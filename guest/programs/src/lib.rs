//! The programs that run in guests, as contents of files. Each user of this crate
//! carries only those that it asks for.

use flate2::read::DeflateDecoder;
use std::io::{self, Read};

/// PID 1 of a job's guest, which also measures machines for `microvm spectrum`.
pub fn init() -> io::Result<Vec<u8>> {
    unpack(include_bytes!(env!("MICROVM_INIT")))
}

/// What `microvm compare` runs in its subjects.
pub fn agent() -> io::Result<Vec<u8>> {
    unpack(include_bytes!(env!("MICROVM_AGENT")))
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut program = Vec::with_capacity(packed.len() * 2);
    DeflateDecoder::new(packed).read_to_end(&mut program)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_small_and_need_nothing_else() {
        for program in [init().unwrap(), agent().unwrap()] {
            assert!(program.len() < 1300 << 10, "{} bytes", program.len());
            // An ELF executable (type 2) without an interpreter (PT_INTERP, 3).
            assert_eq!(&program[..4], b"\x7fELF");
            assert_eq!(program[16], 2);
            let number = |at: usize, len: usize| {
                program[at..at + len].iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b))
            };
            let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
            assert!((0..count).all(|i| number(offset + i * size, 4) != 3));
        }
    }
}
