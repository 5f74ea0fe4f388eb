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
#[derive(Debug)]
pub struct Count {
    pub(super) value: u64,
    pub(super) slot: Option<u32>,
}

impl Count {
    /// One that does not survive.
    pub(super) const fn alone(value: u64) -> Self {
        Self { value, slot: None }
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.value
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.slot.serialize(to)
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
                    place(slot)?;
                    slots.next += 1;
                    slot
                }
            }
        };
        self.set(slot, value);
        Some(Count {
            value,
            slot: Some(slot),
        })
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
