//! Who of this host waits for which lock, over all files of the mount: a plain state
//! machine, whose one short lock ([`crate::vfs::files::lock`]) is taken before a file's.
//!
//! Waiters get their locks in the order they asked for them, and of those that wait for
//! one another only the first asks the server. But nobody is kept back by one who
//! waits, directly or through others, for what he has himself: the same lock once
//! more, its upgrade or the range beside it are asked for at once, past those who stand
//! before it. Otherwise none of the two would ever get on.
//!
//! Two relations make up who waits for whom. A waiter *waits for an owner* that has a
//! lock in his way, and *stands behind* an earlier waiter of the same file with whom
//! he could not share. The second is this line's own making, and is what is given up
//! where both together close a circle: at the waiter who has what the one before him
//! waits for in the end. A circle of the first alone is a deadlock, and ends with
//! EDEADLK for the last who came to it and may be told so ([`Line::give_way`]). As in
//! Linux an owner waits if any thread of it does.
//!
//! A waiter is woken when what he was told may have changed: by what becomes of the
//! locks of his file, by who leaves its line, and, wherever he stands, by one who begins
//! to wait for somebody while others wait for him.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::nfs::state::ranges::{LockKind, Ranges, Span};

/// A file whose locks are waited for.
pub(in crate::vfs) trait LockedFile {
    /// Its number in the mount.
    fn number(&self) -> u64;
    /// Another owner of this host has a lock that keeps `owner` from this one.
    fn keeps(&self, owner: u64, span: Span, kind: LockKind) -> bool;
    /// What `owner` has.
    fn held_by(&self, owner: u64) -> Ranges;
    /// `owner` has locked it through another handle than this one.
    fn knows_another_handle(&self, owner: u64, handle: u64) -> bool;
}

#[derive(Debug)]
struct Waiter {
    /// Moves with time, over all files.
    ticket: u64,
    owner: u64,
    span: Span,
    kind: LockKind,
    /// May get EDEADLK, as far as is known.
    detects: bool,
    wake: Arc<Notify>,
}

impl Waiter {
    fn stands_behind(&self, earlier: &Self) -> bool {
        earlier.ticket < self.ticket
            && earlier.owner != self.owner
            && earlier.span.overlaps(self.span)
            && earlier.kind.conflicts(self.kind)
    }
}

/// The line of one file.
#[derive(Debug)]
struct At<F> {
    file: F,
    /// In the order they came.
    waiters: VecDeque<Waiter>,
}

/// A place in the line.
#[derive(Debug)]
pub(in crate::vfs) struct Ticket {
    file: u64,
    number: u64,
    /// Something has changed: [`Line::look`] again.
    pub(in crate::vfs) wake: Arc<Notify>,
}

/// What a waiter is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) enum Turn {
    /// Ask the server: nothing of this host is in the way.
    Ask,
    /// Wait to be woken.
    Wait,
    /// He waits for himself, and is the last who came to that circle: see
    /// [`Line::give_way`].
    Deadlock,
}

/// See the module.
#[derive(Debug)]
pub(in crate::vfs) struct Line<F> {
    files: BTreeMap<u64, At<F>>,
    next: u64,
}

impl<F> Default for Line<F> {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<F: LockedFile> Line<F> {
    /// Stands in line.
    pub(in crate::vfs) fn join(
        &mut self,
        file: F,
        owner: u64,
        span: Span,
        kind: LockKind,
    ) -> Ticket {
        let number = self.next;
        self.next += 1;
        let wake = Arc::new(Notify::new());
        if !self.waiting_for(owner).is_empty() {
            // They wait for more than before now, and through them others may.
            self.wake_all();
        }
        let key = file.number();
        let at = self.files.entry(key).or_insert_with(|| At {
            file,
            waiters: VecDeque::new(),
        });
        at.waiters.push_back(Waiter {
            ticket: number,
            owner,
            span,
            kind,
            detects: true,
            wake: Arc::clone(&wake),
        });
        Ticket {
            file: key,
            number,
            wake,
        }
    }

    /// Leaves the line.
    pub(in crate::vfs) fn leave(&mut self, ticket: &Ticket) {
        let Some(at) = self.files.get_mut(&ticket.file) else {
            return;
        };
        at.waiters.retain(|waiter| waiter.ticket != ticket.number);
        if at.waiters.is_empty() {
            self.files.remove(&ticket.file);
        } else {
            self.wake(ticket.file);
        }
    }

    /// The locks of this file have changed.
    pub(in crate::vfs) fn wake(&self, file: u64) {
        if let Some(at) = self.files.get(&file) {
            at.waiters.iter().for_each(|one| one.wake.notify_one());
        }
    }

