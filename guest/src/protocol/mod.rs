//! The messages on the control connection, version by version.
//!
//! A frame is a length (32 bits, little-endian), a byte that says what it is, and
//! a body. Whoever reads takes nothing on trust: lengths are capped before
//! anything is kept, and a body must be used up exactly.

mod message;
mod spec;
#[cfg(test)]
mod tests;
mod wire;

pub use message::{Failure, How, ToGuest, ToHost, Usage};
pub use spec::{
    Disk, File, Identity, Limit, Lower, Network, Root, Share, Spec, Streams, Upper, Window, Wire,
};
pub use wire::{Decoder, Error, MAX_TO_GUEST, MAX_TO_HOST};

/// What this side speaks. The other must say the same.
///
/// 2: [`ToGuest::Attach`]. 3: [`Wire`], [`ToHost::Dial`], [`ToHost::Vacant`].
pub const VERSION: u32 = 3;

/// Ports of the host (CID 2) that init connects to. Those of a session beside the
/// job are these and a number that [`ToGuest::Attach`] says.
pub mod port {
    /// Messages.
    pub const CONTROL: u32 = 1;
    /// The job's standard input.
    pub const STDIN: u32 = 2;
    /// Its standard output, or what its terminal shows.
    pub const STDOUT: u32 = 3;
    /// Its standard error, unless that is the same as its output.
    pub const STDERR: u32 = 4;
    /// The socket that whoever launched a rank has given to it ([`super::Wire`]).
    pub const WIRE: u32 = 5;
    /// How many there are.
    pub const COUNT: u32 = 5;
}
