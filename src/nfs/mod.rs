//! The NFSv4.1 client (RFC 8881).
//!
//! ```text
//! calls/    one method a request: its compound, its redo rule, its result
//!   └─► state/    what the server keeps for us: opens
//!   └─► closing   CLOSEs, several in one compound
//!   └─► client    runs a compound: waits for session and slot, retries
//!         ├─► send       one compound on one slot, until it is answered
//!         ├─► resolve    what became of a request that nobody waits for
//!         ├─► session/   EXCHANGE_ID, CREATE_SESSION, the slot table
//!         ├─► lease      renews the lease when nothing else does
//!         ├─► flags      what SEQUENCE says between the lines
//!         ├─► recovery   one task that rebuilds session and state
//!         └─► proto/     compounds, results, attributes, statuses
//! ```
//!
//! It knows no inode number and no cache: files are named by their handles,
//! users by their credentials. It asks for nothing that EFS does not have:
//! sixteen operations a compound, no delegations, no back channel, owners as
//! numbers.

pub mod calls;
pub mod client;
mod close_queue;
mod errno;
mod flags;
mod lease;
pub mod proto;
mod recovery;
mod resolve;
mod send;
pub mod session;
pub mod state;

pub use client::{Client, ClientConfig, ConnectError, SessionInfo};
pub use lease::suspended;
pub use proto::reply::NfsError;
