//! Numbers that are given out once, also by those who come after this process.
//!
//! They are reserved in blocks: a record says that none below the end of the block is given out
//! again, so most of them cost nothing. Each process has such a record from its beginning.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Survived, Table, Unreadable, Wal};

/// So many are reserved at a time.
const BLOCK: u64 = 1 << 20;

/// A source of numbers.
#[derive(Debug)]
pub struct Numbers {
    next: AtomicU64,
    /// Those below it may be given out.
    reserved: AtomicU64,
    reserving: Mutex<()>,
    wal: Wal,
    key: u64,
}

impl Numbers {
    /// Begins with `first`; the log keeps them as [`Table::Numbers`] under `key`.
    pub fn new(wal: Wal, key: u64, first: u64) -> Self {
        Self {
            next: AtomicU64::new(first),
            reserved: AtomicU64::new(0),
            reserving: Mutex::default(),
            wal,
            key,
        }
    }

    /// One that nobody has had.
    pub fn give(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.reserve(number);
        number
    }

    /// The log has the block that this number is in.
    fn reserve(&self, number: u64) {
        if !self.wal.is_on() || number < self.reserved.load(Ordering::Acquire) {
            return;
        }
        let _reserving = self.reserving.lock();
        if number >= self.reserved.load(Ordering::Acquire) {
            let end = number.saturating_add(BLOCK);
            self.wal.put(Table::Numbers, self.key, &end);
            self.reserved.store(end, Ordering::Release);
        }
    }

    /// Those from here on were not given out.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// None below this one is given out any more, by this process or one that comes after it: also
    /// if this one never gives out any.
    pub fn begin_at(&self, first: u64) {
        let next = self.next.fetch_max(first, Ordering::Relaxed);
        self.reserve(first.max(next));
    }

    /// Where whoever comes after a process that was killed begins; `none` if it gave out none.
    ///
    /// # Errors
    /// The record is not what it should be.
    pub fn survived(survived: &Survived, key: u64, none: u64) -> Result<u64, Unreadable> {
        let ends: Vec<(u64, u64)> = survived.table(Table::Numbers)?;
        let end = ends.into_iter().find(|(known, _)| *known == key);
        Ok(end.map_or(none, |(_, end)| end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_after_gives_out_none_that_was_given_out() -> Result<(), Unreadable> {
        let wal = Wal::create(0)?;
        let numbers = Numbers::new(wal.clone(), 7, 1);
        let given: Vec<u64> = (0..10).map(|_| numbers.give()).collect();
        assert_eq!(given, (1..=10).collect::<Vec<_>>());
        let memory = wal.memory().expect("it is on").try_clone()?;
        let survived = Survived::read(memory)?;
        assert!(Numbers::survived(&survived, 7, 1)? > 10);
        assert_eq!(Numbers::survived(&survived, 8, 3)?, 3);
        Ok(())
    }

    #[test]
    fn who_comes_after_one_that_gave_out_none_begins_no_lower() -> Result<(), Unreadable> {
        let mut next = 1;
        let mut given = Vec::new();
        // Those of the middle are killed before anybody asks them for a number.
        for gives in [true, false, false, true, false, true] {
            let wal = Wal::create(0)?;
            let numbers = Numbers::new(wal.clone(), 7, 1);
            numbers.begin_at(next);
            if gives {
                given.push(numbers.give());
            }
            let memory = wal.memory().expect("it is on").try_clone()?;
            next = Numbers::survived(&Survived::read(memory)?, 7, 1)?;
        }
        assert!(
            given.is_sorted_by(|before, after| before < after),
            "{given:?}"
        );
        Ok(())
    }
}
