//! Barriers: which operation waits for what, before its own request goes.
//!
//! write(2) and, for an unpublished file, setattr are answered before the server knows of
//! them. What others must be able to rely on is at the server before it is asked, or told, anything
//! that they could rely on it by. Three things are waited for:
//!
//! - *stable*: all data written to the file so far are on stable storage, or have failed;
//! - *there*: the server has the data of a range, stable or not, so that its answer counts them;
//! - *attributes*: the server knows the changes of attributes that wait
//!   ([`deferred_setattr`](super::deferred_setattr)), which go after the data, so those are stable
//!   then, too. A file that is *published* has none that wait from then on, but those that are ahead with
//!   `writeback` ([`file_setattr`](super::file_setattr)), for which its requests wait themselves.
//!
//! | operation | waits for | function |
//! |---|---|---|
//! | unlink, rmdir, rename | attributes of all files; with `writeback`, in a directory that is not private, all names, and stable what is closed | [`Files::before_removal`] |
//! | link, rename (what is moved) | published; data linger no more; of a directory, with `writeback`, all of everything | [`Files::before_naming`] |
//! | rmdir, rename (what is replaced) | names in it at the server, which is to say whether it is empty | [`Files::before_removal_of_directory`] |
//! | getattr | attributes, then all data there | [`Files::before_getattr`] |
//! | access | attributes | [`Files::before_access`] |
//! | setattr | attributes | [`Files::before_setattr`] |
//! | setattr of mode or owner | opens that the server is to know of before | `late_open` |
//! | setattr of a size | then stable | [`Files::before_cut`] |
//! | setattr of times | then stable | [`Files::before_times`] |
//! | open | published, with `writeback` attributes of it ahead; with O_TRUNC stable before | [`Files::before_open`] |
//! | flush | stable, then published; nothing with `writeback` | [`Files::before_close`] |
//! | fsync, a lock | stable, then published; with `writeback` all files and names before | [`Files::before_sync`] |
//! | release | stable, then attributes | [`Files::before_release`] |
//! | unlock | what is abandoned, stable, attributes of all files; with `writeback` all of everything | [`Files::before_unlock`] |
//! | locks that go with a close | the same of the one file, if anything is abandoned; with `writeback` all of everything | [`Files::before_unlock_at_close`] |
//! | read, read-ahead | the range there | [`Files::before_read`] |
//! | write | attributes, but a mode that a file is yet to be made with | [`Files::before_write`] |
//! | a synchronous write | what it overlaps there | [`Files::before_sync_write`] |
//! | the end of the mount | all files stable | [`Files::before_end`] |
//! | `efs-fuse sync` | all names, files and attributes stable, changes of killed callers ended | [`Files::sync_all`] |
//! | a hand-over to another process | then attributes of all files | [`Files::before_hand_over`] |
//!
//! No lock is held while anything is waited for. What was answered already is sent whether or not
//! its caller still waits.

use std::ops::Range;
use std::sync::Arc;

use super::Files;
use super::handle::OpenHandle;
use crate::vfs::file::origin::Origin;
use crate::vfs::inode::{FileInner, Inode};
use crate::vfs::types::FileKind;
use crate::vfs::writeback::{RangeTicket, Writeback};

impl Files {
    /// A name in one of these directories is about to be removed or replaced: by that, others are told
    /// that they may go on, whichever file it is of. With `writeback`, whoever sees the directory finds all
    /// names of before, and the data of all that was closed: the name may have been a lock (mkdir(2), O_EXCL).
    pub(in crate::vfs) async fn before_removal(self: &Arc<Self>, dirs: &[&Arc<Inode>]) {
        let is_seen = |dir: &&Arc<Inode>| !self.namespace.is_private(dir);
        if self.is_ahead_allowed() && dirs.iter().any(is_seen) {
            self.settle_names().await;
            for inode in self.names.closed() {
                self.drain(&inode).await;
            }
        }
        self.send_all_changes().await;
    }

    /// The object is about to get a name: what has it is what programs have made of it. Of a
    /// directory that is all that was done below it, wherever that is by now.
    pub(in crate::vfs) async fn before_naming(self: &Arc<Self>, inode: &Arc<Inode>) {
        if inode.kind == FileKind::Directory {
            return self.settle_all().await;
        }
        self.end_linger(inode);
        self.publish(inode).await;
    }

