//! The NFSv4.1 client (RFC 8881).
//!
//! An arrow points down: no file, and no folder, uses one above it.
//!
//! ```text
//! survive       what is left of a client that was killed
//!   └─► handover      a client that goes on in the place of another
//!         └─► connect       makes a client, and gives it who looks after its session
//!               ├─► recovery      one task that rebuilds session and state
//!               ├─► flags         what SEQUENCE says between the lines
//!               ├─► lease         renews the lease when nothing else does
//!               └─► trunk         further connections join the session
//! calls/        one method a request: its compound, its redo rule, its result
//!   └─► reopen        an open that the server has dropped
//!         └─► record        what the log has of a client but for opens and locks
//!               └─► client        what belongs to a client of one server
//!                     ├─► close_queue   CLOSEs, several in one compound
//!                     │     └─► close         CLOSE, and the LOCKU before it
//!                     └─► server        what is known of the server
//! stateids      which opens and locks the server still knows
//! fore_channel/ runs a compound: waits for session and slot, retries
//!   ├─► send          one compound on one slot, until it is answered
//!   └─► resolve       what became of a request that nobody waits for
//! session/      EXCHANGE_ID, CREATE_SESSION, the slot table, the session of the moment
//! state/        what the server keeps for us: opens and locks
//! proto/        compounds, results, attributes, statuses
//! ```
//!
//! It knows no inode number and no cache: files are named by their handles,
//! users by their credentials. It asks for nothing that EFS does not have:
//! sixteen operations a compound, no delegations, no back channel, owners as
//! numbers.

mod backoff;
pub mod calls;
mod client;
mod close;
mod close_queue;
mod config;
mod connect;
mod errno;
mod flags;
mod fore_channel;
pub mod handover;
mod lease;
pub mod proto;
mod record;
mod recovery;
mod reopen;
mod server;
pub mod session;
pub mod state;
mod stateids;
mod survive;
mod trunk;

pub use client::{Client, SessionInfo};
pub use config::ClientConfig;
pub use connect::ConnectError;
pub use lease::suspended;
pub use proto::reply::NfsError;
