//! One opendir(3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::listing::Source;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;

/// One opendir(3).
#[derive(Debug)]
pub(super) struct DirHandle {
    /// Its number.
    pub(super) fh: u64,
    pub(super) dir: Arc<Inode>,
    pub(super) cred: Arc<Credential>,
    /// Who has opened it.
    pub(super) by: u32,
    /// Who reads.
    pub(super) turn: Semaphore,
    pub(super) source: Mutex<Source>,
    /// It was read from its beginning.
    pub(super) begun: AtomicBool,
    /// How many changes of ours there were in the directory when `source` was made.
    pub(super) changes: AtomicU64,
    /// Records of its listing in the write-ahead log.
    pub(super) logged: AtomicU64,
}

impl DirHandle {
    /// A handle of nothing that is known yet.
    pub(super) fn new(fh: u64, dir: &Arc<Inode>, cred: &Arc<Credential>, by: u32) -> Self {
        Self {
            fh,
            dir: Arc::clone(dir),
            cred: Arc::clone(cred),
            by,
            turn: Semaphore::new(1),
            source: Mutex::default(),
            begun: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            logged: AtomicU64::new(0),
        }
    }
}
