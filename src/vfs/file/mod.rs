//! What belongs to one regular file once it was opened here: its opens, what is on its way to
//! it, what the kernel's pages and what was read ahead belong to, and who has locks on it.
//! Nothing in here knows an inode, a name or the server's client.
//!
//! | state | file | owned by |
//! |---|---|---|
//! | all of a file ([`FileInner`](state::FileInner)) | [`state`] | the file's lock, `FileState::lock` |
//! | which state of the file the kernel's pages are of | [`pages`] | the same |
//! | which version of the file the disk of this host may be asked for | [`disk_view`] | the same |
//! | changes of attributes on their way | [`deferred_setattr`] | the same |
//! | the hidden name of a removed file | [`silly_name`] | the same |
//! | what is read ahead for one handle | [`ahead`], [`readahead`], [`inline_read`] | a lock of the handle's, after the file's |
//! | memory for what all handles read ahead | [`readahead_memory`] | a lock with which no other is taken |
//!
//! The file's lock is taken after the line for file locks ([`locks`](crate::vfs::locks)) and before
//! that of the inode's attributes, and is never held across an await.

pub(in crate::vfs) mod ahead;
pub(in crate::vfs) mod deferred_setattr;
pub(super) mod disk_view;
pub(super) mod inline_read;
pub(in crate::vfs) mod origin;
pub(super) mod pages;
pub(super) mod readahead;
pub(in crate::vfs) mod readahead_memory;
pub(in crate::vfs) mod silly_name;
pub(in crate::vfs) mod state;