    /// The server is about to be asked for the attributes: size and times are to be those after
    /// the last write(2).
    pub(in crate::vfs) async fn before_getattr(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.send_changes(inode).await;
        self.settle_by(inode, 0..u64::MAX, Writeback::drain_to_look)
            .await;
    }

    /// The server is about to be asked what is allowed, which goes by mode and owner.
    pub(in crate::vfs) async fn before_access(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.send_changes(inode).await;
    }

    /// Attributes are about to be set that could not be joined to what waits.
    pub(in crate::vfs) async fn before_setattr(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.send_changes(inode).await;
    }

    /// The size is about to be set: nothing of what was written may come back behind the new
    /// end.
    pub(in crate::vfs) async fn before_cut(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.drain(inode).await;
    }

    /// Times are about to be set: a write that reaches the server later would move them again,
    /// be it one that is sent again because the server, or this daemon, has died.
    pub(in crate::vfs) async fn before_times(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.drain(inode).await;
    }

    /// The file is about to be opened, and cut if it `truncates`. Whoever opens it may rely on
    /// it.
    pub(in crate::vfs) async fn before_open(self: &Arc<Self>, inode: &Arc<Inode>, truncates: bool) {
        if truncates {
            self.drain(inode).await;
        }
        self.publish(inode).await;
        // Whatever name it is opened by: the server is to decide by the new owner and mode.
        if self.client.is_gate_shut(&inode.handle) {
            self.settle_names().await;
        }
    }

    /// A close, a sync or a lock: whoever knows of it may rely on all that was done to the file.
    pub(in crate::vfs) async fn before_publishing(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.drain(inode).await;
        self.publish(inode).await;
    }

    /// close(2): whoever knows of it may rely on what was written. With `writeback` he may not,
    /// but after a sync or a lock; the release goes on with it.
    pub(in crate::vfs) async fn before_close(self: &Arc<Self>, handle: &OpenHandle) {
        if !self.is_ahead_allowed() || handle.locking.was_used() {
            // With its locks it is an unlock, which is about whatever was done before.
            self.before_sync(&handle.inode).await;
        } else if handle.inode.is_written() {
            self.names.was_closed(&handle.inode);
        }
    }

    /// fsync(2): what was done to the file is stable. With `writeback`, whatever was done before.
    pub(in crate::vfs) async fn before_sync(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.settle_all().await;
        self.before_publishing(inode).await;
    }

    /// A lock is about to be asked for: as a sync.
    pub(super) async fn before_lock(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.before_sync(inode).await;
    }

    /// What may be a directory is about to be removed or replaced, where it is not known which one
    /// (`None`) perhaps any: its names that are ahead of the server go first, as the server is to say
    /// whether it is empty. The kernel has it locked, so no more come.
    pub(in crate::vfs) async fn before_removal_of_directory(
        self: &Arc<Self>,
        inode: Option<&Arc<Inode>>,
    ) {
        match inode {
            _ if !self.is_ahead_allowed() => {}
            None => self.settle_names().await,
            Some(inode) if inode.kind == FileKind::Directory && inode.is_ahead() => {
                self.settle_names_in(inode.ino).await;
            }
            Some(_) => {}
        }
    }

    /// A handle is being released. If it is the last one of a file that is not made yet, the
    /// request that makes it closes it as well, and nobody hurries that.
    pub(in crate::vfs) async fn begin_close(self: &Arc<Self>, handle: &OpenHandle) {
        let inode = &handle.inode;
        if inode.handle.is_undecided() {
            self.file_state(inode).lock().begin_close(&handle.open);
            self.pump_names();
            // What it was refused for, if it was, is told below.
            let _ = inode.handle.given().await;
            self.file_state(inode).lock().end_close(&handle.open);
        }
    }

    /// A handle is gone. What FLUSH did not see (writes of a shared mapping) is written first.
    pub(in crate::vfs) async fn before_release(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.drain(inode).await;
        self.send_changes(inode).await;
        self.names.was_released(inode);
    }

    /// A lock is about to be let go: what it was there to protect has ended, and others may go
    /// on by it, whichever file it is of.
    pub(super) async fn before_unlock(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.abandoned.ended().await;
        self.settle_all().await;
        self.drain(inode).await;
        self.send_all_changes().await;
    }

    /// Locks are about to go with a close, before which everything was made stable (with `writeback` only
    /// if it is of a descriptor that was locked by); but not what is at work without its caller.
    pub(super) async fn before_unlock_at_close(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.settle_all().await;
        if self.abandoned.any() {
            self.abandoned.ended().await;
            self.drain(inode).await;
            self.send_changes(inode).await;
        }
    }

