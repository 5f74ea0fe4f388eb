//! Inodes in the order in which the kernel was told of them.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;

use crate::vfs::types::Ino;

/// Not more than this is asked for ahead of what the kernel has done.
pub(in crate::vfs) const BACKLOG: usize = 1024;

/// What the kernel was told of, in that order.
#[derive(Debug, Default)]
pub(in crate::vfs) struct EvictionQueue(Mutex<VecDeque<Ino>>);

impl EvictionQueue {
    /// The kernel is told of an inode that it did not know.
    pub(in crate::vfs) fn push(&self, ino: Ino) {
        self.0.lock().push_back(ino);
    }

    /// Those that it was told of first.
    pub(in crate::vfs) fn first(&self, count: usize) -> Vec<Ino> {
        let mut told = self.0.lock();
        let count = told.len().min(count);
        told.drain(..count).collect()
    }

    /// All of them, in that order.
    pub(in crate::vfs) fn all(&self) -> Vec<Ino> {
        self.0.lock().iter().copied().collect()
    }

    /// Drops those that were forgotten, if there are many of them.
    pub(in crate::vfs) fn tidy(&self, known: usize, is_known: impl Fn(Ino) -> bool) {
        let all = {
            let mut told = self.0.lock();
            if told.len() <= 2 * known + BACKLOG {
                return;
            }
            std::mem::take(&mut *told)
        };
        // Not with the lock held: inodes are entered with a shard of their
        // table locked.
        let mut seen = HashSet::with_capacity(known);
        let mut kept: VecDeque<Ino> = all
            .into_iter()
            .filter(|ino| is_known(*ino) && seen.insert(*ino))
            .collect();
        let mut told = self.0.lock();
        kept.append(&mut told);
        *told = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_bounded_by_what_is_known() {
        let told = EvictionQueue::default();
        for ino in 0..100_000 {
            told.push(ino % 7);
            told.push(1000 + ino);
            told.tidy(10, |ino| ino < 10);
        }
        assert!(told.0.lock().len() <= 2 * 10 + BACKLOG + 2);
        told.tidy(0, |_| false);
        let first = told.first(3);
        assert!(first.len() <= 3);
    }
}
