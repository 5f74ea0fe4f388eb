//! CLOSEs, several in one compound, or along with what is sent anyway.
//!
//! Nobody waits for a CLOSE: what was written is stable before it. So it waits
//! itself, until the next OPEN of the same identity takes it along, as many of
//! one identity have come together as a compound takes, or [`LINGER`] is over. A server keeps a file open that much longer,
//! which only shows in how long the space of a file stays in use whose names
//! other hosts remove. When this host removes one, its CLOSE goes in front of
//! that: a server that does not keep removed files would not find it any more.
//!
//! An open that is here is closed for everybody but the server: recovery does
//! not bring it back, and it is never used for another OPEN. Its stateid is
//! known to this queue alone, so nothing can overtake its CLOSE.
//!
//! Bounded: with [`MOST`] waiting or on their way, new OPENs wait. A CLOSE that
//! the server refuses is not repeated; those that stood behind it in the same
//! compound, and did not run, are. What it refuses for locks that it holds (a LOCKU
//! failed, or nobody knew of the lock) is unlocked and closed again, [`UNLOCKS`] times.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::close::{UNLOCKS, unlock_all};
use super::fore_channel::ForeChannel;
use super::fore_channel::gate::Past;
use super::proto::compound::Compound;
use super::proto::ops::Op;
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::proto::types::{FileHandle, StateId};
use super::session::slots::Class;
use super::state::OpenState;
use super::state::locks::LockState;
use crate::background;
use crate::rpc::auth::Credential;

/// How long a CLOSE waits for company.
const LINGER: Duration = Duration::from_millis(200);

/// CLOSEs that may be waiting or on their way.
const MOST: usize = 1024;

/// CLOSEs that go along with an OPEN. More than one, so that those of several
/// threads are caught up with; few, because the OPEN is waited for.
const ALONG: usize = 2;

/// PUTFH and CLOSE.
const OPS_EACH: usize = 2;

/// A CLOSE that the server has not answered.
#[derive(Debug)]
struct PendingClose {
    open: Arc<OpenState>,
    /// What it was when the last handle was closed.
    stateid: StateId,
    since: Instant,
    /// What was locked with it.
    locks: Vec<Arc<LockState>>,
    /// How often that was unlocked because the server said so.
    unlocks: u32,
}

#[derive(Debug, Default)]
struct Inner {
    /// In the order they came.
    waiting: Vec<PendingClose>,
    /// Sent, or about to be, and not yet answered.
    sent: Vec<Arc<OpenState>>,
    /// A task looks after `waiting`.
    timed: bool,
}

impl Inner {
    /// Takes out those that `wanted` names: they are being sent.
    fn take(&mut self, mut wanted: impl FnMut(&PendingClose) -> bool) -> Vec<PendingClose> {
        let taken: Vec<_> = self.waiting.extract_if(.., |one| wanted(one)).collect();
        self.sent
            .extend(taken.iter().map(|one| Arc::clone(&one.open)));
        taken
    }
}

/// See the module.
pub(super) struct CloseQueue {
    fore: Arc<ForeChannel>,
    inner: Mutex<Inner>,
    /// Some were answered.
    answered: Notify,
}

impl CloseQueue {
    /// An empty queue, whose CLOSEs go through `fore`.
    pub(super) fn new(fore: Arc<ForeChannel>) -> Arc<Self> {
        Arc::new(Self {
            fore,
            inner: Mutex::default(),
            answered: Notify::new(),
        })
    }

    /// CLOSEs that the server has not answered.
    pub(super) fn pending(&self) -> usize {
        let inner = self.inner.lock();
        inner.waiting.len() + inner.sent.len()
    }

    /// Those, each with the stateid to close.
    pub(super) fn unanswered(&self) -> Vec<(Arc<OpenState>, StateId)> {
        let inner = self.inner.lock();
        let waiting = inner.waiting.iter();
        let waiting = waiting.map(|one| (&one.open, one.open.exact().or(Some(one.stateid))));
        let sent = inner.sent.iter().map(|open| (open, open.exact()));
        waiting
            .chain(sent)
            .filter_map(|(open, stateid)| Some((Arc::clone(open), stateid?)))
            .collect()
    }

