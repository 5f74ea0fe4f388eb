//! What is known of the names in a directory: which lead where, which are
//! missing, and whether all of them are known.
//!
//! The names of a directory are kept in its inode ([`Names`]), with the
//! [`ChangeTracker`] of change attributes for which they are true: they are served
//! only while the directory is known not to have moved by other hands, and not
//! past the time for which that may be believed. Our own changes are applied
//! to them.
//!
//! A directory whose names are *complete* can be listed from here; a name that is not
//! among them was missing then, and is asked for all the same (`access_pattern`). It
//! is complete after it was listed to its end without having moved meanwhile,
//! and when we have just made it.
//!
//! With [`MissingNames::AllOthers`] it is not.
//!
//! [`DentryCache`] keeps the account of who has how many names, a long one counting
//! for several so that bytes are bounded too, and lets the directory go that was
//! used least recently. It is called with no directory's
//! lock held.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Inode;
use super::change_tracker::{ChangeTracker, Verdict};
use crate::nfs::calls::DirChange;
use crate::rpc::auth::Credential;
use crate::vfs::types::{Ino, MissingNames};

/// A name, shared by all that keep it.
pub(in crate::vfs) type Name = Arc<[u8]>;

/// Names of a directory and where they lead, in the order of its listing.
pub(in crate::vfs) type Listed = Vec<(Name, Arc<Inode>)>;

/// Where a name leads.
#[derive(Clone, Debug)]
pub(in crate::vfs) enum DentryTarget {
    /// To this inode.
    Inode(Arc<Inode>),
    /// Nowhere.
    Negative,
}

/// What the names say about one.
#[derive(Clone, Debug)]
pub(in crate::vfs) enum Dentry {
    /// It leads to this inode.
    Positive(Arc<Inode>),
    /// It is missing: that was asked for, or we have removed it.
    Negative,
    /// It is not among the names, which were all of them.
    NotListed,
    /// They do not know.
    Unknown,
}

/// Two misses in a directory within this time are the beginning of a walk.
const SOON: Duration = Duration::from_secs(2);

/// A directory that could not be fetched whole is not tried again for so long.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// Knows each name of a directory that is in the cache.
type Map = IndexMap<Name, DentryTarget>;

/// What is known of a directory's names. Owned by its lock in the inode.
#[derive(Debug)]
pub(in crate::vfs) struct Names {
    pub(in crate::vfs) tracker: ChangeTracker,
    map: Map,
    /// What the names in `map` count for, see [`count_of`].
    counts: usize,
    /// All names are in `map`, as this user saw them.
    complete: Option<Arc<Credential>>,
    /// Counts the changes of `map`.
    edits: u64,
    /// The kernel has a listing from when `edits` was this.
    kernel_has: Option<u64>,
    /// Its weight as the cache knows it.
    weighed: usize,
    /// When it was fetched whole last.
    fetched: Option<Instant>,
    /// When something of it was asked for and not known last, what that was,
    /// and how many things in a row.
    missed: Option<(Instant, u64, u32)>,
    /// Not to be fetched whole until then.
    left_alone: Option<Instant>,
    /// Who has made it since the mount, while nobody else is known to have changed it.
    maker: Option<Arc<Maker>>,
    /// Changes of its names that were accepted and that the server has not answered.
    accepted: usize,
    /// Links that the directory has by them.
    accepted_links: i32,
    /// Handles that list it.
    listers: usize,
    /// A handle has listed it since its attributes were asked for last, and this host had
    /// begun so many changes of it by then.
    listed: Option<u64>,
    /// When it, or a directory in it, was opened last.
    visited: Option<Instant>,
    /// When it was confirmed on behalf of somebody who had opened others and
    /// was expected to come here, and who that is.
    expected: Option<(Instant, u32)>,
}

/// Who has made a directory, and whose what he makes in it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct Maker {
    /// He alone.
    pub(in crate::vfs) cred: Arc<Credential>,
    /// Owner and group that the server has given the directory, or is expected to.
    pub(in crate::vfs) uid: u32,
    /// See `uid`.
    pub(in crate::vfs) gid: u32,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            tracker: ChangeTracker::new(Instant::now()),
            map: Map::default(),
            counts: 0,
            complete: None,
            edits: 0,
            kernel_has: None,
            weighed: 0,
            fetched: None,
            missed: None,
            left_alone: None,
            maker: None,
            accepted: 0,
            accepted_links: 0,
            listers: 0,
            listed: None,
            visited: None,
            expected: None,
        }
    }
}

