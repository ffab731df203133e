//! The queue against drivers good and bad.
