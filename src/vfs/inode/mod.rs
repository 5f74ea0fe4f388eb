//! Inodes and their table, and what is known of each: attributes and names.

pub mod attr;
pub mod change_tracker;
pub mod dentry_cache;
mod table;

pub use self::table::{Inode, InodeTable, Place};
