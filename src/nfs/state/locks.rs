//! Byte-range locks (RFC 8881 §9).
//!
//! A [`LockState`] is what one lock owner has on one file. Its owner number is
//! used for nothing else and never again: the kernel's owners come back for
//! other processes, and a state the server still keeps must not be met then.
//!
//! LOCK and LOCKU of one owner go one at a time, in the order they were asked
//! for: whoever sends one has the [`Turn`]. That is a queue, not a lock over
//! data: it protects no field, its holder waits for the server and for no other
//! turn, and no short mutex is held meanwhile. What is held is written down when
//! the server has said so, because that list is what gets reclaimed.
//!
//! A lock that cannot be brought back is *lost*: the owner is not told by
//! anything but EIO, so the state stays lost until its owner has closed the
//! file or unlocked all of it, and is never locked again in silence. What its owner is just
//! giving up is not lost: whether it goes by LOCKU or with the lease is the same to him, and all
//! that was written under it is at the server before LOCKU is sent.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::super::proto::types::StateId;
use super::OpenState;
use super::handover::LockRecord;
use super::ranges::{LockKind, Ranges, Span};
use crate::telemetry::repeats::Repeats;
use crate::wal::Table;

static LOST: Repeats = Repeats::new(|count| {
    tracing::error!(
        "locks were lost on files of {count} owners: each gets EIO until it closes its file"
    );
});

/// The locks of one owner on one file.
#[derive(Debug)]
pub struct LockState {
    /// The open they were made with.
    pub open: Arc<OpenState>,
    /// The lock owner at the server.
    pub(in super::super) owner: u64,
    turn: tokio::sync::Mutex<()>,
    /// It changes by [`LockState::change`] alone, so that its record does.
    inner: Mutex<Inner>,
}

