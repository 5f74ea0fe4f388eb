//! Room in the store: the budget and the floor, what goes first, and looking through the directory.
//!
//! It owns nothing: the state is the store's.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::super::dir::{Found, SliceName};
use super::{Inner, Slice, Store, is_missing};

/// The directory is looked through again no more often than this, if others use it.
const RESCAN: Duration = Duration::from_secs(30);
/// So many slices are removed for one piece of data that is to be put on the disk, at most.
const VICTIMS: usize = 256;
/// A cache file that nobody used for this time is closed.
const IDLE: Duration = Duration::from_secs(10);

impl Store {
    /// Looks through the directory for the first time, and whether there is room.
    pub(in crate::disk_cache) fn begin(&self) {
        if let Err(why) = self.scan() {
            let _: Option<()> = self.failed("looking through", &why);
        } else if let Err(why) = self.keep_floor()
            && why.kind() != io::ErrorKind::WouldBlock
        {
            let _: Option<()> = self.failed("making room for", &why);
        }
    }

    /// Takes so many bytes of the budget, removing what was used least recently. False if there is
    /// no room.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<bool> {
        for _ in 0..VICTIMS {
            let taken = self.dir.account(|account| {
                let fits = account.used + bytes <= self.budget;
                account.used += if fits { bytes } else { 0 };
                self.in_use.store(account.used, Ordering::Relaxed);
                fits
            })?;
            let space = self.dir.space()?;
            if taken && space.free >= self.floor.saturating_add(bytes) {
                return Ok(true);
            }
            if taken {
                self.release(bytes);
            }
            if self.evict_one()? {
                continue;
            }
            if taken {
                // Nothing of ours is left to go: others fill the disk.
                return Err(io::ErrorKind::StorageFull.into());
            }
            // What is in use was made by others, or the account is wrong.
            if !self.rescan()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    pub(super) fn release(&self, bytes: u64) {
        let released = self.dir.account(|account| {
            account.used = account.used.saturating_sub(bytes);
            self.in_use.store(account.used, Ordering::Relaxed);
        });
        if let Err(why) = released {
            tracing::debug!(%why, "the account of the disk cache is not right until it is made anew");
        }
    }

    /// Removes the slice that is to go first. False if there is none.
    fn evict_one(&self) -> io::Result<bool> {
        let Some(name) = self.inner.lock().ledger.first_to_go() else {
            return Ok(false);
        };
        self.inner.lock().open.remove(&name);
        self.counters.evictions.inc();
        self.remove(&name)?;
        Ok(true)
    }

    /// Removes a slice, and its bytes from the account.
    pub(super) fn remove(&self, name: &SliceName) -> io::Result<()> {
        let removed = self.dir.remove_slice(name);
        self.gone(name);
        match removed {
            Err(why) if !is_missing(&why) => Err(why),
            _ => Ok(()),
        }
    }

    /// Looks through the directory, and makes the account anew.
    ///
    /// # Errors
    /// The disk fails.
    pub(in crate::disk_cache) fn scan(&self) -> io::Result<()> {
        let before = self.dir.account(|account| *account)?;
        let mut found: Vec<Found> = Vec::new();
        self.dir.walk(|one| {
            found.push(one);
            Ok(())
        })?;
        found.sort_by_key(|one| one.used);
        let names: FxHashSet<SliceName> = found.iter().map(|one| one.name).collect();
        let bytes: u64 = found.iter().map(|one| one.bytes).sum();
        {
            let mut inner = self.inner.lock();
            // What was filled meanwhile may not have been found.
            let is_first = inner.scanned.is_none();
            if !is_first {
                let Inner { ledger, open, .. } = &mut *inner;
                ledger.retain(|name| names.contains(&name) || open.contains_key(&name));
            }
            for one in &found {
                inner.ledger.found(one.name, one.bytes);
            }
            inner.others = before.made.saturating_sub(inner.made);
            inner.scanned = Some(Instant::now());
            self.show(&inner);
        }
        self.dir.account(|account| {
            // What came and went while it was looked stays counted.
            let change = account.used.wrapping_sub(before.used);
            account.used = bytes.saturating_add_signed(change as i64);
            self.in_use.store(account.used, Ordering::Relaxed);
        })?;
        self.knows_all.store(true, Ordering::Release);
        Ok(())
    }

    /// The same if the last time is long enough ago. Whether it was done.
    fn rescan(&self) -> io::Result<bool> {
        let last = self.inner.lock().scanned;
        if last.is_some_and(|last| last.elapsed() < RESCAN) {
            return Ok(false);
        }
        self.scan()?;
        Ok(true)
    }

    /// What is due from time to time: finds what other daemons have made, keeps the budget and the
    /// floor, and closes what nobody uses.
    pub(in crate::disk_cache) fn tick(&self) {
        if !self.health.is_well() {
            return;
        }
        if let Err(why) = self.look_after()
            && why.kind() != io::ErrorKind::WouldBlock
        {
            let _: Option<()> = self.failed("looking after", &why);
        }
    }

    fn look_after(&self) -> io::Result<()> {
        let account = self.dir.account(|account| *account)?;
        self.in_use.store(account.used, Ordering::Relaxed);
        let (idle, stranger) = {
            let mut inner = self.inner.lock();
            let known = inner.made + inner.others;
            let idle: Vec<SliceName> = inner
                .open
                .iter()
                .filter(|(_, open)| open.used.elapsed() >= IDLE)
                .map(|(name, _)| *name)
                .collect();
            let closed: Vec<_> = idle.iter().filter_map(|n| inner.open.remove(n)).collect();
            (closed, account.made != known)
        };
        drop(idle);
        self.close_removed();
        if stranger {
            self.knows_all.store(false, Ordering::Release);
            self.rescan()?;
        }
        // It may be that it could not when it began.
        if self.inner.lock().scanned.is_none() {
            self.scan()?;
        }
        self.keep_floor()
    }

    /// Keeps the budget, and what is to stay free.
    ///
    /// # Errors
    /// Nothing of ours is left to go, and too little is free: nothing can be put there. Or the disk
    /// fails.
    fn keep_floor(&self) -> io::Result<()> {
        for _ in 0..VICTIMS {
            let used = self.dir.account(|account| account.used)?;
            let free = self.dir.space()?.free;
            if free >= self.floor && used <= self.budget {
                break;
            }
            if !self.evict_one()? {
                if free < self.floor {
                    let (free, floor) = (free >> 20, self.floor >> 20);
                    let why = format!(
                        "{free} MiB of its disk are free, where {floor} MiB are to stay free"
                    );
                    return Err(io::Error::new(io::ErrorKind::StorageFull, why));
                }
                break;
            }
        }
        Ok(())
    }

    /// Closes files that another daemon has removed: their space is only free then.
    fn close_removed(&self) {
        let open: Vec<Arc<Slice>> = {
            let inner = self.inner.lock();
            let open = inner.open.values();
            open.map(|open| Arc::clone(&open.slice)).collect()
        };
        for slice in open {
            if slice.file.metadata().is_ok_and(|about| about.nlink() == 0) {
                self.inner.lock().open.remove(&slice.name);
                self.gone(&slice.name);
            }
        }
    }

    /// Removes everything that only this process can read.
    pub(in crate::disk_cache) fn forget_secrets(&self) {
        if !self.seal.is_secret() {
            return;
        }
        let names: Vec<SliceName> = {
            let mut inner = self.inner.lock();
            inner.open.clear();
            inner
                .ledger
                .names()
                .filter(|name| name.fs == self.fs)
                .collect()
        };
        for name in names {
            let _ = self.remove(&name);
        }
        self.dir.remove_empty();
    }
}
