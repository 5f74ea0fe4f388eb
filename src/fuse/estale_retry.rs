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

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::vfs::types::Ino;

const MOST: usize = 1024;
const WHILE: Duration = Duration::from_secs(1);

/// What an open was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The file.
    pub(super) ino: Ino,
    /// How it was to be opened (`O_*`).
    pub(super) flags: i32,
}

#[derive(Debug)]
struct Retry {
    /// When the thread was answered last.
    since: Instant,
    open: Option<Refused>,
    /// What the walk came to last.
    found: Option<Ino>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct EstaleRetries {
    retries: Mutex<HashMap<u32, Retry>>,
    /// Their number, so that nobody takes the lock for nothing.
    count: AtomicUsize,
}

impl EstaleRetries {
    fn none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// A call of thread `tid` was refused: an open, if it is said of what.
    pub(super) fn refused(&self, tid: u32, open: Option<Refused>) {
        let mut retries = self.retries.lock();
        if retries.len() >= MOST {
            retries.retain(|_, retry| retry.since.elapsed() < WHILE);
        }
        if tid != 0 && retries.len() < MOST {
            let retry = Retry {
                since: Instant::now(),
                open,
                found: None,
            };
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
        retries.remove(&tid);
        self.count.store(retries.len(), Ordering::Release);
    }

    /// The thread is on its second walk: names have to be asked for.
    pub(super) fn is_second(&self, tid: u32) -> bool {
        if self.none() {
            return false;
        }
        let retries = self.retries.lock();
        retries
            .get(&tid)
            .is_some_and(|retry| retry.since.elapsed() < WHILE)
    }

    /// The open that the thread is on its second walk for.
    pub(super) fn open(&self, tid: u32) -> Option<Refused> {
        self.retries.lock().get(&tid)?.open
    }

    /// The server says that a name leads to `ino`, or nowhere (`None`), with which
    /// the walk has come to its end: what the thread opens next has nothing to do
    /// with it.
    pub(super) fn found(&self, tid: u32, ino: Option<Ino>) {
        match ino {
            Some(_) => {
                if let Some(retry) = self.retries.lock().get_mut(&tid) {
                    retry.found = ino;
                    retry.since = Instant::now();
                }
            }
            None => self.ended(tid),
        }
    }

    /// A call on the way was answered, and the thread was on its second walk when it
    /// made it: a walk that has ended in silence does not come back to life.
    pub(super) fn goes_on(&self, tid: u32) {
        if !self.none()
            && let Some(retry) = self.retries.lock().get_mut(&tid)
        {
            retry.since = Instant::now();
        }
    }

    /// The thread opens `ino`: whether that is what it has found on its second
    /// walk, which ends with this. Who comes back to the same file without a walk
    /// has not named it: a descriptor's link in /proc leads to the file itself,
    /// whatever its names.
    pub(super) fn opens(&self, tid: u32, ino: Ino) -> bool {
        if self.none() {
            return false;
        }
        let mut retries = self.retries.lock();
        let retry = retries.remove(&tid);
        self.count.store(retries.len(), Ordering::Release);
        retry.is_some_and(|retry| {
            let refused = retry.open.map(|open| open.ino);
            retry.found.or(refused) == Some(ino) && retry.since.elapsed() < WHILE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Option<Refused> = Some(Refused { ino: 2, flags: 0 });

    #[test]
    fn what_the_second_walk_found_is_opened_once() {
        let reopens = EstaleRetries::default();
        assert!(!reopens.is_second(5) && !reopens.opens(5, 7));
        reopens.refused(5, OPEN);
        assert!(reopens.is_second(5) && !reopens.is_second(6));
        reopens.found(5, Some(3));
        reopens.found(5, Some(7));
        assert!(reopens.opens(5, 7));
        assert!(!reopens.is_second(5) && !reopens.opens(5, 7));
        reopens.refused(5, OPEN);
        reopens.found(5, Some(3));
        assert!(!reopens.opens(5, 7), "another file");
        reopens.refused(5, OPEN);
        assert!(reopens.opens(5, 2), "no walk");
        reopens.refused(5, OPEN);
        assert!(!reopens.opens(5, 7), "neither a walk nor the same file");
        reopens.refused(5, OPEN);
        reopens.found(5, Some(3));
        reopens.found(5, None);
        assert!(
            !reopens.is_second(5) && !reopens.opens(5, 3),
            "it found nothing"
        );
    }

    #[test]
    fn any_call_that_was_refused_walks_again_and_is_through_when_it_is_answered() {
        let reopens = EstaleRetries::default();
        reopens.refused(5, None);
        assert!(reopens.is_second(5) && reopens.open(5).is_none());
        assert!(!reopens.opens(5, 2), "nothing was found");
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
        let long_ago = || reopens.retries.lock().get_mut(&5).unwrap().since -= 2 * WHILE;
        reopens.refused(5, OPEN);
        long_ago();
        assert!(!reopens.is_second(5), "nothing came of it");
        reopens.refused(5, OPEN);
        long_ago();
        reopens.found(5, Some(7));
        assert!(reopens.is_second(5));
        long_ago();
        reopens.goes_on(5);
        assert!(reopens.opens(5, 7));
    }

    #[test]
    fn retries_are_bounded() {
        let reopens = EstaleRetries::default();
        for tid in 1..=2 * MOST as u32 {
            reopens.refused(tid, OPEN);
        }
        assert_eq!(reopens.retries.lock().len(), MOST);
    }
}