impl Names {
    /// How long the names may be believed; zero: not at all. `timeout` and
    /// `longest` as in [`ChangeTracker::good_for`].
    pub(in crate::vfs) fn good_for(
        &mut self,
        now: Instant,
        timeout: Duration,
        longest: Duration,
    ) -> Duration {
        if self.tracker.is_worn_out(now, longest) {
            self.tracker.break_off();
            self.clear();
        }
        self.tracker.good_for(now, timeout, longest)
    }

    /// What is known of a name, whether or not it may be believed.
    pub(in crate::vfs) fn get(&self, name: &[u8]) -> Dentry {
        match self.map.get(name) {
            Some(DentryTarget::Inode(inode)) => Dentry::Positive(Arc::clone(inode)),
            Some(DentryTarget::Negative) => Dentry::Negative,
            None if self.complete.is_some() => Dentry::NotListed,
            None => Dentry::Unknown,
        }
    }

    /// The name as it is kept here.
    pub(in crate::vfs) fn key(&self, name: &[u8]) -> Option<Name> {
        self.map.get_key_value(name).map(|(key, _)| Arc::clone(key))
    }

    /// Number of names.
    pub(in crate::vfs) fn count(&self) -> usize {
        self.map.len()
    }

    /// All names are known.
    pub(in crate::vfs) fn is_complete(&self) -> bool {
        self.complete.is_some()
    }

    /// All names are known, as this user may see them.
    pub(in crate::vfs) fn is_complete_for(&self, cred: &Credential) -> bool {
        self.complete.as_ref().is_some_and(|by| **by == *cred)
    }

    /// The same, and no change of another host can hide behind one of ours: a
    /// confirmation of the directory confirms its names.
    pub(in crate::vfs) fn are_sure_for(&self, cred: &Credential) -> bool {
        self.tracker.is_sure() && self.is_complete_for(cred)
    }

    /// The names that lead somewhere, in the order of the listing, and after
    /// how many edits that is.
    pub(in crate::vfs) fn listing(&self) -> (Listed, u64) {
        let names = self.map.iter().filter_map(|(name, target)| match target {
            DentryTarget::Inode(inode) => Some((Arc::clone(name), Arc::clone(inode))),
            DentryTarget::Negative => None,
        });
        (names.collect(), self.edits)
    }

    /// The inodes that names which begin with this one lead to.
    pub(in crate::vfs) fn beginning_with(&self, name: &[u8]) -> Vec<Arc<Inode>> {
        let begins = self.map.iter().filter(|(other, _)| other.starts_with(name));
        let inodes = begins.filter_map(|(_, target)| match target {
            DentryTarget::Inode(inode) => Some(Arc::clone(inode)),
            DentryTarget::Negative => None,
        });
        inodes.collect()
    }