    /// `owner` has got a lock on this file.
    pub(in crate::vfs) fn granted(&self, file: u64, owner: u64) {
        let mut waiters = self.files.values().flat_map(|at| &at.waiters);
        match waiters.any(|one| one.owner == owner) {
            // Another thread of it waits: who waits for this lock now waits for that.
            true => self.wake_all(),
            false => self.wake(file),
        }
    }

    fn wake_all(&self) {
        for at in self.files.values() {
            at.waiters.iter().for_each(|one| one.wake.notify_one());
        }
    }

    fn find(&self, ticket: &Ticket) -> Option<(&At<F>, &Waiter)> {
        let at = self.files.get(&ticket.file)?;
        let mut waiters = at.waiters.iter();
        Some((at, waiters.find(|one| one.ticket == ticket.number)?))
    }

    /// What this waiter is to do now.
    pub(in crate::vfs) fn look(&self, ticket: &Ticket) -> Turn {
        let Some((at, me)) = self.find(ticket) else {
            return Turn::Ask;
        };
        if at.file.keeps(me.owner, me.span, me.kind) {
            return match me.detects && self.waits_for_itself(at, me) {
                true => Turn::Deadlock,
                false => Turn::Wait,
            };
        }
        let before = || at.waiters.iter().filter(|one| me.stands_behind(one));
        if before().next().is_none() {
            return Turn::Ask;
        }
        let behind_me = self.waiting_in_the_end_for(me.owner);
        match before().all(|one| behind_me.contains(&one.ticket)) {
            true => Turn::Ask,
            false => Turn::Wait,
        }
    }

    /// This waiter, who was told of a deadlock and may say so to his caller, leaves if it
    /// is one still.
    pub(in crate::vfs) fn give_way(&mut self, ticket: &Ticket) -> bool {
        let gives_way = self.look(ticket) == Turn::Deadlock;
        if gives_way {
            self.leave(ticket);
        }
        gives_way
    }

    /// This waiter's kind of lock knows no EDEADLK: he waits, and another of the circle
    /// is told, if there is one.
    pub(in crate::vfs) fn set_patient(&mut self, ticket: &Ticket) {
        let at = self.files.get_mut(&ticket.file);
        let waiters = at.into_iter().flat_map(|at| &mut at.waiters);
        for waiter in waiters.filter(|waiter| waiter.ticket == ticket.number) {
            waiter.detects = false;
        }
        self.wake_all();
    }

    /// `owner`, who locks through `handle`, has locked through another one, too: it is a
    /// process. What belongs to a description has no more than one.
    pub(in crate::vfs) fn is_process(&self, owner: u64, handle: u64) -> bool {
        let mut files = self.files.values();
        files.any(|at| at.file.knows_another_handle(owner, handle))
    }

    /// Those who wait for what `owner` has.
    fn waiting_for(&self, owner: u64) -> Vec<(&At<F>, &Waiter)> {
        let mut found = Vec::new();
        for at in self.files.values() {
            let held = at.file.held_by(owner);
            if held.is_empty() {
                continue;
            }
            let kept =
                |one: &&Waiter| one.owner != owner && held.conflict(one.span, one.kind).is_some();
            found.extend(at.waiters.iter().filter(kept).map(|one| (at, one)));
        }
        found
    }

    /// The tickets of those who wait for what `owner` has, directly or through others,
    /// as far as they are other owners'.
    fn waiting_in_the_end_for(&self, owner: u64) -> BTreeSet<u64> {
        let mut found = self.waiting_for(owner);
        let mut tickets: BTreeSet<u64> = found.iter().map(|(_, one)| one.ticket).collect();
        let mut owners = BTreeSet::from([owner]);
        while let Some((at, one)) = found.pop() {
            let behind = at.waiters.iter().filter(|later| later.stands_behind(one));
            let mut next: Vec<_> = behind.map(|later| (at, later)).collect();
            if owners.insert(one.owner) {
                next.extend(self.waiting_for(one.owner));
            }
            next.retain(|(_, one)| one.owner != owner && tickets.insert(one.ticket));
            found.extend(next);
        }
        tickets
    }

    /// Whether a circle of waiters and locks goes through this waiter, in which nobody
    /// came later who is to be told of it instead.
    fn waits_for_itself(&self, at: &At<F>, me: &Waiter) -> bool {
        let mut found = self.waiting_for(me.owner);
        let mut owners = BTreeSet::from([me.owner]);
        while let Some((_, one)) = found.pop() {
            let counts = one.ticket < me.ticket || !one.detects;
            if !counts || !owners.insert(one.owner) {
                continue;
            }
            let held = at.file.held_by(one.owner);
            if held.conflict(me.span, me.kind).is_some() {
                return true;
            }
            found.extend(self.waiting_for(one.owner));
        }
        false
    }
}

#[cfg(test)]
mod model;
