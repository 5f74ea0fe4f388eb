//! The write window of a mount: how many bytes may be held for the server.
//!
//! Each file accounts for what its write-back holds by differences; who wants to
//! add more waits until the sum is below the limit. While somebody waits
//! ([`Window::wait`]), the files that hold acknowledged but uncommitted data are
//! asked to commit them, and so is each that comes to hold some: nothing else
//! would free those.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::vfs::inode::Inode;
use crate::vfs::types::Ino;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    limit: usize,
    used: AtomicUsize,
    freed: Notify,
    /// How many wait for room.
    waiting: AtomicUsize,
    /// Files that hold something.
    busy: Mutex<BTreeMap<Ino, Weak<Inode>>>,
}

impl Window {
    /// A window of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
            busy: Mutex::new(BTreeMap::new()),
        }
    }

    /// Bytes held now.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether more may be added. A single write larger than the window is let
    /// in when nothing else is there.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let used = self.used();
        used == 0 || used + bytes <= self.limit
    }

    /// Completes at the next time that something was freed.
    pub(super) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// Somebody waits for room until what this returns is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    /// Somebody waits for room.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A file held `before` bytes and holds `after` now.
    pub(super) fn account(&self, inode: &Arc<Inode>, before: usize, after: usize) {
        if before == after {
            return;
        }
        if after > before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
        if before == 0 {
            self.busy.lock().insert(inode.ino, Arc::downgrade(inode));
        } else if after == 0 {
            let mut busy = self.busy.lock();
            // The number may mean another file by now.
            if busy
                .get(&inode.ino)
                .is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(inode)))
            {
                busy.remove(&inode.ino);
            }
        }
        if after < before {
            self.freed.notify_waiters();
        }
    }

    /// The files that hold something.
    pub(super) fn busy(&self) -> Vec<Arc<Inode>> {
        self.busy
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// See [`Window::wait`].
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Window);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
