//! Counts that change too often for records: one word each.
//!
//! A record names the count by its number. It is set before the record is put, and given to
//! another only after the record was removed, so a record never names a count of something else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use super::map::{COUNTS, Map};

/// A count. A record has its number in its place.
///
/// There is one for each inode, so it is one word: the value in the upper 40 bits, and which of the
/// counts it is in the lower 24.
#[derive(Debug)]
pub struct Count(u64);

/// Which of the counts it is if it is none of them.
const ALONE: u32 = (1 << SLOT_BITS) - 1;
const SLOT_BITS: u32 = 24;

impl Count {
    fn of(value: u64, slot: u32) -> Self {
        let most = u64::MAX >> SLOT_BITS;
        Self(value.min(most) << SLOT_BITS | u64::from(slot))
    }

    /// One that does not survive.
    pub(super) fn alone(value: u64) -> Self {
        Self::of(value, ALONE)
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0 >> SLOT_BITS
    }

    pub(super) fn set(&mut self, value: u64) {
        *self = Self::of(value, self.0 as u32 & ALONE);
    }

    pub(super) fn slot(&self) -> Option<u32> {
        Some(self.0 as u32 & ALONE).filter(|slot| *slot != ALONE)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.slot().serialize(to)
    }
}

#[derive(Debug, Default)]
struct Slots {
    /// Those from here on were never used.
    next: u32,
    free: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Counts {
    map: Arc<Map>,
    slots: Mutex<Slots>,
}

/// Where a count is.
pub(super) fn place(slot: u32) -> Option<usize> {
    let at = COUNTS.start + 8 * slot as usize;
    (at + 8 <= COUNTS.end).then_some(at)
}

impl Counts {
    pub(super) fn new(map: Arc<Map>) -> Self {
        Self {
            map,
            slots: Mutex::default(),
        }
    }

    /// One that nobody has; `None` if there is none.
    pub(super) fn take(&self, value: u64) -> Option<Count> {
        let slot = {
            let mut slots = self.slots.lock();
            match slots.free.pop() {
                Some(slot) => slot,
                None => {
                    let slot = slots.next;
                    place(slot).filter(|_| slot < ALONE)?;
                    slots.next += 1;
                    slot
                }
            }
        };
        self.set(slot, value);
        Some(Count::of(value, slot))
    }

    pub(super) fn set(&self, slot: u32, value: u64) {
        if let Some(at) = place(slot) {
            self.map.word(at).store(value, Ordering::Release);
        }
    }

    pub(super) fn free(&self, slot: u32) {
        self.slots.lock().free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_word_and_keeps_its_place_when_it_changes() {
        let mut count = Count::of(1, 7);
        count.set(1 << 39);
        assert_eq!((count.get(), count.slot()), (1 << 39, Some(7)));
        count.set(u64::MAX);
        assert_eq!(count.slot(), Some(7), "it does not reach into its place");
        let mut alone = Count::alone(3);
        alone.set(4);
        assert_eq!((alone.get(), alone.slot()), (4, None));
        assert_eq!(size_of::<Count>(), 8);
    }
}
