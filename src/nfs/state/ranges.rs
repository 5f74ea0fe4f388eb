//! Byte ranges of one lock owner on one file, as POSIX defines them: a new lock
//! replaces what the owner had on that range, an unlock may cut a range in two,
//! neighbours of the same kind are one.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// What a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Shared: others may read (F_RDLCK, LOCK_SH, READ_LT).
    Read,
    /// Exclusive (F_WRLCK, LOCK_EX, WRITE_LT).
    Write,
}

impl LockKind {
    /// Two owners cannot have both on one byte.
    pub fn conflicts(self, other: Self) -> bool {
        self == Self::Write || other == Self::Write
    }
}

/// A range of bytes, both ends inclusive. An end of `u64::MAX` is the end of
/// any file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

impl Span {
    /// Every byte there can be.
    pub const ALL: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// The length as LOCK has it (RFC 8881 §18.10.1): all ones to the end.
    pub fn length(self) -> u64 {
        match self.end {
            u64::MAX => u64::MAX,
            end => end - self.start + 1,
        }
    }

    /// A byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn meet(self, other: Self) -> Option<Self> {
        self.overlaps(other).then(|| Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        })
    }
}

/// The locks of one owner, ascending and without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(Span, LockKind)>", into = "Vec<(Span, LockKind)>")]
pub struct Ranges(SmallVec<[(Span, LockKind); 1]>);

impl From<Ranges> for Vec<(Span, LockKind)> {
    fn from(ranges: Ranges) -> Self {
        ranges.0.into_vec()
    }
}

impl TryFrom<Vec<(Span, LockKind)>> for Ranges {
    type Error = &'static str;

    fn try_from(held: Vec<(Span, LockKind)>) -> Result<Self, Self::Error> {
        let apart = held.windows(2).all(|two| two[0].0.end < two[1].0.start);
        match apart && held.iter().all(|(span, _)| span.start <= span.end) {
            true => Ok(Self(held.into())),
            false => Err("ranges that are not ascending or overlap"),
        }
    }
}

impl Ranges {
    /// Locks `span` (`Some`) or unlocks it (`None`).
    pub fn set(&mut self, span: Span, kind: Option<LockKind>) {
        let mut next: SmallVec<[(Span, LockKind); 1]> = SmallVec::new();
        for &(held, held_kind) in &self.0 {
            if !held.overlaps(span) {
                next.push((held, held_kind));
                continue;
            }
            if held.start < span.start {
                let end = span.start - 1;
                next.push((Span { end, ..held }, held_kind));
            }
            if held.end > span.end {
                let start = span.end + 1;
                next.push((Span { start, ..held }, held_kind));
            }
        }
        if let Some(kind) = kind {
            next.push((span, kind));
            next.sort_by_key(|(held, _)| held.start);
        }
        next.dedup_by(|later, earlier| {
            let joined =
                earlier.1 == later.1 && earlier.0.end.checked_add(1) == Some(later.0.start);
            if joined {
                earlier.0.end = later.0.end;
            }
            joined
        });
        self.0 = next;
    }

    /// What the owner has on each part of `span`, which the parts cover
    /// without a gap.
    pub fn parts(&self, span: Span) -> Vec<(Span, Option<LockKind>)> {
        let mut parts = Vec::new();
        let mut at = Some(span.start);
        for &(held, kind) in &self.0 {
            let (Some(from), Some(part)) = (at, held.meet(span)) else {
                continue;
            };
            if from < part.start {
                let end = part.start - 1;
                parts.push((Span { start: from, end }, None));
            }
            parts.push((part, Some(kind)));
            at = part.end.checked_add(1).filter(|&next| next <= span.end);
        }
        if let Some(start) = at.filter(|&start| start <= span.end) {
            let end = span.end;
            parts.push((Span { start, end }, None));
        }
        parts
    }

    /// The first of these locks that keeps another owner from `kind` on
    /// `span`.
    pub fn conflict(&self, span: Span, kind: LockKind) -> Option<(Span, LockKind)> {
        self.0
            .iter()
            .find(|(held, held_kind)| held.overlaps(span) && held_kind.conflicts(kind))
            .copied()
    }

    /// Any byte of `span` is locked.
    pub fn touches(&self, span: Span) -> bool {
        self.0.iter().any(|(held, _)| held.overlaps(span))
    }

    /// Nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The locks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Span, LockKind)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::LockKind::{Read, Write};
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn an_unlock_in_the_middle_leaves_two_locks() {
        let mut ranges = Ranges::default();
        ranges.set(Span::ALL, Some(Write));
        ranges.set(span(10, 19), None);
        let held: Vec<_> = ranges.iter().collect();
        assert_eq!(held, [(span(0, 9), Write), (span(20, u64::MAX), Write)]);
        assert_eq!(held[1].0.length(), u64::MAX);
        assert_eq!(held[0].0.length(), 10);
    }

    #[test]
    fn neighbours_of_one_kind_are_one_lock_and_a_downgrade_splits() {
        let mut ranges = Ranges::default();
        ranges.set(span(0, 9), Some(Read));
        ranges.set(span(10, 19), Some(Read));
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(span(0, 19), Read)]);
        ranges.set(span(5, 6), Some(Write));
        assert_eq!(ranges.iter().count(), 3);
        ranges.set(span(5, 6), Some(Read));
        assert_eq!(ranges.iter().count(), 1);
    }

    #[test]
    fn readers_share_and_a_writer_does_not() {
        let mut ranges = Ranges::default();
        ranges.set(span(5, 9), Some(Read));
        assert_eq!(ranges.conflict(Span::ALL, Read), None);
        assert_eq!(ranges.conflict(span(9, 9), Write), Some((span(5, 9), Read)));
        assert_eq!(ranges.conflict(span(10, u64::MAX), Write), None);
    }

    proptest! {
        #[test]
        fn ranges_say_what_a_byte_map_says(
            steps in prop::collection::vec((0u64..32, 0u64..32, prop::option::of(prop::bool::ANY)), 0..40),
            from in 0u64..32, to in 0u64..32,
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [None; 32];
            for (a, b, kind) in steps {
                let at = span(a.min(b), a.max(b));
                let kind = kind.map(|write| if write { Write } else { Read });
                ranges.set(at, kind);
                bytes[at.start as usize..=at.end as usize].fill(kind);
            }
            let asked = span(from.min(to), from.max(to));
            let mut at = asked.start;
            for (part, kind) in ranges.parts(asked) {
                prop_assert_eq!(part.start, at);
                for byte in part.start..=part.end {
                    prop_assert_eq!(bytes[byte as usize], kind);
                }
                at = part.end + 1;
            }
            prop_assert_eq!(at, asked.end + 1);
            let held: Vec<_> = ranges.iter().collect();
            for pair in held.windows(2) {
                let joined = pair[0].0.end + 1 == pair[1].0.start && pair[0].1 == pair[1].1;
                prop_assert!(pair[0].0.end < pair[1].0.start && !joined);
            }
        }
    }
}
