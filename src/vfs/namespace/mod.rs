//! What is believed of names and attributes, and what the kernel is told of it.

pub mod access;
pub(in crate::vfs) mod access_pattern;
pub(in crate::vfs) mod eviction;
mod invalidation;
pub(in crate::vfs) mod kernel_dentry;
mod keyed_mutex;
pub(in crate::vfs) mod reopen_guard;
