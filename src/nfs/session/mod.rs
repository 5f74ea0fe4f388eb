//! Sessions (RFC 8881 §2.10): how a client id and a session are made, and the
//! slot table that gives every request exactly-once effect, and how a session comes
//! to several connections.

pub mod establish;
pub(super) mod live;
pub mod slots;
pub(super) mod trunk;
