//! The second try of an open whose name was found to lead elsewhere.
//!
//! The vfs refuses with ESTALE to open a file under a name that another host has
//! given to a new one. The kernel then walks the path once more, asking for
//! every name, and opens what it finds; a second ESTALE goes to the program.
//! So the file that was found on the second walk is opened even if the name has
//! moved on again in the meantime: it had the name after open(2) was called,
//! which is all that a program can know.
//!
//! Kept per thread, since that is what walks: at most [`MOST`] for [`WHILE`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::vfs::types::Ino;

const MOST: usize = 1024;
const WHILE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Retry {
    since: Instant,
    /// What was not opened.
    refused: Ino,
    /// What the walk came to last.
    found: Option<Ino>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reopens {
    retries: Mutex<HashMap<u32, Retry>>,
    /// Their number, so that nobody takes the lock for nothing.
    count: AtomicUsize,
}

impl Reopens {
    fn none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// An open of `ino` by thread `tid` was refused.
    pub(super) fn refused(&self, tid: u32, ino: Ino) {
        let mut retries = self.retries.lock();
        if retries.len() >= MOST {
            retries.retain(|_, retry| retry.since.elapsed() < WHILE);
        }
        if tid != 0 && retries.len() < MOST {
            let retry = Retry {
                since: Instant::now(),
                refused: ino,
                found: None,
            };
            retries.insert(tid, retry);
        }
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

    /// The server says that a name leads to `ino`, or nowhere (`None`), with which
    /// the walk has come to its end: what the thread opens next has nothing to do
    /// with it.
    pub(super) fn found(&self, tid: u32, ino: Option<Ino>) {
        let mut retries = self.retries.lock();
        match ino {
            Some(_) => {
                if let Some(retry) = retries.get_mut(&tid) {
                    retry.found = ino;
                }
            }
            None => {
                retries.remove(&tid);
                self.count.store(retries.len(), Ordering::Release);
            }
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
            retry.found.unwrap_or(retry.refused) == ino && retry.since.elapsed() < WHILE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_second_walk_found_is_opened_once() {
        let reopens = Reopens::default();
        assert!(!reopens.is_second(5) && !reopens.opens(5, 7));
        reopens.refused(5, 2);
        assert!(reopens.is_second(5) && !reopens.is_second(6));
        reopens.found(5, Some(3));
        reopens.found(5, Some(7));
        assert!(reopens.opens(5, 7));
        assert!(!reopens.is_second(5) && !reopens.opens(5, 7));
        reopens.refused(5, 2);
        reopens.found(5, Some(3));
        assert!(!reopens.opens(5, 7), "another file");
        reopens.refused(5, 2);
        assert!(reopens.opens(5, 2), "no walk");
        reopens.refused(5, 2);
        assert!(!reopens.opens(5, 7), "neither a walk nor the same file");
        reopens.refused(5, 2);
        reopens.found(5, Some(3));
        reopens.found(5, None);
        assert!(
            !reopens.is_second(5) && !reopens.opens(5, 3),
            "it found nothing"
        );
    }

    #[test]
    fn retries_are_bounded() {
        let reopens = Reopens::default();
        for tid in 1..=2 * MOST as u32 {
            reopens.refused(tid, 2);
        }
        assert_eq!(reopens.retries.lock().len(), MOST);
    }
}
