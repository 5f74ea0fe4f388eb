//! Acknowledged bytes that the server may still lose.
//!
//! Kept until a COMMIT proves them stable, newer stable bytes cover them, or
//! they are to be sent again. Several versions of the same bytes may be here
//! at once: a drain that waits for the older one must not be made to wait for
//! the newer. The version sent later (larger `id`) is the newer one, since
//! overlapping requests are never in flight together.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Verifier;
use super::segment::Segment;

/// One acknowledged run of bytes.
#[derive(Debug)]
pub(super) struct UnstableData<O> {
    pub(super) segment: Segment<O>,
    /// The request that carried it: the tick at which that was sent.
    pub(super) id: u64,
    /// The tick at which it was acknowledged.
    pub(super) acked: u64,
    /// The server instance that acknowledged it.
    pub(super) verifier: Verifier,
}

#[derive(Debug)]
pub(super) struct Retained<O> {
    /// By offset and id. No copy is longer than `wsize`, so those that overlap
    /// a range begin at most `wsize` before it.
    copies: BTreeMap<(u64, u64), UnstableData<O>>,
    wsize: u64,
    charge: usize,
}

impl<O: Clone> Retained<O> {
    pub(super) fn new(wsize: usize) -> Retained<O> {
        Retained {
            copies: BTreeMap::new(),
            wsize: wsize as u64,
            charge: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    /// The memory of all copies.
    pub(super) fn charge(&self) -> usize {
        self.charge
    }

    /// Whether something accepted up to the tick `mark` is here.
    pub(super) fn holds(&self, mark: u64) -> bool {
        self.copies.values().any(|copy| copy.segment.seq <= mark)
    }

    /// The age of the oldest copy.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.copies.values().map(|copy| copy.segment.seq).min()
    }

    /// The smallest range that covers everything, and the origin of the copy
    /// at its start.
    pub(super) fn hull(&self) -> Option<(Range<u64>, O)> {
        let first = self.copies.values().next()?;
        let end = self.copies.values().map(|copy| copy.segment.end()).max()?;
        Some((first.segment.offset..end, first.segment.origin.clone()))
    }

    pub(super) fn insert(&mut self, copy: UnstableData<O>) {
        self.charge += copy.segment.charge();
        self.copies.insert((copy.segment.offset, copy.id), copy);
    }

    /// Drops what newer bytes in `range` have made superfluous: all of it if
    /// those are stable; else only what no drain (up to the age `awaited`)
    /// waits for, since later drains will wait for the newer bytes.
    pub(super) fn supersede(&mut self, range: &Range<u64>, stable: bool, awaited: u64) {
        for key in self.overlapping(range) {
            if !stable && self.copies[&key].segment.seq <= awaited {
                continue;
            }
            if let Some(copy) = self.remove(key) {
                for rest in copy.segment.without(range).into_iter().flatten() {
                    self.insert(UnstableData {
                        segment: rest,
                        ..copy
                    });
                }
            }
        }
    }

    /// The ranges of copies newer than the request `id` that overlap `older`.
    /// They inherit its duties.
    pub(super) fn succeed(&mut self, older: &Segment<O>, id: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for key in self.overlapping(&older.range()) {
            if key.1 > id
                && let Some(copy) = self.copies.get_mut(&key)
            {
                copy.segment.stand_in_for(older);
                ranges.push(copy.segment.range());
            }
        }
        ranges
    }

    /// Takes out what was acknowledged before the tick `before` and `wanted`.
    pub(super) fn take(
        &mut self,
        before: u64,
        wanted: impl Fn(&UnstableData<O>) -> bool,
    ) -> Vec<UnstableData<O>> {
        let keys: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, copy)| copy.acked < before && wanted(copy))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter()
            .filter_map(|key| self.remove(key))
            .collect()
    }

    fn overlapping(&self, range: &Range<u64>) -> Vec<(u64, u64)> {
        let from = (range.start.saturating_sub(self.wsize), 0);
        self.copies
            .range(from..(range.end, 0))
            .filter(|(_, copy)| copy.segment.overlaps(range))
            .map(|(key, _)| *key)
            .collect()
    }

    fn remove(&mut self, key: (u64, u64)) -> Option<UnstableData<O>> {
        let copy = self.copies.remove(&key)?;
        self.charge -= copy.segment.charge();
        Some(copy)
    }
}