    /// A range is about to be read at the server.
    pub(super) async fn before_read(self: &Arc<Self>, inode: &Arc<Inode>, offset: u64, len: u64) {
        self.settle(inode, offset, len).await;
    }

    /// Data are about to be accepted: a mode set before them protects them from the first byte on.
    pub(in crate::vfs) async fn before_write(self: &Arc<Self>, inode: &Arc<Inode>) {
        if !self.makes_with_mode(inode) {
            self.send_changes(inode).await;
        }
    }

    /// Synchronous data are about to be accepted: what is lost with them, if they are, must be
    /// theirs alone.
    pub(super) async fn before_sync_write(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: u64,
        len: u64,
    ) {
        self.settle(inode, offset, len).await;
    }

    /// The mount is at its end.
    pub(in crate::vfs) async fn before_end(self: &Arc<Self>) {
        self.settle_names().await;
        for inode in self.window.busy() {
            self.drain(&inode).await;
        }
    }

    /// Everything that was accepted is to be stable.
    pub(in crate::vfs) async fn sync_all(self: &Arc<Self>) {
        self.abandoned.ended().await;
        self.settle_everything().await;
    }

    /// Waits until everything that was accepted is stable or has failed: names, then the data and
    /// the attributes of all files.
    pub(super) async fn settle_everything(self: &Arc<Self>) {
        self.before_end().await;
        self.send_all_changes().await;
    }

    /// Another process is about to go on with the mount.
    pub(in crate::vfs) async fn before_hand_over(self: &Arc<Self>) {
        self.settle_everything().await;
    }

    /// Nothing is on its way that the other process would not know of.
    pub(in crate::vfs) fn is_drained(&self) -> bool {
        let waits = |inode: &Arc<Inode>| {
            let file = inode.opened();
            file.is_some_and(|file| !file.lock().deferred().is_empty())
        };
        self.window.used() == 0
            && self.names_ahead() == 0
            && !self.abandoned.any()
            && self.kept.is_empty()
            && !self.changed.lock().iter().any(waits)
    }
}

/// What is waited for.
impl Files {
    /// Waits until everything written to the file so far is stable or failed.
    pub(super) async fn drain(self: &Arc<Self>, inode: &Arc<Inode>) {
        if inode.opened().is_none() {
            return;
        }
        let ticket = self.with_writeback(inode, |inner| {
            // Also if there is nothing to wait for: what is written next does not go on.
            let ticket = inner.writeback_mut().begin_drain();
            (!inner.writeback().is_idle()).then_some(ticket)
        });
        if let Some(ticket) = ticket {
            self.hurry_names(inode);
            self.pump(inode);
            self.wait_until(inode, |inner| inner.writeback().drained(&ticket))
                .await;
        }
    }

    /// Sends what was written to the file so far on its way, and waits for nothing.
    pub(super) fn end_linger(self: &Arc<Self>, inode: &Arc<Inode>) {
        if inode.opened().is_some() {
            self.with_writeback(inode, |inner| inner.writeback_mut().end_linger());
            self.pump(inode);
        }
    }

    /// Waits until the server has (stable or not) what was written to a range
    /// so far, so that a READ sees it.
    async fn settle(self: &Arc<Self>, inode: &Arc<Inode>, offset: u64, len: u64) {
        let range = offset..offset.saturating_add(len);
        self.settle_by(inode, range, |writeback| writeback.drain_range(offset, len))
            .await;
    }

    async fn settle_by(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
        drain: impl FnOnce(&mut Writeback<Origin>) -> RangeTicket,
    ) {
        if inode.opened().is_none() {
            return;
        }
        let ticket = self.with_writeback(inode, |inner| {
            let pending = inner.writeback().overlaps_pending(range);
            pending.then(|| drain(inner.writeback_mut()))
        });
        if let Some(ticket) = ticket {
            self.hurry_names(inode);
            self.pump(inode);
            self.wait_until(inode, |inner| inner.writeback().range_drained(&ticket))
                .await;
        }
    }

    /// Waits until something of the file is so.
    pub(super) async fn wait_until(&self, inode: &Arc<Inode>, done: impl Fn(&FileInner) -> bool) {
        self.file_state(inode)
            .when(|inner| done(inner).then_some(()))
            .await;
    }
}
