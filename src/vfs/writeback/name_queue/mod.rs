//! The queue of a mount's changes of names that were answered before the server knows of them
//! (`writeback`): which are sent next, and what is settled. A plain state machine: it does no
//! I/O, has no clock and no lock of its own. Its owner keeps it under a lock, sends each
//! [`Batch`] and reports what became of it.
//!
//! # What is promised
//!
//! - The changes of one directory are sent in the order in which they were accepted, one batch
//!   at a time: the next one leaves when the one before it was answered. So the server has, of
//!   each directory, a prefix of what was done in it here.
//! - Each accepted change ends once: [done](NameQueue::done), or given back to be sent again in
//!   its place, before all that were accepted after it.
//! - A change waits for company for [`Config::linger`] at most, and not at all when nothing more would
//!   go in its [request](Fit), or somebody [waits](NameQueue::hurry) for it. One to which more may come
//!   that is to go along with it waits for that for [`Config::patience`] at most, and while fewer than
//!   [`Config::crowd`] wait with it.
//! - There are at most [`Config::most`] changes, and none of one directory while it is told to
//!   [rest](Rested), until it is due again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::vfs::types::Ino;

/// How the queue behaves.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct Config {
    /// The most changes it holds.
    pub(in crate::vfs) most: usize,
    /// How long a change waits to be joined by others.
    pub(in crate::vfs) linger: Duration,
    /// How long a change waits for what is to go along with it.
    pub(in crate::vfs) patience: Duration,
    /// So many in a directory do not wait for what the first of them waits for.
    pub(in crate::vfs) crowd: usize,
}

/// Names a change, in the order of acceptance.
pub(in crate::vfs) type Number = u64;

/// A change in its place.
#[derive(Debug)]
pub(in crate::vfs) struct Queued<C> {
    /// Which it is.
    pub(in crate::vfs) number: Number,
    /// When it was accepted.
    pub(in crate::vfs) since: Instant,
    /// What is to be done.
    pub(in crate::vfs) change: C,
}

/// Changes of one directory, the oldest first, to be sent now. All of them are reported, some as
/// not executed.
#[derive(Debug)]
pub(in crate::vfs) struct Batch<C> {
    /// The directory.
    pub(in crate::vfs) dir: Ino,
    /// One at least.
    pub(in crate::vfs) changes: Vec<Queued<C>>,
}

/// What there is to do.
#[derive(Debug)]
pub(in crate::vfs) enum Next<C> {
    /// Send these.
    Send(Batch<C>),
    /// Ask again then, or after the next event.
    WakeAt(Instant),
    /// Ask again after the next event.
    Nothing,
}

/// How many of the changes that wait in a directory, from the first on, go in a request.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct Fit {
    /// So many; 0 if they are not to be sent yet, which is said of none that has [waited](Ripe) but for
    /// an event.
    pub(in crate::vfs) count: usize,
    /// Nothing that comes would go with them.
    pub(in crate::vfs) is_full: bool,
}

/// Which changes of a directory have waited for long enough for what is to go along with them.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct Ripe {
    now: Instant,
    patience: Duration,
    hurried: Number,
    is_crowded: bool,
}

impl Ripe {
    /// This one has, or somebody waits for it, or too many others do.
    pub(in crate::vfs) fn is<C>(self, queued: &Queued<C>) -> bool {
        self.is_crowded || queued.number <= self.hurried || queued.since + self.patience <= self.now
    }
}

/// A directory is not sent anything before then.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct Rested(pub(in crate::vfs) Instant);

#[derive(Debug)]
struct Dir<C> {
    waiting: VecDeque<Queued<C>>,
    /// The numbers of a batch that was given out, if there is one.
    sent: Vec<Number>,
    rests: Option<Instant>,
}

impl<C> Default for Dir<C> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: Vec::new(),
            rests: None,
        }
    }
}

impl<C> Dir<C> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    fn oldest(&self) -> Option<Number> {
        let waiting = self.waiting.front().map(|queued| queued.number);
        self.sent.iter().copied().chain(waiting).min()
    }

    /// The first that waits; `None` while others are on their way.
    fn next(&self) -> Option<&Queued<C>> {
        self.waiting.front().filter(|_| self.sent.is_empty())
    }
}

/// See the module.
#[derive(Debug)]
pub(in crate::vfs) struct NameQueue<C> {
    config: Config,
    dirs: BTreeMap<Ino, Dir<C>>,
    accepted: Number,
    /// Somebody waits for all up to this one.
    hurried: Number,
    count: usize,
}

