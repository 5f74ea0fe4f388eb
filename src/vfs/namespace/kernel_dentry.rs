//! Which names the kernel believes, and until when.
//!
//! The kernel looks a name up again although what it was told of it is still good for
//! one of three reasons only: the name is about to be made by a call that must fail if
//! it is there (LOOKUP_EXCL: mkdir, mknod, symlink, link, O_EXCL), it is about to be
//! replaced (LOOKUP_RENAME_TARGET), or a walk has ended with ESTALE and is made anew
//! (LOOKUP_REVAL). Each means: ask the server. FUSE does not say which it is, or
//! that it is one of them; but what the kernel was told, this side knows.
//!
//! Of each inode one name is kept so, the one that the kernel was told of last: names of
//! files with several are told to be asked for each time. It is looked for where
//! the name leads by what is known here; where nothing is, the server is asked anyway.
//!
//! An open(2) of a file that is found by two names at the same time is another matter: it says
//! which file, not by which name, and a name that the kernel still believes may lead
//! elsewhere by now, while the other does not. As long as the kernel may believe the name
//! of before, such an open has to find out ([`Vfs::may_mean_another_name`]).
//!
//! What is not believed any more: what this side has told the kernel to forget
//! ([`KernelCache::inval_entry`](crate::vfs::types::KernelCache)), what it has removed or
//! moved at the kernel's own request, and names of inodes that the kernel has given back
//! (FORGET comes with the end of the last name). Should the kernel forget in another way, the
//! next lookup costs a round trip that it need not; nothing worse.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::types::{FileKind, Ino};

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

/// Until when the kernel may believe another name than the one that the inode was found by.
pub(in crate::vfs) type Apart = AtomicU32;

/// The name's half.
fn tag_of(belief: u64) -> u64 {
    belief >> 32 << 32
}

fn is_good(until: u32, now: u32) -> bool {
    until != 0 && (until.wrapping_sub(now) as i32) > 0
}

/// Not before either.
fn put_off(apart: &Apart, until: u32, now: u32) {
    let later = |known: u32| {
        let longer = !is_good(known, now) || (until.wrapping_sub(known) as i32) > 0;
        longer.then_some(until)
    };
    let _ = apart.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
}

impl KernelDentry {
    /// Other names are taken for this one once in 2^32 times: that costs a round trip.
    fn tag(dir: Ino, name: &[u8]) -> u64 {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        HASHER.get_or_init(RandomState::new).hash_one((dir, name)) >> 32 << 32
    }

    fn set(&self, apart: &Apart, tag: u64, now: u32, ttl: Duration) {
        if ttl.is_zero() {
            self.found(apart, tag, now);
            if self.holds(tag, now) {
                self.told.store(0, Ordering::Release);
            }
            return;
        }
        let ticks = u32::try_from(ttl.as_millis().div_ceil(TICK.as_millis())).unwrap_or(LONGEST);
        // The kernel counts from when it has read the answer, in jiffies (a tick at the
        // most), rounded up. Zero means none.
        let until = now.wrapping_add(ticks.min(LONGEST) + 1).max(1);
        // Of two names that are told at the same time each sees the other.
        let before = self.told.swap(tag | u64::from(until), Ordering::AcqRel);
        if tag_of(before) != tag && is_good(before as u32, now) {
            put_off(apart, before as u32, now);
        }
    }

    fn holds(&self, tag: u64, now: u32) -> bool {
        let belief = self.told.load(Ordering::Acquire);
        tag_of(belief) == tag && is_good(belief as u32, now)
    }

    /// The inode was found by this name.
    fn found(&self, apart: &Apart, tag: u64, now: u32) {
        let told = self.told.load(Ordering::Acquire);
        if tag_of(told) != tag && is_good(told as u32, now) {
            put_off(apart, told as u32, now);
        }
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

/// How a name stands before anybody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DentryState {
    /// The kernel believes it: should it ask for it, it wants to know of the server. With what
    /// the name leads to.
    Believed(FileKind),
    /// It is remembered to lead to something, and the kernel does not believe that (any more).
    Leads,
    /// It is not.
    Open,
}

impl Vfs {
    fn ticks(&self) -> u32 {
        // Wraps after 497 days, see `LONGEST`.
        (self.began.elapsed().as_millis() / TICK.as_millis()) as u32
    }

    /// The kernel is about to be told that this name leads to `ino`, for so long.
    pub fn tells(&self, parent: Ino, name: &[u8], ino: Ino, ttl: Duration) {
        if let Some(inode) = self.inodes.get(ino) {
            let tag = KernelDentry::tag(parent, name);
            inode.belief.set(&inode.apart, tag, self.ticks(), ttl);
        }
    }

    /// How the name stands before anybody is asked.
    pub fn dentry_state(&self, parent: Ino, name: &[u8]) -> DentryState {
        let dir = self.inodes.get(parent);
        let Some(inode) = dir.and_then(|dir| self.remembered_inode(&dir, name)) else {
            return DentryState::Open;
        };
        let believed = self.is_told(parent, name, &inode)
            && (self.inodes.get(inode.ino)).is_some_and(|held| Arc::ptr_eq(&held, &inode));
        match believed {
            true => DentryState::Believed(inode.kind),
            false => DentryState::Leads,
        }
    }

    /// The kernel believes that this name leads to the inode.
    pub(in crate::vfs) fn is_told(&self, parent: Ino, name: &[u8], inode: &Inode) -> bool {
        inode
            .belief
            .holds(KernelDentry::tag(parent, name), self.ticks())
    }

    /// The object was found by this name: an open of a file has to find it still leading
    /// there, see [`Inode::found_at`].
    pub(in crate::vfs) fn found_at(
        &self,
        inode: &Inode,
        dir: &Arc<Inode>,
        name: impl AsRef<[u8]> + Into<Name>,
    ) {
        let tag = KernelDentry::tag(dir.ino, name.as_ref());
        if inode.found_at(dir, name) {
            inode.belief.found(&inode.apart, tag, self.ticks());
        }
    }

    /// An open of the inode may be one of a name that the kernel believes to lead there,
    /// and that is not the one it was found by.
    pub(in crate::vfs) fn may_mean_another_name(&self, inode: &Inode) -> bool {
        is_good(inode.apart.load(Ordering::Acquire), self.ticks())
    }

    /// The name does not lead to the inode any more. What another host (`foreign`) has made
    /// of it the kernel hears when this host does; of this host's own changes it knows.
    pub(in crate::vfs) fn leads_elsewhere(
        &self,
        parent: Ino,
        name: &[u8],
        inode: &Inode,
        foreign: bool,
    ) {
        match self.kernel.get() {
            Some(kernel) if foreign && self.is_told(parent, name, inode) => {
                kernel.inval_entry(parent, name);
            }
            _ if foreign => {}
            _ => inode
                .belief
                .lost(&inode.apart, KernelDentry::tag(parent, name)),
        }
    }

    /// Has the kernel forget a name.
    pub(in crate::vfs) fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let dir = self.inodes.get(parent);
        if let Some(inode) = dir.and_then(|dir| self.remembered_inode(&dir, name)) {
            inode.belief.forget(&inode.apart, self.ticks());
        }
        kernel.inval_entry(parent, name);
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
