//! Explicit, versioned state: what a device, a vCPU or the machine saves and
//! restores.
//!
//! Every stateful thing has a plain serde struct and two methods,
//! `save(&self) -> Saved` and `restore(&mut self, &Saved)`. The envelope names
//! the kind and the version, so that a snapshot can be refused with a reason
//! instead of being misread.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One thing's state, in an envelope that says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What it is the state of, for example `serial`.
    pub kind: String,
    /// The version of the layout of `data`.
    pub version: u32,
    /// The state itself.
    pub data: serde_json::Value,
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The envelope holds something else.
    #[error("state of a {found} where one of a {expected} belongs")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What the envelope says.
        found: String,
    },
    /// The layout is newer or older than this build knows.
    #[error("{kind}: state version {found}, this build reads version {expected}")]
    Version {
        /// What it is the state of.
        kind: &'static str,
        /// What this build reads.
        expected: u32,
        /// What the envelope says.
        found: u32,
    },
    /// The fields don't fit.
    #[error("{kind}: {source}")]
    Data {
        /// What it is the state of.
        kind: &'static str,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The fields are readable and make no sense.
    #[error("{kind}: {reason}")]
    Invalid {
        /// What it is the state of.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Saved {
    /// Wraps `state`.
    pub fn new<T: Serialize>(
        kind: &'static str,
        version: u32,
        state: &T,
    ) -> Result<Self, StateError> {
        let data =
            serde_json::to_value(state).map_err(|source| StateError::Data { kind, source })?;
        Ok(Self { kind: kind.to_owned(), version, data })
    }

    /// Unwraps the state of a `kind` in layout `version`.
    pub fn open<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        version: u32,
    ) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind { expected: kind, found: self.kind.clone() });
        }
        if self.version != version {
            return Err(StateError::Version { kind, expected: version, found: self.version });
        }
        T::deserialize(&self.data).map_err(|source| StateError::Data { kind, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_opened_only_by_its_kind_and_version() {
        let saved = Saved::new("thing", 2, &(1u8, "x".to_owned())).unwrap();
        assert_eq!(saved.open::<(u8, String)>("thing", 2).unwrap(), (1, "x".to_owned()));
        assert!(matches!(saved.open::<(u8, String)>("other", 2), Err(StateError::Kind { .. })));
        assert!(matches!(saved.open::<(u8, String)>("thing", 3), Err(StateError::Version { .. })));
        assert!(matches!(saved.open::<Vec<u8>>("thing", 2), Err(StateError::Data { .. })));
    }
}
