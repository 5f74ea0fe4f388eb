//! What a file system means here.

pub mod errseq;
pub mod pipeline;
pub mod readahead;
pub mod types;
