//! The write-back of one file: takes what write(2) hands in, and says which
//! WRITEs and COMMITs (RFC 8881 sections 18.32, 18.3) bring it to stable
//! storage. A plain state machine: it does no I/O, has no clock and no lock of
//! its own. Its owner (the vfs write path) keeps it under the inode's lock,
//! reports events, and after each event performs what [`Writeback::next`] asks
//! for until it asks for nothing.
//!
//! ```text
//!  accept ──► queue ──► in flight ──► retained ──► stable
//!               ▲     written│  FILE_SYNC │  COMMIT   ▲
//!               │            ├────────────┼───────────┘
//!               └────────────┴────────────┘
//!              short count      verifier changed
//! ```
//!
//! # What is promised
//!
//! - An accepted byte ends up stable on the server, or replaced by a byte
//!   accepted later, or an error is recorded in [`ErrSeq`]. Nothing else.
//! - What is sent is exactly what was accepted, never widened. Small pieces with gaps
//!   between them (linkers, archivers) go in one request instead, as
//!   WRITEs of their own.
//! - Older bytes never overwrite newer ones on the server, not even when they
//!   are written again after a crash.
//! - A drain (fsync, close, unlock) ends when what was accepted before it is
//!   stable or failed, whatever is accepted meanwhile.
//!
//! # Why it holds
//!
//! Each file position has at most one byte in the queue, at most one in
//! flight, and any number retained, and they are of this age, newest first:
//! *queue, in flight, retained by descending request id*. For:
//!
//! 1. Accepted bytes take the place of queued ones.
//! 2. A segment that overlaps one in flight stays in the queue until that is
//!    answered: the server gives no order to requests of different slots.
//! 3. What comes back into the queue (a short count, a request that wrote
//!    nothing, bytes that the server lost) gives way to every byte that is
//!    newer by this order.
//! 4. Retained bytes go when newer ones become stable in their place.
//!
//! Each position carries the age (`seq`) of the oldest byte accepted there
//! that did not become stable: bytes that replace others before those were
//! stable take over their age. A drain has a mark, and is done when nothing of
//! an age up to the mark is left. What is retained is *not* replaced by newer
//! unstable bytes while a drain waits for it, else a writer that rewrites one
//! block without end would hold up every fsync. The set of positions a drain
//! waits for never grows, except within the segments that a crash or a refusal
//! sends again, which is bounded.
//!
//! # Verifiers
//!
//! A reply carries the verifier of the server instance that gave it. Since
//! replies overtake each other, a reply proves something only about what was
//! acknowledged before its request was sent. Of that, a COMMIT's reply makes
//! stable what has the same verifier, and shows the rest to be lost; an
//! unstable WRITE's reply shows what has another verifier to be lost. A COMMIT that
//! nobody waits for goes behind a WRITE, in one compound: then it proves that WRITE too. What is
//! lost is written again, at most a few rounds, then it is an EIO. A restart of the server
//! ([`Writeback::server_restarted`]) is no such round.

pub(super) mod errseq;
mod machine;
#[cfg(test)]
mod model_tests;
pub(super) mod name_queue;
mod queue;
mod retained;
mod rope;
mod run;
mod segment;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use self::errseq::ErrSeq;
use self::machine::{Lasting, Machine};
use super::types::{Errno, VfsError};

/// The data of one WRITE, in the buffers they were accepted in.
pub(super) type Chunks = SmallVec<[Bytes; 4]>;

/// Names a server instance: `verifier4`, RFC 8881 section 3.1. Only equality
/// means something.
pub(super) type Verifier = [u8; 8];

/// How a write-back behaves; one for all files of a mount.
#[derive(Clone, Debug)]
pub(super) struct WritebackConfig {
    /// The most bytes one WRITE may carry.
    pub wsize: usize,
    /// The most requests of one file without a reply.
    pub max_in_flight: usize,
    /// WRITEs that are due share a request, this many and together no more than `wsize`, ...
    pub fragments: usize,
    /// ... of which those but the last have so many bytes at most, and their arguments, ...
    pub in_front: usize,
    /// ... but where somebody waits for them and there are places for each, only those of
    /// fewer bytes than this.
    pub fragment: usize,
    /// How long a segment smaller than `wsize` waits to be joined by more, from the last write
    /// on; longer in a run of writes (see [`run`]), ...
    pub linger: Duration,
    /// ... and no longer than this after its first write.
    pub max_linger: Duration,
    /// How long data that the server has and has not committed are held before they are
    /// committed although nobody asks for it: their memory is to be had again, and a
    /// server that crashes later has nothing of them to lose.
    pub commit_after: Duration,
    /// The window of one file, bytes. The caller keeps [`Writeback::bytes`]
    /// below it; the write-back commits in time for that to end.
    pub file_limit: usize,
}

