//! Small files: their data come along with the OPEN.
//!
//! Who opens a small file reads it next, as a rule. So the OPEN asks for its
//! first [`SMALL`] bytes, and the reads that follow are answered from here. If
//! the kernel may have the file's pages, they are asked for only in case the file
//! has moved.
//!
//! What came along was read after the open's attributes, so it is as new as
//! close-to-open wants it. It is kept for that handle alone, and dropped once it
//! was read to its end, or when the file is seen to have moved by other hands or
//! is written or cut by this host. It is not used at all if any of that happened
//! while the OPEN was on its way, or while something of this host's was not at
//! the server yet.
//!
//! EFS counts what is read: a file whose data came along [`UNREAD`] times in a
//! row and were not wanted is opened without, until somebody reads it. All
//! handles together keep at most [`MOST`] bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::nfs::proto::reply::ReadResult;

/// What is read along with an OPEN, at most.
pub(in crate::vfs) const SMALL: u32 = 128 << 10;

/// Times in a row that nobody wanted it.
pub(super) const UNREAD: u8 = 2;

/// What all handles may keep.
const MOST: usize = 16 << 20;

/// Bytes that handles keep.
#[derive(Debug, Default)]
pub(in crate::vfs) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// More may come along.
    pub(in crate::vfs) fn has_room(&self) -> bool {
        self.0.load(Ordering::Relaxed) < MOST
    }

    fn spend(&self, bytes: usize) -> Spent {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Spent(bytes, Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Spent(usize, Arc<AtomicUsize>);

impl Drop for Spent {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// What tells whether a file is still as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct FileVersion {
    /// Data read under another one are old (`FileInner::epoch`).
    pub(in crate::vfs) epoch: u64,
    /// The writes of this host.
    pub(in crate::vfs) writes: u64,
}

impl FileVersion {
    /// The same after one more foreign change.
    pub(in crate::vfs) fn moved_on(self, by: u64) -> Self {
        Self {
            epoch: self.epoch + by,
            ..self
        }
    }
}

/// The beginning of a file.
#[derive(Debug)]
pub(in crate::vfs) struct InlineData {
    data: Bytes,
    /// It is the whole file.
    eof: bool,
    /// The file's epoch it belongs to.
    pub(in crate::vfs) epoch: u64,
    used: bool,
    _spent: Spent,
}

impl InlineData {
    /// What came along with an OPEN that was sent when the file stood as `version`, if it
    /// still does, `now`.
    pub(in crate::vfs) fn came(
        budget: &Budget,
        now: FileVersion,
        (read, version): (ReadResult, FileVersion),
    ) -> Option<Self> {
        if now != version || read.data.is_empty() && !read.eof {
            return None;
        }
        Some(Self {
            _spent: budget.spend(read.data.len()),
            data: read.data,
            eof: read.eof,
            epoch: now.epoch,
            used: false,
        })
    }

    /// The bytes at `offset`, if they are known: fewer than `size` mean the end
    /// of the file. True with the last ones: nobody asks for them again.
    pub(in crate::vfs) fn read(&mut self, offset: u64, size: u64) -> Option<(Bytes, bool)> {
        let len = self.data.len() as u64;
        let end = offset.saturating_add(size);
        if end > len && !self.eof {
            return None;
        }
        self.used = true;
        let (from, to) = (offset.min(len) as usize, end.min(len) as usize);
        Some((self.data.slice(from..to), end >= len))
    }

    /// Somebody wanted it.
    pub(in crate::vfs) fn was_used(&self) -> bool {
        self.used
    }
}
