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
//! Waiting ([`Files::lock`]): EFS calls nobody back, so the first in line of this
//! host ([`crate::vfs::locks::lockline`]) asks again and again, [`Pace`]; the others wait for
//! the ones before them. Who waits for himself, through others of this host, is told so
//! if his call is one that is (fcntl(2)): EDEADLK; circles that go over other hosts are
//! the server's to find. A waiter that gives up may have its lock granted all the
//! same: [`Waiting`] decides who was first, and the lock is put back to what it
//! was while the owner's turn is still held, so that no later request of the owner
//! comes in between.
//!
//! A lock owner is a user of the open that it locks with, from its first request until
//! its locks are given up (`FileInner::begin_lock`, `Files::leave_with`): whatever is on
//! its way when its caller is killed has ended, and what came of it is put back, before
//! that open is closed.
//!
//! Order: the owner's turn is taken with nothing else held, the file's lock for
//! moments inside it. The line's lock is taken for moments, with no file locked, and
//! locks one file after the other inside.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Files;
use super::handle::OpenHandle;
use crate::nfs::calls::{Locked, OpenRequest};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::state::locks::{LockState, Turn};
use crate::nfs::state::ranges::{LockKind, Ranges, Span};
use crate::rpc::auth::Credential;
use crate::rpc::caller::{self, Effect};
use crate::vfs::inode::FileState;
use crate::vfs::inode::Inode;
use crate::vfs::locks::lockline::{LockedFile, Ticket, Turn as InLine};
use crate::vfs::locks::locktable::Holder;
use crate::vfs::types::{Errno, LockCall, LockRange, VfsError, VfsResult, Waiting};

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

impl LockedFile for Arc<Inode> {
    fn number(&self) -> u64 {
        self.ino
    }

    fn keeps(&self, owner: u64, span: Span, kind: LockKind) -> bool {
        let locked = |file: &FileState| file.lock().locks().holder(owner, span, kind);
        self.opened().and_then(locked).is_some()
    }

    fn held_by(&self, owner: u64) -> Ranges {
        let state = |file: &FileState| file.lock().locks().state(owner);
        let state = self.opened().and_then(state);
        state.map(|state| state.held()).unwrap_or_default()
    }

    fn knows_another_handle(&self, owner: u64, handle: u64) -> bool {
        self.opened().is_some_and(|file| {
            let inner = file.lock();
            inner.locks().knows_another_handle(owner, handle)
        })
    }
}

/// A caller's place in the line, until this is dropped.
struct Place<'a> {
    files: &'a Files,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.files.line.lock().leave(&self.ticket);
    }
}

/// A request for a lock.
struct Request<'a> {
    handle: &'a Arc<OpenHandle>,
    lock: &'a Arc<LockState>,
    fh: u64,
    owner: u64,
    span: Span,
    kind: LockKind,
    caller: &'a Waiting,
}

/// The kind of lock that a request is for; `None` for F_UNLCK.
pub(in crate::vfs) fn kind_of(typ: i32) -> VfsResult<Option<LockKind>> {
    match typ {
        libc::F_RDLCK => Ok(Some(LockKind::Read)),
        libc::F_WRLCK => Ok(Some(LockKind::Write)),
        libc::F_UNLCK => Ok(None),
        _ => Err(Errno(libc::EINVAL).into()),
    }
}