    /// The inodes that names from this one on lead to, and then those before.
    pub(in crate::vfs) fn around<'a>(
        &'a self,
        name: &[u8],
    ) -> impl Iterator<Item = &'a Arc<Inode>> {
        let at = self.map.get_index_of(name).unwrap_or(0);
        let (before, after) = self.map.as_slice().split_at(at.min(self.map.len()));
        after
            .values()
            .chain(before.values())
            .filter_map(|target| match target {
                DentryTarget::Inode(inode) => Some(inode),
                DentryTarget::Negative => None,
            })
    }

    /// The inode with this number, if one of the names leads to it.
    fn target(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.map.values().find_map(|target| match target {
            DentryTarget::Inode(inode) if inode.ino == ino => Some(Arc::clone(inode)),
            _ => None,
        })
    }

    /// The directory was listed whole by requests the last of which was sent
    /// at `sent`, and has not moved meanwhile.
    pub(in crate::vfs) fn complete(&mut self, names: Listed, by: &Arc<Credential>, sent: Instant) {
        let found = |map: &Map| {
            let targets = map.values();
            targets
                .filter(|target| matches!(target, DentryTarget::Inode(_)))
                .count()
        };
        let same = self.complete.is_some()
            && found(&self.map) == names.len()
            && names.iter().all(|(name, inode)| {
                matches!(self.map.get(name), Some(DentryTarget::Inode(old)) if Arc::ptr_eq(old, inode))
            });
        if !same {
            let targets = names.into_iter();
            self.map = targets
                .map(|(name, inode)| (name, DentryTarget::Inode(inode)))
                .collect();
            self.counts = self.map.keys().map(|name| count_of(name)).sum();
            self.edits += 1;
        }
        self.complete = Some(Arc::clone(by));
        self.fetched = Some(sent);
        self.left_alone = None;
    }

    /// It was fetched whole, and asked for since then.
    pub(in crate::vfs) fn was_fetched_since(&self, asked: Instant) -> bool {
        self.complete.is_some() && self.fetched.is_some_and(|fetched| fetched >= asked)
    }

    /// A name was seen to lead there.
    pub(in crate::vfs) fn put(&mut self, name: Name, target: DentryTarget) {
        match (&target, self.map.get(&name)) {
            (DentryTarget::Inode(new), Some(DentryTarget::Inode(old))) if Arc::ptr_eq(new, old) => {
                return;
            }
            (DentryTarget::Negative, Some(DentryTarget::Negative)) => return,
            _ => {}
        }
        self.edits += 1;
        let count = count_of(&name);
        if self.map.insert(name, target).is_none() {
            self.counts += count;
        }
    }

    /// The server has just listed all names, and this one is not among them: it
    /// is missing, as if it had been asked for. False if that is true no more.
    pub(in crate::vfs) fn record_negative(&mut self, name: &[u8]) -> bool {
        let absent = matches!(self.get(name), Dentry::NotListed);
        if absent {
            self.put(name.into(), DentryTarget::Negative);
        }
        absent
    }

    /// The name leads nowhere, which is not remembered.
    pub(in crate::vfs) fn remove(&mut self, name: &[u8]) {
        if self.take_out(name) {
            self.edits += 1;
        }
    }

    fn take_out(&mut self, name: &[u8]) -> bool {
        let was_there = self.map.swap_remove(name).is_some();
        if was_there {
            self.counts -= count_of(name);
        }
        was_there
    }

    /// Nothing is known of the name any more.
    pub(in crate::vfs) fn forget(&mut self, name: &[u8]) {
        self.edits += 1;
        self.complete = None;
        self.take_out(name);
    }

    /// The directory is this host's: it was made by `maker`, and holds what its names say.
    pub(in crate::vfs) fn is_private_of(&mut self, maker: Arc<Maker>) {
        self.maker = Some(maker);
    }

    /// See [`is_private_of`](Self::is_private_of).
    pub(in crate::vfs) fn maker(&self) -> Option<&Arc<Maker>> {
        self.maker.as_ref()
    }

    /// Changes of its names were accepted (or answered, if negative), with which it has so many
    /// links more. Says how many links all that are accepted are.
    pub(in crate::vfs) fn count_accepted(&mut self, changes: isize, links: i32) -> i32 {
        self.accepted = self.accepted.saturating_add_signed(changes);
        self.accepted_links += links;
        self.accepted_links
    }

    /// All names are known, and none leads anywhere.
    pub(in crate::vfs) fn is_known_empty(&self) -> bool {
        let mut targets = self.map.values();
        self.is_complete() && !targets.any(|target| matches!(target, DentryTarget::Inode(_)))
    }

    /// The server does not know all of its names.
    pub(in crate::vfs) fn are_ahead(&self) -> bool {
        self.accepted > 0
    }

    /// Nothing is known of any name.
    pub(in crate::vfs) fn clear(&mut self) {
        self.edits += 1;
        self.maker = None;
        self.complete = None;
        // Gives the memory back as well.
        self.map = Map::default();
        self.counts = 0;
    }

    /// Takes in that the directory was seen at `change`.
    pub(in crate::vfs) fn observed(&mut self, change: u64, sent: Instant, now: Instant) -> Verdict {
        let heard = self.tracker.observed(change, sent, now);
        self.heed(heard)
    }

    /// Takes in what a change of ours came to.
    pub(in crate::vfs) fn moved(
        &mut self,
        moved: &DirChange,
        sent: Instant,
        now: Instant,
    ) -> Verdict {
        self.tracker.answered(now);
        let after = moved.seen.after.as_ref().map(|after| after.change);
        let heard = match (moved.atomic, moved.seen.before, after) {
            (Some((before, exact)), ..) => {
                let heard = self.tracker.moved((before, exact), true, sent, now);
                match after.map(|after| self.tracker.observed(after, sent, now)) {
                    Some(Verdict::Foreign) => Verdict::Foreign,
                    Some(Verdict::Unsure) if heard == Verdict::Same => Verdict::Unsure,
                    _ => heard,
                }
            }
            (None, Some(before), Some(after)) => {
                self.tracker.moved((before, after), false, sent, now)
            }
            _ => {
                self.tracker.break_off();
                Verdict::Foreign
            }
        };
        self.heed(heard)
    }

    /// A change of ours has ended.
    pub(in crate::vfs) fn ended(&mut self, number: u64) -> Verdict {
        let heard = self.tracker.end(number);
        self.heed(heard)
    }

    fn heed(&mut self, heard: Verdict) -> Verdict {
        if heard == Verdict::Foreign {
            self.clear();
        }
        heard
    }

    /// The server contradicts what is known here.
    pub(in crate::vfs) fn doubt(&mut self) {
        self.tracker.break_off();
        self.clear();
    }

    /// Something of the directory was asked for and is not known. Says how many
    /// different things in a row that were, with little time between them.
    pub(in crate::vfs) fn missed(&mut self, now: Instant, what: u64) -> u32 {
        in_a_row(&mut self.missed, now, what)
    }

    /// The directory may be fetched whole.
    pub(in crate::vfs) fn may_be_fetched(&self, now: Instant) -> bool {
        self.left_alone.is_none_or(|until| now >= until)
    }

    /// It is too large to be fetched whole, or may not be listed.
    pub(in crate::vfs) fn leave_alone(&mut self, now: Instant) {
        self.left_alone = Some(now + LEFT_ALONE);
    }

    /// It, or a directory in it, is opened. True if one was a short while ago.
    pub(in crate::vfs) fn visit(&mut self, now: Instant) -> bool {
        let before = self.visited.replace(now);
        before.is_some_and(|before| now < before + SOON)
    }

    /// It was confirmed for thread `by`, which is expected to open it.
    pub(in crate::vfs) fn expect(&mut self, sent: Instant, by: u32) {
        self.expected = Some((sent, by));
    }

    /// It was confirmed so, not longer than `window` ago, and was not opened since.
    pub(in crate::vfs) fn is_expected(&self, now: Instant, window: Duration) -> bool {
        self.expected.is_some_and(|(sent, _)| now < sent + window)
    }

    /// When it was confirmed for thread `by`, if it was.
    pub(in crate::vfs) fn expected_by(&self, by: u32) -> Option<Instant> {
        let expected = self.expected.filter(|(_, whom)| *whom == by);
        expected.map(|(sent, _)| sent)
    }

    /// See [`expect`](Self::expect); says it once.
    pub(in crate::vfs) fn take_expected(&mut self) -> Option<(Instant, u32)> {
        self.expected.take()
    }

    /// A handle begins to list the directory; these very names if it was told
    /// them after so many edits. True if the kernel has the same listing from
    /// before.
    ///
    /// What the kernel keeps is put together from what handles read. Only what
    /// all of them read alike can be kept for the next one.
    pub(in crate::vfs) fn begin_listing(&mut self, edits: Option<u64>) -> bool {
        let alone = self.listers == 0;
        self.listers += 1;
        let mine = edits.filter(|edits| *edits == self.edits);
        let same = mine.is_some() && self.kernel_has == mine;
        if !same {
            self.kernel_has = mine.filter(|_| alone);
        }
        same
    }

    /// A handle is closed.
    pub(in crate::vfs) fn end_listing(&mut self) {
        self.listers -= 1;
    }

    /// A handle reads the listing.
    pub(in crate::vfs) fn begin_reading(&mut self) {
        self.listed = Some(self.tracker.begun());
    }

    /// It was listed, and closed, and nothing of this host's has changed it since: who asks
    /// for its attributes has not been told them after that.
    pub(in crate::vfs) fn was_listed(&self) -> bool {
        self.listers == 0 && self.listed == Some(self.tracker.begun())
    }

    /// Its attributes are asked for: it counts as listed no more until it is read again.
    pub(in crate::vfs) fn clear_listed(&mut self) {
        self.listed = None;
    }

    fn weight(&self) -> usize {
        // The map and its bookkeeping are worth some names.
        self.counts + 4
    }

    /// The weight, if the cache has it wrong by much.
    fn misjudged(&mut self) -> bool {
        let weight = self.weight();
        let wrong = weight > self.weighed + self.weighed / 4 || weight < self.weighed / 2;
        if wrong {
            self.weighed = weight;
        }
        wrong
    }
}

