//! Inodes and their table, and what is known of each: attributes, names, what the kernel was
//! told of it.
//!
//! | state | file | owned by |
//! |---|---|---|
//! | which inodes the kernel holds ([`InodeTable`]) | `table` | `elsewhere`, then a shard of the table |
//! | attributes ([`AttrState`](attr::AttrState)) | [`attr`] | `Inode::attr` |
//! | names of a directory ([`Names`](dentry_cache::Names)) | [`dentry_cache`], [`change_tracker`] | `Inode::names` |
//! | all directories with names | [`dentry_cache`] | the cache's own locks, with no directory's held |
//! | the name that the kernel believes | `kernel_dentry` | atomics |
//! | hashes of names, for who remembers them longer than the names | [`name_hash`] | nobody: one key a process |
//! | the order in which the kernel was told of inodes | `eviction_queue` | its own lock, after a shard's |
//!
//! A file's lock ([`file`]) is taken before that of its attributes, which is
//! taken before that of names. No two inodes are locked at once.

pub(super) mod attr;
pub(super) mod change_tracker;
pub(super) mod dentry_cache;
mod eviction_queue;
mod file_attr;
mod kernel_dentry;
pub(super) mod name_hash;
mod path;
pub(super) mod table;

use std::sync::Arc;

pub(in crate::vfs) use self::eviction_queue::BACKLOG;
pub(super) use self::table::{FoundAt, Inode, InodeTable, Place};
use crate::vfs::file;

/// The state of a file that was opened here.
pub(in crate::vfs) type FileState = file::state::FileState<Arc<Inode>>;

/// What its lock owns.
pub(in crate::vfs) type FileInner = file::state::FileInner<Arc<Inode>>;

/// The hidden name of a file that was removed while it is open here.
pub(in crate::vfs) type SillyName = file::silly_name::SillyName<Arc<Inode>>;
