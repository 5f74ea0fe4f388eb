//! The operations.

pub mod attr;
mod export;
pub mod lookup;
pub mod open;
pub mod unlink;