/// What a name counts for: one for each 128 bytes that it takes with its place in
/// the map, so three at most (NAME_MAX).
fn count_of(name: &[u8]) -> usize {
    const PLACE: usize = 96;
    (PLACE + name.len()).div_ceil(128)
}

fn in_a_row(row: &mut Option<(Instant, u64, u32)>, now: Instant, what: u64) -> u32 {
    let times = match *row {
        Some((last, before, times)) if now < last + SOON => {
            times.saturating_add(u32::from(before != what))
        }
        _ => 1,
    };
    *row = Some((now, what, times));
    times
}

/// The account of all names.
pub(in crate::vfs) struct DentryCache {
    dirs: Cache<Ino, Arc<Inode>>,
    most: usize,
    missing: MissingNames,
    /// When another host was last found to have taken a name away, or to have given it to
    /// another object.
    stranger: Mutex<Option<Instant>>,
}

impl DentryCache {
    /// A cache of at most `most` names (fewer, if they are long): of those that exist, and of
    /// those that do not as `missing` says.
    pub(in crate::vfs) fn new(most: u64, missing: MissingNames) -> Self {
        let dirs = Cache::builder()
            .max_capacity(most)
            // A directory in use must not be turned away because others were
            // used more often in the past.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, dir: &Arc<Inode>| {
                let weighed = dir.names().lock().weighed;
                u32::try_from(weighed).unwrap_or(u32::MAX)
            })
            .eviction_listener(|_, dir: Arc<Inode>, cause| {
                // Replaced is what a new weight looks like.
                if cause != RemovalCause::Replaced {
                    let mut names = dir.names().lock();
                    names.clear();
                    names.weighed = 0;
                }
            })
            .build();
        Self {
            dirs,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            missing,
            stranger: Mutex::default(),
        }
    }

    /// Names are remembered.
    pub(in crate::vfs) fn is_on(&self) -> bool {
        self.most > 0
    }

    /// Missing names are remembered too.
    pub(in crate::vfs) fn has_missing(&self) -> bool {
        self.missing != MissingNames::None
    }

    /// Whether a name is missing by this answer, of a directory that was `confirmed` by a
    /// request sent then.
    pub(in crate::vfs) fn says_missing(&self, answer: &Dentry, confirmed: Instant) -> bool {
        let known = match (answer, self.missing) {
            (Dentry::Negative, missing) => missing != MissingNames::None,
            (Dentry::NotListed, missing) => missing == MissingNames::AllOthers,
            (Dentry::Positive(_) | Dentry::Unknown, _) => false,
        };
        known && self.stranger.lock().is_none_or(|seen| confirmed > seen)
    }

    /// A name that was known to lead somewhere leads elsewhere or nowhere, and this host
    /// has not done it: whoever it was may have made other names in its place, so what was
    /// missing before is asked for once more. (`git gc` elsewhere takes `refs/heads/x`
    /// away and makes `packed-refs`.)
    pub(in crate::vfs) fn stranger_was_here(&self) {
        *self.stranger.lock() = Some(Instant::now());
    }

    /// A directory with more names is not kept.
    pub(in crate::vfs) fn most_of_one(&self) -> usize {
        self.most / 4
    }

    /// The directory's names were used or have changed.
    pub(in crate::vfs) fn used(&self, dir: &Arc<Inode>) {
        let (misjudged, too_many) = {
            let mut names = dir.names().lock();
            let too_many = names.counts > self.most_of_one();
            if too_many {
                names.clear();
                names.leave_alone(Instant::now());
            }
            (names.misjudged(), too_many)
        };
        if too_many {
            tracing::debug!(ino = dir.ino, "too many names to be kept");
        }
        let known = self.dirs.get(&dir.ino);
        let same = known.as_ref().is_some_and(|known| Arc::ptr_eq(known, dir));
        if same && !misjudged {
            return;
        }
        if let Some(other) = known.filter(|_| !same) {
            // Its number means another object now.
            other.names().lock().doubt();
        }
        self.dirs.insert(dir.ino, Arc::clone(dir));
    }

    /// An inode of a directory that has names here.
    pub(in crate::vfs) fn dir(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.dirs.get(&ino)
    }

    /// An inode that a name here leads to, or that has names here. Looks at all of them.
    pub(in crate::vfs) fn find(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.dir(ino).or_else(|| {
            let mut dirs = self.dirs.iter();
            dirs.find_map(|(_, dir)| dir.names().lock().target(ino))
        })
    }

    /// The directory is gone.
    pub(in crate::vfs) fn drop_dir(&self, dir: &Arc<Inode>) {
        self.dirs.invalidate(&dir.ino);
        dir.names().lock().doubt();
    }
}
