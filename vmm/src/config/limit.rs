//! Limits on how much may happen in a second, as people write them.

use super::{ConfigError, Size};
use devices::rate::Rate;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// So much in a second, and at once after a rest: `50M` or `50M:10M`. Without
/// the second number it is what comes in a tenth of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Rate);

impl FromStr for Limit {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (rate, burst) = match text.split_once(':') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let number = |text: &str| match text.parse()? {
            Size(0) => Err(ConfigError::Parse {
                what: "limit",
                text: text.to_owned(),
                why: "must be more than 0".to_owned(),
            }),
            Size(n) => Ok(n),
        };
        let steady = Rate::steady(number(rate)?);
        let burst = burst.map(number).transpose()?.unwrap_or(steady.burst);
        Ok(Self(Rate { burst, ..steady }))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Size(self.0.per_second), Size(self.0.burst))
    }
}

impl Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
