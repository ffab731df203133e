//! What the runner of a job and the init of its guest say to each other; and what the
//! programs that run in guests share: system calls, mounts, network cards.
//!
//! ```text
//!  runner (host)                              init (PID 1 of the guest)
//!                 ◄── Hello, Started, Stopped, Ended ──
//!  vsock port 1   ── Start, Signal, Resize ──►
//!  vsock port 2   ── standard input ──►
//!  vsock port 3   ◄── standard output (or the terminal's) ──
//!  vsock port 4   ◄── standard error ──
//! ```
//!
//! Bytes of the job's streams are never wrapped: each stream is a connection of
//! its own, with the credit of vsock as its back-pressure and the shutdown of one
//! direction as its end of file.

#[cfg(target_feature = "crt-static")]
mod lean;
pub mod measure;
pub mod network;
pub mod protocol;
pub mod system;