/// The bytes that a request is for.
pub(in crate::vfs) fn span_of(range: &LockRange) -> VfsResult<Span> {
    let end = match range.end {
        end if end >= i64::MAX.cast_unsigned() => u64::MAX,
        end => end,
    };
    if range.start > end {
        return Err(Errno(libc::EINVAL).into());
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

impl Files {
    /// What keeps `owner` from a lock, here or at the server: F_UNLCK if nothing does.
    pub(in crate::vfs) async fn find_lock(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        handle: &OpenHandle,
        owner: u64,
        range: LockRange,
    ) -> VfsResult<LockRange> {
        let span = span_of(&range)?;
        let Some(kind) = kind_of(range.typ)? else {
            return Err(Errno(libc::EINVAL).into());
        };
        let (here, own) = {
            let inner = self.file_state(&handle.inode).lock();
            let here = inner.locks().holder(owner, span, kind);
            (here, inner.locks().state(owner))
        };
        if let Some(Holder { span, kind, pid }) = here {
            return Ok(to_range(span, kind, pid));
        }
        let file = &handle.inode.handle;
        let denied = self
            .client
            .test_lock(cred, file, own.as_deref(), span, kind)
            .await
            .map_err(|error| self.namespace.failed(&error, &handle.inode))?;
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

    /// F_SETLK and (`sleep`) F_SETLKW, `flock` likewise, by a process that has the number
    /// `owner`.
    pub(in crate::vfs) async fn lock(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        (fh, owner, pid): (u64, u64, u32),
        (span, kind): (Span, LockKind),
        sleep: bool,
        waiting: &Waiting,
    ) -> VfsResult<()> {
        // Before anything is asked for: RELEASE comes when a killed caller had its answer.
        let lock = {
            let mut inner = self.file_state(&handle.inode).lock();
            let lock = inner
                .begin_lock(&handle.locking, (fh, owner, pid), || {
                    self.client.prepare_lock(&handle.open)
                })
                .ok_or(Errno(libc::EBADF))?;
            self.log_owner(&handle.inode, &inner, owner);
            lock
        };
        let request = Request {
            handle,
            lock: &lock,
            fh,
            owner,
            span,
            kind,
            caller: waiting,
        };
        let result = match self.allow(handle, kind).await {
            Ok(()) if sleep => self.wait_lock(&request).await,
            Ok(()) => self.try_lock(&request).await,
            Err(error) => Err(error),
        };
        let orphan = self.file_state(&handle.inode).lock().locks_mut().end(owner);
        caller::apart(self.drop_locks(&handle.inode, orphan.into_iter().collect())).await;
        result
    }

    /// A lock needs the server's open to allow what it protects. `fcntl` has
    /// the kernel refuse it where the descriptor does not; what comes here is
    /// `flock`, which does not care.
    async fn allow(self: &Arc<Self>, handle: &OpenHandle, kind: LockKind) -> VfsResult<()> {
        let access = match kind {
            LockKind::Read => ACCESS_READ,
            LockKind::Write => ACCESS_WRITE,
        };
        if handle.open.access() & access != 0 {
            return Ok(());
        }
        let sent = Instant::now();
        let request = OpenRequest::of(&handle.open, access);
        match self.client.open_by_handle(request).await {
            Ok(None) => Ok(()),
            Ok(Some(opened)) => {
                self.set_preserved(&handle.inode, opened.preserves_unlinked);
                self.namespace.learn(&handle.inode, &opened.attrs, sent);
                Ok(())
            }
            Err(error) => Err(match error.errno() {
                libc::EACCES | libc::EPERM | libc::EROFS => {
                    VfsError::caused(Errno(libc::EBADF), &error, handle.inode.ino)
                }
                _ => self.namespace.failed(&error, &handle.inode),
            }),
        }
    }

    async fn try_lock(self: &Arc<Self>, request: &Request<'_>) -> VfsResult<()> {
        let inode = &request.handle.inode;
        loop {
            let releases = self.releases(inode);
            if !inode.keeps(request.owner, request.span, request.kind)
                && let Attempt::Granted = self.attempt(request, false).await?
            {
                self.granted(request);
                return Ok(());
            }
            if !self.release_ended(inode, releases, request.caller).await? {
                return Err(Errno(libc::EAGAIN).into());
            }
        }
    }

    /// How many handles through which was locked have been released.
    pub(in crate::vfs) fn releases(&self, inode: &Inode) -> u64 {
        self.file_state(inode).lock().releases()
    }

    /// A lock is in somebody's way. True if a handle through which was locked here has
    /// been released since there were so many `releases`, or is being: it is looked again
    /// then. FUSE tells of the last close(2) by RELEASE, which the closer does not wait for,
    /// but relies on.
    pub(in crate::vfs) async fn release_ended(
        &self,
        inode: &Inode,
        releases: u64,
        caller: &Waiting,
    ) -> VfsResult<bool> {
        let file = self.file_state(inode);
        loop {
            let progress = file.progress();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let inner = file.lock();
                if !inner.is_being_released() {
                    return Ok(inner.releases() != releases);
                }
            }
            tokio::select! {
                biased;
                () = caller.gave_up() => return Err(Errno(libc::EINTR).into()),
                () = &mut progress => {}
            }
        }
    }

    async fn wait_lock(self: &Arc<Self>, request: &Request<'_>) -> VfsResult<()> {
        let file = Arc::clone(&request.handle.inode);
        let joined = self
            .line
            .lock()
            .join(file, request.owner, request.span, request.kind);
        let place = Place {
            files: self,
            ticket: joined,
        };
        let mut pace = Pace::new();
        loop {
            let look = self.line.lock().look(&place.ticket);
            let pause = match look {
                InLine::Wait => LOOK_AGAIN,
                InLine::Deadlock => {
                    self.escape(request, &place.ticket).await?;
                    continue;
                }
                InLine::Ask => match self.attempt(request, true).await? {
                    Attempt::Denied => pace.next(),
                    Attempt::Granted => break,
                },
            };
            tokio::select! {
                biased;
                () = request.caller.gave_up() => return Err(Errno(libc::EINTR).into()),
                () = place.ticket.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        drop(place);
        self.granted(request);
        Ok(())
    }

    /// For those who wait for more than this lock, and for those who it leaves room for:
    /// it may be less than what it replaces.
    fn granted(&self, request: &Request<'_>) {
        let ino = request.handle.inode.ino;
        self.line.lock().granted(ino, request.owner);
    }

    /// A caller who waits for himself. EDEADLK if it is fcntl(2) for a process. A
    /// `flock` that is to be another one lets go of what it was first, as flock(2) has
    /// it, and is in nobody's way then. An OFD lock waits, and so does one that cannot
    /// be told from that. After Ok the caller is to look again.
    async fn escape(self: &Arc<Self>, request: &Request<'_>, ticket: &Ticket) -> VfsResult<()> {
        let is_process = self.line.lock().is_process(request.owner, request.fh);
        let call = match is_process {
            true => Some(LockCall::Process),
            false => tokio::select! {
                biased;
                call = request.caller.call() => call,
                () = request.caller.gave_up() => return Err(Errno(libc::EINTR).into()),
            },
        };
        match call {
            Some(LockCall::Process) if self.line.lock().give_way(ticket) => {
                return Err(Errno(libc::EDEADLK).into());
            }
            Some(LockCall::Process) => {}
            Some(LockCall::Flock) => {
                let inode = &request.handle.inode;
                self.let_go(inode, request.lock, Span::ALL, false).await?;
            }
            Some(LockCall::Description) | None => self.line.lock().set_patient(ticket),
        }
        Ok(())
    }

    /// Asks the server once, and if it grants, makes sure that the caller sees
    /// the file as the lock found it.
    async fn attempt(self: &Arc<Self>, request: &Request<'_>, waits: bool) -> VfsResult<Attempt> {
        let &Request {
            handle,
            lock,
            span,
            kind,
            caller: waiting,
            ..
        } = request;
        let inode = &handle.inode;
        self.before_lock(inode).await;
        let turn = tokio::select! {
            biased;
            turn = lock.turn() => turn,
            () = waiting.gave_up() => return Err(Errno(libc::EINTR).into()),
        };
        // What begins once the caller has been answered finds the lock put back.
        let Some(effect) = Effect::begin().filter(|_| !waiting.has_given_up()) else {
            return Err(Errno(libc::EINTR).into());
        };
        let before = turn.held().parts(span);
        let sent = Instant::now();
        let attrs = match self.client.lock(&turn, span, kind, waits).await {
            Ok(Locked::Granted(attrs)) => attrs,
            Ok(Locked::Denied(_)) => return Ok(Attempt::Denied),
            Err(error) => {
                if error.abandoned() == Some(true) {
                    caller::apart(self.find_and_put_back(&turn, kind, span, before, inode)).await;
                }
                return Err(self.failed_lock(&error, inode));
            }
        };
        if waiting.has_given_up() {
            caller::apart(self.put_back(&turn, kind, before, inode)).await;
            return Err(Errno(libc::EINTR).into());
        }
        // From here on pages are waited for, whose READs may wait for what is abandoned.
        drop(effect);
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
            Err(error) => Err(self.namespace.failed(&error, inode)),
        };
        match seen {
            Ok(()) if waiting.answer() => Ok(Attempt::Granted),
            seen => {
                caller::apart(self.put_back(&turn, kind, before, inode)).await;
                Err(seen.err().unwrap_or_else(|| Errno(libc::EINTR).into()))
            }
        }
    }

    /// The same after a LOCK that the server may have granted or not. Asked again, it
    /// grants to the same owner what that has already.
    async fn find_and_put_back(
        self: &Arc<Self>,
        turn: &Turn<'_>,
        kind: LockKind,
        span: Span,
        before: Vec<(Span, Option<LockKind>)>,
        inode: &Arc<Inode>,
    ) {
        match self.client.lock(turn, span, kind, false).await {
            Ok(Locked::Granted(_)) => self.put_back(turn, kind, before, inode).await,
            Ok(Locked::Denied(_)) => {}
            Err(error) => tracing::warn!(
                ino = inode.ino,
                "a lock may stay at the server until its file is closed: {error}"
            ),
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
        self.line.lock().wake(inode.ino);
    }

    /// Drops what the kernel has cached of the file, and comes back when the
    /// kernel has done so.
    ///
    /// Always: that every move of the file was our own ([`AttrState::explains`])
    /// is known only as long as nobody else writes at the same time, which is
    /// just what locks on different ranges are for. A foreign WRITE between the
    /// two GETATTRs around ours would be taken for ours.
    ///
    /// [`AttrState::explains`]: crate::vfs::inode::attr::AttrState::explains
    async fn revalidate(self: &Arc<Self>, inode: &Arc<Inode>, attrs: &Attributes, sent: Instant) {
        self.namespace.learn_at_open(inode, attrs, sent);
        self.believe_nothing_beside(inode);
        // What was read ahead is as old.
        self.file_state(inode).lose_pages();
        self.namespace.drop_pages(inode.ino).await;
    }

    /// Another host has changed the file since this one locked it last, or ever: what it
    /// has made, cut or removed beside it is to be seen under the lock. SQLite rolls back
    /// by a journal there, whose name is the database's and more; if that is not seen, half
    /// a transaction is.
    ///
    /// Names in the file's directory are asked for again, and the attributes of files whose
    /// names begin with the file's.
    fn believe_nothing_beside(&self, inode: &Arc<Inode>) {
        let foreign = inode.attr.lock().foreign();
        let seen = {
            let mut inner = self.file_state(inode).lock();
            inner.doubt_beside(foreign)
        };
        let Some(place) = inode.place().filter(|_| seen != foreign) else {
            return;
        };
        let beside = self.namespace.beside(&place);
        self.namespace.doubt(&place.dir);
        for other in beside.iter().filter(|other| !Arc::ptr_eq(other, inode)) {
            other.attr.lock().expire();
            self.namespace.inval_attr(other.ino);
        }
    }

    /// What an error of LOCK or LOCKU is to the caller.
    pub(super) fn failed_lock(&self, error: &crate::nfs::NfsError, inode: &Inode) -> VfsError {
        match self.namespace.failed(error, inode) {
            // The server has no room for locks; fcntl(2) has a name for that.
            error if error.is(libc::ENOSPC) => error.told_as(libc::ENOLCK),
            error => error,
        }
    }
}
