//! Who a request is made for.
//!
//! FUSE names the caller's uid and gid only; its supplementary groups are read
//! from `/proc/<pid>/status`. That costs some 16 µs, so the answer is kept for
//! [`LIFETIME`] under (pid, uid, gid): a process that changes its groups is
//! seen with the new ones at most that much later, or at once if its uid or
//! gid changes with them, as it does at login.
//!
//! Equal identities are one [`Arc`], so that layers below can compare and
//! index them by address and a thousand open files of one user hold one copy.
//!
//! All groups are kept here, without the primary one. AUTH_SYS can send 16 of
//! them; the cut is made where the call is encoded (rpc).
//!
//! State: the map by caller is bounded by [`CAPACITY`]; the set of interned
//! identities holds those of that map and those still in use below.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::proc;
use crate::rpc::auth::Credential;

/// How long the groups of a process are believed.
const LIFETIME: Duration = Duration::from_secs(1);

/// Locks in the map by caller; more than there are reader threads.
const SHARDS: usize = 8;

/// Callers remembered at the same time.
const CAPACITY: usize = 4096;

/// Below this many interned identities nobody looks for unused ones.
const SWEEP_FLOOR: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct CallerIds {
    pid: u32,
    uid: u32,
    gid: u32,
}

struct Known {
    credential: Arc<Credential>,
    until: Instant,
}

#[derive(Default)]
struct Interned {
    set: HashSet<Arc<Credential>>,
    sweep_at: usize,
}

/// Finds the groups of a process; `None` if they cannot be known.
type GroupSource = Box<dyn Fn(u32) -> Option<Vec<u32>> + Send + Sync>;

/// Callers and their identities.
pub(super) struct IdentityCache {
    shards: [Mutex<HashMap<CallerIds, Known>>; SHARDS],
    interned: Mutex<Interned>,
    groups_of: GroupSource,
}

impl IdentityCache {
    /// An empty cache that asks `/proc`.
    pub(super) fn new() -> Self {
        Self::with_source(Box::new(|pid| {
            let mut status = Vec::with_capacity(4096);
            proc::read_status(pid, &mut status).ok()?;
            Some(proc::groups(&status))
        }))
    }

    fn with_source(groups_of: GroupSource) -> Self {
        Self {
            shards: Default::default(),
            interned: Mutex::default(),
            groups_of,
        }
    }

    /// The identity behind a request. Where the groups cannot be known (pid 0,
    /// which is a caller in a pid namespace the mounter does not see; an
    /// unreadable `/proc`), the caller has none: too few rights, never too
    /// many.
    pub(super) fn of(&self, pid: u32, uid: u32, gid: u32) -> Arc<Credential> {
        self.at(Instant::now(), CallerIds { pid, uid, gid })
    }

    fn at(&self, now: Instant, caller: CallerIds) -> Arc<Credential> {
        // Root's groups decide nothing.
        let caller = if caller.uid == 0 {
            CallerIds { pid: 0, ..caller }
        } else {
            caller
        };
        let shard = &self.shards[caller.pid as usize % SHARDS];
        if let Some(known) = shard.lock().get(&caller)
            && now < known.until
        {
            return Arc::clone(&known.credential);
        }
        let credential = self.intern(Credential {
            uid: caller.uid,
            gid: caller.gid,
            gids: self.groups(caller),
        });
        let known = Known {
            credential: Arc::clone(&credential),
            until: now + LIFETIME,
        };
        let mut shard = shard.lock();
        if shard.len() >= CAPACITY / SHARDS && !shard.contains_key(&caller) {
            shard.retain(|_, known| now < known.until);
            if shard.len() >= CAPACITY / SHARDS {
                shard.clear();
            }
        }
        shard.insert(caller, known);
        credential
    }

    fn groups(&self, caller: CallerIds) -> Vec<u32> {
        if caller.pid == 0 {
            return Vec::new();
        }
        let mut groups = (self.groups_of)(caller.pid).unwrap_or_default();
        groups.retain(|&gid| gid != caller.gid);
        groups
    }

