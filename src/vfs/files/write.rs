//! Writing: the shell around the [write-back](crate::vfs::writeback).
//!
//! write(2) is answered when its data are accepted into the write-back; WRITEs
//! and COMMITs run as tasks of their own, which take the file's lock for a
//! moment when they are answered and then see what is to be done next
//! ([`Vfs::pump`]). Who has to wait (for room, for a drain, for a range) waits
//! on the file's `progress` and looks again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::handle::OpenHandle;
use super::unanswered::Unanswered;
use crate::nfs::NfsError;
use crate::nfs::calls::Epilogue;
use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::nfs::proto::reply::WriteResult;
use crate::nfs::proto::types::{Stable as Committed, Verifier};
use crate::rpc::caller;
use crate::vfs::Vfs;
use crate::vfs::file::origin::Origin;
use crate::vfs::inode::FileInner;
use crate::vfs::inode::Inode;
use crate::vfs::ops::attr::new_attributes;
use crate::vfs::types::{Errno, WriteFlags};
use crate::vfs::writeback::{
    Action, Chunks, CommitRange, DrainTicket, Fragment, RequestId, Stable, WriteTicket,
};

/// Open flags whose writes are stable before they are answered. O_DIRECT is
/// among them: EFS's promise is that such data are durable.
const SYNCHRONOUS: i32 = libc::O_SYNC | libc::O_DSYNC | libc::O_DIRECT;

/// How long an append waits for the kernel to drop pages that it may hold locked until
/// the append is answered.
const LOCKED_PAGE: std::time::Duration = std::time::Duration::from_millis(20);

/// Where data go.
#[derive(Clone, Copy, Debug)]
enum Place {
    At(u64),
    /// To the end of the file (O_APPEND), wherever that is when they are accepted.
    End,
}

