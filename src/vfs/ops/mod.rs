//! The operations.

mod access;
pub mod attr;
mod export;
mod kernel;
pub mod lookup;
mod make;
pub mod open;
mod statfs;
pub mod unlink;
