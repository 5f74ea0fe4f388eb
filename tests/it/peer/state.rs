//! Opens and byte-range locks (RFC 8881 chapters 8 and 9).
//!
//! Invariants: one open state per (client, open owner, file), one lock state
//! per (client, lock owner, open); every byte-range lock names the lock state
//! that made it; ranges of one owner do not overlap.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::args::Stateid;
use super::fs::Status;
use super::proto::st;

pub(crate) type Other = [u8; 12];

pub(crate) const SHARE_READ: u32 = 1;
pub(crate) const SHARE_WRITE: u32 = 2;

/// Client number of locks that "another host" holds.
pub(crate) const OTHER_HOST: u64 = 0;

#[derive(Debug, Clone)]
pub(crate) struct OpenState {
    pub(crate) client: u64,
    pub(crate) owner: Bytes,
    pub(crate) file: u64,
    pub(crate) access: u32,
    /// Every access value that an OPEN or OPEN_DOWNGRADE used.
    history: BTreeSet<u32>,
    seqid: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct LockState {
    pub(crate) client: u64,
    pub(crate) owner: Bytes,
    pub(crate) file: u64,
    pub(crate) open: Other,
    seqid: u32,
}

/// A byte range that is locked, `end` inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ByteLock {
    pub(crate) client: u64,
    pub(crate) owner: Bytes,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) write: bool,
    state: Other,
}

impl ByteLock {
    fn is_of(&self, client: u64, owner: &Bytes) -> bool {
        self.client == client && self.owner == *owner
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }
}

#[derive(Debug, Default)]
pub(crate) struct StateTable {
    epoch: u32,
    serial: u64,
    opens: BTreeMap<Other, OpenState>,
    lock_states: BTreeMap<Other, LockState>,
    locks: BTreeMap<u64, Vec<ByteLock>>,
    /// Stateids that were taken away, their owner, and what they answer.
    revoked: BTreeMap<Other, (u64, Status)>,
}

impl StateTable {
    pub(crate) fn new(epoch: u32) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    fn fresh(&mut self) -> Other {
        self.serial += 1;
        let mut other = [0; 12];
        other[..4].copy_from_slice(&self.epoch.to_be_bytes());
        other[4..].copy_from_slice(&self.serial.to_be_bytes());
        other
    }

    /// OPEN: a new state, or the owner's old one with more access. The flag is
    /// true for a new one, which the caller backs with a hold on the file.
    pub(crate) fn open(
        &mut self,
        client: u64,
        owner: &Bytes,
        file: u64,
        access: u32,
    ) -> (Stateid, bool) {
        let found = (self.opens.iter_mut())
            .find(|(_, o)| o.client == client && o.owner == *owner && o.file == file);
        if let Some((other, state)) = found {
            state.access |= access;
            state.history.insert(access);
            state.history.insert(state.access);
            state.seqid = next(state.seqid);
            let stateid = Stateid {
                seqid: state.seqid,
                other: *other,
            };
            return (stateid, false);
        }
        let other = self.fresh();
        self.opens.insert(
            other,
            OpenState {
                client,
                owner: owner.clone(),
                file,
                access,
                history: BTreeSet::from([access]),
                seqid: 1,
            },
        );
        (Stateid { seqid: 1, other }, true)
    }

    /// Checks that the stateid is a live one of this client and not an old one.
    pub(crate) fn check(&self, client: u64, id: Stateid) -> Result<(), Status> {
        if let Some((owner, status)) = self.revoked.get(&id.other)
            && *owner == client
        {
            return Err(*status);
        }
        let (owner, seqid) = match (self.opens.get(&id.other), self.lock_states.get(&id.other)) {
            (Some(open), _) => (open.client, open.seqid),
            (_, Some(lock)) => (lock.client, lock.seqid),
            _ if id.other[..4] != self.epoch.to_be_bytes() && id != Stateid::INVALID => {
                return Err(st::STALE_STATEID);
            }
            _ => return Err(st::BAD_STATEID),
        };
        if owner != client {
            return Err(st::BAD_STATEID);
        }
        // Serial comparison: ids wrap. Zero means "the newest".
        match id.seqid {
            0 => Ok(()),
            n if n == seqid => Ok(()),
            n if (seqid.wrapping_sub(n) as i32) > 0 => Err(st::OLD_STATEID),
            _ => Err(st::BAD_STATEID),
        }
    }

