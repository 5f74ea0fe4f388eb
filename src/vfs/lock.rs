//! File locks: `fcntl` (POSIX and OFD) and `flock`, all of them the server's.
//!
//! FUSE does not say which of the three a request is; they differ by what the
//! kernel's owner number stands for and by when they end. A POSIX owner is a
//! process, whose locks on a file end when it closes any descriptor of it: that
//! is FLUSH with its number. The others are open file descriptions and end with
//! RELEASE; OFD owners are never named again, so what was locked through a
//! handle goes with it. A `flock` is the whole range, and conflicts with
//! `fcntl` locks of other owners, as with the kernel's NFS client (nfs(5)).
//!
//! What a lock protects is protected by these rules: before a LOCK and before a
//! LOCKU everything written here is stable; a LOCK brings the file's attributes
//! with it, and is answered only after the kernel has dropped pages that another
//! host has made old. What a lock may have been there to protect, and is still at work
//! without its caller (who was killed), ends before the lock does: [`Abandoned`].
//!
//! [`Abandoned`]: crate::rpc::caller::Abandoned
//!
//! Waiting ([`Vfs::setlk`]): EFS calls nobody back, so the first in line of this
//! host ([`super::locktable`]) asks again and again, [`Pace`]; the others wait for
//! the ones before them. A waiter that gives up may have its lock granted all the
//! same: [`Waiting`] decides who was first, and the lock is put back to what it
//! was while the owner's turn is still held, so that no later request of the owner
//! comes in between.
//!
//! Order: the owner's turn is taken with nothing else held, the file's lock for
//! moments inside it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Vfs;
use super::inode::Inode;
use super::locktable::Holder;
use super::open::OpenHandle;
use super::types::{Errno, Ino, LockRange, Waiting};
use crate::nfs::calls::Locked;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::state::locks::{LockState, Turn};
use crate::nfs::state::ranges::{LockKind, Span};
use crate::rpc::auth::Credential;

/// How often the first in line asks the server. A lock that is let go on
/// another host is noticed half a pause later on average.
#[derive(Debug)]
struct Pace {
    begun: Instant,
    pause: Duration,
}

impl Pace {
    const FIRST: Duration = Duration::from_millis(4);
    /// For the first minute.
    const SHORT: Duration = Duration::from_millis(60);
    /// For who waits that long anyway.
    const LONG: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self {
            begun: Instant::now(),
            pause: Self::FIRST,
        }
    }

    fn next(&mut self) -> Duration {
        let pause = self.pause;
        let most = match self.begun.elapsed() > Duration::from_secs(60) {
            true => Self::LONG,
            false => Self::SHORT,
        };
        self.pause = (pause * 2).min(most);
        pause
    }
}

/// Owners of this host wake each other. This is for a lock that was lost, whose
/// end nobody announces.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn kind_of(typ: i32) -> Result<Option<LockKind>, Errno> {
    match typ {
        libc::F_RDLCK => Ok(Some(LockKind::Read)),
        libc::F_WRLCK => Ok(Some(LockKind::Write)),
        libc::F_UNLCK => Ok(None),
        _ => Err(Errno(libc::EINVAL)),
    }
}

fn span_of(range: &LockRange) -> Result<Span, Errno> {
    let end = match range.end {
        end if end >= i64::MAX.cast_unsigned() => u64::MAX,
        end => end,
    };
    if range.start > end {
        return Err(Errno(libc::EINVAL));
    }
    let start = range.start;
    Ok(Span { start, end })
}

fn to_range(span: Span, kind: LockKind, pid: u32) -> LockRange {
    LockRange {
        start: span.start,
        end: span.end.min(i64::MAX.cast_unsigned()),
        typ: match kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
        },
        pid,
    }
}

/// What one attempt came to.
enum Attempt {
    Granted,
    Denied,
}