    fn intern(&self, credential: Credential) -> Arc<Credential> {
        let mut interned = self.interned.lock();
        if let Some(known) = interned.set.get(&credential) {
            return Arc::clone(known);
        }
        if interned.set.len() >= interned.sweep_at.max(SWEEP_FLOOR) {
            // A new reference is only made under this lock or from an
            // existing one, so a count of one is final.
            interned.set.retain(|known| Arc::strong_count(known) > 1);
            interned.sweep_at = interned.set.len() * 2;
        }
        let credential = Arc::new(credential);
        interned.set.insert(Arc::clone(&credential));
        credential
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn caller(pid: u32, uid: u32) -> CallerIds {
        CallerIds { pid, uid, gid: 100 }
    }

    /// A cache in which each process is in groups 100, pid and n, where n
    /// counts the questions.
    fn counted() -> (IdentityCache, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let cache = IdentityCache::with_source(Box::new(move |pid| {
            let n = counter.fetch_add(1, Ordering::Relaxed);
            Some(vec![100, pid, 1_000_000 + n])
        }));
        (cache, asked)
    }

    #[test]
    fn groups_are_asked_once_a_second_and_leave_out_the_primary_one() {
        let (cache, asked) = counted();
        let now = Instant::now();
        let first = cache.at(now, caller(9, 1000));
        assert_eq!(first.gids, [9, 1_000_000]);
        let again = cache.at(now + LIFETIME / 2, caller(9, 1000));
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(
            cache.at(now + LIFETIME, caller(9, 1000)).gids,
            [9, 1_000_001]
        );
    }

    #[test]
    fn a_new_uid_of_the_same_process_is_a_new_identity() {
        let (cache, _) = counted();
        let now = Instant::now();
        let before = cache.at(now, caller(9, 1000));
        let after = cache.at(now, caller(9, 1001));
        assert_ne!(before.gids, after.gids);
        assert_eq!(after.uid, 1001);
    }

    #[test]
    fn equal_identities_of_different_processes_are_one() {
        let cache = IdentityCache::with_source(Box::new(|_| Some(vec![4, 24])));
        let now = Instant::now();
        let a = cache.at(now, caller(9, 1000));
        let b = cache.at(now, caller(10, 1000));
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn root_and_unknown_callers_have_no_groups_and_ask_nobody() {
        let (cache, asked) = counted();
        let now = Instant::now();
        assert!(cache.at(now, caller(9, 0)).gids.is_empty());
        assert!(cache.at(now, caller(0, 1000)).gids.is_empty());
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let blind = IdentityCache::with_source(Box::new(|_| None));
        assert!(blind.at(now, caller(9, 1000)).gids.is_empty());
    }

    #[test]
    fn neither_callers_nor_identities_pile_up() {
        let (cache, _) = counted();
        let now = Instant::now();
        for pid in 1..=20_000 {
            cache.at(now, caller(pid, 1000));
        }
        let callers: usize = cache.shards.iter().map(|s| s.lock().len()).sum();
        assert!(callers <= CAPACITY, "{callers}");
        let identities = cache.interned.lock().set.len();
        assert!(identities <= 2 * CAPACITY + 1, "{identities}");
    }

    #[test]
    fn an_identity_in_use_survives_a_sweep() {
        let (cache, _) = counted();
        let now = Instant::now();
        let held = cache.at(now, caller(0, 77));
        for pid in 1..=20_000 {
            cache.at(now, caller(pid, 1000));
        }
        assert!(Arc::ptr_eq(&held, &cache.at(now + LIFETIME, caller(0, 77))));
    }

    #[test]
    fn the_groups_of_this_process_are_those_of_getgroups() {
        let mut list = vec![0; 65_536];
        // SAFETY: the pointer and the length describe `list`.
        let n = unsafe { libc::getgroups(65_536, list.as_mut_ptr()) };
        list.truncate(usize::try_from(n).unwrap());
        list.retain(|&gid| gid != 12_345);
        let seen = IdentityCache::new().of(std::process::id(), 1000, 12_345);
        assert_eq!(seen.gids, list);
    }
}
