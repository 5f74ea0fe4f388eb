//! A run of accepted bytes, wherever it is on its way.

use std::ops::Range;
use std::time::Instant;

use super::rope::Rope;

/// What a segment costs beside its bytes, as an estimate: its place in the
/// tables and its buffer headers. Charged to the window, so that a file
/// written in scattered bytes cannot hold a thousand times its window.
const OVERHEAD: usize = 512;

/// Contiguous bytes of one origin, at most `wsize` of them. The same value
/// moves from the queue into flight, and from there into retention or back.
#[derive(Debug)]
pub(super) struct Segment<O> {
    pub(super) offset: u64,
    pub(super) data: Rope,
    pub(super) origin: O,
    /// When the oldest of its bytes was accepted, in ticks: what a drain
    /// compares with its mark.
    pub(super) seq: u64,
    /// The same moment by the clock: where the linger starts.
    pub(super) since: Instant,
    /// Has to be on stable storage when the server answers.
    pub(super) sync: bool,
    /// It has taken the place of older bytes of other writes, whose loss would be its
    /// own.
    pub(super) stands_in: bool,
    /// Goes as soon as it can and does not grow any more.
    pub(super) hurry: bool,
    /// Answers "0 bytes written" in a row.
    pub(super) tries: u8,
    /// Times the server lost it after having acknowledged it.
    pub(super) rounds: u8,
}

impl<O: Clone> Segment<O> {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }

    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.offset < range.end && range.start < self.end()
    }

    /// The memory it stands for.
    pub(super) fn charge(&self) -> usize {
        self.data.len() + OVERHEAD
    }

    /// Keeps what is before the file offset `at`, which must lie inside or at
    /// an end, and gives the rest.
    pub(super) fn split_off(&mut self, at: u64) -> Segment<O> {
        let data = self.data.split_off((at - self.offset) as usize);
        Segment {
            offset: at,
            data,
            origin: self.origin.clone(),
            ..*self
        }
    }

    /// What is left of it before and after `range`.
    pub(super) fn without(mut self, range: &Range<u64>) -> [Option<Segment<O>>; 2] {
        if !self.overlaps(range) {
            return [Some(self), None];
        }
        let right = (self.end() > range.end).then(|| self.split_off(range.end));
        let left = (self.offset < range.start).then(|| {
            self.split_off(range.start);
            self
        });
        [left, right]
    }

    /// Takes over the duties of older bytes that this one replaces before they
    /// became stable: whoever waits for those now waits for these.
    pub(super) fn stand_in_for(&mut self, older: &Segment<O>) {
        if older.seq < self.seq {
            self.seq = older.seq;
            self.since = older.since;
        }
        self.rounds = self.rounds.max(older.rounds);
        self.tries = self.tries.max(older.tries);
        self.stands_in |= older.stands_in || !older.sync;
        self.hurry = true;
    }
}