    async fn until(&self, done: impl Fn(&Inner) -> bool) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if done(&self.inner.lock()) {
                return;
            }
            answered.await;
        }
    }

    /// Takes a CLOSE in, and gives out those that are to be sent now. True if a
    /// timer is to be started.
    fn add(&self, closed: PendingClose, at_once: usize) -> (Vec<PendingClose>, bool) {
        let mut inner = self.inner.lock();
        let cred = Arc::clone(&closed.open.cred);
        inner.waiting.push(closed);
        let alike = |one: &PendingClose| *one.open.cred == *cred;
        let full = inner.waiting.iter().filter(|one| alike(one)).count() >= at_once;
        let batch = match full {
            true => inner.take(alike),
            false => Vec::new(),
        };
        let begin = !inner.timed && !inner.waiting.is_empty();
        inner.timed |= begin;
        (batch, begin)
    }

    /// Those whose time is over, or when that will be; `None` if none are left,
    /// and then the next one starts a new timer.
    fn due(&self, now: Instant) -> Option<Result<Vec<PendingClose>, Instant>> {
        let mut inner = self.inner.lock();
        let Some(first) = inner.waiting.first() else {
            inner.timed = false;
            return None;
        };
        let due = first.since + LINGER;
        Some(match due <= now {
            true => Ok(inner.take(|_| true)),
            false => Err(due),
        })
    }

    /// Takes in the CLOSE of an open that is closed here already, and had this stateid
    /// then ([`OpenTable::close_here`](super::state::OpenTable::close_here)).
    pub(super) fn close_soon(self: &Arc<Self>, open: &Arc<OpenState>, stateid: StateId) {
        let close = PendingClose {
            open: Arc::clone(open),
            stateid,
            since: Instant::now(),
            locks: open.lock_states(),
            unlocks: 0,
        };
        let (batch, begin) = self.add(close, self.closes_a_compound());
        self.fore.metrics.gauges.closes_pending.inc();
        self.send_apart(batch);
        if begin {
            let queue = Arc::downgrade(self);
            let look = move || look_after(queue.clone());
            self.fore.metrics.tasks.restarted("look_after", look);
        }
    }

    /// A name of this file is about to be removed in the name of `cred`, by a
    /// request of `ops` operations, and with it perhaps the file. What CLOSE of it
    /// still waits goes in front of that, in the same compound if there is room;
    /// what is on its way is waited for.
    pub(super) async fn close_in_front(
        self: &Arc<Self>,
        file: Option<&FileHandle>,
        cred: &Credential,
        ops: usize,
    ) -> Prologue {
        let Some(file) = file else {
            return Prologue::of(self, Vec::new());
        };
        let mut closes = self.inner.lock().take(|one| one.open.handle == *file);
        let room = self.max_ops().saturating_sub(ops) / OPS_EACH;
        let alike = |one: &mut PendingClose| *one.open.cred == *cred;
        let mut along: Vec<_> = closes.extract_if(.., alike).collect();
        closes.extend(along.drain(room.min(along.len())..));
        self.send_apart(closes);
        let front = Prologue::of(self, along);
        self.until(|inner| {
            let mut sent = inner.sent.iter().filter(|open| open.handle == *file);
            sent.all(|open| front.holds(open))
        })
        .await;
        front
    }

    /// A request of `ops` operations is about to be sent in the name of `cred`, and
    /// has room for CLOSEs that wait: as many of them go in front of it as come
    /// together from one such request to the next.
    pub(super) fn close_along(self: &Arc<Self>, cred: &Credential, ops: usize) -> Prologue {
        let room = self.max_ops().saturating_sub(ops) / OPS_EACH;
        let mut inner = self.inner.lock();
        let mut left = room.min(ALONG);
        let closes = inner.take(|one| {
            let along = left > 0 && *one.open.cred == *cred;
            left -= usize::from(along);
            along
        });
        drop(inner);
        Prologue::of(self, closes)
    }

    /// Runs a compound with CLOSEs in front of it. If one of those is refused, the
    /// rest has not run: it does, without them. Nor do they wait with it for changes of names:
    /// those may wait for them.
    pub(super) async fn call_behind(
        self: &Arc<Self>,
        front: Prologue,
        cred: &Credential,
        build: impl Fn(&mut Compound) + Send + Sync,
    ) -> Result<Reply, NfsError> {
        let reply = self
            .fore
            .call_giving_way(
                cred,
                Class::Metadata,
                |c| {
                    front.add(c);
                    build(c);
                },
                || self.send_apart(front.take()),
            )
            .await;
        let mut reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                self.send_apart(front.take());
                return Err(error);
            }
        };
        if self.closed_in_front(&front, &mut reply) {
            return Ok(reply);
        }
        self.fore.call(cred, Class::Metadata, build).await
    }

    /// Takes the CLOSEs in front off a reply. False if one was refused, and what
    /// stood behind it did not run for that reason.
    fn closed_in_front(self: &Arc<Self>, front: &Prologue, reply: &mut Reply) -> bool {
        let mut closes = front.take();
        if front.sendings.load(Ordering::Relaxed) > 1 || reply.is_kept() {
            // The last sending was without them, and who knows of the first.
            self.send_apart(closes);
            return true;
        }
        for at in 0..closes.len() {
            let put = reply.ok(Op::PutFh).map(|_| ());
            if let Err(error) = put.and_then(|()| reply.stateid(Op::Close)) {
                tracing::debug!("closing a file: {error}");
                // One that is put off is not refused, and one with locks is unlocked.
                let again = matches!(
                    error.status(),
                    Some(Status::DELAY | Status::GRACE | Status::LOCKS_HELD)
                );
                let behind = closes.split_off(at + usize::from(!again));
                self.answered(&closes);
                self.send_apart(behind);
                return false;
            }
        }
        self.answered(&closes);
        true
    }

    fn answered(&self, closes: &[PendingClose]) {
        let pending = &self.fore.metrics.gauges.closes_pending;
        pending.sub(closes.len() as u64);
        let mut inner = self.inner.lock();
        for close in closes {
            close.open.closed();
            let at = inner
                .sent
                .iter()
                .position(|open| Arc::ptr_eq(open, &close.open));
            if let Some(at) = at {
                inner.sent.swap_remove(at);
            }
        }
        drop(inner);
        self.answered.notify_waiters();
    }

    /// Sends every CLOSE that still waits, and waits for all of them.
    pub(super) async fn sent_all(self: &Arc<Self>) {
        self.send_apart(self.inner.lock().take(|_| true));
        let none = |inner: &Inner| inner.waiting.is_empty() && inner.sent.is_empty();
        self.until(none).await;
    }

    /// Waits while too many files are being closed for one more to be opened.
    pub(super) async fn room_to_open(&self) {
        let room = |inner: &Inner| inner.waiting.len() + inner.sent.len() < MOST;
        self.until(room).await;
    }

    /// Operations that a compound may have.
    fn max_ops(&self) -> usize {
        match self.fore.session.up() {
            Some(session) => session.attrs.max_ops as usize,
            // One that every session has room for.
            None => 1 + OPS_EACH,
        }
    }

    /// This many CLOSEs go into a compound of this session.
    fn closes_a_compound(&self) -> usize {
        (self.max_ops().saturating_sub(1) / OPS_EACH).max(1)
    }

    /// Sends CLOSEs, each identity's in a task of its own.
    fn send_apart(self: &Arc<Self>, mut closes: Vec<PendingClose>) {
        while let Some(first) = closes.first() {
            let cred = Arc::clone(&first.open.cred);
            let alike = closes
                .extract_if(.., |one| *one.open.cred == *cred)
                .collect();
            let queue = Arc::clone(self);
            tokio::spawn(async move { queue.send_surely(alike).await });
        }
    }

    /// Sends CLOSEs of one identity. Should that die, those that are left go out
    /// again: the server says of one that has run that it knows no such open.
    async fn send_surely(self: &Arc<Self>, mut closes: Vec<PendingClose>) {
        let tasks = &self.fore.metrics.tasks;
        for _ in 0..background::TRIES {
            let sent = self.send_together(&mut closes);
            if tasks.watched("send_together", sent).await.is_ok() {
                return;
            }
            tokio::time::sleep(LINGER).await;
        }
        let left = closes.len();
        tracing::error!("{left} files stay open at the server until this mount ends");
        self.answered(&closes);
    }

    /// Sends CLOSEs of one identity until all of them were answered, and takes those
    /// out.
    async fn send_together(self: &Arc<Self>, closes: &mut Vec<PendingClose>) {
        while !closes.is_empty() {
            self.fore.metrics.tasks.point("send_together");
            let done = self.send_some(closes).await;
            self.answered(&closes[..done]);
            closes.drain(..done);
        }
    }

    /// Sends as many as a compound takes. How many of them, from the front, are
    /// done with: at least one, or the first was unlocked.
    async fn send_some(self: &Arc<Self>, closes: &mut [PendingClose]) -> usize {
        let sent = closes.len().min(self.closes_a_compound());
        let Some(first) = closes.first() else {
            return 0;
        };
        // Changes of names may wait for it.
        let reply = self
            .fore
            .call_past(Past::Gate, &first.open.cred, Class::Metadata, |c| {
                c.once();
                for (at, close) in closes[..sent].iter().enumerate() {
                    if at == 1 {
                        // If one of these is put off, the first has run.
                        c.then();
                    }
                    let stateid = close.open.exact().unwrap_or(close.stateid);
                    c.put(&close.open.handle).close(stateid);
                }
            })
            .await;
        let mut reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!("closing {} files: {error}", closes.len());
                return closes.len();
            }
        };
        for (at, close) in closes[..sent].iter_mut().enumerate() {
            let put = reply.ok(Op::PutFh).map(|_| ());
            match put.and_then(|()| reply.stateid(Op::Close)) {
                Ok(_) => {}
                // OK: it was left out, the session is a smaller one by now.
                Err(NfsError::Status(_, Status::DELAY | Status::GRACE | Status::OK)) if at > 0 => {
                    return at;
                }
                Err(NfsError::Status(Op::Close, Status::LOCKS_HELD)) if close.unlocks < UNLOCKS => {
                    close.unlocks += 1;
                    unlock_all(&self.fore, &close.locks).await;
                    return at;
                }
                Err(error) => {
                    tracing::debug!("closing a file: {error}");
                    return at + 1;
                }
            }
        }
        sent
    }
}

