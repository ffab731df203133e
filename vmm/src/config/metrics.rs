//! Reports of what the machine does, as their user asks for them.

use super::ConfigError;
use super::fields::Fields;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Where counters are reported, in which form, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where to.
    pub target: MetricsTarget,
    /// In which form.
    #[serde(default)]
    pub format: MetricsFormat,
    /// Seconds between two reports to a file.
    #[serde(default = "default_every")]
    pub every: u32,
}

/// Where reports go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsTarget {
    /// Appended, every so often and at the end.
    File(PathBuf),
    /// Whoever connects to this Unix socket gets one.
    Socket(PathBuf),
}

/// The form of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsFormat {
    /// A line of JSON.
    #[default]
    Json,
    /// Prometheus's text form.
    Prometheus,
}

fn default_every() -> u32 {
    10
}

/// `[file=]PATH` or `socket=PATH`, then `format=json|prometheus`, `every=SECONDS`.
impl FromStr for MetricsConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new("metrics", text, "file");
        let path = |path: String| match path.is_empty() {
            true => Err(fields_error(text, "the path is empty")),
            false => Ok(PathBuf::from(path)),
        };
        let target = match (fields.take("file"), fields.take("socket")) {
            (Some(file), None) => MetricsTarget::File(path(file)?),
            (None, Some(socket)) => MetricsTarget::Socket(path(socket)?),
            _ => return Err(fields_error(text, "give file=PATH or socket=PATH")),
        };
        let words = [("json", MetricsFormat::Json), ("prometheus", MetricsFormat::Prometheus)];
        let format = fields.word("format", &words)?;
        let every = fields.number("every")?.unwrap_or_else(default_every);
        fields.end()?;
        match every {
            1..=86400 => Ok(Self { target, format, every }),
            _ => Err(fields_error(text, "every= must be 1 to 86400 seconds")),
        }
    }
}

fn fields_error(text: &str, why: &str) -> ConfigError {
    ConfigError::Parse { what: "metrics", text: text.to_owned(), why: why.to_owned() }
}
