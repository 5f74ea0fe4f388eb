//! A file with data pending: where each accepted byte is, and what happens to
//! it next. See the module above for the rules; this is their one owner.

mod sending;

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::errseq::ErrSeq;
use super::queue::{Queue, Source};
use super::retained::{Retained, UnstableData};
use super::run::Run;
use super::segment::Segment;
use super::{Action, CommitRange, RequestId, Stable, Verifier, WritebackConfig};
use crate::vfs::types::VfsError;

/// Answers "0 bytes written" in a row before the data count as refused.
const MAX_TRIES: u8 = 5;

/// Times the server may lose the same data, although it did not restart, before they
/// count as refused.
const MAX_ROUNDS: u8 = 5;

/// Retained copies that call for a COMMIT, however small they are.
const MAX_COPIES: usize = 1024;

/// What a file keeps when nothing is pending.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    /// Counts acceptances, requests and replies. One counter for all, so that
    /// any two of them can be told apart by "before" and "after".
    pub(super) tick: u64,
    pub(super) errors: ErrSeq,
    /// What is being written now, until something waits for it.
    pub(super) run: Option<Run>,
}

/// A synchronous write, whose caller is answered by what becomes of its own bytes.
#[derive(Debug)]
struct Watched {
    /// When it was accepted.
    seq: u64,
    range: Range<u64>,
    lost: Option<VfsError>,
}

impl Lasting {
    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}

/// A WRITE without a reply yet. Its id is the tick at which it was sent.
#[derive(Debug)]
struct InFlightWrite<O> {
    id: u64,
    /// The same for all WRITEs of one request: the id of the first.
    request: u64,
    segment: Segment<O>,
    /// The COMMIT behind it in the same compound; fragments of one request share it.
    commit_id: Option<u64>,
}

/// The drains under way, in at most two groups: all that begin while the first
/// one runs form the next. The mark of a group that runs never moves, so
/// drains and writes that come later cannot hold it up.
#[derive(Clone, Copy, Debug)]
struct Drains {
    /// Being waited for: everything up to this tick.
    current: u64,
    /// What the next group waits for; not smaller.
    next: u64,
}

#[derive(Debug)]
pub(super) struct Machine<O> {
    config: Arc<WritebackConfig>,
    queue: Queue<O>,
    /// Those of one request lie side by side.
    flights: Vec<InFlightWrite<O>>,
    /// What was accepted up to this tick lingers no more.
    due: u64,
    /// Attributes are asked for after what was accepted up to this tick.
    asked: u64,
    retained: Retained<O>,
    /// The COMMIT without a reply yet, by the tick at which it was sent.
    commit: Option<u64>,
    /// A COMMIT is wanted although no drain asks for it.
    commit_soon: bool,
    /// One that went behind a WRITE was not executed: it goes alone now, so that its
    /// error, if there is one, is told for sure.
    commit_alone: bool,
    drains: Option<Drains>,
    /// The wake-up the caller has been told of and that has not come yet.
    alarm: Option<Instant>,
    /// Since when something is retained that no COMMIT was sent for.
    retained_since: Option<Instant>,
    /// As `alarm`, for the COMMIT that nobody asks for. One of its own: it is far off,
    /// and every small write would set it anew.
    commit_alarm: Option<Instant>,
    /// Synchronous writes that have not asked for their fate yet.
    watched: Vec<Watched>,
    /// The latest time seen: ages must not run backwards.
    clock: Instant,
}

