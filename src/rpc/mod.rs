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
//! - [`pending`]: which calls wait for which reply (a plain state machine)
//! - [`placement`]: which of the connections each is put on (likewise)
//! - [`silence`]: when a silent connection is given up (likewise)
//! - [`scaling`]: how many connections there should be (likewise)
//! - [`channel`]: what callers have of it; `supervise` makes the connections, `connection`
//!   moves the bytes of one, and `shared` is what these three have in common
//! - [`preface`]: what is said on a connection before anything else

pub mod auth;
pub mod buffers;
pub mod call;
pub mod caller;
pub mod channel;
mod connection;
mod error;
pub mod pending;
pub mod placement;
pub mod preface;
pub mod record;
pub mod scaling;
mod shared;
pub mod silence;
mod supervise;
pub mod transport;

pub use channel::Channel;
pub use error::RpcError;
pub use placement::{ConnectionId, Load};
pub use scaling::{Connections, Pause};
pub use shared::{Greeting, GreetingRefused};
pub use silence::Tolerance;
