//! What the kernel is told of an inode, and who waits until it was.
//!
//! An invalidation is queued where a foreign change is seen, under the lock of the
//! attributes, and sent by another thread
//! ([`KernelCache`](crate::vfs::types::KernelCache)): whoever reads new attributes finds
//! it queued, being sent, or done. Nothing that answers with attributes of a file, or opens it,
//! is answered before it is done.

use std::sync::Arc;
use std::time::Duration;

use super::Namespace;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::{AttrState, Seen};
use crate::vfs::types::{FileKind, Ino};

impl Namespace {
    /// What was seen of the inode makes old what the kernel has of it.
    pub(super) fn heed(&self, inode: &Arc<Inode>, seen: Seen) {
        if seen == Seen::Foreign
            && let Some(kernel) = self.kernel.get()
        {
            kernel.inval_inode(inode.ino);
        }
    }

    /// The same of a file that somebody else has made longer. A GETATTR that the kernel has
    /// under way is ignored when pages are dropped meanwhile, and it may be the one that
    /// has found this out: so the size is told apart from it.
    fn heed_growth(&self, inode: &Arc<Inode>, size: u64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_inode_grown(inode.ino, size);
        }
    }

    /// The kernel may have pages that the server will never have.
    pub(in crate::vfs) fn lose_pages(&self, inode: &Arc<Inode>) {
        if let Some(file) = inode.opened() {
            file.lose_pages();
        }
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_inode(inode.ino);
        }
    }

    /// The pages and attributes of the inode are old.
    pub(in crate::vfs) fn inval_inode(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_inode(ino);
        }
    }

    /// The attributes of the inode are old, by this host's own doing; pages stay.
    pub(in crate::vfs) fn inval_attr(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.get() {
            kernel.inval_attr(ino);
        }
    }

    /// See [`KernelCache::direct_writes_leave_pages`].
    ///
    /// [`KernelCache::direct_writes_leave_pages`]: crate::vfs::types::KernelCache::direct_writes_leave_pages
    pub(in crate::vfs) fn direct_writes_leave_pages(&self) -> bool {
        let kernel = self.kernel.get();
        kernel.is_some_and(|kernel| kernel.direct_writes_leave_pages())
    }

    /// Has the kernel drop the pages of the inode, and comes back when it has done so.
    pub(in crate::vfs) async fn drop_pages(&self, ino: Ino) {
        let Some(kernel) = self.kernel.get().map(Arc::clone) else {
            return;
        };
        // It waits for pages whose READ may be in our hands: never on a thread
        // that answers those.
        let tasks = Arc::clone(&self.metrics.tasks);
        let settle = move || {
            tasks.point("settle");
            kernel.settle(ino);
            kernel.inval_inode_now(ino);
        };
        self.metrics.tasks.blocking("settle", settle).await;
    }

    /// Has the kernel forget the size of the inode and drop its pages, and comes back when it has
    /// done so, or after `patience`: a page may be locked by who waits for this.
    pub(in crate::vfs) async fn drop_pages_within(&self, ino: Ino, patience: Duration) {
        let Some(kernel) = self.kernel.get().map(Arc::clone) else {
            return;
        };
        kernel.inval_attr(ino);
        let dropped = tokio::task::spawn_blocking(move || kernel.inval_inode_now(ino));
        let _ = tokio::time::timeout(patience, dropped).await;
    }

    /// As [`Inode::with_attr`] for what the server says. Whoever sees a foreign change of a file finds
    /// what the kernel is to be told of it queued (see [`Namespace::pages_go_first`]), so both
    /// happen under the attributes' lock. What is old of a directory its names know.
    pub(super) fn with_attr_told(
        &self,
        inode: &Arc<Inode>,
        change: impl FnOnce(&mut AttrState) -> Seen,
    ) -> Seen {
        inode.with_attr(|attr| {
            let before = attr.stat().size;
            let seen = change(attr);
            let size = attr.stat().size;
            if inode.kind == FileKind::Regular && size > before && seen == Seen::Foreign {
                self.heed_growth(inode, size);
            } else if inode.kind != FileKind::Directory {
                self.heed(inode, seen);
            }
            seen
        })
    }

    /// Something is queued for the kernel of this file, or being told. What other objects
    /// than files have in the kernel no size makes wrong.
    pub(in crate::vfs) fn is_telling(&self, ino: Ino) -> bool {
        let kernel = self.kernel.get();
        kernel.is_some_and(|kernel| kernel.is_telling(ino))
            && (self.inodes.get(ino)).is_some_and(|inode| inode.kind == FileKind::Regular)
    }

    /// Waits until the kernel was told what is queued for it of a file. Whatever answers with
    /// attributes has read them before this, and answers after it: the kernel drops pages
    /// before it hears of a size that they are too old for.
    pub(in crate::vfs) async fn pages_go_first(&self, ino: Ino) {
        if self.is_telling(ino) {
            self.nothing_to_tell(ino).await;
        }
    }

    /// Waits until the kernel was told what is queued for it of the inode: what opens is
    /// answered after it, and nothing comes between a read after the open and its GETATTR.
    pub(in crate::vfs) async fn nothing_to_tell(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.get()
            && kernel.is_telling(ino)
        {
            let kernel = Arc::clone(kernel);
            let tasks = Arc::clone(&self.metrics.tasks);
            let settle = move || {
                tasks.point("settle");
                kernel.settle(ino);
            };
            self.metrics.tasks.blocking("settle", settle).await;
        }
    }
}
