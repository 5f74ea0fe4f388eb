//! Which bytes are sent next, when, and with what in one request.
//!
//! A full segment goes at once, and so does what somebody waits for. The rest lingers: until
//! the writer pauses (see [`run`](super::super::run)), until the oldest of it has lingered as
//! long as anything may, or until it is much. What is due and waits for a place keeps growing.

use std::sync::Arc;
use std::time::Instant;

use super::{InFlightWrite, Lasting, Machine};
use crate::vfs::writeback::segment::Segment;
use crate::vfs::writeback::{Action, Chunks, Fragment, RequestId, Stable};

/// The part of a file's window that may linger, as a divisor. What is written all over the
/// file, with nobody waiting for it, goes so early that the server is kept at work.
const LINGERING_PART: usize = 8;

/// A WRITE without its data, and what fills those up to whole words, bytes.
const ARGUMENTS: usize = 40;

impl<O: Clone + PartialEq> Machine<O> {
    /// Everything up to this age is to be sent: a drain waits for it, or it has lingered.
    pub(super) fn due(&self) -> u64 {
        self.awaited().max(self.due)
    }

    /// When what lingers has done so for long enough.
    fn linger_deadline(&self, lasting: &Lasting) -> Option<Instant> {
        let since = self.queue.lingers_since(self.due())?;
        let (least, most) = (self.config.linger, self.config.max_linger);
        let pause = match lasting.run {
            Some(run) => run.ends_at(least, most),
            None => since.checked_add(least),
        };
        since.checked_add(most).into_iter().chain(pause).min()
    }

    /// Lets go of everything when the writer has paused, when the oldest of it has lingered
    /// for as long as anything may, or when it is much.
    fn look_at_linger(&mut self, lasting: &Lasting) {
        let deadline = self.linger_deadline(lasting);
        let over = deadline.is_some_and(|at| at <= self.clock);
        if over || self.queue.lingering() > self.config.file_limit / LINGERING_PART {
            self.end_linger(lasting);
        }
    }

    /// Requests that may be sent now.
    pub(super) fn places(&self) -> usize {
        let same = |a: &InFlightWrite<O>, b: &InFlightWrite<O>| a.request == b.request;
        let taken = self.flights.chunk_by(same).count();
        self.config.max_in_flight.max(1).saturating_sub(taken)
    }

    pub(super) fn next_write(&mut self, lasting: &mut Lasting) -> Option<Action<O>> {
        self.look_at_linger(lasting);
        let (due, urgent) = (self.due(), self.awaited());
        while self.places() > 0 {
            let offset = self.queue.candidate(due)?;
            let range = self.queue.get(offset)?.range();
            if self.flights.iter().any(|f| f.segment.overlaps(&range)) {
                self.queue.park(offset);
                continue;
            }
            let segment = self.queue.remove(offset)?;
            let company = self.company_of(&segment);
            if !company.is_empty() {
                return Some(self.next_fragments(lasting, segment, company));
            }
            let last = segment.seq <= urgent && !self.unwritten(urgent);
            // The last data a drain waits for, or all there are when somebody looks at the
            // file, who is about to close it as a rule: stable at once saves a COMMIT.
            let alone = segment.seq <= self.asked && self.is_idle();
            let stable = match segment.sync || alone || last && !self.retained.holds(urgent) {
                true => Stable::FileSync,
                false => Stable::Unstable,
            };
            let id = lasting.next_tick();
            let commit = match stable {
                Stable::Unstable if last || self.commit_is_welcome() => {
                    self.commit_along(std::slice::from_ref(&segment))
                }
                _ => None,
            };
            let commit_id = commit.is_some().then(|| self.commit_sent(lasting));
            let write = Action::Write {
                id: RequestId(id),
                origin: segment.origin.clone(),
                offset,
                data: segment.data.chunks(),
                stable,
                commit,
            };
            self.flights.push(InFlightWrite {
                id,
                request: id,
                segment,
                commit_id,
            });
            return Some(write);
        }
        None
    }

