//! Asks the kernel to forget.
//!
//! The kernel keeps every inode that it has been told of until it is short of
//! memory, and an inode that the kernel holds must be held here. A walk over a
//! million files would so cost us their memory for good. Beyond a bound the
//! kernel is asked to let go of the names that it was told of first; it gives
//! their inodes back by FORGET, unless they are in use. Whoever comes back to
//! one of them looks it up again.
//!
//! Directories are not asked for: somebody may be in them. Files that are open
//! are left alone.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;

use crate::vfs::Vfs;
use crate::vfs::types::Ino;

/// This many inodes are asked for when one has come in, to get below the bound again.
const AT_ONCE: usize = 2;

/// Not more than this is asked for ahead of what the kernel has done.
const BACKLOG: usize = 1024;

/// What the kernel was told of, in that order.
#[derive(Debug, Default)]
pub(in crate::vfs) struct EvictionQueue(Mutex<VecDeque<Ino>>);

impl EvictionQueue {
    /// The kernel is told of an inode that it did not know.
    pub(in crate::vfs) fn push(&self, ino: Ino) {
        self.0.lock().push_back(ino);
    }

    /// Those that it was told of first.
    fn first(&self, count: usize) -> Vec<Ino> {
        let mut told = self.0.lock();
        let count = told.len().min(count);
        told.drain(..count).collect()
    }

    /// Drops those that were forgotten, if there are many of them.
    fn tidy(&self, known: usize, is_known: impl Fn(Ino) -> bool) {
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

impl Vfs {
    /// Called for each inode that the kernel is told of.
    pub(in crate::vfs) fn trim(&self) {
        let (known, told) = (self.inodes.len(), self.inodes.told());
        self.metrics.gauges.inodes.set(known as u64);
        if known <= self.config.max_inodes {
            told.tidy(known, |ino| self.inodes.get(ino).is_some());
            return;
        }
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        if kernel.backlog() > BACKLOG {
            return;
        }
        for ino in told.first(AT_ONCE) {
            // Else it was forgotten already.
            let Some(inode) = self.inodes.get(ino) else {
                continue;
            };
            let open = |file: &crate::vfs::file::state::FileState| file.inner.lock().is_open();
            if inode.opened().is_some_and(open) {
                told.push(ino);
            } else if let Some(place) = inode.place() {
                self.forget_entry(place.dir.ino, &place.name);
            }
        }
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
