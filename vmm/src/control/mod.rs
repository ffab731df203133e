//! The control socket: how a machine is changed and asked while it runs.
//!
//! ```text
//!  client ─ {"id":1,"command":"add-disk","disk":{…}} + the open image ─► Server ─► Operator
//!         ◄──────────── {"id":1,"ok":{"name":"block2",…}} ─────────────────┘ (machine::operator)
//! ```
//!
//! A Unix socket that only its user can connect to. Requests and answers are
//! JSON objects, a line each; the server speaks first and says which version of
//! the protocol it has: `{"version":1}`. An answer has the `id` of its request,
//! any whole number or short string, and either `ok` or, in one line, `error`. Answers
//! may come in another order than requests.
//!
//! **The monitor opens nothing.** Its filters (`sandbox`) allow it no `open` once
//! a guest runs, and a client asks for no path that the monitor can reach and the
//! client can't: images and TAPs are opened by the client, with its own rights,
//! and go over the socket as descriptors (`SCM_RIGHTS`) with the request's first
//! byte. The monitor looks at what it was given as if it were anybody's, and
//! takes the locks on it again.
//!
//! A client is trusted to own the machine, not to be well: lines, descriptors,
//! clients and requests under way are capped, nothing waits for a client, and
//! who does not read its answers is sent away.

pub mod client;
pub mod lines;
pub mod request;
pub mod server;

pub use client::{Client, ClientError};
pub use request::{Command, Request};
pub use server::{ControlError, Server};

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// Bytes in a line, its end not counted.
pub const MAX_LINE: usize = 64 << 10;
/// Clients at once.
pub const MAX_CLIENTS: usize = 8;
/// Requests of a client that are not answered yet.
pub const MAX_WAITING: usize = 16;
/// Descriptors of a client that no request has taken yet: as many as the longest
/// chain of backing files.
pub const MAX_FILES: usize = 64;
