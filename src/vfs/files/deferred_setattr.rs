//! Attribute changes of an unpublished file, which travel together.
//!
//! Who unpacks or copies files sets times, owner and mode of each, one after
//! the other, just before it closes it. Up to then nobody can expect anything of the
//! file's data, so its attributes may be on their way as well: such a change is kept
//! here for a moment, joined by the next, and goes out with the last WRITE or in one
//! SETATTR:
//!
//! - when the file is *published*, before the call returns that does it: its first
//!   close (of any of its descriptors), fsync, a lock on it, a link or a rename of it,
//!   and an open by whomever. Nothing is kept of a file that was published once;
//! - before a further write, or a change that cannot be joined;
//! - before a name is removed or replaced and before a lock is let go, of whichever
//!   file: by these, others are told that they may go on;
//! - [`TOGETHER`] after the first of them at the latest.
//!
//! Only the thread that has made the file may have its changes wait; chmod(2), chown(2)
//! and utimensat(2) by anybody else are at the server when they return. And only what
//! the server is certain to allow waits: the file belongs to the
//! caller (the server said so when it was created), owner and group stay as they
//! are unless the caller is root and the file was created as root's, no set-id
//! bit is involved, and times are given, not "now". Should it be refused
//! nevertheless, that is told like a write error: once to each descriptor, by
//! fsync or close.
//!
//! This host sees the new attributes at once ([`AttrState::overlay`]); what the
//! server says meanwhile does not hide them.
//!
//! [`AttrState::overlay`]: crate::vfs::inode::attr::AttrState::overlay

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Files;
use super::unanswered::Leaving;
use crate::nfs::NfsError;
use crate::nfs::proto::attrs::{NewAttributes, NewTime};
use crate::nfs::proto::types::NfsTime;
use crate::rpc::auth::Credential;
use crate::rpc::caller::{self, Effect};
use crate::vfs::inode::FileState;
use crate::vfs::inode::Inode;
use crate::vfs::types::{FileKind, SetAttr, SetTime, Stat, Timestamp};

/// The longest that a change waits.
const TOGETHER: Duration = Duration::from_millis(10);

