//! Digests: `sha256:` and 64 digits, which name a blob by its content.

use super::error::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read};

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads one. Only lower-case digits are one, so that it can name a file.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |reason| {
            let text: String = text.chars().take(80).collect();
            Error::malformed(format!("digest {}", text.escape_debug()), reason)
        };
        let hex = text.strip_prefix("sha256:").ok_or_else(|| refuse("is none of SHA-256"))?;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut sum = [0; 32];
        if hex.len() != 64 {
            return Err(refuse("does not have 64 digits"));
        }
        for (byte, pair) in sum.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let value = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low);
            *byte = value.ok_or_else(|| refuse("does not have 64 digits"))?;
        }
        Ok(Self(sum))
    }

    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of all that can be read.
    pub fn of_all(input: &mut impl Read, watch: &mut dyn FnMut(u64)) -> io::Result<Self> {
        let mut sum = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(Self(sum.finalize().into())),
                Ok(read) => {
                    sum.update(&buffer[..read]);
                    watch(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Its digits, without `sha256:`.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_digits_are_a_digest() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of_all(&mut &b""[..], &mut |_| ()).unwrap().to_string(), empty);
        for wrong in ["", "sha256:", "sha512:00", &empty.to_uppercase(), &empty[..70]] {
            assert!(Digest::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Digest::parse(&format!("sha256:../{}", "0".repeat(61))).is_err());
        assert!(Digest::parse(&format!("sha256:é{}", "0".repeat(62))).is_err());
    }
}
