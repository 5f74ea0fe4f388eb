//! Which names the kernel believes, and until when.
//!
//! The kernel looks a name up again although what it was told of it is still good for
//! one of three reasons only: the name is about to be made by a call that must fail if
//! it is there (LOOKUP_EXCL: mkdir, mknod, symlink, link, O_EXCL), it is about to be
//! replaced (LOOKUP_RENAME_TARGET), or a walk has ended with ESTALE and is made anew
//! (LOOKUP_REVAL). Each means: ask the server. FUSE does not say which it is, or
//! that it is one of them; but what the kernel was told, this side knows.
//!
//! What is not believed any more: what this side has told the kernel to forget
//! ([`KernelCache::inval_entry`](crate::vfs::types::KernelCache)), what it has removed or
//! moved at the kernel's own request, and names of inodes that the kernel has given back
//! (FORGET comes with the end of the last name). Should the kernel forget in another way, the
//! next lookup costs a round trip that it need not; nothing worse.
//!
//! Bounded by the inodes that the kernel holds, and by what it was told within the
//! longest cache time: the rest is swept out whenever the number has doubled.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::vfs::types::Ino;

/// The kernel counts from when it has read the answer, in jiffies (10 ms at the most),
/// rounded up.
const LATER: Duration = Duration::from_millis(10);

/// So many are not worth sweeping.
const FEW: usize = 4096;

/// A name in a directory. Two different ones may be the same once in 2^64 times, which
/// nobody who names files can bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new(dir: Ino, name: &[u8]) -> Self {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        Self(HASHER.get_or_init(RandomState::new).hash_one((dir, name)))
    }
}

#[derive(Clone, Copy, Debug)]
struct Belief {
    ino: Ino,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Told {
    names: DashMap<Key, Belief>,
    /// Names after which it is swept next.
    sweep_at: AtomicUsize,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            names: DashMap::new(),
            sweep_at: AtomicUsize::new(FEW),
        }
    }
}

impl Told {
    /// The kernel is about to be told that the name leads to `ino`, for so long.
    /// `holds` says whether the kernel still has an inode.
    pub(super) fn told(&self, key: Key, ino: Ino, ttl: Duration, holds: impl Fn(Ino) -> bool) {
        if ttl.is_zero() {
            return self.forget(key);
        }
        let now = Instant::now();
        let until = now + ttl + LATER;
        self.names.insert(key, Belief { ino, until });
        if self.names.len() >= self.sweep_at.load(Ordering::Relaxed) {
            self.names
                .retain(|_, belief| now < belief.until && holds(belief.ino));
            let next = (2 * self.names.len()).max(FEW);
            self.sweep_at.store(next, Ordering::Relaxed);
        }
    }

    /// The kernel believes the name: should it ask for it, it wants to know of the server.
    pub(super) fn is_believed(&self, key: Key, holds: impl Fn(Ino) -> bool) -> bool {
        // Not with the lock of the map held.
        let belief = self.names.get(&key).map(|belief| *belief);
        belief.is_some_and(|belief| Instant::now() < belief.until && holds(belief.ino))
    }

    /// The kernel knows nothing of the name any more.
    pub(super) fn forget(&self, key: Key) {
        self.names.remove(&key);
    }

    /// The kernel has moved the name, with what it was told of it.
    pub(super) fn moved(&self, from: Key, to: Key) {
        match self.names.remove(&from) {
            Some((_, belief)) => drop(self.names.insert(to, belief)),
            None => self.forget(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn held(_: Ino) -> bool {
        true
    }

    #[test]
    fn a_name_is_believed_for_its_time_and_until_it_is_forgotten() {
        let told = Told::default();
        let (a, b) = (Key::new(1, b"a"), Key::new(1, b"b"));
        told.told(a, 5, LONG, held);
        assert!(told.is_believed(a, held) && !told.is_believed(b, held));
        assert!(!told.is_believed(Key::new(2, b"a"), held), "elsewhere");
        assert!(!told.is_believed(a, |ino| ino != 5), "given back");
        told.moved(a, b);
        assert!(!told.is_believed(a, held) && told.is_believed(b, held));
        told.moved(a, b);
        assert!(!told.is_believed(b, held), "replaced by one not believed");
        told.told(a, 5, LONG, held);
        told.told(a, 5, Duration::ZERO, held);
        assert!(!told.is_believed(a, held), "told not to believe it");
        told.told(a, 5, Duration::from_millis(1), held);
        std::thread::sleep(Duration::from_millis(15));
        assert!(!told.is_believed(a, held), "its time is over");
    }

    #[test]
    fn what_the_kernel_has_given_back_does_not_stay() {
        let told = Told::default();
        for ino in 0..10 * FEW as u64 {
            let key = Key::new(1, &ino.to_ne_bytes());
            told.told(key, ino, LONG, |ino| ino % 100 == 0);
        }
        assert!(told.names.len() <= FEW, "{}", told.names.len());
    }
}