impl Vfs {
    /// F_GETLK. A holder on another host has process id 0.
    pub async fn getlk(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        _ino: Ino,
        fh: u64,
        owner: u64,
        range: LockRange,
    ) -> Result<LockRange, Errno> {
        let handle = self.handle(fh)?;
        let span = span_of(&range)?;
        let Some(kind) = kind_of(range.typ)? else {
            return Err(Errno(libc::EINVAL));
        };
        let (here, own) = {
            let inner = self.file_state(&handle.inode).inner.lock();
            let here = inner.locks.holder(owner, span, kind);
            (here, inner.locks.state(owner))
        };
        if let Some(Holder { span, kind, pid }) = here {
            return Ok(to_range(span, kind, pid));
        }
        let file = &handle.inode.handle;
        let denied = self
            .client
            .test_lock(cred, file, own.as_deref(), span, kind)
            .await
            .map_err(|error| self.failed(&error, &handle.inode))?;
        Ok(match denied {
            None => LockRange {
                typ: libc::F_UNLCK,
                ..range
            },
            Some(denied) => {
                let kind = match denied.write {
                    true => LockKind::Write,
                    false => LockKind::Read,
                };
                let start = denied.offset;
                // No lock has length 0; nfs-ganesha says "to the end" by it.
                let end = match denied.length {
                    0 => u64::MAX,
                    length => start.saturating_add(length - 1),
                };
                to_range(Span { start, end }, kind, 0)
            }
        })
    }

    /// F_SETLK and (`sleep`) F_SETLKW, `flock` likewise.
    pub async fn setlk(
        self: &Arc<Self>,
        _ino: Ino,
        fh: u64,
        owner: u64,
        range: LockRange,
        sleep: bool,
        waiting: &Waiting,
    ) -> Result<(), Errno> {
        let handle = self.handle(fh)?;
        let span = span_of(&range)?;
        let Some(kind) = kind_of(range.typ)? else {
            return self.unlock(&handle, owner, span).await;
        };
        self.allow(&handle, kind).await?;
        let file = self.file_state(&handle.inode);
        let lock = file.inner.lock().locks.begin(owner, fh, range.pid, || {
            self.client.prepare_lock(&handle.open)
        });
        handle.locked.store(true, Ordering::Relaxed);
        let result = match sleep {
            false => {
                self.try_lock(&handle, &lock, owner, span, kind, waiting)
                    .await
            }
            true => {
                self.wait_lock(&handle, &lock, owner, span, kind, waiting)
                    .await
            }
        };
        let orphan = file.inner.lock().locks.end(owner);
        self.drop_locks(&handle.inode, orphan.into_iter().collect())
            .await;
        result
    }

    /// A lock needs the server's open to allow what it protects. `fcntl` has
    /// the kernel refuse it where the descriptor does not; what comes here is
    /// `flock`, which does not care.
    async fn allow(self: &Arc<Self>, handle: &OpenHandle, kind: LockKind) -> Result<(), Errno> {
        let access = match kind {
            LockKind::Read => ACCESS_READ,
            LockKind::Write => ACCESS_WRITE,
        };
        if handle.open.access() & access != 0 {
            return Ok(());
        }
        let sent = Instant::now();
        match self
            .client
            .open_handle(&handle.open, access, false, None, None)
            .await
        {
            Ok(None) => Ok(()),
            Ok(Some(opened)) => {
                self.learn(&handle.inode, &opened.attrs, sent);
                Ok(())
            }
            Err(error) => Err(match error.errno() {
                libc::EACCES | libc::EPERM | libc::EROFS => Errno(libc::EBADF),
                _ => self.failed(&error, &handle.inode),
            }),
        }
    }

    async fn try_lock(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        lock: &Arc<LockState>,
        owner: u64,
        span: Span,
        kind: LockKind,
        waiting: &Waiting,
    ) -> Result<(), Errno> {
        let file = self.file_state(&handle.inode);
        if file.inner.lock().locks.holder(owner, span, kind).is_some() {
            return Err(Errno(libc::EAGAIN));
        }
        match self
            .attempt(handle, lock, span, kind, false, waiting)
            .await?
        {
            Attempt::Granted => Ok(()),
            Attempt::Denied => Err(Errno(libc::EAGAIN)),
        }
    }