    /// The open behind an open stateid or a lock stateid.
    pub(crate) fn open_of(&self, client: u64, id: Stateid) -> Result<&OpenState, Status> {
        self.check(client, id)?;
        let open = match self.lock_states.get(&id.other) {
            Some(lock) => lock.open,
            None => id.other,
        };
        self.opens.get(&open).ok_or(st::BAD_STATEID)
    }

    fn exact_open(&mut self, client: u64, id: Stateid) -> Result<&mut OpenState, Status> {
        self.check(client, id)?;
        self.opens.get_mut(&id.other).ok_or(st::BAD_STATEID)
    }

    pub(crate) fn downgrade(
        &mut self,
        client: u64,
        id: Stateid,
        access: u32,
    ) -> Result<Stateid, Status> {
        let state = self.exact_open(client, id)?;
        if access & !state.access != 0 || !state.history.contains(&access) {
            return Err(st::INVAL);
        }
        state.access = access;
        state.seqid = next(state.seqid);
        Ok(Stateid {
            seqid: state.seqid,
            other: id.other,
        })
    }

    /// CLOSE; returns the file whose hold the caller releases.
    pub(crate) fn close(&mut self, client: u64, id: Stateid, file: u64) -> Result<u64, Status> {
        if self.exact_open(client, id)?.file != file {
            return Err(st::BAD_STATEID);
        }
        if self.holds_locks(file, |other| {
            self.lock_states
                .get(&other)
                .is_some_and(|l| l.open == id.other)
        }) {
            return Err(st::LOCKS_HELD);
        }
        self.lock_states.retain(|_, l| l.open != id.other);
        self.opens.remove(&id.other);
        Ok(file)
    }

    fn holds_locks(&self, file: u64, made_by: impl Fn(Other) -> bool) -> bool {
        (self.locks.get(&file)).is_some_and(|locks| locks.iter().any(|l| made_by(l.state)))
    }

    /// The first lock of somebody else in the way of `want`.
    pub(crate) fn conflict(&self, file: u64, want: &Want<'_>) -> Option<&ByteLock> {
        self.locks.get(&file)?.iter().find(|l| {
            !l.is_of(want.client, want.owner)
                && l.overlaps(want.start, want.end)
                && (l.write || want.write)
        })
    }

    /// The lock state of an owner for an open, made if need be.
    pub(crate) fn lock_state(
        &mut self,
        client: u64,
        open: Other,
        owner: &Bytes,
    ) -> Result<Other, Status> {
        let found = (self.lock_states.iter())
            .find(|(_, l)| l.client == client && l.open == open && l.owner == *owner);
        if let Some((other, _)) = found {
            return Ok(*other);
        }
        let file = self.opens.get(&open).ok_or(st::BAD_STATEID)?.file;
        let other = self.fresh();
        self.lock_states.insert(
            other,
            LockState {
                client,
                owner: owner.clone(),
                file,
                open,
                seqid: 0,
            },
        );
        Ok(other)
    }

    pub(crate) fn lock_state_of(&self, client: u64, id: Stateid) -> Result<&LockState, Status> {
        self.check(client, id)?;
        self.lock_states.get(&id.other).ok_or(st::BAD_STATEID)
    }

    /// Sets (`Some(write)`) or clears a range; returns the new stateid.
    pub(crate) fn set_range(
        &mut self,
        state: Other,
        start: u64,
        end: u64,
        write: Option<bool>,
    ) -> Result<Stateid, Status> {
        let lock = self.lock_states.get_mut(&state).ok_or(st::BAD_STATEID)?;
        lock.seqid = next(lock.seqid);
        let id = Stateid {
            seqid: lock.seqid,
            other: state,
        };
        let (client, owner, file) = (lock.client, lock.owner.clone(), lock.file);
        self.replace(file, client, &owner, state, (start, end), write);
        Ok(id)
    }