/// How stable written data are or have to be (`stable_how4`, RFC 8881 section
/// 18.32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stable {
    /// In the server's memory: may be lost until a COMMIT.
    Unstable,
    /// The data are on stable storage, not all attributes. Only seen in
    /// replies, and committed like unstable ones.
    DataSync,
    /// Data and attributes are on stable storage.
    FileSync,
}

/// Names a WRITE or COMMIT from the [`Action`] that asks for it to the one
/// event that ends it. Never used twice in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RequestId(u64);

/// The arguments of a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommitRange {
    /// The start of the range.
    pub offset: u64,
    /// Its length in bytes; 0 means to the end of the file.
    pub count: u32,
}

impl CommitRange {
    fn of(range: &Range<u64>) -> Self {
        Self {
            offset: range.start,
            count: u32::try_from(range.end - range.start).unwrap_or(0),
        }
    }
}

/// One WRITE of several in a request.
#[derive(Debug)]
pub(super) struct Fragment {
    /// What to report under.
    pub id: RequestId,
    /// Where in the file.
    pub offset: u64,
    /// The bytes; never empty.
    pub data: Chunks,
}

/// What the owner of a write-back has to do.
#[derive(Debug)]
pub(super) enum Action<O> {
    /// Send a WRITE, and report [`Writeback::written`] or [`Writeback::failed`]
    /// exactly once. Retries of the transport and of NFS4ERR_DELAY are the
    /// sender's; it must not report before the request can no more be executed.
    Write {
        /// What to report under.
        id: RequestId,
        /// Whose open state and credential to use.
        origin: O,
        /// Where in the file.
        offset: u64,
        /// The bytes; never empty.
        data: Chunks,
        /// The `stable` argument.
        stable: Stable,
        /// A COMMIT that goes behind it in the same compound. What became of it is
        /// reported with the WRITE: [`Writeback::written_and_committed`] if it
        /// was executed, anything else if not.
        commit: Option<CommitRange>,
    },
    /// Send several unstable WRITEs in one request, in this order, and report each as
    /// it would be alone. What the server did not come to, because one before it
    /// failed, is to be sent again.
    WriteFragments {
        /// Whose open state and credential to use.
        origin: O,
        /// Two or more; none overlaps another.
        fragments: Vec<Fragment>,
        /// A COMMIT behind the last of them. If it was executed, so were all, and
        /// each is reported by [`Writeback::written_and_committed`].
        commit: Option<CommitRange>,
    },
    /// Send a COMMIT, and report [`Writeback::committed`] or
    /// [`Writeback::commit_failed`] exactly once. There is one at a time.
    Commit {
        /// What to report under.
        id: RequestId,
        /// Whose credential to use.
        origin: O,
        /// What it covers.
        range: CommitRange,
    },
    /// Call [`Writeback::next`] at this time or later. Timers need not be
    /// cancelled: an early or a superfluous call does no harm.
    WakeAt(Instant),
}

/// Everything that was accepted before [`Writeback::begin_drain`].
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainTicket {
    mark: u64,
}

/// One write that was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteTicket {
    seq: u64,
}

impl WriteTicket {
    /// It was accepted before anything of this age was.
    pub(super) fn is_before(self, age: u64) -> bool {
        self.seq < age
    }
}

/// The part of a range that was pending at [`Writeback::drain_range`].
#[derive(Clone, Debug)]
pub(super) struct RangeTicket {
    mark: u64,
    range: Range<u64>,
}

/// The write-back of one file. `O` is the origin of a write: whichever
/// open state and credential it has to be sent with. Bytes of different
/// origins never share a WRITE.
///
/// While nothing is pending it is a few words and owns no memory.
#[derive(Debug)]
pub(super) struct Writeback<O> {
    config: Arc<WritebackConfig>,
    lasting: Lasting,
    /// There while something is pending.
    busy: Option<Box<Machine<O>>>,
}

impl<O: Clone + PartialEq> Writeback<O> {
    /// A write-back with nothing in it.
    pub(super) fn new(config: Arc<WritebackConfig>) -> Writeback<O> {
        Writeback {
            config,
            lasting: Lasting::default(),
            busy: None,
        }
    }

