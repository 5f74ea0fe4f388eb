//! Which name of an inode the kernel believes, and until when: plain atomic state in the inode.
//! What follows from it is written in `namespace::kernel_dentry`.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Inode, Place};
use crate::vfs::types::Ino;
use crate::wal::clock;

/// What time is counted in here.
const TICK: Duration = Duration::from_millis(10);

/// The longest that is counted: half of what 32 bits hold is 248 days.
const LONGEST: u32 = 100 * 24 * 3600 * 100;

/// Names of an inode, and until when the kernel believes them, in ticks since the mount began.
/// Zero: none.
///
/// There is one in each of many inodes, so what goes with it ([`Apart`]) is a field of its own
/// there, where it fills a gap.
#[derive(Debug, Default)]
pub(in crate::vfs) struct KernelDentry {
    /// The one that was told last and is to be believed: 32 bits of its hash, and until when.
    told: AtomicU64,
}

/// Ticks since the mount began; they wrap after 497 days, see [`LONGEST`].
pub(super) fn ticks_since(began: Instant) -> u32 {
    (began.elapsed().as_millis() / TICK.as_millis()) as u32
}

/// Until when the kernel may believe another name than the one that the inode was found by.
pub(super) type Apart = AtomicU32;

/// Rounded up.
fn in_ticks(time: Duration) -> u32 {
    let ticks = time.as_millis().div_ceil(TICK.as_millis());
    u32::try_from(ticks).unwrap_or(LONGEST).min(LONGEST)
}

/// The name's half.
fn tag_of(belief: u64) -> u64 {
    belief >> 32 << 32
}

fn is_good(until: u32, now: u32) -> bool {
    until != 0 && (until.wrapping_sub(now) as i32) > 0
}

/// Not before either. Says whether that is later than it was.
fn put_off(apart: &Apart, until: u32, now: u32) -> bool {
    let later = |known: u32| {
        let longer = !is_good(known, now) || (until.wrapping_sub(known) as i32) > 0;
        longer.then_some(until)
    };
    let moved = apart.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    moved.is_ok()
}

/// For how long the kernel may believe names of an inode, in ticks: written down for another
/// process, whose hashes are others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vfs) struct Beliefs {
    /// The name that the inode was found by.
    found: u32,
    /// Another one.
    other: u32,
}

impl Beliefs {
    /// Of an inode in the log of a daemon that was killed, which was found by a name if
    /// `has_place`, and of which another may be believed until `other_until` ([`clock`]). Until
    /// when the first is, nobody knows: for as long as this mount lets a name be believed.
    pub(super) fn logged(has_place: bool, other_until: Option<Duration>) -> Self {
        let other = match other_until {
            _ if !has_place => LONGEST,
            Some(until) => in_ticks(until.saturating_sub(clock())),
            None => 0,
        };
        Self {
            found: LONGEST,
            other,
        }
    }

    /// Until when a name is believed, by [`clock`], that is not the one that the inode was found by.
    pub(super) fn other_until(self) -> Option<Duration> {
        (self.other > 0).then(|| clock() + TICK * self.other)
    }

    /// The same, and for no longer than that.
    pub(super) fn at_most(self, longest: Duration) -> Self {
        let ticks = in_ticks(longest);
        Self {
            found: self.found.min(ticks),
            other: self.other.min(ticks),
        }
    }
}

/// How long it is until then.
fn ticks_until(until: u32, now: u32) -> u32 {
    match is_good(until, now) {
        true => until.wrapping_sub(now),
        false => 0,
    }
}

impl KernelDentry {
    /// Other names are taken for this one once in 2^32 times: that costs a round trip.
    fn tag(dir: Ino, name: &[u8]) -> u64 {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        HASHER.get_or_init(RandomState::new).hash_one((dir, name)) >> 32 << 32
    }

    /// Says whether another name is believed for longer than was known.
    fn set(&self, apart: &Apart, tag: u64, now: u32, ttl: Duration) -> bool {
        if ttl.is_zero() {
            let other = self.found(apart, tag, now);
            if self.holds(tag, now) {
                self.told.store(0, Ordering::Release);
            }
            return other;
        }
        // The kernel counts from when it has read the answer, in jiffies (a tick at the
        // most), rounded up. Zero means none.
        let until = now.wrapping_add(in_ticks(ttl) + 1).max(1);
        // Of two names that are told at the same time each sees the other.
        let before = self.told.swap(tag | u64::from(until), Ordering::AcqRel);
        tag_of(before) != tag && is_good(before as u32, now) && put_off(apart, before as u32, now)
    }

    fn holds(&self, tag: u64, now: u32) -> bool {
        let belief = self.told.load(Ordering::Acquire);
        tag_of(belief) == tag && is_good(belief as u32, now)
    }

    /// The inode was found by this name. Says the same.
    fn found(&self, apart: &Apart, tag: u64, now: u32) -> bool {
        let told = self.told.load(Ordering::Acquire);
        tag_of(told) != tag && is_good(told as u32, now) && put_off(apart, told as u32, now)
    }

    /// This host has taken the name away, or given it to another inode: the kernel knows.
    fn lost(&self, apart: &Apart, tag: u64) {
        let told = self.told.load(Ordering::Acquire);
        if tag_of(told) == tag {
            let (taken, none) = (Ordering::AcqRel, Ordering::Relaxed);
            let _ = self.told.compare_exchange(told, 0, taken, none);
            let _ = apart.compare_exchange(told as u32, 0, taken, none);
        }
    }