/// Nobody has it any more: what was locked is unlocked, or goes with its open. Not in a panic:
/// whoever takes over then needs the record.
impl Drop for LockState {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.open.wal.remove(Table::Lock, self.owner);
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` until the first LOCK, and after the server has forgotten it.
    stateid: Option<StateId>,
    held: Ranges,
    /// What a LOCKU under way is to let go.
    leaving: Option<Span>,
    /// What a LOCK was sent for whose outcome nobody knows.
    asked: Option<(Span, LockKind)>,
    lost: bool,
    /// A reclaim of it was begun, and not all of it has been answered.
    unproved: bool,
}

/// The right to send a LOCK or LOCKU of this owner.
#[derive(Debug)]
pub struct Turn<'a> {
    state: &'a Arc<LockState>,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

/// A LOCKU under way.
#[derive(Debug)]
pub(in super::super) struct Leaving<'a>(&'a LockState);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.change(|inner| inner.leaving = None);
    }
}

impl Turn<'_> {
    /// The owner gives up what it has locked of `span`: a LOCKU of it begins, and has
    /// ended when the result is dropped.
    pub(in super::super) fn gives_up(&self, span: Span) -> Leaving<'_> {
        self.state.change(|inner| inner.leaving = Some(span));
        Leaving(self.state)
    }

    /// A LOCK is about to be sent. Until its outcome is known, the server may have the lock
    /// under a stateid that nobody has seen.
    pub(in super::super) fn asks(&self, span: Span, kind: LockKind) {
        self.state.change(|inner| inner.asked = Some((span, kind)));
    }

    /// The server has not granted what it was asked for.
    pub(in super::super) fn is_refused(&self) {
        self.state.change(|inner| inner.asked = None);
    }
}

impl Deref for Turn<'_> {
    type Target = Arc<LockState>;

    fn deref(&self) -> &Self::Target {
        self.state
    }
}

impl LockState {
    pub(in super::super) fn new(open: Arc<OpenState>, owner: u64) -> Arc<Self> {
        let state = Arc::new(Self {
            open,
            owner,
            turn: tokio::sync::Mutex::default(),
            inner: Mutex::default(),
        });
        state.open.locks.lock().push(Arc::downgrade(&state));
        state.change(|_| ());
        state
    }

    /// Changes it, and its record under the same lock.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let result = change(&mut inner);
        let wal = &self.open.wal;
        if wal.is_on() {
            wal.put(Table::Lock, self.owner, &self.record_of(&inner));
        }
        result
    }

    pub(in super::super) fn record(&self) -> LockRecord {
        self.record_of(&self.inner.lock())
    }

    fn record_of(&self, inner: &Inner) -> LockRecord {
        LockRecord {
            owner: self.owner,
            open: self.open.owner,
            stateid: inner.stateid,
            held: inner.held.clone(),
            lost: inner.lost,
            unproved: inner.unproved,
            leaving: inner.leaving,
            asked: inner.asked,
        }
    }

    /// The locks of a record, which were made with `open`.
    pub(in super::super) fn of_record(record: LockRecord, open: Arc<OpenState>) -> Arc<Self> {
        let state = Self::new(open, record.owner);
        let restored = Inner {
            stateid: record.stateid,
            held: record.held,
            leaving: record.leaving,
            asked: record.asked,
            lost: record.lost,
            unproved: record.unproved,
        };
        state.change(|inner| *inner = restored);
        state
    }

    /// Waits in line for the right to change these locks.
    pub async fn turn(self: &Arc<Self>) -> Turn<'_> {
        Turn {
            state: self,
            _turn: self.turn.lock().await,
        }
    }

    /// What is held, as far as the server has said so.
    pub fn held(&self) -> Ranges {
        self.inner.lock().held.clone()
    }

    /// A byte of `span` is locked.
    pub fn touches(&self, span: Span) -> bool {
        self.inner.lock().held.touches(span)
    }

    /// See [`Ranges::conflict`].
    pub fn conflict(&self, span: Span, kind: LockKind) -> Option<(Span, LockKind)> {
        self.inner.lock().held.conflict(span, kind)
    }

    /// The server has taken locks away that the owner believes in.
    pub fn is_lost(&self) -> bool {
        self.inner.lock().lost
    }

    /// The owner knows that nothing is locked: it has unlocked everything.
    pub fn forgive(&self) {
        self.change(|inner| inner.lost = false);
    }

    pub(in super::super) fn stateid(&self) -> Option<StateId> {
        self.inner.lock().stateid
    }

    /// Takes in a grant, or an unlock.
    pub(in super::super) fn changed(&self, stateid: StateId, span: Span, kind: Option<LockKind>) {
        self.change(|inner| {
            inner.stateid = Some(stateid);
            inner.held.set(span, kind);
            inner.asked = None;
            if kind.is_some() {
                // A LOCKU of a process that was killed: what it was for is ours anew.
                inner.leaving = None;
            }
        });
    }

    /// What a process that was killed had a LOCKU under way for.
    pub(in super::super) fn leaving(&self) -> Option<Span> {
        self.inner.lock().leaving
    }

    /// What a LOCK was sent for whose outcome nobody knows.
    pub(in super::super) fn asked(&self) -> Option<(Span, LockKind)> {
        self.inner.lock().asked
    }

    /// The server does not know the state any more. What was locked is lost,
    /// and what was written under it must not be sent any more.
    pub(in super::super) fn lose(&self) {
        let lost = self.change(|inner| {
            inner.stateid = None;
            inner.unproved = false;
            inner.asked = None;
            if let Some(span) = inner.leaving {
                inner.held.set(span, None);
            }
            let lost = !std::mem::take(&mut inner.held).is_empty();
            inner.lost |= lost;
            if lost {
                // Of the two records, a kill leaves the fence moved at least.
                self.open.change(|open| open.fence += 1);
            }
            lost
        });
        if !lost {
            return;
        }
        tracing::debug!(owner = self.owner, "a file lock was lost");
        LOST.happened();
    }

    /// For a reclaim: what is to be locked again under a new stateid. Not what a LOCKU is under
    /// way for: that may have been executed, and another host may have the lock since.
    pub(in super::super) fn restart(&self) -> Ranges {
        self.change(|inner| {
            inner.stateid = None;
            if let Some(span) = inner.leaving {
                inner.held.set(span, None);
            }
            inner.unproved = true;
            inner.held.clone()
        })
    }

    /// All that was locked is back, or lost.
    pub(in super::super) fn proved(&self) {
        self.change(|inner| inner.unproved = false);
    }

    /// Nobody knows what of it the server has.
    pub(in super::super) fn is_unproved(&self) -> bool {
        self.inner.lock().unproved
    }

    pub(in super::super) fn reclaimed(&self, stateid: StateId) {
        self.change(|inner| inner.stateid = Some(stateid));
    }
}

/// The lock states made with one open, for recovery to find them.
pub(super) type LockList = Mutex<Vec<Weak<LockState>>>;

impl OpenState {
    /// The lock states made with this open.
    pub(in super::super) fn lock_states(&self) -> Vec<Arc<LockState>> {
        let mut locks = self.locks.lock();
        locks.retain(|lock| lock.strong_count() > 0);
        locks.iter().filter_map(Weak::upgrade).collect()
    }

    /// The server has dropped the state of this open, and its locks with it.
    pub(in super::super) fn lose_locks(&self) {
        for lock in self.lock_states() {
            lock.lose();
        }
    }

    /// Counts the losses of locks: data accepted before one are not written
    /// after it, for somebody else may have had the lock since.
    pub fn fence(&self) -> u32 {
        self.inner.lock().fence
    }
}
