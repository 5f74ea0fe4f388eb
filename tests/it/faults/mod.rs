//! What goes wrong between a mount and its server, and in either.
//!
//! - [`line`]: broken connections, stalls, reboots, one promise a test
//! - [`matrix`]: every fault × {reading, writing, creating, locking, idle}, and the
//!   table of all [`scenarios`]; [`cells`] is how one fault is tried
//! - [`connections`]: one of several connections breaks
//! - [`away`]: the server does not come back: soft mounts, memory, unmounting
//! - [`back`]: the server comes back, and its grace period is short
//! - [`killed`]: callers that are killed in the middle of a change
//! - [`daemon`]: the daemon itself is killed or stopped
//! - [`tasks`]: one of its tasks or threads dies

mod away;
mod back;
mod cells;
pub(crate) mod connections;
mod daemon;
pub(crate) mod killed;
mod line;
pub(crate) mod matrix;
mod scenarios;
mod tasks;
pub(crate) mod work;
