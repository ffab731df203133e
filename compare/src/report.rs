//! The result as data: what `--json` prints and `compare diff` reads.

use crate::catalog::{Group, METRICS, Metric, Unit, metric_of};
use crate::stats::Summary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of this form of the data.
pub const VERSION: u32 = 1;

/// A whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Where it was measured.
    pub host: Host,
    /// How much.
    pub effort: String,
    /// The user's own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What was compared, in order.
    pub subjects: Vec<Column>,
}

/// The host, as far as it matters to figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub processor: String,
    /// How many of them this process may use.
    pub processors: usize,
    /// MiB of memory.
    pub memory: u64,
    /// `uname -r`.
    pub kernel: String,
    /// What the processor says of a hypervisor above.
    pub hypervisor: Option<String>,
    /// What stands behind KVM.
    pub kvm: String,
    /// How privileged instructions of a guest are carried out: VH or VS.
    pub privileged_instructions: String,
    /// How its page tables are walked.
    pub page_tables: String,
    /// Whether all of this host is emulated in software.
    pub emulated: bool,
    /// Whether virtualization is.
    pub virtualization_emulated: bool,
    /// The processor's frequency governor.
    pub governor: Option<String>,
    /// The user.
    pub uid: u32,
    /// Seconds since 1970, when it was measured.
    pub time: u64,
    /// The version of this program.
    pub program: String,
}

/// One subject.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub subject: String,
    /// Whether its figures come from virtualization in software.
    #[serde(default)]
    pub emulated: bool,
    /// Why there is nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What should be known about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Measurements by their names.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
    /// What came of each probe.
    #[serde(default)]
    pub probes: BTreeMap<String, Outcome>,
    /// What it told of itself.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Every sample, outliers too.
    Samples(Vec<f64>),
    /// Why there are none.
    Missing(String),
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It reaches the host.
    Host,
    /// It is allowed, by a kernel of the subject's own.
    Own,
    /// It is not, or there is no such thing.
    No(String),
    /// The probe itself can't be trusted here.
    Unknown(String),
}

impl Report {
    /// A subject by its name.
    pub fn subject(&self, name: &str) -> Option<&Column> {
        self.subjects.iter().find(|column| column.subject == name)
    }

    /// What all others are compared with.
    pub fn native(&self) -> Option<&Column> {
        self.subject("native")
    }
}

/// Why a subject that is no machine lacks what is about guests.
pub const NO_GUEST: &str = "no guest";

/// The rows of a group in a table of these columns: not those about guests where none
/// of the subjects has one.
pub fn rows(group: Group, columns: &[&Column]) -> Vec<&'static Metric> {
    let concerns = |column: &&Column, metric: &Metric| match column.values.get(metric.name) {
        Some(Value::Missing(why)) => why != NO_GUEST,
        other => other.is_some(),
    };
    let all = METRICS.iter().filter(|metric| metric.group == group);
    all.filter(|metric| columns.iter().any(|column| concerns(column, metric))).collect()
}

impl Column {
    /// A measurement in short.
    pub fn summary(&self, metric: &str) -> Option<Summary> {
        match self.values.get(metric)? {
            Value::Samples(samples) => Summary::of(samples),
            Value::Missing(_) => None,
        }
    }

    /// Adds samples, or the reason that there are none.
    pub fn add(&mut self, metric: &str, value: Value) {
        match (self.values.get_mut(metric), value) {
            (Some(Value::Samples(old)), Value::Samples(new)) => old.extend(new),
            (Some(Value::Samples(_)), Value::Missing(_)) => {}
            (_, value) => drop(self.values.insert(metric.to_owned(), value)),
        }
    }

    /// Notes why some are not there.
    pub fn lack(&mut self, metrics: &[&str], why: &str) {
        for metric in metrics {
            self.add(metric, Value::Missing(why.to_owned()));
        }
    }

    /// How many times native's a value is, or a part of it: above one is worse. None if
    /// the two can't be compared as equals: times of an emulated machine can't; what is
    /// counted, and memory, is the same there.
    pub fn factor(&self, native: &Self, metric: &str) -> Option<f64> {
        let unit = metric_of(metric)?.unit;
        let timed = !matches!(unit, Unit::Count | Unit::Kibibytes | Unit::PerGib | Unit::Each);
        let unequal = timed && self.emulated != native.emulated;
        if unequal || self.subject == native.subject {
            return None;
        }
        let (own, other) = (self.summary(metric)?.median, native.summary(metric)?.median);
        let factor = if unit.more_is_better() { other / own } else { own / other };
        (factor.is_finite() && factor > 0.0).then_some(factor)
    }
}
