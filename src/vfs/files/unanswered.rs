//! What a task owes its file: an answer for each WRITE or COMMIT that the write-back gave
//! it, and for the changes of attributes that it took along.
//!
//! A task that dies with any of it unanswered would keep the range for ever: fsync,
//! and every reader of it, would wait. So what is left is given back as failed: EIO at
//! fsync or close, and the kernel's pages of it are dropped.
//!
//! That a range is free again while its WRITE may still be on its way to the server
//! cannot be: a task only runs, and so only panics, before its request is handed over
//! or after it was answered.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::Files;
use crate::vfs::inode::Inode;
use crate::vfs::types::VfsError;
use crate::vfs::writeback::{Fragment, RequestId};

/// What has to be answered.
enum Owed {
    Writes(SmallVec<[RequestId; 4]>),
    Commit(RequestId),
}

/// See the module. What was answered is known to the write-back, which heeds no second
/// answer.
pub(in crate::vfs) struct Unanswered {
    pub(in crate::vfs) files: Arc<Files>,
    pub(in crate::vfs) inode: Arc<Inode>,
    owed: Owed,
    /// Changes of attributes are on their way with it.
    changes: AtomicBool,
}

impl Unanswered {
    fn new(files: &Arc<Files>, inode: &Arc<Inode>, owed: Owed) -> Self {
        Self {
            files: Arc::clone(files),
            inode: Arc::clone(inode),
            owed,
            changes: AtomicBool::new(false),
        }
    }

    /// Of one WRITE.
    pub(in crate::vfs) fn write(files: &Arc<Files>, inode: &Arc<Inode>, id: RequestId) -> Self {
        Self::new(files, inode, Owed::Writes(SmallVec::from_slice(&[id])))
    }

    /// Of the WRITEs of one request.
    pub(in crate::vfs) fn fragments(
        files: &Arc<Files>,
        inode: &Arc<Inode>,
        all: &[Fragment],
    ) -> Self {
        let ids = all.iter().map(|fragment| fragment.id).collect();
        Self::new(files, inode, Owed::Writes(ids))
    }

    /// Of a COMMIT.
    pub(in crate::vfs) fn commit(files: &Arc<Files>, inode: &Arc<Inode>, id: RequestId) -> Self {
        Self::new(files, inode, Owed::Commit(id))
    }

    /// Whether changes of attributes are on their way with it, from now on.
    pub(super) fn takes_changes(&self, takes: bool) {
        self.changes.store(takes, Ordering::Relaxed);
    }

    /// Does the work that answers, and answers itself if that dies.
    pub(super) async fn watch(&self, task: &'static str, work: impl Future<Output = ()>) {
        let tasks = &self.files.metrics.tasks;
        if tasks.watched(task, work).await.is_ok() {
            return;
        }
        if let Err(died) = tasks.round(task, || self.give_back(task)) {
            // The file is not to be saved, and whoever waits for it would wait on.
            tasks.end(died);
        }
    }

    fn give_back(&self, task: &str) {
        let (files, inode) = (&self.files, &self.inode);
        tracing::error!(
            ino = inode.ino,
            "{task} has died: what it was to write is lost, unless the server has it; fsync and close say EIO"
        );
        if self.changes.swap(false, Ordering::Relaxed) {
            files.changes_left(inode, true);
        }
        inode.attr.lock().expire();
        files.namespace.lose_pages(inode);
        let found = "the task that was to write it has died";
        let error = VfsError::found(found, Some(inode.ino));
        files.failed_late(inode, "data", &error);
        files.with_writeback(inode, |inner| match &self.owed {
            Owed::Writes(ids) => ids
                .iter()
                .for_each(|id| inner.writeback_mut().failed(*id, error.clone())),
            Owed::Commit(id) => inner.writeback_mut().commit_failed(*id, error),
        });
        files.file_state(inode).notify_waiters();
        files.pump(inode);
    }
}

/// Changes of attributes that are on their way by themselves. Dropped unanswered, they
/// wait once more.
pub(in crate::vfs) struct Leaving<'a> {
    files: &'a Files,
    inode: &'a Arc<Inode>,
    answered: bool,
}

impl<'a> Leaving<'a> {
    /// They leave now.
    pub(in crate::vfs) fn new(files: &'a Files, inode: &'a Arc<Inode>) -> Self {
        Self {
            files,
            inode,
            answered: false,
        }
    }

    /// They were answered.
    pub(in crate::vfs) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.files.changes_left(self.inode, true);
            self.files.file_state(self.inode).notify_waiters();
        }
    }
}