    /// Takes in `data` for `offset`. The buffer is kept, not copied, so it
    /// should not be a small slice of a large one. With `sync` the data do not
    /// linger and are written FILE_SYNC, and their loss is told by [`Writeback::fate`]
    /// instead of [`Writeback::errors`], which has to be asked once they are drained.
    /// They must not overlap what is pending: then each of the two could be lost with
    /// the other. A range that ends past 2^64 is refused by an EFBIG in
    /// [`Writeback::errors`].
    pub(super) fn accept(
        &mut self,
        now: Instant,
        origin: O,
        offset: u64,
        data: Bytes,
        sync: bool,
    ) -> WriteTicket {
        if data.is_empty() {
            return WriteTicket { seq: 0 };
        }
        if offset.checked_add(data.len() as u64).is_none() {
            self.lasting.errors.record(Errno(libc::EFBIG).into());
            return WriteTicket { seq: 0 };
        }
        self.busy
            .get_or_insert_with(|| Box::new(Machine::new(now, self.config.clone())))
            .accept(&mut self.lasting, now, origin, offset, data, sync);
        WriteTicket {
            seq: self.lasting.tick,
        }
    }

    /// What became of a synchronous write, once it was drained: the error that its own
    /// bytes were lost by, if they were. To be asked once.
    pub(super) fn fate(&mut self, write: WriteTicket) -> Option<VfsError> {
        let mut fate = None;
        self.event(|busy, _| fate = busy.fate(write.seq));
        fate
    }

    /// What to do next, or `None` when nothing is to be done before the next
    /// event. To be called until then after every other call that changes
    /// something, and when a wake-up is due.
    // Not an iterator: what it gives depends on the time and the events.
    #[allow(clippy::should_implement_trait)]
    pub(super) fn next(&mut self, now: Instant) -> Option<Action<O>> {
        self.busy.as_mut()?.next(&mut self.lasting, now)
    }

    /// A WRITE was answered: `count` bytes taken, as stable as `committed`, by
    /// the server instance `verifier`. The rest of a short count is sent again;
    /// more than was sent is an EIO, and so is nothing at all too often.
    pub(super) fn written(
        &mut self,
        id: RequestId,
        count: u32,
        committed: Stable,
        verifier: Verifier,
    ) {
        self.event(|busy, lasting| busy.written(lasting, id, count, committed, verifier, None));
    }

    /// The same, and the COMMIT behind it was answered by the server instance `proof`.
    pub(super) fn written_and_committed(
        &mut self,
        id: RequestId,
        count: u32,
        committed: Stable,
        verifier: Verifier,
        proof: Verifier,
    ) {
        let proof = Some(proof);
        self.event(|busy, lasting| busy.written(lasting, id, count, committed, verifier, proof));
    }

    /// A WRITE was not executed, because something before it in its request failed: it is sent
    /// again.
    pub(super) fn not_executed(&mut self, id: RequestId) {
        self.event(|busy, _| busy.not_executed(id));
    }

    /// All that is accepted, if it is one piece from the beginning of the file on, of at most
    /// `most` bytes, and nothing else is pending: it is on its way now, to be stable when it
    /// is answered. It is reported like any other WRITE.
    pub(super) fn take_whole(&mut self, most: usize) -> Option<(RequestId, Chunks)> {
        self.busy.as_mut()?.take_whole(&mut self.lasting, most)
    }

    /// A WRITE failed for good: its data are dropped, the error is recorded.
    pub(super) fn failed(&mut self, id: RequestId, error: VfsError) {
        self.event(|busy, lasting| busy.failed(lasting, id, error));
    }

    /// A COMMIT was answered by the server instance `verifier`.
    pub(super) fn committed(&mut self, id: RequestId, verifier: Verifier) {
        self.event(|busy, lasting| busy.committed(lasting, id, verifier));
    }

    /// A COMMIT failed for good: what it was to cover is dropped, the error is
    /// recorded.
    pub(super) fn commit_failed(&mut self, id: RequestId, error: VfsError) {
        self.event(|busy, lasting| busy.commit_failed(lasting, id, error));
    }

    /// The server has lost what it had not committed: all of it is written
    /// again, as the next COMMIT would find out. Reads that wait for what is
    /// pending then see it.
    pub(super) fn server_restarted(&mut self) {
        self.event(|busy, lasting| busy.server_restarted(lasting));
    }

    /// Sends everything that was accepted so far on its way, and to stable
    /// storage. The ticket tells when that is done.
    pub(super) fn begin_drain(&mut self) -> DrainTicket {
        let mark = self.lasting.tick;
        self.lasting.run = None;
        if let Some(busy) = &mut self.busy {
            busy.begin_drain(mark);
        }
        DrainTicket { mark }
    }

    /// Sends what lingers on its way. Nobody waits for it.
    pub(super) fn end_linger(&mut self) {
        self.lasting.run = None;
        if let Some(busy) = &mut self.busy {
            busy.end_linger(&self.lasting);
        }
    }

