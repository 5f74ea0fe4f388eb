//! Memory for what is read ahead: one sum for all handles of a mount.
//!
//! A handle alone is bounded by its window ([`super::readahead`]); hundreds of them
//! are bounded here. A chunk is fetched only with a [`Share`] of the sum, which comes
//! back when the chunk is dropped. If all shares are out, handles that have not read
//! for a while give up what they hold, the one first that has not read for longest; if
//! there is none, nothing more is read ahead: taking chunks from who is about to read
//! them would only have them fetched twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Who has not read for so long may have to give up what was read ahead for it.
const IDLE: Duration = Duration::from_secs(1);

/// If nobody was idle, nobody is looked for again for so long.
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever holds chunks.
pub(in crate::vfs) trait Holder: Send + Sync {
    /// When it was last read.
    fn last_read(&self) -> Instant;

    /// Drops the chunks that are here.
    fn give_up(&self);
}

/// The shares of a mount.
#[derive(Debug)]
pub(in crate::vfs) struct ReadMemory<H> {
    most: usize,
    out: Arc<AtomicUsize>,
    /// Never locked together with what a holder locks.
    holders: Mutex<Holders<H>>,
}

#[derive(Debug)]
struct Holders<H> {
    /// Those that may hold chunks.
    all: Vec<Weak<H>>,
    /// When nobody was idle.
    all_busy: Option<Instant>,
}

/// The right to hold one chunk, until it is dropped.
#[derive(Debug)]
pub(in crate::vfs) struct Share(Arc<AtomicUsize>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<H: Holder> ReadMemory<H> {
    /// At most this many shares are out.
    pub(in crate::vfs) fn new(most: usize) -> Self {
        Self {
            most,
            out: Arc::default(),
            holders: Mutex::new(Holders {
                all: Vec::new(),
                all_busy: None,
            }),
        }
    }

    /// Shares that are out, and how many there are.
    pub(in crate::vfs) fn shares(&self) -> (usize, usize) {
        (self.out.load(Ordering::Relaxed), self.most)
    }

    /// The holder may ask for shares from now on.
    pub(in crate::vfs) fn enlist(&self, holder: &Arc<H>) {
        let holders = &mut self.holders.lock().all;
        // Not each time: that would cost more the more there are.
        if holders.len() == holders.capacity() {
            holders.retain(|holder| holder.strong_count() > 0);
        }
        holders.push(Arc::downgrade(holder));
    }

    /// A share, if there is one.
    pub(in crate::vfs) fn share(&self, now: Instant) -> Option<Share> {
        self.take().or_else(|| {
            self.reclaim(now);
            self.take()
        })
    }

    fn take(&self) -> Option<Share> {
        let free = |out| (out < self.most).then_some(out + 1);
        self.out
            .try_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .ok()
            .map(|_| Share(Arc::clone(&self.out)))
    }

    /// Idle holders give up what they hold, until there is a share.
    fn reclaim(&self, now: Instant) {
        let living: Vec<Arc<H>> = {
            let holders = self.holders.lock();
            if holders.all_busy.is_some_and(|at| now < at + PAUSE) {
                return;
            }
            holders.all.iter().filter_map(Weak::upgrade).collect()
        };
        let mut idle: Vec<(Instant, Arc<H>)> = living
            .into_iter()
            .map(|holder| (holder.last_read(), holder))
            .filter(|(read, _)| now >= *read + IDLE)
            .collect();
        if idle.is_empty() {
            self.holders.lock().all_busy = Some(now);
            return;
        }
        idle.sort_by_key(|(read, _)| *read);
        for (_, holder) in idle {
            if self.out.load(Ordering::Relaxed) < self.most {
                return;
            }
            holder.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Reader {
        read: Instant,
        chunks: Mutex<Vec<Share>>,
    }

    impl Holder for Reader {
        fn last_read(&self) -> Instant {
            self.read
        }

        fn give_up(&self) {
            self.chunks.lock().clear();
        }
    }

    fn reader(memory: &ReadMemory<Reader>, read: Instant) -> Arc<Reader> {
        let reader = Arc::new(Reader {
            read,
            chunks: Mutex::default(),
        });
        memory.enlist(&reader);
        reader
    }

    #[test]
    fn who_has_not_read_for_longest_gives_up_first_and_who_reads_keeps_all() {
        let memory = ReadMemory::new(4);
        let now = Instant::now();
        let ago = |secs| now - Duration::from_secs(secs);
        let (busy, idle, old) = (
            reader(&memory, now),
            reader(&memory, ago(2)),
            reader(&memory, ago(9)),
        );
        for reader in [&busy, &busy, &idle, &old] {
            let share = memory.share(now).expect("a share");
            reader.chunks.lock().push(share);
        }
        let held = || [&busy, &idle, &old].map(|reader| reader.chunks.lock().len());
        let more: Vec<Share> = [[2, 1, 0], [2, 0, 0]]
            .into_iter()
            .map(|left| {
                let share = memory.share(now).expect("one that was given up");
                assert_eq!(held(), left);
                share
            })
            .collect();
        assert!(memory.share(now).is_none(), "all others read");
        assert_eq!((memory.shares(), held()), ((4, 4), [2, 0, 0]));
        drop(more);
        drop(busy);
        assert_eq!(memory.shares().0, 0, "with the handle its shares come back");
    }

    #[test]
    fn handles_that_are_gone_are_forgotten() {
        let memory = ReadMemory::new(1);
        let now = Instant::now();
        for _ in 0..10_000 {
            reader(&memory, now);
        }
        assert!(memory.holders.lock().all.len() < 100);
    }
}