    async fn wait_lock(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        lock: &Arc<LockState>,
        owner: u64,
        span: Span,
        kind: LockKind,
        waiting: &Waiting,
    ) -> Result<(), Errno> {
        let file = self.file_state(&handle.inode);
        let ticket = file.inner.lock().locks.queue(owner, span, kind);
        let mut pace = Pace::new();
        let result = loop {
            let woken = file.unlocked.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let ask = file.inner.lock().locks.may_ask(ticket);
            let pause = match ask {
                false => LOOK_AGAIN,
                true => match self.attempt(handle, lock, span, kind, true, waiting).await {
                    Ok(Attempt::Denied) => pace.next(),
                    Ok(Attempt::Granted) => break Ok(()),
                    Err(errno) => break Err(errno),
                },
            };
            tokio::select! {
                () = waiting.gave_up() => break Err(Errno(libc::EINTR)),
                () = woken => {}
                () = tokio::time::sleep(pause) => {}
            }
        };
        file.inner.lock().locks.leave(ticket);
        // Whoever stood behind this one.
        file.unlocked.notify_waiters();
        result
    }

    /// Asks the server once, and if it grants, makes sure that the caller sees
    /// the file as the lock found it.
    async fn attempt(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        lock: &Arc<LockState>,
        span: Span,
        kind: LockKind,
        waits: bool,
        waiting: &Waiting,
    ) -> Result<Attempt, Errno> {
        let inode = &handle.inode;
        self.drain(inode).await;
        self.send_changes(inode).await;
        let turn = tokio::select! {
            turn = lock.turn() => turn,
            () = waiting.gave_up() => return Err(Errno(libc::EINTR)),
        };
        if waiting.has_given_up() {
            return Err(Errno(libc::EINTR));
        }
        let before = turn.held().parts(span);
        let sent = Instant::now();
        let attrs = match self.client.lock(&turn, span, kind, waits).await {
            Ok(Locked::Granted(attrs)) => attrs,
            Ok(Locked::Denied(_)) => return Ok(Attempt::Denied),
            Err(error) => return Err(self.failed_lock(&error, inode)),
        };
        let attrs = match attrs {
            Some(attrs) => Ok(attrs),
            None => {
                let file = &inode.handle;
                self.client.get_attrs(&handle.open.cred, file).await
            }
        };
        let seen = match attrs {
            Ok(attrs) => {
                self.revalidate(inode, &attrs, sent).await;
                Ok(())
            }
            Err(error) => Err(self.failed(&error, inode)),
        };
        match seen {
            Ok(()) if waiting.answer() => Ok(Attempt::Granted),
            seen => {
                self.put_back(&turn, kind, before, inode).await;
                Err(seen.err().unwrap_or(Errno(libc::EINTR)))
            }
        }
    }

    /// Makes the owner's locks what they were before a grant of `kind` that
    /// nobody took.
    async fn put_back(
        self: &Arc<Self>,
        turn: &Turn<'_>,
        kind: LockKind,
        before: Vec<(Span, Option<LockKind>)>,
        inode: &Arc<Inode>,
    ) {
        for (span, had) in before {
            let result = match had {
                None => self.client.unlock(turn, span).await,
                Some(had) if had == kind => Ok(()),
                Some(had) => self
                    .client
                    .lock(turn, span, had, false)
                    .await
                    .map(|_granted| ()),
            };
            if let Err(error) = result {
                tracing::warn!(ino = inode.ino, "giving a late lock back: {error}");
            }
        }
        self.file_state(inode).unlocked.notify_waiters();
    }

