//! Open directories.

pub mod handle;
