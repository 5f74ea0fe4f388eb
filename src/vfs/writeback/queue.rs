//! Accepted bytes that no request carries yet.
//!
//! Segments here never overlap: newer bytes take the place of older ones, and
//! with the place their age, so that a drain begun in between still waits.
//! Fresh bytes beside a segment join it while it is *open*: of the same origin,
//! not full, not in a hurry and not older than a drain. A segment that
//! somebody waits for therefore never covers more of the file than it did when
//! the wait began.
//!
//! Each segment is in one of three indexes. It *lingers* while it may be joined by more,
//! until the machine says that those up to an age are due; it is *due* when it is full or
//! in a hurry. One that overlaps a request in flight is *parked* until that is
//! answered: choosing what to send next never walks over what cannot be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::rope::Rope;
use super::segment::Segment;

/// Age and offset of a segment: unique, and ordered oldest first.
type Key = (u64, u64);

/// Where freshly accepted bytes come from, and when.
#[derive(Clone, Debug)]
pub(super) struct Source<O> {
    pub(super) origin: O,
    pub(super) sync: bool,
    pub(super) seq: u64,
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Queue<O> {
    wsize: usize,
    segments: BTreeMap<u64, Segment<O>>,
    /// Age and clock agree, so the first one is also the one that has lingered longest.
    lingering: BTreeSet<Key>,
    /// Full, or in a hurry.
    due: BTreeSet<Key>,
    /// Those that wait for a request in flight.
    parked: BTreeSet<Key>,
    charge: usize,
    /// Of it, what lingers.
    lingering_charge: usize,
}

impl<O: Clone + PartialEq> Queue<O> {
    pub(super) fn new(wsize: usize) -> Queue<O> {
        Queue {
            wsize,
            segments: BTreeMap::new(),
            lingering: BTreeSet::new(),
            due: BTreeSet::new(),
            parked: BTreeSet::new(),
            charge: 0,
            lingering_charge: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The memory of all segments.
    pub(super) fn charge(&self) -> usize {
        self.charge
    }

    /// The memory of those that linger.
    pub(super) fn lingering(&self) -> usize {
        self.lingering_charge
    }

    /// The end of the last segment.
    pub(super) fn end(&self) -> Option<u64> {
        self.segments.values().next_back().map(Segment::end)
    }

    /// The age of the oldest segment, parked or not.
    pub(super) fn oldest(&self) -> Option<u64> {
        let indexes = [&self.lingering, &self.due, &self.parked];
        let firsts = indexes.into_iter().filter_map(BTreeSet::first);
        firsts.map(|&(seq, _)| seq).min()
    }

    pub(super) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Segment<O>> {
        let from = match self.segments.range(..=range.start).next_back() {
            Some((&offset, before)) if before.end() > range.start => offset,
            _ => range.start,
        };
        // An empty range may start behind its end once moved back to a segment.
        let to = range.end.max(from);
        self.segments.range(from..to).map(|(_, segment)| segment)
    }

    /// Takes in fresh bytes. Segments up to the age `closed` do not grow.
    pub(super) fn accept(&mut self, source: &Source<O>, offset: u64, mut data: Bytes, closed: u64) {
        let mut at = offset;
        while !data.is_empty() {
            let end = at + data.len() as u64;
            let old = self.overlapping(&(at..end)).next().map(Segment::range);
            let stop = match &old {
                Some(old) if old.start <= at => old.end.min(end),
                Some(old) => old.start,
                None => end,
            };
            let piece = data.split_to((stop - at) as usize);
            match old {
                Some(old) if old.start <= at => self.replace(source, old.start, at, piece),
                _ => self.fill(source, at, piece, closed),
            }
            at = stop;
        }
    }

    /// Takes back a segment that has to be sent (again). What was accepted
    /// over it since is newer: it stays, and inherits the older bytes' duties.
    pub(super) fn put_back(&mut self, mut segment: Segment<O>) {
        segment.hurry = true;
        let newer: Vec<Range<u64>> = self
            .overlapping(&segment.range())
            .map(Segment::range)
            .collect();
        let mut rest = Some(segment);
        for newer in newer {
            let Some(segment) = rest else { return };
            let covered = newer.start.max(segment.offset)..newer.end.min(segment.end());
            if let Some(mut heir) = self.remove(newer.start) {
                let after = (heir.end() > covered.end).then(|| heir.split_off(covered.end));
                if heir.offset < covered.start {
                    let middle = heir.split_off(covered.start);
                    self.insert(std::mem::replace(&mut heir, middle));
                }
                heir.stand_in_for(&segment);
                self.insert(heir);
                after.into_iter().for_each(|after| self.insert(after));
            }
            let [before, after] = segment.without(&covered);
            before.into_iter().for_each(|before| self.insert(before));
            rest = after;
        }
        rest.into_iter().for_each(|rest| self.insert(rest));
    }

    /// The segment to send next, oldest first: one that is full or in a hurry, or one up to the
    /// age `due`, which lingers no more.
    pub(super) fn candidate(&self, due: u64) -> Option<u64> {
        let over = self.lingering.first().filter(|&&(seq, _)| seq <= due);
        let first = over.into_iter().chain(self.due.first()).min()?;
        Some(first.1)
    }

    /// How many [`Queue::candidate`] could give, one after the other; no more than `most` are
    /// counted.
    pub(super) fn candidates(&self, due: u64, most: usize) -> usize {
        let over = self.lingering.range(..=(due, u64::MAX));
        over.chain(&self.due).take(most).count()
    }

    /// Since when the oldest one lingers that is younger than `due`.
    pub(super) fn lingers_since(&self, due: u64) -> Option<Instant> {
        let (_, offset) = self.lingering.range((due.saturating_add(1), 0)..).next()?;
        Some(self.segments.get(offset)?.since)
    }

    pub(super) fn get(&self, offset: u64) -> Option<&Segment<O>> {
        self.segments.get(&offset)
    }

    pub(super) fn remove(&mut self, offset: u64) -> Option<Segment<O>> {
        let segment = self.segments.remove(&offset)?;
        let key = (segment.seq, offset);
        self.leave_index(key, segment.charge());
        self.parked.remove(&key);
        self.charge -= segment.charge();
        Some(segment)
    }

    /// Sets the segment at `offset` aside until [`Queue::unpark`].
    pub(super) fn park(&mut self, offset: u64) {
        if let Some(segment) = self.segments.get(&offset) {
            let key = (segment.seq, offset);
            let charge = segment.charge();
            self.leave_index(key, charge);
            self.parked.insert(key);
        }
    }

    /// Lets the segments that overlap `range` take part again.
    pub(super) fn unpark(&mut self, range: &Range<u64>) {
        if self.parked.is_empty() {
            return;
        }
        let keys: Vec<Key> = self.overlapping(range).map(|s| (s.seq, s.offset)).collect();
        for key in keys {
            if self.parked.remove(&key) {
                self.index(key);
            }
        }
    }

    /// Ends the linger of all segments that overlap `range`.
    pub(super) fn hurry(&mut self, range: &Range<u64>) {
        let keys: Vec<Key> = self.overlapping(range).map(|s| (s.seq, s.offset)).collect();
        for key in keys {
            if let Some(segment) = self.segments.get_mut(&key.1) {
                segment.hurry = true;
                let charge = segment.charge();
                self.linger_ends(key, charge);
            }
        }
    }

    /// Puts `piece` in the place of bytes of the segment at `start`, which
    /// covers it.
    fn replace(&mut self, source: &Source<O>, start: u64, at: u64, piece: Bytes) {
        let Some(old) = self.segments.get_mut(&start) else {
            return;
        };
        if old.origin == source.origin && old.sync == source.sync {
            old.data.overwrite((at - start) as usize, piece);
            return;
        }
        let Some(old) = self.remove(start) else {
            return;
        };
        let range = at..at + piece.len() as u64;
        self.insert(Segment {
            offset: at,
            data: Rope::from(piece),
            origin: source.origin.clone(),
            sync: source.sync,
            stands_in: old.stands_in || !old.sync,
            hurry: old.hurry || source.sync,
            ..old
        });
        for rest in old.without(&range).into_iter().flatten() {
            self.insert(rest);
        }
    }

    /// Puts `piece` where there is no segment, joining it to its neighbours.
    fn fill(&mut self, source: &Source<O>, mut at: u64, mut piece: Bytes, closed: u64) {
        let mut last = at;
        if let Some((&offset, before)) = self.segments.range(..at).next_back()
            && before.end() == at
            && self.is_open(before, source, closed)
        {
            let room = self.wsize - before.data.len();
            let head = piece.split_to(room.min(piece.len()));
            at += head.len() as u64;
            last = offset;
            self.extend(offset, head);
        }
        while !piece.is_empty() {
            last = at;
            let data = Rope::from(piece.split_to(self.wsize.min(piece.len())));
            at += data.len() as u64;
            self.insert(Segment {
                offset: last,
                data,
                origin: source.origin.clone(),
                seq: source.seq,
                since: source.since,
                sync: source.sync,
                stands_in: false,
                hurry: source.sync,
                tries: 0,
                rounds: 0,
            });
        }
        self.join_next(source, last, closed);
    }

    /// Appends to the segment at `offset`.
    fn extend(&mut self, offset: u64, piece: Bytes) {
        if let Some(segment) = self.segments.get_mut(&offset) {
            let key = (segment.seq, offset);
            self.charge += piece.len();
            if self.lingering.contains(&key) {
                self.lingering_charge += piece.len();
            }
            segment.data.push(piece);
            if segment.data.len() >= self.wsize {
                let charge = segment.charge();
                self.linger_ends(key, charge);
            }
        }
    }

    /// Makes one of the segment at `offset` and the one it touches, if both
    /// are open and fit.
    fn join_next(&mut self, source: &Source<O>, offset: u64, closed: u64) {
        let Some(left) = self.segments.get(&offset) else {
            return;
        };
        let Some(right) = self.segments.get(&left.end()) else {
            return;
        };
        if left.data.len() + right.data.len() > self.wsize
            || !self.is_open(left, source, closed)
            || !self.is_open(right, source, closed)
        {
            return;
        }
        let next = right.offset;
        if let (Some(mut left), Some(right)) = (self.remove(offset), self.remove(next)) {
            if right.seq < left.seq {
                left.seq = right.seq;
                left.since = right.since;
            }
            left.data.append(right.data);
            self.insert(left);
        }
    }

    fn is_open(&self, segment: &Segment<O>, source: &Source<O>, closed: u64) -> bool {
        segment.seq > closed
            && !segment.hurry
            && segment.data.len() < self.wsize
            && segment.sync == source.sync
            && segment.origin == source.origin
    }

    /// Adds a segment that overlaps none. It is not parked, whatever it was
    /// made of: what it overlaps in flight is found when it is its turn.
    fn insert(&mut self, segment: Segment<O>) {
        debug_assert!(self.overlapping(&segment.range()).next().is_none());
        debug_assert!(segment.data.len() > 0 && segment.data.len() <= self.wsize);
        let key = (segment.seq, segment.offset);
        self.charge += segment.charge();
        self.segments.insert(segment.offset, segment);
        self.index(key);
    }

    fn index(&mut self, key: Key) {
        let Some(segment) = self.segments.get(&key.1) else {
            return;
        };
        if segment.hurry || segment.data.len() >= self.wsize {
            self.due.insert(key);
        } else if self.lingering.insert(key) {
            self.lingering_charge += segment.charge();
        }
    }

    /// A segment that lingers is due from now on.
    fn linger_ends(&mut self, key: Key, charge: usize) {
        if self.lingering.remove(&key) {
            self.lingering_charge -= charge;
            self.due.insert(key);
        }
    }

    /// Takes a segment out of what could be sent.
    fn leave_index(&mut self, key: Key, charge: usize) {
        if self.lingering.remove(&key) {
            self.lingering_charge -= charge;
        }
        self.due.remove(&key);
    }
}