    /// Drops what the kernel has cached of the file, and comes back when the
    /// kernel has done so.
    ///
    /// Always: that every move of the file was our own ([`AttrState::explains`])
    /// is known only as long as nobody else writes at the same time, which is
    /// just what locks on different ranges are for. A foreign WRITE between the
    /// two GETATTRs around ours would be taken for ours.
    ///
    /// [`AttrState::explains`]: super::attr::AttrState::explains
    async fn revalidate(self: &Arc<Self>, inode: &Arc<Inode>, attrs: &Attributes, sent: Instant) {
        self.learn_at_open(inode, attrs, sent);
        // What was read ahead is as old.
        self.file_state(inode).lose_pages();
        let Some(kernel) = self.kernel.get().map(Arc::clone) else {
            return;
        };
        let ino = inode.ino;
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

    fn failed_lock(&self, error: &crate::nfs::NfsError, inode: &Inode) -> Errno {
        match self.failed(error, inode).0 {
            // The server has no room for locks; fcntl(2) has a name for that.
            libc::ENOSPC => Errno(libc::ENOLCK),
            errno => Errno(errno),
        }
    }

    /// F_UNLCK: what was written under the lock is stable before it goes. A
    /// write error does not keep it: fsync and close tell of that.
    async fn unlock(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        owner: u64,
        span: Span,
    ) -> Result<(), Errno> {
        let inode = &handle.inode;
        let lock = self.file_state(inode).inner.lock().locks.state(owner);
        let Some(lock) = lock else {
            return Ok(());
        };
        self.abandoned.ended().await;
        self.drain(inode).await;
        self.send_changes(inode).await;
        let turn = lock.turn().await;
        if span == Span::ALL {
            turn.forgive();
        }
        let result = match turn.touches(span) {
            true => self.client.unlock(&turn, span).await,
            false => Ok(()),
        };
        drop(turn);
        self.file_state(inode).unlocked.notify_waiters();
        result.map_err(|error| self.failed_lock(&error, inode))
    }

    /// Lets go of the locks of owners that are gone. Everything written is
    /// stable already.
    async fn drop_locks(self: &Arc<Self>, inode: &Arc<Inode>, locks: Vec<Arc<LockState>>) {
        if locks.is_empty() {
            return;
        }
        if self.abandoned.any() {
            self.abandoned.ended().await;
            self.drain(inode).await;
            self.send_changes(inode).await;
        }
        for lock in &locks {
            let turn = lock.turn().await;
            if turn.touches(Span::ALL)
                && let Err(error) = self.client.unlock(&turn, Span::ALL).await
            {
                tracing::warn!(ino = inode.ino, "unlocking at close: {error}");
            }
        }
        let file = self.file_state(inode);
        file.inner.lock().retired.extend(locks);
        file.unlocked.notify_waiters();
    }

    /// FLUSH by `owner`: a process that closes a descriptor loses its POSIX
    /// locks on the file, through whichever descriptor it has taken them.
    pub(super) async fn closed_by(self: &Arc<Self>, inode: &Arc<Inode>, owner: u64) {
        let lock = {
            let mut inner = self.file_state(inode).inner.lock();
            if inner.locks.is_empty() {
                return;
            }
            inner.locks.closed_by(owner)
        };
        self.drop_locks(inode, lock.into_iter().collect()).await;
    }

    /// RELEASE: what was locked through the handle goes with it.
    pub(super) async fn released(self: &Arc<Self>, handle: &OpenHandle, fh: u64) {
        if !handle.locked.load(Ordering::Relaxed) {
            return;
        }
        let file = self.file_state(&handle.inode);
        let locks = file.inner.lock().locks.released(fh);
        self.drop_locks(&handle.inode, locks).await;
    }

    /// EIO for a handle whose lock was lost: what it reads or writes would not
    /// be protected.
    pub(super) fn check_locks(&self, handle: &OpenHandle, fh: u64) -> Result<(), Errno> {
        if handle.locked.load(Ordering::Relaxed)
            && self
                .file_state(&handle.inode)
                .inner
                .lock()
                .locks
                .is_lost(fh)
        {
            return Err(Errno(libc::EIO));
        }
        Ok(())
    }
}