impl Files {
    /// Lets a change of attributes wait for company. `None` if it must not; the
    /// attributes with it, and how long they may be believed, otherwise.
    pub(in crate::vfs) fn set_together(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> Option<(Stat, Duration)> {
        if inode.kind != FileKind::Regular {
            return None;
        }
        let _effect = Effect::begin()?;
        let mut inner = inode.opened()?.lock();
        let mut attr = inode.attr.lock();
        let first = inner.deferred_mut().join(attr.stat(), cred, set)?;
        for (set, ctime) in inner.deferred().unknown() {
            attr.overlay(set, ctime);
        }
        let stat = inner.shown(attr.stat());
        drop(attr);
        self.log_deferred(inode, &inner);
        drop(inner);
        if first {
            self.changes_wait(inode);
        }
        match inode.is_ahead() {
            true => Some(inode.stat_ahead()),
            false => Some((stat, Duration::ZERO)),
        }
    }

    /// Changes of this file wait: they are sent soon.
    pub(super) fn changes_wait(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.changed.lock().push(Arc::clone(inode));
        let (files, inode) = (Arc::clone(self), Arc::clone(inode));
        self.metrics.tasks.restarted("deferred_setattr", move || {
            let (files, inode) = (Arc::clone(&files), Arc::clone(&inode));
            async move {
                tokio::time::sleep(TOGETHER).await;
                // They go with the request that makes the file, and nobody hurries that.
                let _ = inode.handle.given().await;
                files.send_changes(&inode).await;
                let mut changed = files.changed.lock();
                // One: it may be there again for what was changed since.
                if let Some(at) = changed.iter().position(|one| Arc::ptr_eq(one, &inode)) {
                    changed.swap_remove(at);
                }
            }
        });
    }

    /// The file is about to be published: what waits goes out, and nothing waits any
    /// more.
    pub(super) async fn publish(self: &Arc<Self>, inode: &Arc<Inode>) {
        if let Some(file) = inode.opened() {
            file.lock().deferred_mut().publish();
            self.send_changes(inode).await;
        }
    }

    /// Makes the server know the changes of attributes of a file, after the data
    /// written before them. Comes back when it does, or has refused.
    pub(super) async fn send_changes(self: &Arc<Self>, inode: &Arc<Inode>) {
        let Some(file) = inode.opened() else { return };
        if file.lock().deferred().is_empty() {
            return;
        }
        // They were answered already, to whoever made them.
        caller::apart(self.send_waiting(inode, file)).await;
    }

    async fn send_waiting(self: &Arc<Self>, inode: &Arc<Inode>, file: &FileState) {
        // Upon which they go with the request that makes the file, if that is yet to be sent, ...
        self.hurry_names(inode);
        if inode.handle.given().await.is_err() {
            tracing::debug!(ino = inode.ino, "the file of these changes was refused");
        }
        // ... or with the last WRITE, if one is left to be sent.
        self.drain(inode).await;
        loop {
            let progress = file.progress();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let change = {
                let mut inner = file.lock();
                if inner.deferred().is_empty() {
                    return;
                }
                inner.deferred_mut().leave()
            };
            let Some(change) = change else {
                progress.await;
                continue;
            };
            let leaving = Leaving::new(self, inode);
            self.metrics.tasks.point("deferred_setattr");
            let sent = Instant::now();
            let new = new_attributes(&change.set);
            let result = self
                .client
                .set_attrs(&change.cred, &inode.handle, None, &new)
                .await;
            leaving.answered();
            let set = result.map(|moved| {
                self.changes_left(inode, false);
                self.namespace.moved(inode, &moved, sent);
            });
            self.changes_answered(inode, set);
        }
    }

    /// What was on its way is done with, or (`again`) waits once more.
    pub(super) fn changes_left(&self, inode: &Arc<Inode>, again: bool) {
        let mut inner = self.file_state(inode).lock();
        inner.deferred_mut().left(again);
        self.log_deferred(inode, &inner);
    }

    /// Takes in what the server made of changes that had left.
    pub(super) fn changes_answered(&self, inode: &Arc<Inode>, set: Result<(), NfsError>) {
        if let Err(error) = set {
            let error = self.namespace.failed(&error, inode);
            self.failed_late(inode, "attributes", &error);
            self.changes_left(inode, false);
            let mut inner = self.file_state(inode).lock();
            inner.writeback_mut().errors_mut().record(error.clone());
            self.log_errors(inode, &inner);
            let is_told = inner.is_open();
            drop(inner);
            if !is_told {
                tracing::warn!(
                    ino = inode.ino,
                    "changed attributes were refused, and nobody was left to be told: {error}"
                );
            }
            inode.attr.lock().expire();
            self.namespace.inval_attr(inode.ino);
        }
        self.file_state(inode).notify_waiters();
    }

    /// The same for all files: what comes next may tell others that they may go on.
    pub(super) async fn send_all_changes(self: &Arc<Self>) {
        // Those of the last few milliseconds.
        let changed = self.changed.lock().clone();
        for inode in changed {
            self.send_changes(&inode).await;
        }
    }
}

/// What SETATTR is asked to set.
pub(in crate::vfs) fn new_attributes(set: &SetAttr) -> NewAttributes {
    NewAttributes {
        size: set.size,
        mode: set.mode.map(|mode| mode & 0o7777),
        uid: set.uid,
        gid: set.gid,
        atime: set.atime.map(new_time),
        mtime: set.mtime.map(new_time),
    }
}

fn new_time(time: SetTime) -> NewTime {
    match time {
        SetTime::Now => NewTime::Server,
        SetTime::At(Timestamp { sec, nsec }) => NewTime::At(NfsTime { sec, nsec }),
    }
}
