//! One open(2), from its OPEN to its RELEASE.
//!
//! A handle's own fields do not change, are atomic, or have locks inside which no other is taken.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use crate::nfs::state::OpenState;
use crate::vfs::file::ahead::Ahead;
use crate::vfs::file::pages::FileAt;
use crate::vfs::file::state::HandleLocking;
use crate::vfs::inode::Inode;
use crate::vfs::writeback::errseq::Seen;

/// One open(2).
#[derive(Debug)]
pub(in crate::vfs) struct OpenHandle {
    pub(in crate::vfs) inode: Arc<Inode>,
    pub(in crate::vfs) open: Arc<OpenState>,
    /// What this handle may do (OPEN4_SHARE_ACCESS_*).
    pub(in crate::vfs) access: u32,
    /// Write errors that this handle has told of.
    pub(in crate::vfs) seen: Mutex<Seen>,
    /// Those that a write(2) was told of. It may be the rest of one, whose beginning was
    /// accepted: then the kernel tells its caller how much that was, and no error. So
    /// fsync tells of it all the same.
    pub(in crate::vfs) told_by_write: Mutex<Seen>,
    /// Those that a close(2) was told of, which leaves them to be told again.
    pub(in crate::vfs) told_at_close: Mutex<Seen>,
    pub(in crate::vfs) ahead: Arc<Ahead>,
    /// What is read through it comes from the kernel's pages, which ask nobody.
    pub(in crate::vfs) reads_pages: bool,
    /// Whether it was, and may be, locked through.
    pub(in crate::vfs) locking: HandleLocking,
    /// The kernel was told to drop its pages, and has not used the handle yet.
    pub(in crate::vfs) drops_pages: AtomicBool,
    pub(in crate::vfs) opened_at: FileAt,
}