    /// Cuts the range out of the owner's locks and puts the new lock there.
    fn replace(
        &mut self,
        file: u64,
        client: u64,
        owner: &Bytes,
        state: Other,
        (start, end): (u64, u64),
        write: Option<bool>,
    ) {
        let locks = self.locks.entry(file).or_default();
        let mut kept = Vec::with_capacity(locks.len() + 2);
        for lock in locks.drain(..) {
            if !lock.is_of(client, owner) || !lock.overlaps(start, end) {
                kept.push(lock);
                continue;
            }
            if lock.start < start {
                kept.push(ByteLock {
                    end: start - 1,
                    ..lock.clone()
                });
            }
            if lock.end > end {
                kept.push(ByteLock {
                    start: end + 1,
                    ..lock
                });
            }
        }
        if let Some(write) = write {
            kept.push(ByteLock {
                client,
                owner: owner.clone(),
                start,
                end,
                write,
                state,
            });
        }
        *locks = kept;
    }

    /// A lock of "another host"; `None` clears.
    pub(crate) fn set_foreign(&mut self, file: u64, start: u64, end: u64, write: Option<bool>) {
        let owner = Bytes::from_static(b"other-host");
        self.replace(file, OTHER_HOST, &owner, [0xee; 12], (start, end), write);
    }

    /// FREE_STATEID.
    pub(crate) fn free(&mut self, client: u64, id: Stateid) -> Result<(), Status> {
        if self.revoked.get(&id.other).is_some_and(|r| r.0 == client) {
            self.revoked.remove(&id.other);
            return Ok(());
        }
        self.check(client, id)?;
        if self.opens.contains_key(&id.other) {
            return Err(st::LOCKS_HELD);
        }
        let file = self.lock_states.get(&id.other).ok_or(st::BAD_STATEID)?.file;
        if self.holds_locks(file, |other| other == id.other) {
            return Err(st::LOCKS_HELD);
        }
        self.lock_states.remove(&id.other);
        Ok(())
    }

    /// Takes every open and lock of one file away; their stateids stay known, as
    /// revoked ones. (The hold on the file stays: it is not removed meanwhile.)
    pub(crate) fn revoke_file(&mut self, file: u64, status: Status) {
        let revoked = &mut self.revoked;
        self.opens.retain(|other, open| {
            if open.file == file {
                revoked.insert(*other, (open.client, status));
            }
            open.file != file
        });
        self.lock_states.retain(|other, lock| {
            if lock.file == file {
                revoked.insert(*other, (lock.client, status));
            }
            lock.file != file
        });
        self.locks.remove(&file);
    }

    /// Takes all state of a client away; returns the files to release. With
    /// `status` its stateids stay known, as revoked ones.
    pub(crate) fn drop_client(&mut self, client: u64, status: Option<Status>) -> Vec<u64> {
        let mut files = Vec::new();
        let mut gone = Vec::new();
        self.opens.retain(|other, o| {
            if o.client == client {
                files.push(o.file);
                gone.push(*other);
            }
            o.client != client
        });
        self.lock_states.retain(|other, l| {
            if l.client == client {
                gone.push(*other);
            }
            l.client != client
        });
        for locks in self.locks.values_mut() {
            locks.retain(|l| l.client != client);
        }
        match status {
            Some(status) => self
                .revoked
                .extend(gone.into_iter().map(|other| (other, (client, status)))),
            None => self.revoked.retain(|_, r| r.0 != client),
        }
        files
    }

    pub(crate) fn has_state(&self, client: u64) -> bool {
        self.opens.values().any(|o| o.client == client)
            || self.lock_states.values().any(|l| l.client == client)
    }

    pub(crate) fn has_revoked(&self, client: u64, status: Status) -> bool {
        self.revoked.values().any(|r| *r == (client, status))
    }

    pub(crate) fn open_count(&self) -> usize {
        self.opens.len()
    }

    /// Byte ranges that clients of the protocol hold.
    pub(crate) fn lock_count(&self) -> usize {
        let held = |l: &&ByteLock| l.client != OTHER_HOST;
        self.locks.values().flatten().filter(held).count()
    }

    pub(crate) fn locks_on(&self, file: u64) -> Vec<ByteLock> {
        self.locks.get(&file).cloned().unwrap_or_default()
    }
}

/// A lock that somebody would like to have.
#[derive(Debug)]
pub(crate) struct Want<'a> {
    pub(crate) client: u64,
    pub(crate) owner: &'a Bytes,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) write: bool,
}

/// The seqid after `n`; zero is skipped, it means "the newest".
fn next(n: u32) -> u32 {
    n.wrapping_add(1).max(1)
}
