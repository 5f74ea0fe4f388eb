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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::unanswered::Leaving;
use crate::nfs::NfsError;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::Vfs;
use crate::vfs::file::state::{FileInner, FileState};
use crate::vfs::inode::Inode;
use crate::vfs::ops::attr::new_attributes;
use crate::vfs::types::{Errno, FileKind, SetAttr, SetTime, Stat, Timestamp};

/// The longest that a change waits.
const TOGETHER: Duration = Duration::from_millis(10);

/// Set-id and sticky bits.
const SPECIAL: u32 = 0o7000;

/// A change that waits, or is on its way.
#[derive(Clone, Debug)]
pub(in crate::vfs) struct Change {
    pub(in crate::vfs) set: SetAttr,
    pub(in crate::vfs) cred: Arc<Credential>,
    /// What this host shows as the time of the change.
    ctime: Timestamp,
}

impl Change {
    fn join(&mut self, newer: &SetAttr, ctime: Timestamp) {
        let all = &mut self.set;
        all.mode = newer.mode.or(all.mode);
        all.uid = newer.uid.or(all.uid);
        all.gid = newer.gid.or(all.gid);
        all.atime = newer.atime.or(all.atime);
        all.mtime = newer.mtime.or(all.mtime);
        self.ctime = ctime;
    }
}

/// Who has made a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maker {
    uid: u32,
    /// `None` where operations have no callers.
    thread: Option<u32>,
}

impl Maker {
    /// The caller of this operation, whose user this is; `None` if it cannot be told
    /// from others.
    fn calling(uid: u32) -> Option<Self> {
        let thread = caller::current().map(|caller| caller.thread());
        (thread != Some(0)).then_some(Self { uid, thread })
    }
}

/// The changes of one file.
#[derive(Debug, Default)]
pub(in crate::vfs) struct DeferredSetattr {
    /// Who has made it, if that was here and it was not published since.
    unpublished_of: Option<Maker>,
    waiting: Option<Change>,
    /// At most one, so that no change overtakes another.
    leaving: Option<Change>,
}

impl DeferredSetattr {
    /// The file was just created by this operation, and `owner` is whose it is.
    pub(in crate::vfs) fn made(&mut self, owner: u32) {
        self.unpublished_of = Maker::calling(owner);
    }

    /// Others may rely on the file now: from here on no change waits.
    pub(in crate::vfs) fn publish(&mut self) {
        self.unpublished_of = None;
    }

    /// Nothing waits and nothing is on its way.
    pub(in crate::vfs) fn is_empty(&self) -> bool {
        self.waiting.is_none() && self.leaving.is_none()
    }

    /// What the server does not know yet, oldest first.
    pub(in crate::vfs) fn unknown(&self) -> impl Iterator<Item = (&SetAttr, Timestamp)> {
        let both = self.leaving.iter().chain(&self.waiting);
        both.map(|change| (&change.set, change.ctime))
    }

    /// The time of the last write is known, because it was set.
    fn knows_mtime(&self) -> bool {
        self.unknown().any(|(set, _)| set.mtime.is_some())
    }

    /// Takes a change in, if it is one that may wait. True for the first.
    fn join(&mut self, stat: &Stat, cred: &Arc<Credential>, set: &SetAttr) -> Option<bool> {
        let root = cred.uid == 0;
        let new = |wanted: Option<u32>, is: u32| wanted.is_none_or(|wanted| wanted == is || root);
        let given = |time: Option<SetTime>| !matches!(time, Some(SetTime::Now));
        let allowed = self.unpublished_of.is_some()
            && self.unpublished_of == Maker::calling(cred.uid)
            && (root || stat.uid == cred.uid)
            && set.size.is_none()
            && (u32::from(stat.perm) | set.mode.unwrap_or(0)) & SPECIAL == 0
            && new(set.uid, stat.uid)
            && new(set.gid, stat.gid)
            && given(set.atime)
            && given(set.mtime)
            && self.leaving.is_none()
            && self.waiting.iter().all(|change| change.cred == *cred);
        if !allowed {
            return None;
        }
        let first = self.waiting.is_none();
        let change = self.waiting.get_or_insert_with(|| Change {
            set: SetAttr::default(),
            cred: Arc::clone(cred),
            ctime: Timestamp::default(),
        });
        change.join(set, wall_clock());
        Some(first)
    }

    /// What waits is now on its way.
    fn leave(&mut self) -> Option<Change> {
        if self.leaving.is_some() {
            return None;
        }
        self.leaving = self.waiting.take();
        self.leaving.clone()
    }

    /// What waits leaves with a WRITE in the name of `cred`.
    pub(in crate::vfs) fn leave_as(&mut self, cred: &Credential) -> Option<Change> {
        if self.waiting.as_ref().is_none_or(|one| *one.cred != *cred) {
            return None;
        }
        self.leave()
    }