/// Data that are in the write-back.
#[derive(Debug)]
struct Accepted {
    offset: u64,
    /// Fewer than were given where the server's files end.
    len: u64,
    write: WriteTicket,
    /// Of synchronous ones.
    drain: Option<DrainTicket>,
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Vfs {
    /// WRITE. Returns at once while the window has room, unless the file was
    /// opened for synchronous writing or the window is 0.
    pub async fn write(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<u32, Errno> {
        let handle = match flags.from_cache {
            true => self.handle(fh)?,
            false => self.used_handle(fh)?,
        };
        // Pages of a shared mapping come by any handle that may write.
        if handle.access & ACCESS_WRITE == 0 {
            return Err(Errno(libc::EBADF));
        }
        if data.is_empty() {
            // write(2) of nothing changes nothing, not even the size.
            return Ok(0);
        }
        self.check_locks(&handle, fh)?;
        let direct = flags.open_flags & libc::O_DIRECT != 0;
        if !direct {
            self.tell_write_error(&handle)?;
        }
        let inode = &handle.inode;
        // A mode set before these data protects them from the first byte on.
        self.send_changes(inode).await;
        if flags.kills_privileges {
            self.kill_privileges(inode, &handle.open.cred).await?;
        }
        let sync = flags.open_flags & SYNCHRONOUS != 0 || self.config.write_window == 0;
        if !sync {
            self.wait_for_room(inode, data.len()).await?;
        }
        let place = match flags.open_flags & libc::O_APPEND != 0 && !flags.from_cache {
            true => Place::End,
            false => Place::At(offset),
        };
        if matches!(place, Place::End) {
            self.know_the_end(&handle).await?;
        }
        let accepted = self.accept(&handle, place, data, sync).await?;
        self.pump(inode);
        if accepted.offset != offset {
            self.misplaced(inode).await;
        }
        if let Some(ticket) = accepted.drain {
            self.wait_until(inode, |inner| inner.writeback().drained(&ticket))
                .await;
            let fate =
                self.with_writeback(inode, |inner| inner.writeback_mut().fate(accepted.write));
            if let Some(errno) = fate {
                return Err(errno);
            }
            if !direct {
                self.tell_write_error(&handle)?;
            }
        }
        Ok(accepted.len as u32)
    }

    /// Takes data into the write-back, unless their caller has been answered meanwhile.
    async fn accept(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        place: Place,
        data: Bytes,
        sync: bool,
    ) -> Result<Accepted, Errno> {
        let inode = &handle.inode;
        let caller = sync.then(caller::current).flatten();
        loop {
            let accepted = self.with_writeback(inode, |inner| {
                if caller::is_answered() {
                    return Err(Errno(libc::EINTR));
                }
                let mut attr = inode.attr.lock();
                let offset = match place {
                    Place::At(offset) => offset,
                    Place::End => attr.stat().size,
                };
                let mut data = data.clone();
                data.truncate(self.room_in_file(offset)?);
                let len = data.len() as u64;
                let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
                // What is lost with these data, if they are, must be theirs alone.
                if sync && inner.writeback().overlaps_pending(offset..end) {
                    return Ok(Err((offset, len)));
                }
                let origin = Origin::new(&handle.open, caller.clone());
                let write = inner
                    .writeback_mut()
                    .accept(now(), origin, offset, data, sync);
                inner.has_written();
                attr.grow(end);
                let drain = sync.then(|| inner.writeback_mut().begin_drain());
                let readers = inner.readers();
                Ok(Ok((
                    Accepted {
                        offset,
                        len,
                        write,
                        drain,
                    },
                    readers,
                )))
            });
            match accepted? {
                Ok((accepted, readers)) => {
                    // What they read ahead from now on waits for these data.
                    for reader in readers {
                        let end = accepted.offset + accepted.len;
                        reader.written(accepted.offset..end);
                    }
                    return Ok(accepted);
                }
                Err((offset, len)) => self.settle(inode, offset, len).await,
            }
        }
    }

    /// Makes sure that the size that data are appended at may be believed: the one that
    /// the open or a lock has brought, or a later one. While data are on their way it is
    /// this host's.
    async fn know_the_end(self: &Arc<Self>, handle: &OpenHandle) -> Result<(), Errno> {
        let inode = &handle.inode;
        let known = {
            let inner = self.file_state(inode).lock();
            let attr = inode.attr.lock();
            inner.writeback().end_offset().is_some() || !attr.ttl(Instant::now()).is_zero()
        };
        match known {
            true => Ok(()),
            false => self.namespace.refresh(&handle.open.cred, inode).await,
        }
    }

    /// Data were appended elsewhere than where the kernel believed the end to be,
    /// because another host has moved it: it has put them into pages of another place,
    /// which are dropped, and its size is forgotten.
    ///
    /// Before the write is answered, as far as that can be: a page that the kernel holds
    /// locked until then is not up to date, and read anew by whoever wants it.
    async fn misplaced(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.file_state(inode).lose_pages();
        self.namespace
            .drop_pages_within(inode.ino, LOCKED_PAGE)
            .await;
    }

    /// How much may be written at `offset` of any file. The kernel knows only its own
    /// limit, and a server that is told of more would refuse it when write(2) has long
    /// been answered. What begins below the server's limit is written up to there, as on
    /// every file system.
    ///
    /// # Errors
    /// EFBIG: nothing.
    fn room_in_file(&self, offset: u64) -> Result<usize, Errno> {
        match self.client.fs().max_file_size.saturating_sub(offset) {
            0 => Err(Errno(libc::EFBIG)),
            room => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
        }
    }

    /// Waits until the mount and the file may hold `len` bytes more; or for the caller's
    /// end, which is an error.
    async fn wait_for_room(self: &Arc<Self>, inode: &Arc<Inode>, len: usize) -> Result<(), Errno> {
        let limit = self.writeback.file_limit;
        let mut waiting = None;
        loop {
            let freed = self.window.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let held = self.file_state(inode).lock().writeback().bytes();
            let file_has_room = held == 0 || held + len <= limit;
            if file_has_room && self.window.has_room(len) {
                return Ok(());
            }
            // What is acknowledged is held until it is committed, and nobody
            // else would ask for that: neither now, nor (`Window::wait`) when
            // what is in flight gets there.
            if waiting.is_none() {
                waiting = Some(self.window.wait());
                continue;
            }
            if file_has_room {
                for busy in self.window.busy() {
                    self.with_writeback(&busy, |inner| inner.writeback_mut().make_room());
                    self.pump(&busy);
                }
            } else {
                self.with_writeback(inode, |inner| inner.writeback_mut().make_room());
                self.pump(inode);
            }
            tokio::select! {
                biased;
                () = freed => {}
                () = caller::answered() => return Err(Errno(libc::EINTR)),
            }
        }
    }

    /// Changes the write-back of a file and accounts for what it holds.
    pub(in crate::vfs) fn with_writeback<T>(
        &self,
        inode: &Arc<Inode>,
        change: impl FnOnce(&mut FileInner) -> T,
    ) -> T {
        let mut inner = self.file_state(inode).lock();
        let before = inner.writeback().bytes();
        let result = change(&mut inner);
        let after = inner.writeback().bytes();
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
                        let sent = of.vfs.send_write(&of, id, origin, data, stable, commit);
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
                        let sent = of.vfs.send_fragments(&of.inode, &origin, fragments, commit);
                        of.watch("send_fragments", sent).await;
                    });
                }
                Some(Action::Commit { id, origin, range }) => {
                    let of = Unanswered::commit(self, inode, id);
                    tokio::spawn(async move {
                        let sent = of.vfs.send_commit(&of.inode, id, origin, range);
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
        let (vfs, weak) = (Arc::downgrade(self), Arc::downgrade(inode));
        // What lingers keeps its file; what is only to be committed one day does not
        // keep one that everybody has left.
        let lingers = at < Instant::now() + crate::vfs::LINGER * 2;
        let kept = lingers.then(|| Arc::clone(inode));
        self.metrics.tasks.restarted("wake_at", move || {
            let (vfs, weak, kept) = (vfs.clone(), weak.clone(), kept.clone());
            async move {
                tokio::time::sleep_until(at).await;
                if let (Some(vfs), Some(inode)) = (vfs.upgrade(), kept.or_else(|| weak.upgrade())) {
                    vfs.metrics.tasks.point("wake_at");
                    vfs.pump(&inode);
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
                    self.changes_left(inode, !whole);
                    of.takes_changes(false);
                }
                self.namespace.moved(inode, &written.moved, sent);
                if changes.is_some() && whole {
                    self.changes_answered(inode, written.set);
                }
                self.write_answered(inode, [(id, result)].into_iter(), written.committed);
            }
            Err(error) => {
                if changes.is_some() {
                    self.changes_left(inode, true);
                    of.takes_changes(false);
                }
                self.write_failed(inode, id, &error);
            }
        }
        self.file_state(inode).has_moved_on();
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
            self.file_state(inode).has_moved_on();
            self.pump(inode);
        }
    }

    /// WRITEs of one request were executed, and the COMMIT behind them by `proof`.
    fn write_answered(
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
        let errno = self.namespace.failed(error, inode);
        // The local size has run ahead of what the server has, and the
        // kernel has pages that no server will ever have.
        inode.attr.lock().expire();
        self.namespace.lose_pages(inode);
        self.with_writeback(inode, |inner| inner.writeback_mut().failed(id, errno));
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
                let errno = self.namespace.failed(&error, inode);
                self.namespace.lose_pages(inode);
                self.with_writeback(inode, |inner| {
                    inner.writeback_mut().commit_failed(id, errno)
                });
            }
        }
        self.file_state(inode).has_moved_on();
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

    /// Waits until everything written to the file so far is stable or failed.
    pub(in crate::vfs) async fn drain(self: &Arc<Self>, inode: &Arc<Inode>) {
        if inode.opened().is_none() {
            return;
        }
        let ticket = self.with_writeback(inode, |inner| {
            (!inner.writeback().is_idle()).then(|| inner.writeback_mut().begin_drain())
        });
        if let Some(ticket) = ticket {
            self.pump(inode);
            self.wait_until(inode, |inner| inner.writeback().drained(&ticket))
                .await;
        }
    }

    /// Waits until the server has (stable or not) what was written to a range
    /// so far, so that a READ sees it.
    pub(in crate::vfs) async fn settle(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: u64,
        len: u64,
    ) {
        if inode.opened().is_none() {
            return;
        }
        let ticket = self.with_writeback(inode, |inner| {
            let end = offset.saturating_add(len);
            inner
                .writeback()
                .overlaps_pending(offset..end)
                .then(|| inner.writeback_mut().drain_range(offset, len))
        });
        if let Some(ticket) = ticket {
            self.pump(inode);
            self.wait_until(inode, |inner| inner.writeback().range_drained(&ticket))
                .await;
        }
    }

    async fn wait_until(&self, inode: &Arc<Inode>, done: impl Fn(&FileInner) -> bool) {
        self.file_state(inode)
            .when(|inner| done(inner).then_some(()))
            .await;
    }
}