    /// The kernel is being told to forget the name: it may believe it a little longer.
    fn forget(&self, apart: &Apart, now: u32) {
        let told = self.told.swap(0, Ordering::AcqRel);
        if is_good(told as u32, now) {
            put_off(apart, told as u32, now);
        }
    }
}

/// What the kernel believes of an inode's names, at `now` ([`ticks_since`]).
impl Inode {
    /// The kernel is about to be told that this name leads here, for so long. Says whether another
    /// name is believed for longer than was known.
    pub(in crate::vfs) fn tell_name(&self, dir: Ino, name: &[u8], now: u32, ttl: Duration) -> bool {
        let tag = KernelDentry::tag(dir, name);
        self.belief.set(&self.apart, tag, now, ttl)
    }

    /// The kernel believes that this name leads here.
    pub(in crate::vfs) fn is_told_name(&self, dir: Ino, name: &[u8], now: u32) -> bool {
        self.belief.holds(KernelDentry::tag(dir, name), now)
    }

    /// The inode was found by this name, and by another one before.
    pub(in crate::vfs) fn told_another_name(&self, dir: Ino, name: &[u8], now: u32) {
        let tag = KernelDentry::tag(dir, name);
        self.belief.found(&self.apart, tag, now);
    }

    /// This host has taken the name away, or given it to another inode: the kernel knows.
    pub(in crate::vfs) fn lost_name(&self, dir: Ino, name: &[u8]) {
        self.belief.lost(&self.apart, KernelDentry::tag(dir, name));
    }

    /// The kernel is being told to forget the name: it may believe it a little longer.
    pub(in crate::vfs) fn forget_name(&self, now: u32) {
        self.belief.forget(&self.apart, now);
    }

    /// What the kernel believes, of an inode that was found at `place`.
    pub(super) fn beliefs(&self, place: Option<&Place>, now: u32) -> Beliefs {
        let told = self.belief.told.load(Ordering::Acquire);
        let until = ticks_until(told as u32, now);
        let other = ticks_until(self.apart.load(Ordering::Acquire), now);
        let is_it = |place: &Place| KernelDentry::tag(place.dir.ino, &place.name) == tag_of(told);
        match place.is_some_and(is_it) {
            true => Beliefs {
                found: until,
                other,
            },
            false => Beliefs {
                found: 0,
                other: other.max(until),
            },
        }
    }

    /// The kernel believes this since the mount began, which is now. What the hand-over took
    /// counts on the safe side: a name is taken to be believed a little longer than it is.
    pub(super) fn believe(&self, place: Option<&Place>, beliefs: Beliefs) {
        if let (Some(place), 1..) = (place, beliefs.found) {
            let tag = KernelDentry::tag(place.dir.ino, &place.name);
            let until = u64::from(beliefs.found.min(LONGEST) + 1);
            self.belief.told.store(tag | until, Ordering::Release);
        }
        if beliefs.other > 0 {
            let until = beliefs.other.min(LONGEST) + 1;
            self.apart.store(until, Ordering::Release);
        }
    }

    /// The kernel may believe a name that is not the one that the inode was found by.
    pub(in crate::vfs) fn may_have_another_name(&self, now: u32) -> bool {
        is_good(self.apart.load(Ordering::Acquire), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_believed_for_its_time_and_no_other_is() {
        let (a, b) = (KernelDentry::tag(1, b"a"), KernelDentry::tag(1, b"b"));
        let (belief, apart) = (KernelDentry::default(), Apart::default());
        assert!(
            !belief.holds(0, 0) && !belief.holds(a, 0),
            "nothing was told"
        );
        // At the turn of the count, too.
        for now in [0, 5, u32::MAX - 50] {
            belief.set(&apart, a, now, Duration::from_secs(1));
            assert!(belief.holds(a, now) && belief.holds(a, now.wrapping_add(100)));
            assert!(!belief.holds(a, now.wrapping_add(101)), "its time is over");
            assert!(!belief.holds(b, now) && !belief.holds(KernelDentry::tag(2, b"a"), now));
        }
        belief.set(&apart, a, 0, Duration::MAX);
        assert!(belief.holds(a, LONGEST));
        belief.set(&apart, a, 0, Duration::ZERO);
        assert!(!belief.holds(a, 0), "told not to believe it");
    }

    #[test]
    fn an_earlier_name_is_remembered_for_its_time_unless_this_host_took_it() {
        const SECOND: Duration = Duration::from_secs(1);
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| KernelDentry::tag(1, name));
        let (belief, apart) = (KernelDentry::default(), Apart::default());
        let is_apart = |now| is_good(apart.load(Ordering::Relaxed), now);
        belief.set(&apart, a, 5, SECOND);
        belief.set(&apart, a, 50, SECOND);
        belief.found(&apart, a, 50);
        assert!(!is_apart(50), "one name");
        // Of a file with two names none is believed from here on.
        belief.set(&apart, b, 60, Duration::ZERO);
        assert!(is_apart(150) && !is_apart(152) && belief.holds(a, 150));
        belief.lost(&apart, b);
        assert!(is_apart(100));
        belief.lost(&apart, a);
        assert!(!is_apart(60));
        // Of several the longest counts.
        belief.set(&apart, a, 0, 9 * SECOND);
        belief.set(&apart, b, 0, SECOND);
        belief.found(&apart, c, 0);
        belief.lost(&apart, b);
        assert!(is_apart(899) && !is_apart(902));
    }
}