/// CLOSEs in front of another request's operations. Dropped with any left, because
/// who was to send that request died, it sends them by themselves: others wait for
/// them.
pub(super) struct Prologue {
    /// Its lock is taken alone, or under the queue's.
    closes: Mutex<Vec<PendingClose>>,
    sendings: AtomicUsize,
    queue: Weak<CloseQueue>,
}

impl Drop for Prologue {
    fn drop(&mut self) {
        let closes = self.take();
        if !closes.is_empty()
            && let Some(queue) = self.queue.upgrade()
        {
            queue.send_apart(closes);
        }
    }
}

impl Prologue {
    fn of(queue: &Arc<CloseQueue>, closes: Vec<PendingClose>) -> Self {
        Self {
            closes: Mutex::new(closes),
            sendings: AtomicUsize::new(0),
            queue: Arc::downgrade(queue),
        }
    }

    fn take(&self) -> Vec<PendingClose> {
        std::mem::take(&mut *self.closes.lock())
    }

    /// Adds them, in the first sending of the compound.
    pub(super) fn add(&self, compound: &mut Compound) {
        if self.sendings.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        for close in &*self.closes.lock() {
            let stateid = close.open.exact().unwrap_or(close.stateid);
            compound.put(&close.open.handle).close(stateid);
        }
        compound.in_front();
    }

    fn holds(&self, open: &Arc<OpenState>) -> bool {
        let closes = self.closes.lock();
        closes.iter().any(|one| Arc::ptr_eq(&one.open, open))
    }
}

/// Sends what has waited long enough, as long as anything waits.
async fn look_after(queue: Weak<CloseQueue>) {
    loop {
        let Some(strong) = queue.upgrade() else {
            return;
        };
        strong.fore.metrics.tasks.point("look_after");
        let at = match strong.due(Instant::now()) {
            None => return,
            Some(Ok(batch)) => {
                strong.send_apart(batch);
                continue;
            }
            Some(Err(at)) => at,
        };
        drop(strong);
        tokio::time::sleep_until(at).await;
    }
}
