//! The balloon and the entropy device, as their user asks for them.

use super::fields::Fields;
use super::{ConfigError, Size};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The longest time between two reports of the guest: a day.
const MAX_STATS: u32 = 86_400;
/// The least and the most random bytes in a second.
const RNG_RATES: std::ops::RangeInclusive<u64> = 1..=1 << 40;

/// Memory that the guest gives back to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// What it is to give back at first.
    #[serde(default = "nothing")]
    pub size: Size,
    /// Take it back rather than kill processes.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Seconds between reports of the guest's memory; 0: when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<u32>,
    /// Give back what the guest's kernel has free, all the time.
    #[serde(default)]
    pub free_page_reporting: bool,
}

fn nothing() -> Size {
    Size(0)
}

impl Balloon {
    pub(super) fn validate(&self, memory: Size) -> Result<(), ConfigError> {
        if self.size > memory {
            return Err(ConfigError::BalloonSize { size: self.size, memory });
        }
        match self.stats {
            Some(seconds) if seconds > MAX_STATS => Err(ConfigError::BalloonStats(seconds)),
            _ => Ok(()),
        }
    }
}

/// `[size=]SIZE[,deflate-on-oom=on|off][,stats=SECONDS][,free-page-reporting=on|off]`.
impl FromStr for Balloon {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("balloon", text, "size");
        let size = match fields.take("size") {
            Some(size) => size.parse()?,
            None => nothing(),
        };
        let stats = match fields.take("stats") {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                fields.error(format!("stats= must be a number of seconds, not {text:?}"))
            })?),
        };
        let balloon = Self {
            size,
            deflate_on_oom: fields.switch("deflate-on-oom")?.unwrap_or(false),
            stats,
            free_page_reporting: fields.switch("free-page-reporting")?.unwrap_or(false),
        };
        fields.end()?;
        balloon.validate(Size(u64::MAX))?;
        Ok(balloon)
    }
}

/// The entropy device. It is always there; this is what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rng {
    /// Bytes in a second.
    pub rate: Size,
    /// Bytes at once after a rest; a tenth of a second's unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Size>,
}

impl Rng {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let burst = self.burst.unwrap_or(Size(1));
        match RNG_RATES.contains(&self.rate.0) && RNG_RATES.contains(&burst.0) {
            true => Ok(()),
            false => Err(ConfigError::RngRate { rate: self.rate, burst }),
        }
    }
}

/// `[source=getrandom,]rate=SIZE[:BURST]`.
impl FromStr for Rng {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("rng", text, "rate");
        match fields.take("source").as_deref() {
            None | Some("getrandom") => {}
            Some(_) => return Err(fields.error("source= can only be getrandom".to_owned())),
        }
        let rate = fields.required("rate")?;
        let (rate, burst) = match rate.split_once(':') {
            Some((rate, burst)) => (rate.parse()?, Some(burst.parse()?)),
            None => (rate.parse()?, None),
        };
        fields.end()?;
        let rng = Self { rate, burst };
        rng.validate()?;
        Ok(rng)
    }
}
