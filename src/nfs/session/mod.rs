//! Sessions (RFC 8881 §2.10): how a client id and a session are made, and the
//! slot table that gives every request exactly-once effect.

pub(super) mod current;
pub mod establish;
pub(super) mod known;
pub(super) mod live;
pub mod slots;
