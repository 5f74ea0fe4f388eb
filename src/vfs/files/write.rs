//! Writing: the shell around the [write-back](crate::vfs::writeback).
//!
//! write(2) is answered when its data are accepted into the write-back; WRITEs
//! and COMMITs run as tasks of their own, which take the file's lock for a
//! moment when they are answered and then see what is to be done next
//! ([`Files::pump`]). Who has to wait (for room, for a drain, for a range) waits
//! on the file's `progress` and looks again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::Files;
use super::deferred_setattr::new_attributes;
use super::send_names::ALONG;
use super::unanswered::Unanswered;
use crate::nfs::NfsError;
use crate::nfs::calls::Epilogue;
use crate::nfs::proto::reply::WriteResult;
use crate::nfs::proto::types::{Stable as Committed, Verifier};
use crate::rpc::caller;
use crate::vfs::file::origin::Origin;
use crate::vfs::inode::FileInner;
use crate::vfs::inode::Inode;
use crate::vfs::writeback::{Action, Chunks, CommitRange, Fragment, RequestId, Stable};

/// The time, for the write-back.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Files {
    /// Changes the write-back of a file and accounts for what it holds.
    pub(super) fn with_writeback<T>(
        &self,
        inode: &Arc<Inode>,
        change: impl FnOnce(&mut FileInner) -> T,
    ) -> T {
        let mut inner = self.file_state(inode).lock();
        let before = inner.writeback().bytes();
        let told = inner.writeback().errors().sample();
        let result = change(&mut inner);
        let after = inner.writeback().bytes();
        // Before the log lets go of the data that were lost.
        if inner.writeback().errors().peek(&told).is_some() {
            self.log_errors(inode, &inner);
        }
        inner.settle_log(&self.wal);
        // Under the file's lock, so that differences are taken in order.
        self.window.account(inode, before, after);
        drop(inner);
        self.metrics
            .gauges
            .window_bytes
            .set(self.window.used() as u64);
        result
    }

    /// Does what the write-back of a file asks for.
    pub(in crate::vfs) fn pump(self: &Arc<Self>, inode: &Arc<Inode>) {
        // What is written to it goes along with it, or after it.
        if inode.handle.is_undecided() {
            if self.file_state(inode).lock().writeback().bytes() > ALONG {
                self.pump_names();
            }
            return;
        }
        loop {
            match self.with_writeback(inode, |inner| inner.writeback_mut().next(now())) {
                None => return,
                Some(Action::Write {
                    id,
                    origin,
                    offset,
                    data,
                    stable,
                    commit,
                }) => {
                    let of = Unanswered::write(self, inode, id);
                    tokio::spawn(async move {
                        let data = (offset, data);
                        let sent = of.files.send_write(&of, id, origin, data, stable, commit);
                        of.watch("send_write", sent).await;
                    });
                }
                Some(Action::WriteFragments {
                    origin,
                    fragments,
                    commit,
                }) => {
                    let of = Unanswered::fragments(self, inode, &fragments);
                    tokio::spawn(async move {
                        let sent = of
                            .files
                            .send_fragments(&of.inode, &origin, fragments, commit);
                        of.watch("send_fragments", sent).await;
                    });
                }
                Some(Action::Commit { id, origin, range }) => {
                    let of = Unanswered::commit(self, inode, id);
                    tokio::spawn(async move {
                        let sent = of.files.send_commit(&of.inode, id, origin, range);
                        of.watch("send_commit", sent).await;
                    });
                }
                // Every one that is asked for: the write-back does not ask again
                // for a time that it believes it will be called at.
                Some(Action::WakeAt(at)) => {
                    self.wake_at(inode, Instant::from_std(at));
                    return;
                }
            }
        }
    }

    /// Sees to the write-back of a file again at `at`.
    fn wake_at(self: &Arc<Self>, inode: &Arc<Inode>, at: Instant) {
        let (files, weak) = (Arc::downgrade(self), Arc::downgrade(inode));
        // What lingers keeps its file; what is only to be committed one day does not
        // keep one that everybody has left.
        let lingers = at <= Instant::now() + super::MAX_LINGER;
        let kept = lingers.then(|| Arc::clone(inode));
        self.metrics.tasks.restarted("wake_at", move || {
            let (files, weak, kept) = (files.clone(), weak.clone(), kept.clone());
            async move {
                tokio::time::sleep_until(at).await;
                if let (Some(files), Some(inode)) =
                    (files.upgrade(), kept.or_else(|| weak.upgrade()))
                {
                    files.metrics.tasks.point("wake_at");
                    files.pump(&inode);
                }
            }
        });
    }

    async fn send_write(
        self: &Arc<Self>,
        of: &Unanswered,
        id: RequestId,
        origin: Origin,
        (offset, data): (u64, Chunks),
        stable: Stable,
        commit: Option<CommitRange>,
    ) {
        let inode = &of.inode;
        let stable = match stable {
            Stable::Unstable => Committed::Unstable,
            Stable::DataSync => Committed::DataSync,
            Stable::FileSync => Committed::FileSync,
        };
        // The last one takes along what was set since.
        let changes = if stable == Committed::FileSync {
            let mut inner = self.file_state(inode).lock();
            match inner.writeback().is_last(id) {
                true => inner.deferred_mut().leave_as(&origin.open.cred),
                false => None,
            }
        } else {
            None
        };
        of.takes_changes(changes.is_some());
        self.metrics.tasks.point("send_write");
        let attrs = changes.as_ref().map(|one| new_attributes(&one.set));
        let len: usize = data.iter().map(Bytes::len).sum();
        let sent = Instant::now();
        let epilogue = Epilogue {
            commit: commit.map(|range| (range.offset, range.count)),
            attrs: attrs.as_ref(),
        };
        let written = self.client.write_and(
            &origin.open,
            (offset, &data),
            origin.fence,
            stable,
            epilogue,
        );
        match caller::on_behalf_of(origin.caller, written).await {
            Ok(written) => {
                let result = written.result;
                let whole = result.count as usize >= len;
                if changes.is_some() {
                    // The rest of a short one moves the times once more.
                    self.file_state(inode).lock().deferred_mut().left(!whole);
                    of.takes_changes(false);
                }
                self.namespace.moved(inode, &written.moved, sent);
                self.write_answered(inode, [(id, result)].into_iter(), written.committed);
                if changes.is_some() {
                    // After the data: who finds data in the log writes them again, and that
                    // moves the times.
                    self.log_deferred(inode, &self.file_state(inode).lock());
                    if whole {
                        self.changes_answered(inode, written.set);
                    }
                }
            }
            Err(error) => {
                if changes.is_some() {
                    self.changes_left(inode, true);
                    of.takes_changes(false);
                }
                self.write_failed(inode, id, &error);
            }
        }
        self.file_state(inode).notify_waiters();
        self.pump(inode);
    }

    /// In one request; what the server does not come to in that goes in another one.
    async fn send_fragments(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        origin: &Origin,
        mut fragments: Vec<Fragment>,
        commit: Option<CommitRange>,
    ) {
        let mut commit = commit.map(|range| (range.offset, range.count));
        while !fragments.is_empty() {
            self.metrics.tasks.point("send_fragments");
            let pieces: Vec<_> = fragments
                .iter()
                .map(|fragment| (fragment.offset, &fragment.data[..]))
                .collect();
            let sent = Instant::now();
            let written =
                self.client
                    .write_several(&origin.open, &pieces, origin.fence, commit.take());
            match written.await {
                Ok(written) => {
                    self.namespace.moved(inode, &written.moved, sent);
                    let answered = written.results.len().min(fragments.len());
                    let ids = fragments.drain(..answered).map(|fragment| fragment.id);
                    self.write_answered(inode, ids.zip(written.results), written.committed);
                }
                Err(error) => {
                    let first = fragments.remove(0);
                    self.write_failed(inode, first.id, &error);
                }
            }
            self.file_state(inode).notify_waiters();
            self.pump(inode);
        }
    }

    /// WRITEs of one request were executed, and the COMMIT behind them by `proof`.
    pub(super) fn write_answered(
        &self,
        inode: &Arc<Inode>,
        results: impl Iterator<Item = (RequestId, WriteResult)>,
        proof: Option<Verifier>,
    ) {
        self.with_writeback(inode, |inner| {
            let writeback = inner.writeback_mut();
            for (id, result) in results {
                let committed = match result.committed {
                    Committed::Unstable => Stable::Unstable,
                    Committed::DataSync => Stable::DataSync,
                    Committed::FileSync => Stable::FileSync,
                };
                let (count, verifier) = (result.count, result.verifier);
                match proof {
                    Some(proof) => {
                        writeback.written_and_committed(id, count, committed, verifier, proof);
                    }
                    None => writeback.written(id, count, committed, verifier),
                }
            }
            if self.window.is_awaited() {
                writeback.make_room();
            }
        });
    }

    fn write_failed(self: &Arc<Self>, inode: &Arc<Inode>, id: RequestId, error: &NfsError) {
        let error = self.namespace.failed(error, inode);
        // The local size has run ahead of what the server has, and the
        // kernel has pages that no server will ever have.
        inode.attr.lock().expire();
        self.namespace.lose_pages(inode);
        self.failed_late(inode, "data", &error);
        self.with_writeback(inode, |inner| inner.writeback_mut().failed(id, error));
    }

    async fn send_commit(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        id: RequestId,
        origin: Origin,
        range: CommitRange,
    ) {
        self.metrics.tasks.point("send_commit");
        let sent = Instant::now();
        let CommitRange { offset, count } = range;
        match self.client.commit(&origin.open, offset, count).await {
            Ok((verifier, attrs)) => {
                if let Some(attrs) = attrs {
                    self.namespace.learn(inode, &attrs, sent);
                }
                self.with_writeback(inode, |inner| inner.writeback_mut().committed(id, verifier));
            }
            Err(error) => {
                let error = self.namespace.failed(&error, inode);
                self.namespace.lose_pages(inode);
                self.failed_late(inode, "data", &error);
                self.with_writeback(inode, |inner| {
                    inner.writeback_mut().commit_failed(id, error)
                });
            }
        }
        self.file_state(inode).notify_waiters();
        self.pump(inode);
    }

    /// The server has restarted: what it had not committed goes out again
    /// before anybody reads it, or is told a size without it.
    pub(in crate::vfs) fn server_restarted(self: &Arc<Self>) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
        for inode in self.window.busy() {
            self.with_writeback(&inode, |inner| {
                inner.writeback_mut().server_restarted();
                inner.cut();
            });
            self.pump(&inode);
        }
    }
}