impl<C> NameQueue<C> {
    /// A queue with nothing in it.
    pub(in crate::vfs) fn new(config: Config) -> Self {
        Self {
            config,
            dirs: BTreeMap::new(),
            accepted: 0,
            hurried: 0,
            count: 0,
        }
    }

    /// Changes that are not done.
    pub(in crate::vfs) fn len(&self) -> usize {
        self.count
    }

    /// There is room for another change.
    pub(in crate::vfs) fn has_room(&self) -> bool {
        self.count < self.config.most
    }

    /// Takes a change of a name in `dir` in.
    pub(in crate::vfs) fn accept(&mut self, dir: Ino, now: Instant, change: C) -> Number {
        self.accepted = self.next_number();
        self.count += 1;
        self.dirs.entry(dir).or_default().waiting.push_back(Queued {
            number: self.accepted,
            since: now,
            change,
        });
        self.accepted
    }

    /// The number of the last change that was accepted.
    pub(in crate::vfs) fn accepted(&self) -> Number {
        self.accepted
    }

    /// The number that the next one will have.
    pub(in crate::vfs) fn next_number(&self) -> Number {
        self.accepted + 1
    }

    /// What waits in this directory and is so, the last one of it if there are several.
    pub(in crate::vfs) fn find_waiting(
        &mut self,
        dir: Ino,
        is_so: impl Fn(&C) -> bool,
    ) -> Option<&mut Queued<C>> {
        let waiting = &mut self.dirs.get_mut(&dir)?.waiting;
        let mut changes = waiting.iter_mut().rev();
        changes.find(|queued| is_so(&queued.change))
    }

    /// What was accepted last in this directory, if it waits.
    pub(in crate::vfs) fn last_waiting(&mut self, dir: Ino) -> Option<&mut Queued<C>> {
        self.dirs.get_mut(&dir)?.waiting.back_mut()
    }

    /// Everything accepted so far is waited for. It is settled when [`settled`](Self::settled)
    /// says so of the result.
    pub(in crate::vfs) fn hurry(&mut self) -> Number {
        self.hurried = self.accepted;
        self.accepted
    }

    /// All changes up to this one are done.
    pub(in crate::vfs) fn settled(&self, number: Number) -> bool {
        let mut oldest = self.dirs.values().filter_map(Dir::oldest);
        oldest.all(|oldest| oldest > number)
    }

    /// All changes of this directory are done.
    pub(in crate::vfs) fn is_settled_in(&self, dir: Ino) -> bool {
        !self.dirs.contains_key(&dir)
    }

    /// What is to be done at `now`. `fits` says what goes in a request.
    pub(in crate::vfs) fn next(
        &mut self,
        now: Instant,
        mut fits: impl FnMut(&VecDeque<Queued<C>>, Ripe) -> Fit,
    ) -> Next<C> {
        let mut wake: Option<Instant> = None;
        let (config, hurried) = (self.config, self.hurried);
        for (&ino, dir) in &mut self.dirs {
            let Some(first) = dir.next() else {
                continue;
            };
            let ripe = Ripe {
                now,
                patience: config.patience,
                hurried,
                is_crowded: dir.waiting.len() >= config.crowd,
            };
            let fit = fits(&dir.waiting, ripe);
            let due = match fit.is_full || first.number <= hurried {
                true => first.since,
                false => first.since + config.linger,
            };
            let due = dir.rests.map_or(due, |until| due.max(until));
            if due > now {
                wake = Some(wake.map_or(due, |wake| wake.min(due)));
                continue;
            }
            let count = fit.count.min(dir.waiting.len());
            if count == 0 {
                let ripens = Some(first.since + config.patience).filter(|at| *at > now);
                wake = wake.into_iter().chain(ripens).min();
                continue;
            }
            dir.rests = None;
            let changes: Vec<_> = dir.waiting.drain(..count).collect();
            dir.sent = changes.iter().map(|queued| queued.number).collect();
            return Next::Send(Batch { dir: ino, changes });
        }
        wake.map_or(Next::Nothing, Next::WakeAt)
    }

    /// A batch has come to its end: what is in `again` was not executed, and goes before what
    /// was accepted since; the rest is done. The directory rests until then, if it says so.
    pub(in crate::vfs) fn done(&mut self, dir: Ino, again: Vec<Queued<C>>, rests: Option<Rested>) {
        let Some(known) = self.dirs.get_mut(&dir) else {
            return;
        };
        self.count -= known.sent.len() - again.len();
        known.sent.clear();
        known.rests = rests.map(|Rested(until)| until);
        for queued in again.into_iter().rev() {
            known.waiting.push_front(queued);
        }
        if known.is_idle() {
            self.dirs.remove(&dir);
        }
    }
}

#[cfg(test)]
mod tests;
