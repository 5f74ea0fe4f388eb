//! What a file system means here.

pub mod types;
