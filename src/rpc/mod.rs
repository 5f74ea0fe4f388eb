//! ONC RPC version 2 (RFC 5531) over a stream transport.
//!
//! This layer knows no NFS operation: it carries call bodies that somebody else
//! encoded and hands back reply bodies. What it promises is that a call, once
//! given to a [`Channel`], is answered exactly as long as the channel lives: a
//! lost connection is replaced and its unanswered calls go out again, on any that
//! lives, byte for byte and under the same xid; but for those whose caller does not
//! wait any more.
//!
//! - [`transport`]: what carries the bytes
//! - [`record`]: record marking
//! - [`buffers`]: the large buffers, used again
//! - [`call`]: the messages
//! - [`auth`]: who a call is made for (`AUTH_SYS`)
//! - [`caller`]: who waits for it, and what is done when nobody does any more
//! - [`pending`]: which calls wait for which reply, and on which of the connections
//!   (a plain state machine)
//! - [`silence`]: when a silent connection is given up (likewise)
//! - [`scaling`]: how many connections there should be (likewise)
//! - [`channel`]: what callers have of it; `supervise` makes the connections, `connection`
//!   moves the bytes of one
//! - [`preface`]: what is said on a connection before anything else

pub mod auth;
pub mod buffers;
pub mod call;
pub mod caller;
pub mod channel;
mod connection;
pub mod pending;
pub mod preface;
pub mod record;
pub mod scaling;
pub mod silence;
mod supervise;
pub mod transport;

pub use channel::{Channel, Greeting, Refused};
pub use pending::{ConnectionId, Load};
pub use scaling::{Connections, Pause};
pub use silence::Tolerance;

/// Why a call has no reply body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The channel was closed before the reply came.
    #[error("the connection to the server is closed")]
    Closed,
    /// The server does not speak this program or version.
    #[error("the server does not speak NFS version 4 (RPC: {0})")]
    NotSpoken(&'static str),
    /// The server refused the credential (`auth_stat`, RFC 5531 §9).
    #[error("the server refuses AUTH_SYS credentials (auth_stat {0})")]
    AuthRefused(u32),
    /// The server could not decode the call, or failed inside.
    #[error("the server could not process the call (RPC: {0})")]
    Failed(&'static str),
    /// The caller has been answered, so the call was not sent; or (`sent`) it was, and
    /// its connection was lost: it was not sent again, and may have been executed.
    #[error("the caller does not wait any more")]
    Abandoned {
        /// It was handed to a connection.
        sent: bool,
    },
}
