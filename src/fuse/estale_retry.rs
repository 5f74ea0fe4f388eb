//! The second walk of a call by path that has ended with ESTALE.
//!
//! The vfs answers ESTALE where a name leads elsewhere by now: a file that another host
//! has replaced, a directory that it has removed, be it to make it anew. The kernel then
//! walks the path once more, asking for every name, and does the same with what it
//! finds; a second ESTALE goes to the program. Names that the kernel does not believe
//! any more look like any others, so it is kept here, per thread, since that is what walks, that
//! they must be asked for: until the call is through, or nothing has come of the thread for
//! [`WHILE`]. How long the server takes for an answer does not count. GETATTR and READLINK do
//! not end it: permissions are checked, and links followed, on the way.
//!
//! The file that an open has found on its second walk is opened even if the name has
//! moved on again in the meantime: it had the name after open(2) was called,
//! which is all that a program can know.
//!
//! At most [`MOST`] threads; of one more the kernel's own names are asked for, the
//! others answered as on a first walk.
//!
//! Between the two walks another daemon may take over, by whom the second is not taken for a
//! first one: it would be refused once more. So this goes with the mount, and each change is in the
//! log before the answer that it comes with. That a request of a second walk has come is in it as
//! well: who is killed while he waits for the server leaves a thread that waits still, however
//! long that was. What has been opened stays there until its answer has long been given
//! ([`SPENT`]), as the same request may come again.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::vfs::types::Ino;
use crate::wal::{Survived, Table, Unreadable, Wal, clock};

const MOST: usize = 1024;
const WHILE: Duration = Duration::from_secs(1);
/// Opens whose second walk stays in the log after it has ended.
const SPENT: usize = 64;

/// What an open was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// The file.
    pub(super) ino: Ino,
    /// How it was to be opened (`O_*`).
    pub(super) flags: i32,
    /// The kernel's number of the request.
    pub(super) unique: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Retry {
    /// When the thread was answered last, by [`clock`].
    since: Duration,
    /// It has asked since, and waits for its answer.
    waits: bool,
    open: Option<Refused>,
    /// What the walk came to last.
    found: Option<Ino>,
    /// The request that opens what the walk has found, with which it has ended.
    opened_by: Option<u64>,
}

impl Retry {
    /// Something may come of it yet, `now` by [`clock`].
    fn is_alive(&self, now: Duration) -> bool {
        self.waits || now.saturating_sub(self.since) < WHILE
    }

    fn is_under_way(&self) -> bool {
        self.opened_by.is_none() && self.is_alive(clock())
    }

    fn answered(&mut self) {
        self.since = clock();
        self.waits = false;
    }
}

/// The second walks that another daemon goes on with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WalksUnderWay(Vec<(u32, Retry)>);

