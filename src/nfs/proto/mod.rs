//! The vocabulary of NFSv4.1 (RFC 8881, XDR in RFC 5662): numbers, types,
//! attributes, and the compound that carries operations.

pub mod attrs;
pub mod compound;
pub mod handle;
pub mod ops;
pub mod reply;
mod sent_for;
pub mod status;
pub mod types;
