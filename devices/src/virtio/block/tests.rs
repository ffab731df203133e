//! The block device against drivers good and bad.