impl WalksUnderWay {
    /// Those of a daemon that was killed.
    ///
    /// # Errors
    /// A record cannot be understood.
    pub fn survived(log: &Survived) -> Result<Self, Unreadable> {
        let all = log.table(Table::Retry)?.into_iter();
        let all = all.filter_map(|(tid, retry)| Some((u32::try_from(tid).ok()?, retry)));
        Ok(Self(all.collect()))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct EstaleRetries {
    retries: Mutex<HashMap<u32, Retry>>,
    /// Their number, so that nobody takes the lock for nothing.
    count: AtomicUsize,
    /// Threads whose walk has ended with an open, which is in the log still. Taken under the lock
    /// of `retries`.
    spent: Mutex<VecDeque<u32>>,
    wal: Wal,
}

impl EstaleRetries {
    /// None yet.
    pub fn new(wal: Wal) -> Self {
        Self {
            wal,
            ..Self::default()
        }
    }

    /// What another process is to know.
    pub fn hand_over(&self) -> WalksUnderWay {
        let retries = self.retries.lock();
        WalksUnderWay(
            retries
                .iter()
                .map(|(tid, retry)| (*tid, retry.clone()))
                .collect(),
        )
    }

    /// Goes on with those of another process, of which each is in the log from here on. That has
    /// not answered since `paused_at`, by [`clock`]: until now nothing could come of a thread.
    pub fn take_over(WalksUnderWay(walks): WalksUnderWay, paused_at: Duration, wal: Wal) -> Self {
        let all = Self::new(wal);
        let since = clock();
        let alive = walks
            .into_iter()
            .filter(|(_, retry)| retry.opened_by.is_some() || retry.is_alive(paused_at))
            .map(|(tid, retry)| (tid, Retry { since, ..retry }));
        let retries: HashMap<_, _> = alive.take(MOST).collect();
        for (tid, retry) in &retries {
            all.record(*tid, retry);
        }
        all.count.store(retries.len(), Ordering::Release);
        *all.retries.lock() = retries;
        all
    }

    fn record(&self, tid: u32, retry: &Retry) {
        self.wal.put(Table::Retry, tid.into(), retry);
    }

    fn forget(&self, tid: u32) {
        self.wal.remove(Table::Retry, tid.into());
    }

    fn none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// A call of thread `tid` was refused: an open, if it is said of what.
    pub(super) fn refused(&self, tid: u32, open: Option<Refused>) {
        let mut retries = self.retries.lock();
        if retries.len() >= MOST {
            let now = clock();
            retries.retain(|tid, retry| {
                let stays = retry.is_alive(now);
                if !stays {
                    self.forget(*tid);
                }
                stays
            });
        }
        if tid != 0 && retries.len() < MOST {
            let retry = Retry {
                since: clock(),
                waits: false,
                open,
                found: None,
                opened_by: None,
            };
            self.record(tid, &retry);
            retries.insert(tid, retry);
        }
        self.count.store(retries.len(), Ordering::Release);
    }

    /// A call of thread `tid` was answered, and not with ESTALE.
    pub(super) fn ended(&self, tid: u32) {
        if self.none() {
            return;
        }
        let mut retries = self.retries.lock();
        if retries.remove(&tid).is_some() {
            self.forget(tid);
        }
        self.count.store(retries.len(), Ordering::Release);
    }

    /// A request of the thread has come, which is on its second walk: names have to be asked
    /// for. With the answer comes [`found`](Self::found), [`goes_on`](Self::goes_on),
    /// [`refused`](Self::refused) or [`ended`](Self::ended).
    pub(super) fn asks(&self, tid: u32) -> bool {
        if self.none() {
            return false;
        }
        let mut retries = self.retries.lock();
        let Some(retry) = retries.get_mut(&tid).filter(|retry| retry.is_under_way()) else {
            return false;
        };
        if !retry.waits {
            retry.waits = true;
            self.record(tid, retry);
        }
        true
    }

    /// The open that the thread is on its second walk for.
    pub(super) fn open(&self, tid: u32) -> Option<Refused> {
        let retries = self.retries.lock();
        let retry = retries.get(&tid).filter(|retry| retry.opened_by.is_none());
        retry?.open
    }

    /// The server says that a name leads to `ino`, or nowhere (`None`). Then the walk may have
    /// come to its end, and what the thread opens next has nothing to do with it; or the
    /// kernel, which believed in the name, drops it and asks once more.
    pub(super) fn found(&self, tid: u32, ino: Option<Ino>) {
        if let Some(retry) = self.retries.lock().get_mut(&tid) {
            retry.found = ino;
            if ino.is_none() {
                retry.open = None;
            }
            retry.answered();
            self.record(tid, retry);
        }
    }

    /// A call on the way was answered, and the thread was on its second walk when it
    /// made it: a walk that has ended in silence does not come back to life.
    pub(super) fn goes_on(&self, tid: u32) {
        if !self.none()
            && let Some(retry) = self.retries.lock().get_mut(&tid)
        {
            retry.answered();
            self.record(tid, retry);
        }
    }

    /// The thread opens `ino` by this request: whether that is what it has found on its
    /// second walk, which ends with this. Who comes back to the same file without a walk
    /// has not named it: a descriptor's link in /proc leads to the file itself,
    /// whatever its names.
    pub(super) fn opens(&self, tid: u32, unique: u64, ino: Ino) -> bool {
        if self.none() {
            return false;
        }
        let mut retries = self.retries.lock();
        let retry = retries.remove(&tid);
        self.count.store(retries.len(), Ordering::Release);
        let Some(retry) = retry else { return false };
        let refused = retry.open.filter(|open| open.unique != unique);
        let is_second = match retry.opened_by {
            // A request that has come again is on the walk that it was on.
            Some(by) => by == unique,
            None => {
                let found = retry.found.or_else(|| Some(refused?.ino));
                found == Some(ino) && retry.is_alive(clock())
            }
        };
        if !is_second && retry.opened_by.is_none() {
            tracing::debug!(
                id = unique,
                tid,
                ino,
                ?retry,
                "the second walk of the thread was for something else"
            );
        }
        match is_second {
            true if self.wal.is_on() => {
                let opened_by = Some(unique);
                self.record(tid, &Retry { opened_by, ..retry });
                // It may be on another walk by now, which is in the log under the same number.
                if let Some(oldest) = self.spend(tid)
                    && !retries.contains_key(&oldest)
                {
                    self.forget(oldest);
                }
            }
            true => {}
            false => self.forget(tid),
        }
        is_second
    }

    /// The walk of this thread has ended. Gives another whose has long ended.
    fn spend(&self, tid: u32) -> Option<u32> {
        let mut spent = self.spent.lock();
        spent.retain(|other| *other != tid);
        spent.push_back(tid);
        (spent.len() > SPENT).then(|| spent.pop_front()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl EstaleRetries {
        fn is_second(&self, tid: u32) -> bool {
            let retries = self.retries.lock();
            retries.get(&tid).is_some_and(Retry::is_under_way)
        }
    }

    const OPEN: Option<Refused> = Some(Refused {
        ino: 2,
        flags: 0,
        unique: 10,
    });

    #[test]
    fn what_the_second_walk_found_is_opened_once() {
        let reopens = EstaleRetries::default();
        assert!(!reopens.is_second(5) && !reopens.opens(5, 12, 7));
        reopens.refused(5, OPEN);
        assert!(reopens.is_second(5) && !reopens.is_second(6));
        reopens.found(5, Some(3));
        reopens.found(5, Some(7));
        assert!(reopens.opens(5, 12, 7));
        assert!(!reopens.is_second(5) && !reopens.opens(5, 12, 7));
        reopens.refused(5, OPEN);
        reopens.found(5, Some(3));
        assert!(!reopens.opens(5, 12, 7), "another file");
        reopens.refused(5, OPEN);
        assert!(reopens.opens(5, 12, 2), "no walk");
        reopens.refused(5, OPEN);
        assert!(!reopens.opens(5, 12, 7), "neither a walk nor the same file");
        reopens.refused(5, OPEN);
        reopens.found(5, Some(3));
        reopens.found(5, None);
        assert!(!reopens.opens(5, 12, 3), "it found nothing");
        reopens.refused(5, OPEN);
        reopens.found(5, None);
        assert!(!reopens.opens(5, 12, 2), "the name is gone, not the file");
    }

    #[test]
    fn a_name_that_is_gone_is_asked_for_once_more_as_the_kernel_does() {
        let reopens = EstaleRetries::default();
        reopens.refused(5, OPEN);
        // The kernel drops the name that it believed in, and looks it up.
        reopens.found(5, None);
        assert!(reopens.asks(5));
        reopens.found(5, Some(7));
        assert!(reopens.opens(5, 12, 7), "another host has made it again");
    }

    #[test]
    fn any_call_that_was_refused_walks_again_and_is_through_when_it_is_answered() {
        let reopens = EstaleRetries::default();
        reopens.refused(5, None);
        assert!(reopens.is_second(5) && reopens.open(5).is_none());
        assert!(!reopens.opens(5, 12, 2), "nothing was found");
        reopens.refused(5, OPEN);
        assert_eq!(reopens.open(5), OPEN);
        reopens.ended(6);
        assert!(reopens.is_second(5));
        reopens.ended(5);
        assert!(!reopens.is_second(5) && reopens.none());
    }

    #[test]
    fn an_answer_that_takes_long_does_not_end_the_walk_and_silence_does() {
        let reopens = EstaleRetries::default();
        let long_ago = || {
            let mut retries = reopens.retries.lock();
            let since = &mut retries.get_mut(&5).expect("a walk").since;
            *since = since.saturating_sub(2 * WHILE);
        };
        reopens.refused(5, OPEN);
        long_ago();
        assert!(!reopens.is_second(5), "nothing came of it");
        reopens.refused(5, OPEN);
        long_ago();
        reopens.found(5, Some(7));
        assert!(reopens.is_second(5));
        long_ago();
        reopens.goes_on(5);
        assert!(reopens.opens(5, 12, 7));
    }

    /// Another daemon goes on after this one was killed.
    fn killed(retries: EstaleRetries) -> EstaleRetries {
        let memory = retries.wal.memory().expect("memory").try_clone();
        let survived = Survived::read(memory.expect("a descriptor")).expect("a log");
        let walks = WalksUnderWay::survived(&survived).expect("walks");
        EstaleRetries::take_over(walks, clock(), Wal::create(0).expect("memory"))
    }

    fn logged() -> EstaleRetries {
        EstaleRetries::new(Wal::create(0).expect("memory"))
    }

    #[test]
    fn a_second_walk_is_none_of_another_daemons_first() {
        let reopens = logged();
        reopens.refused(5, OPEN);
        reopens.refused(6, None);
        reopens.ended(6);
        let reopens = killed(reopens);
        assert!(reopens.is_second(5) && !reopens.is_second(6));
        assert_eq!(reopens.open(5), OPEN);
        reopens.found(5, Some(7));
        let reopens = killed(killed(reopens));
        assert!(reopens.opens(5, 12, 7));
        // Its answer was not given: the same request comes again, or the thread is done.
        let reopens = killed(reopens);
        assert!(!reopens.is_second(5) && reopens.open(5).is_none());
        assert!(reopens.opens(5, 12, 7));
        assert!(!killed(reopens).opens(5, 14, 7));
    }

    #[test]
    fn the_pause_between_two_daemons_ends_no_walk() {
        let since = Duration::from_secs(1000);
        let refused = |since| {
            let (found, opened_by) = (None, None);
            let (open, waits) = (OPEN, false);
            let retry = Retry {
                since,
                waits,
                open,
                found,
                opened_by,
            };
            WalksUnderWay(vec![(5, retry)])
        };
        let taken = |paused_at| EstaleRetries::take_over(refused(since), paused_at, Wal::off());
        assert!(taken(since + WHILE / 2).is_second(5));
        assert!(!taken(since + 2 * WHILE).is_second(5));
    }

    #[test]
    fn who_waits_for_the_server_when_a_daemon_is_killed_is_on_its_second_walk_however_long_it_waits()
     {
        let long_ago = |reopens: &EstaleRetries| {
            let mut retries = reopens.retries.lock();
            let retry = retries.get_mut(&5).expect("a walk");
            retry.since = retry.since.saturating_sub(2 * WHILE);
            reopens.record(5, retry);
        };
        let reopens = logged();
        reopens.refused(5, OPEN);
        assert!(reopens.asks(5));
        long_ago(&reopens);
        let reopens = killed(reopens);
        // It comes again after a pause that may be as long.
        long_ago(&reopens);
        assert!(reopens.asks(5));
        reopens.found(5, Some(7));
        assert!(reopens.opens(5, 12, 7));
        // So does who waits for the open itself.
        assert!(killed(reopens).opens(5, 12, 7));
        let reopens = logged();
        reopens.refused(5, OPEN);
        reopens.asks(5);
        reopens.goes_on(5);
        long_ago(&reopens);
        assert!(
            !killed(reopens).is_second(5),
            "it was answered, and is silent"
        );
    }

    #[test]
    fn a_request_whose_refusal_was_not_sent_is_on_its_first_walk_still() {
        let reopens = logged();
        reopens.refused(5, OPEN);
        assert!(!killed(reopens).opens(5, 10, 2));
        let reopens = logged();
        reopens.refused(5, OPEN);
        assert!(killed(reopens).opens(5, 12, 2));
    }

    #[test]
    fn what_has_been_opened_leaves_the_log_when_many_others_have() {
        let reopens = logged();
        for tid in 1..=4 * SPENT as u32 {
            reopens.refused(tid, OPEN);
            assert!(reopens.opens(tid, 12, 2));
        }
        assert_eq!(killed(reopens).retries.lock().len(), SPENT);
    }

    #[test]
    fn retries_are_bounded() {
        let reopens = EstaleRetries::default();
        for tid in 1..=2 * MOST as u32 {
            reopens.refused(tid, OPEN);
        }
        // Fewer, where the machine is so slow that the first have ended by now.
        let kept = reopens.retries.lock().len();
        assert!((1..=MOST).contains(&kept), "{kept}");
    }
}