    /// What was on its way has come to its end; or it did not get there, and is
    /// to be sent again. What was joined since is newer.
    pub(in crate::vfs) fn left(&mut self, again: bool) {
        let Some(mut older) = self.leaving.take().filter(|_| again) else {
            return;
        };
        if let Some(newer) = self.waiting.take() {
            older.join(&newer.set, newer.ctime);
        }
        self.waiting = Some(older);
    }
}

fn wall_clock() -> Timestamp {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        sec: now.as_secs().cast_signed(),
        nsec: now.subsec_nanos(),
    }
}

impl Vfs {
    /// Lets a change of attributes wait for company. `None` if it must not; the
    /// attributes with it otherwise.
    pub(in crate::vfs) fn set_together(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> Option<Stat> {
        if inode.kind != FileKind::Regular {
            return None;
        }
        let mut inner = inode.opened()?.inner.lock();
        let mut attr = inode.attr.lock();
        let first = inner.deferred.join(attr.stat(), cred, set)?;
        for (set, ctime) in inner.deferred.unknown() {
            attr.overlay(set, ctime);
        }
        let stat = shown(&inner, attr.stat());
        drop(attr);
        drop(inner);
        if first {
            self.changed.lock().push(Arc::clone(inode));
            let (vfs, inode) = (Arc::clone(self), Arc::clone(inode));
            self.metrics.tasks.restarted("deferred_setattr", move || {
                let (vfs, inode) = (Arc::clone(&vfs), Arc::clone(&inode));
                async move {
                    tokio::time::sleep(TOGETHER).await;
                    vfs.send_changes(&inode).await;
                    let mut changed = vfs.changed.lock();
                    // One: it may be there again for what was changed since.
                    if let Some(at) = changed.iter().position(|one| Arc::ptr_eq(one, &inode)) {
                        changed.swap_remove(at);
                    }
                }
            });
        }
        Some(stat)
    }

    /// The attributes of a file whose changes are not known to the server, if
    /// this host knows all of them by itself.
    pub(in crate::vfs) fn stat_of_changed(inode: &Inode) -> Option<Stat> {
        let inner = inode.opened()?.inner.lock();
        if !inner.deferred.knows_mtime() {
            return None;
        }
        let attr = inode.attr.lock();
        Some(shown(&inner, attr.stat()))
    }

    /// The file is about to be published: what waits goes out, and nothing waits any
    /// more.
    pub(in crate::vfs) async fn publish(self: &Arc<Self>, inode: &Arc<Inode>) {
        if let Some(file) = inode.opened() {
            file.inner.lock().deferred.publish();
            self.send_changes(inode).await;
        }
    }

    /// Makes the server know the changes of attributes of a file, after the data
    /// written before them. Comes back when it does, or has refused.
    pub(in crate::vfs) async fn send_changes(self: &Arc<Self>, inode: &Arc<Inode>) {
        let Some(file) = inode.opened() else { return };
        if file.inner.lock().deferred.is_empty() {
            return;
        }
        // They were answered already, to whoever made them.
        caller::apart(self.send_waiting(inode, file)).await;
    }

    async fn send_waiting(self: &Arc<Self>, inode: &Arc<Inode>, file: &FileState) {
        // Upon which they go with the last WRITE, if one is left to be sent.
        self.drain(inode).await;
        loop {
            let progress = file.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let change = {
                let mut inner = file.inner.lock();
                if inner.deferred.is_empty() {
                    return;
                }
                inner.deferred.leave()
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
                self.moved(inode, &moved, sent);
            });
            self.changes_answered(inode, set);
        }
    }

    /// What was on its way is done with, or (`again`) waits once more.
    pub(in crate::vfs) fn changes_left(&self, inode: &Arc<Inode>, again: bool) {
        let mut inner = self.file_state(inode).inner.lock();
        inner.deferred.left(again);
    }

    /// Takes in what the server made of changes that had left.
    pub(in crate::vfs) fn changes_answered(&self, inode: &Arc<Inode>, set: Result<(), NfsError>) {
        if let Err(error) = set {
            let errno: Errno = self.failed(&error, inode);
            tracing::warn!(ino = inode.ino, "changed attributes were refused: {error}");
            self.changes_left(inode, false);
            let mut inner = self.file_state(inode).inner.lock();
            inner.writeback.errors_mut().record(errno);
            drop(inner);
            inode.attr.lock().expire();
            if let Some(kernel) = self.kernel.get() {
                kernel.inval_attr(inode.ino);
            }
        }
        self.file_state(inode).progress.notify_waiters();
    }

    /// The same for all files: what comes next may tell others that they may go on.
    pub(in crate::vfs) async fn send_all_changes(self: &Arc<Self>) {
        // Those of the last few milliseconds.
        let changed = self.changed.lock().clone();
        for inode in changed {
            self.send_changes(&inode).await;
        }
    }
}

/// The attributes as this host knows them: the server has not counted the blocks
/// of what is on its way.
fn shown(inner: &FileInner, stat: &Stat) -> Stat {
    let mut stat = stat.clone();
    if inner.writeback.end_offset().is_some() {
        stat.blocks = stat.blocks.max(stat.size.div_ceil(512));
    }
    stat
}