impl<O: Clone + PartialEq> Machine<O> {
    pub(super) fn new(now: Instant, config: Arc<WritebackConfig>) -> Machine<O> {
        let wsize = config.wsize.clamp(1, u32::MAX as usize);
        Machine {
            config,
            queue: Queue::new(wsize),
            flights: Vec::new(),
            due: 0,
            asked: 0,
            retained: Retained::new(wsize),
            commit: None,
            commit_soon: false,
            commit_alone: false,
            drains: None,
            alarm: None,
            retained_since: None,
            commit_alarm: None,
            watched: Vec::new(),
            clock: now,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.flights.is_empty()
            && self.retained.is_empty()
            && self.commit.is_none()
    }

    /// Somebody has yet to ask for the fate of a synchronous write.
    pub(super) fn is_watched(&self) -> bool {
        !self.watched.is_empty()
    }

    pub(super) fn is_last(&self, id: RequestId) -> bool {
        matches!(&self.flights[..], [only] if only.id == id.0)
            && self.queue.is_empty()
            && self.retained.is_empty()
            && self.commit.is_none()
    }

    pub(super) fn bytes(&self) -> usize {
        let flying: usize = self.flights.iter().map(|f| f.segment.charge()).sum();
        self.queue.charge() + flying + self.retained.charge()
    }

    #[cfg(test)]
    pub(super) fn uncommitted(&self) -> usize {
        self.retained.charge()
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn end_offset(&self) -> Option<u64> {
        let flying = self.flights.iter();
        flying.map(|f| f.segment.end()).max().max(self.queue.end())
    }

    pub(super) fn accept(
        &mut self,
        lasting: &mut Lasting,
        now: Instant,
        origin: O,
        offset: u64,
        data: Bytes,
        sync: bool,
    ) {
        self.clock = self.clock.max(now);
        let source = Source {
            origin,
            sync,
            seq: lasting.next_tick(),
            since: self.clock,
        };
        if sync {
            self.watched.push(Watched {
                seq: source.seq,
                range: offset..offset + data.len() as u64,
                lost: None,
            });
        }
        if !sync {
            let most = self.config.max_linger;
            lasting.run = Some(Run::go_on(lasting.run, self.clock, most));
        }
        let closed = self.awaited();
        self.queue.accept(&source, offset, data, closed);
    }

    pub(super) fn next(&mut self, lasting: &mut Lasting, now: Instant) -> Option<Action<O>> {
        self.clock = self.clock.max(now);
        self.advance_drains();
        if self.retained.is_empty() {
            self.retained_since = None;
            (self.commit_soon, self.commit_alone) = (false, false);
        } else {
            self.retained_since.get_or_insert(self.clock);
        }
        if let Some(write) = self.next_write(lasting) {
            return Some(write);
        }
        if let Some(commit) = self.next_commit(lasting) {
            return Some(commit);
        }
        let alarm = self
            .next_alarm(lasting)
            .or_else(|| self.next_commit_alarm());
        alarm.map(Action::WakeAt)
    }

    pub(super) fn written(
        &mut self,
        lasting: &mut Lasting,
        id: RequestId,
        count: u32,
        committed: Stable,
        verifier: Verifier,
        proof: Option<Verifier>,
    ) {
        let Some(flight) = self.land(id) else { return };
        let (range, commit_id) = (flight.segment.range(), flight.commit_id);
        // The COMMIT came after the WRITE, and covers its range.
        let committed = match proof {
            Some(proof) if commit_id.is_some() && proof == verifier => Stable::FileSync,
            _ => committed,
        };
        self.acknowledge(lasting, flight, count, committed, verifier);
        self.queue.unpark(&range);
        match (commit_id, proof) {
            (Some(commit), Some(proof)) => self.committed(lasting, RequestId(commit), proof),
            (Some(commit), None) => self.not_committed(commit),
            (None, _) => {}
        }
    }

    pub(super) fn not_executed(&mut self, id: RequestId) {
        let Some(flight) = self.land(id) else { return };
        let range = flight.segment.range();
        self.queue.put_back(flight.segment);
        self.queue.unpark(&range);
    }

    pub(super) fn failed(&mut self, lasting: &mut Lasting, id: RequestId, error: VfsError) {
        let Some(flight) = self.land(id) else { return };
        self.lost(lasting, &flight.segment, flight.id, &error);
        self.queue.unpark(&flight.segment.range());
        if let Some(commit) = flight.commit_id {
            self.not_committed(commit);
        }
    }

    /// Bytes that were sent as the request `id` are lost. Those of synchronous writes
    /// are told to who waits for them, and to nobody else.
    fn lost(&mut self, lasting: &mut Lasting, segment: &Segment<O>, id: u64, error: &VfsError) {
        for write in &mut self.watched {
            if write.seq < id && segment.overlaps(&write.range) {
                write.lost = Some(error.clone());
            }
        }
        if !segment.sync || segment.stands_in {
            lasting.errors.record(error.clone());
        }
    }

    /// What became of the synchronous write that was accepted at `seq`, once it was
    /// drained.
    pub(super) fn fate(&mut self, seq: u64) -> Option<VfsError> {
        let at = self.watched.iter().position(|write| write.seq == seq)?;
        self.watched.swap_remove(at).lost
    }

    /// The COMMIT behind a WRITE was not executed.
    fn not_committed(&mut self, id: u64) {
        if self.commit == Some(id) {
            self.commit = None;
            self.commit_alone = true;
        }
    }

    pub(super) fn committed(&mut self, lasting: &mut Lasting, id: RequestId, verifier: Verifier) {
        if self.commit != Some(id.0) {
            return;
        }
        self.commit = None;
        // It made room; who has too little of it asks again.
        self.commit_soon = false;
        // The lost first: newer bytes that are proven now must still be there
        // to keep older ones from being written over them.
        let lost = self.retained.take(id.0, |copy| copy.verifier != verifier);
        self.write_again(lasting, lost);
        self.retained.take(id.0, |_| true);
    }

    pub(super) fn commit_failed(&mut self, lasting: &mut Lasting, id: RequestId, error: VfsError) {
        if self.commit != Some(id.0) {
            return;
        }
        self.commit = None;
        for copy in self.retained.take(id.0, |_| true) {
            self.lost(lasting, &copy.segment, copy.id, &error);
        }
    }

    pub(super) fn make_room(&mut self, lasting: &Lasting) {
        if 2 * self.queue.lingering() >= self.bytes() {
            self.end_linger(lasting);
        }
        let retained = self.retained.charge();
        let much = retained >= self.config.file_limit / 4 || 2 * retained >= self.bytes();
        self.commit_soon |= retained > 0 && much;
    }

    pub(super) fn server_restarted(&mut self, lasting: &mut Lasting) {
        let mut lost = self.retained.take(u64::MAX, |_| true);
        // A server may crash as often as it likes: only one that loses data without
        // that is given up.
        for copy in &mut lost {
            copy.segment.rounds = 0;
        }
        self.commit_soon = false;
        self.write_again(lasting, lost);
    }

    /// Nothing that was accepted so far lingers any longer.
    pub(super) fn end_linger(&mut self, lasting: &Lasting) {
        self.due = lasting.tick;
    }

    pub(super) fn begin_drain(&mut self, mark: u64) {
        let current = self.drains.map_or(mark, |drains| drains.current);
        self.drains = Some(Drains {
            current,
            next: mark,
        });
    }

    /// The age of the oldest segment, wherever it is.
    pub(super) fn oldest(&self) -> Option<u64> {
        let flying = self.flights.iter().map(|f| f.segment.seq).min();
        let all = [self.queue.oldest(), flying, self.retained.oldest()];
        all.into_iter().flatten().min()
    }

    /// Whether something accepted up to the tick `mark` is not yet stable.
    pub(super) fn awaits(&self, mark: u64) -> bool {
        self.unwritten(mark) || self.retained.holds(mark)
    }

    pub(super) fn hurry(&mut self, range: &Range<u64>) {
        self.queue.hurry(range);
    }

    /// Everything is sent without lingering, for the attributes after it.
    pub(super) fn hurry_all(&mut self, lasting: &Lasting) {
        self.queue.hurry(&(0..u64::MAX));
        self.asked = lasting.tick;
    }

    /// Whether something accepted up to the tick `mark` and inside `range` is
    /// not yet acknowledged.
    pub(super) fn pending(&self, range: &Range<u64>, mark: u64) -> bool {
        let flying = self.flights.iter().map(|f| &f.segment);
        !range.is_empty()
            && (flying.filter(|s| s.overlaps(range)).any(|s| s.seq <= mark)
                || self.queue.overlapping(range).any(|s| s.seq <= mark))
    }

    /// The mark of the latest drain under way; 0 if there is none.
    fn awaited(&self) -> u64 {
        self.drains.map_or(0, |drains| drains.next)
    }

    fn unwritten(&self, mark: u64) -> bool {
        self.queue.oldest().is_some_and(|seq| seq <= mark)
            || self.flights.iter().any(|f| f.segment.seq <= mark)
    }

    fn advance_drains(&mut self) {
        while let Some(Drains { current, next }) = self.drains
            && !self.awaits(current)
        {
            self.drains = (next > current).then_some(Drains {
                current: next,
                next,
            });
        }
    }

    /// What a COMMIT behind these WRITEs of one request would have to cover, if it may
    /// go there. Behind a single one there is none for its own sake: that would be
    /// FILE_SYNC.
    fn commit_along(&self, written: &[Segment<O>]) -> Option<CommitRange> {
        if self.commit.is_some() || self.commit_alone {
            return None;
        }
        let origin = &written.first()?.origin;
        let start = written.iter().map(|segment| segment.offset).min()?;
        let end = written.iter().map(|segment| segment.end()).max()?;
        let range = match self.retained.hull() {
            Some((range, other)) if other == *origin => range.start.min(start)..range.end.max(end),
            None if written.len() > 1 => start..end,
            _ => return None,
        };
        Some(CommitRange::of(&range))
    }

    /// A COMMIT is about to be sent. Its id.
    fn commit_sent(&mut self, lasting: &mut Lasting) -> u64 {
        self.commit_soon = false;
        self.commit_alone = false;
        self.retained_since = None;
        let id = lasting.next_tick();
        self.commit = Some(id);
        id
    }

    fn next_commit(&mut self, lasting: &mut Lasting) -> Option<Action<O>> {
        let due = || self.commit_alone || self.commit_is_due() && !self.next_takes_commit();
        if self.commit.is_some() || !(self.drain_needs_commit() || due()) {
            return None;
        }
        let (range, origin) = self.retained.hull()?;
        Some(Action::Commit {
            id: RequestId(self.commit_sent(lasting)),
            origin,
            range: CommitRange::of(&range),
        })
    }

    /// Whether the next reply makes room for a WRITE that a COMMIT may go behind. If
    /// another one is sent instead, that is no matter: what is queued is bounded.
    fn next_takes_commit(&self) -> bool {
        let candidate = self.queue.candidate(self.due());
        let next = candidate.and_then(|offset| self.queue.get(offset));
        self.places() == 0
            && next.is_some_and(|next| {
                !next.sync && self.commit_along(std::slice::from_ref(next)).is_some()
            })
    }

    /// There is enough for a COMMIT that costs no round trip of its own.
    fn commit_is_welcome(&self) -> bool {
        self.commit_is_due() || self.retained.charge() > self.config.file_limit / 3
    }

    fn commit_is_due(&self) -> bool {
        let high = self.config.file_limit / 3 * 2;
        self.commit_soon
            || self.retained.charge() > high
            || self.retained.len() >= MAX_COPIES
            || self.commit_deadline().is_some_and(|at| at <= self.clock)
    }

    /// When what is retained is committed although nobody asks for it.
    fn commit_deadline(&self) -> Option<Instant> {
        self.retained_since?.checked_add(self.config.commit_after)
    }

    /// One COMMIT for a whole drain: not before all its data are written.
    fn drain_needs_commit(&self) -> bool {
        self.drains
            .is_some_and(|d| !self.unwritten(d.current) && self.retained.holds(d.current))
    }

    fn next_commit_alarm(&mut self) -> Option<Instant> {
        if self.commit_alarm.is_some_and(|at| at <= self.clock) {
            self.commit_alarm = None;
        }
        // The answer of a COMMIT brings the caller here, and so does an earlier alarm.
        if self.commit.is_some() || self.commit_alarm.is_some() {
            return None;
        }
        // One that is due by now waits for the next WRITE, and so for a reply.
        self.commit_alarm = self.commit_deadline().filter(|at| *at > self.clock);
        self.commit_alarm
    }

    fn land(&mut self, id: RequestId) -> Option<InFlightWrite<O>> {
        let index = self.flights.iter().position(|f| f.id == id.0)?;
        Some(self.flights.remove(index))
    }

    fn acknowledge(
        &mut self,
        lasting: &mut Lasting,
        flight: InFlightWrite<O>,
        count: u32,
        committed: Stable,
        verifier: Verifier,
    ) {
        let InFlightWrite {
            id, mut segment, ..
        } = flight;
        let count = count as usize;
        if count == 0 {
            segment.tries += 1;
            match segment.tries < MAX_TRIES {
                true => self.queue.put_back(segment),
                false => {
                    let found = "the server takes nothing of a WRITE, however often it is sent";
                    self.lost(lasting, &segment, id, &VfsError::found(found, None));
                }
            }
            return;
        }
        if count > segment.data.len() {
            let found = "the server says that it has taken more than a WRITE had";
            self.lost(lasting, &segment, id, &VfsError::found(found, None));
            return;
        }
        segment.tries = 0;
        let rest = segment.split_off(segment.offset + count as u64);
        if rest.data.len() > 0 {
            self.queue.put_back(rest);
        }
        let stable = committed == Stable::FileSync;
        self.retained
            .supersede(&segment.range(), stable, self.awaited());
        if stable {
            return;
        }
        let lost = self.retained.take(id, |copy| copy.verifier != verifier);
        self.retained.insert(UnstableData {
            segment,
            id,
            acked: lasting.next_tick(),
            verifier,
        });
        self.write_again(lasting, lost);
    }

    /// Queues what the server has lost, except for what newer bytes cover:
    /// those, wherever they are, inherit the wait for the older ones.
    fn write_again(&mut self, lasting: &mut Lasting, mut lost: Vec<UnstableData<O>>) {
        // Newest first: then the queue always holds the newer version.
        lost.sort_unstable_by_key(|copy| Reverse(copy.id));
        for UnstableData {
            mut segment, id, ..
        } in lost
        {
            if segment.rounds >= MAX_ROUNDS {
                let found = "the server loses the same data again and again before a COMMIT";
                self.lost(lasting, &segment, id, &VfsError::found(found, None));
                continue;
            }
            segment.rounds += 1;
            let mut newer = self.retained.succeed(&segment, id);
            for flight in &mut self.flights {
                if flight.segment.overlaps(&segment.range()) {
                    flight.segment.stand_in_for(&segment);
                    newer.push(flight.segment.range());
                }
            }
            let mut pieces = vec![segment];
            for range in newer {
                let cut = pieces.into_iter().flat_map(|piece| piece.without(&range));
                pieces = cut.flatten().collect();
            }
            for piece in pieces {
                self.queue.put_back(piece);
            }
        }
    }
}
