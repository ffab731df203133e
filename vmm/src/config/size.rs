//! Numbers of bytes, as people write them.

use super::ConfigError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number of bytes, written with a binary suffix: `512M`, `2G`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SUFFIXES: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for Size {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError::Parse {
            what: "size",
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let unit = text.strip_suffix("iB").or(text.strip_suffix('B')).unwrap_or(text);
        let last = unit.chars().last().map(|c| c.to_ascii_uppercase());
        let (digits, shift) = match SUFFIXES.iter().find(|(c, _)| Some(*c) == last) {
            Some((_, shift)) => (&unit[..unit.len() - 1], *shift),
            None => (unit, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("must be a whole number with K, M, G or T, like 512M"));
        }
        let n: u64 = digits.parse().map_err(|_| bad("too large"))?;
        n.checked_mul(1 << shift).map(Self).ok_or_else(|| bad("too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match SUFFIXES.iter().rev().find(|(_, shift)| fits(*shift)) {
            Some((c, shift)) => write!(f, "{}{c}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Bytes(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Bytes(n) => Ok(Self(n)),
            Raw::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}
