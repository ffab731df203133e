//! How far something long has come, for whoever shows it.

/// Is told how far something has come.
pub trait Progress {
    /// Something begins that takes so many bytes.
    fn begin(&mut self, what: &str, bytes: u64);
    /// So many of them are done since the last call.
    fn advance(&mut self, bytes: u64);
}

/// Nobody watches.
pub struct Unseen;

impl Progress for Unseen {
    fn begin(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
}