    /// See [`Writeback::take_whole`](super::super::Writeback::take_whole).
    pub(in crate::vfs::writeback) fn take_whole(
        &mut self,
        lasting: &mut Lasting,
        most: usize,
    ) -> Option<(RequestId, Chunks)> {
        let is_all = |segment: &Segment<O>| {
            self.queue.end() == Some(segment.end()) && segment.data.len() <= most
        };
        let alone = self.flights.is_empty() && self.retained.is_empty() && self.commit.is_none();
        self.queue.get(0).filter(|first| alone && is_all(first))?;
        let segment = self.queue.remove(0)?;
        let id = lasting.next_tick();
        let data = segment.data.chunks();
        self.flights.push(InFlightWrite {
            id,
            request: id,
            segment,
            commit_id: None,
        });
        Some((RequestId(id), data))
    }

    /// What is due as well and goes along with `first`, taken out of the queue.
    fn company_of(&mut self, first: &Segment<O>) -> Vec<Segment<O>> {
        let mut company: Vec<Segment<O>> = Vec::new();
        if first.sync {
            return company;
        }
        let config = Arc::clone(&self.config);
        let is_fragment = |segment: &Segment<O>| segment.data.len() < config.fragment;
        let (due, share) = (self.due(), self.share(first));
        let mut bytes = first.data.len();
        let mut in_front = bytes + ARGUMENTS;
        while company.len() + 1 < config.fragments
            && in_front <= config.in_front
            && let Some(offset) = self.queue.candidate(due)
            && let Some(next) = self.queue.get(offset)
            && !next.sync
            && next.origin == first.origin
            && bytes + next.data.len() <= config.wsize
            && (company.len() + 1 < share || is_fragment(first) && is_fragment(next))
        {
            let range = next.range();
            if self.flights.iter().any(|f| f.segment.overlaps(&range)) {
                self.queue.park(offset);
                continue;
            }
            bytes += next.data.len();
            in_front += next.data.len() + ARGUMENTS;
            company.extend(self.queue.remove(offset));
        }
        company
    }

    /// How many WRITEs go in one request, whatever their size. If somebody waits for them, no
    /// more than it takes to have all of them on their way: the server works on requests at
    /// the same time, and on the operations of one request one after the other.
    fn share(&self, first: &Segment<O>) -> usize {
        let (places, most) = (self.places(), self.config.fragments);
        match first.hurry || first.seq <= self.awaited() {
            true => {
                let others = self.queue.candidates(self.due(), places * most);
                (1 + others).div_ceil(places.max(1))
            }
            false => most,
        }
    }

    /// Sends `first` and its company as one request. If they are the last that a drain
    /// waits for, the COMMIT goes behind them: the server is not made to have each
    /// of them stable by itself.
    fn next_fragments(
        &mut self,
        lasting: &mut Lasting,
        first: Segment<O>,
        company: Vec<Segment<O>>,
    ) -> Action<O> {
        let urgent = self.awaited();
        let mut segments = vec![first];
        segments.extend(company);
        let last = segments.iter().any(|s| s.seq <= urgent) && !self.unwritten(urgent);
        let fragments: Vec<_> = segments
            .iter()
            .map(|segment| Fragment {
                id: RequestId(lasting.next_tick()),
                offset: segment.offset,
                data: segment.data.chunks(),
            })
            .collect();
        let commit = match last || self.commit_is_welcome() {
            true => self.commit_along(&segments),
            false => None,
        };
        let commit_id = commit.is_some().then(|| self.commit_sent(lasting));
        let origin = segments[0].origin.clone();
        let request = fragments[0].id.0;
        let flights = fragments.iter().zip(segments);
        self.flights
            .extend(flights.map(|(sent, segment)| InFlightWrite {
                id: sent.id.0,
                request,
                segment,
                commit_id,
            }));
        Action::WriteFragments {
            origin,
            fragments,
            commit,
        }
    }

    pub(super) fn next_alarm(&mut self, lasting: &Lasting) -> Option<Instant> {
        if self.alarm.is_some_and(|at| at <= self.clock) {
            self.alarm = None;
        }
        // Without a free place a reply will come first, and the caller with it.
        if self.places() == 0 {
            return None;
        }
        let deadline = self.linger_deadline(lasting)?;
        if self.alarm.is_some_and(|at| at <= deadline) {
            return None;
        }
        self.alarm = Some(deadline);
        self.alarm
    }
}
