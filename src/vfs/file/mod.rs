//! What belongs to one regular file once it was opened here, and knows no inode.

pub mod inline_read;
pub mod pages;
pub mod readahead;
pub(in crate::vfs) mod readahead_memory;
pub mod state;