    /// Whether everything accepted before the ticket is stable or has failed.
    /// Failures are in [`Writeback::errors`].
    pub(super) fn drained(&self, ticket: &DrainTicket) -> bool {
        self.busy.as_ref().is_none_or(|b| !b.awaits(ticket.mark))
    }

    /// Sends what is queued for `offset..offset + len` without lingering, for
    /// a read of that range. The ticket tells when the server has it.
    pub(super) fn drain_range(&mut self, offset: u64, len: u64) -> RangeTicket {
        let range = offset..offset.saturating_add(len);
        if let Some(busy) = &mut self.busy {
            busy.hurry(&range);
        }
        RangeTicket {
            mark: self.lasting.tick,
            range,
        }
    }

    /// The same for all that is queued, before the attributes are asked for. What goes in one
    /// WRITE then is written FILE_SYNC: programs look at a file that they have just
    /// written (for an index, or to compare it) and close it.
    pub(super) fn drain_to_look(&mut self) -> RangeTicket {
        if let Some(busy) = &mut self.busy {
            busy.hurry_all(&self.lasting);
        }
        RangeTicket {
            mark: self.lasting.tick,
            range: 0..u64::MAX,
        }
    }

    /// Whether the server has (or has refused) all that was pending in the
    /// range at the time of the ticket.
    pub(super) fn range_drained(&self, ticket: &RangeTicket) -> bool {
        let busy = self.busy.as_ref();
        busy.is_none_or(|b| !b.pending(&ticket.range, ticket.mark))
    }

    /// Whether bytes of `range` are accepted that the server may not have yet.
    pub(super) fn overlaps_pending(&self, range: Range<u64>) -> bool {
        let busy = self.busy.as_ref();
        busy.is_some_and(|b| b.pending(&range, u64::MAX))
    }

    /// The highest end of accepted data that the server may not have yet: the
    /// file is at least this long. `None` if there are none.
    pub(super) fn end_offset(&self) -> Option<u64> {
        self.busy.as_ref()?.end_offset()
    }

    /// The memory held, queued, in flight and retained: the data and a fixed
    /// cost for each segment. 0 when idle.
    pub(super) fn bytes(&self) -> usize {
        self.busy.as_ref().map_or(0, |b| b.bytes())
    }

    /// The part of [`Writeback::bytes`] that a COMMIT would free.
    #[cfg(test)]
    fn uncommitted_bytes(&self) -> usize {
        self.busy.as_ref().map_or(0, |b| b.uncommitted())
    }

    /// WRITEs without a reply yet.
    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.busy.as_ref().map_or(0, |b| b.in_flight())
    }

    /// The window, the mount's or the file's, is short of memory: sends what lingers if that is
    /// half of what the file holds, and commits what is
    /// retained, once that is worth a COMMIT: a quarter of the file's window or half
    /// of what it holds. To be called again after each reply until there is room. Without
    /// being asked a file commits at two thirds of its window, at one third
    /// if there is a WRITE to go behind, and after [`WritebackConfig::commit_after`].
    pub(super) fn make_room(&mut self) {
        if let Some(busy) = &mut self.busy {
            busy.make_room(&self.lasting);
        }
    }

    /// Whether this WRITE is all there is: nothing else is queued, in flight or
    /// to be committed.
    pub(super) fn is_last(&self, id: RequestId) -> bool {
        self.busy.as_ref().is_some_and(|b| b.is_last(id))
    }

    /// The age of the oldest data that are not stable: what was accepted before is
    /// ([`WriteTicket::is_before`]), or has failed. `None`: all are.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.busy.as_ref()?.oldest()
    }

    /// Whether nothing is pending: no data, no request.
    pub(super) fn is_idle(&self) -> bool {
        self.busy.as_ref().is_none_or(|busy| busy.is_idle())
    }

    /// The write errors of the file, for handles to sample and check.
    pub(super) fn errors(&self) -> &ErrSeq {
        &self.lasting.errors
    }

    /// The same, to record an error that was found elsewhere.
    pub(super) fn errors_mut(&mut self) -> &mut ErrSeq {
        &mut self.lasting.errors
    }

    /// Reports something to a busy write-back, and lets go of its memory when
    /// that was the last thing pending.
    fn event(&mut self, report: impl FnOnce(&mut Machine<O>, &mut Lasting)) {
        if let Some(busy) = &mut self.busy {
            report(busy, &mut self.lasting);
            if busy.is_idle() && !busy.is_watched() {
                self.busy = None;
            }
        }
    }
}
