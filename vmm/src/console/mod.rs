//! The user's side of the serial console.
//!
//! ```text
//!  stdin ─► input ─► escape ─► serial port        Ctrl-a x: leave, Ctrl-a h: help
//!  terminal: raw while the guest has it, given back on every path
//!  signals: what other processes want from the monitor
//! ```

pub mod escape;
pub mod input;
pub mod signals;
pub mod terminal;
