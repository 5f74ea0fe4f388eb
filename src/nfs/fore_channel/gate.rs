//! Directories whose names were changed here without the server knowing yet (`writeback`): no
//! request about one gets there before those changes.
//!
//! Whoever asks about such a directory would be told what is not true here any more, and whoever
//! changes it would overtake what was done before. So a request that names one waits, whatever it
//! is and whoever has made it, until nothing of that directory is under way. Only the changes
//! themselves go past ([`Past::Gate`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::nfs::proto::types::FileHandle;

/// Whether a request waits for changes of names that were accepted before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nfs) enum Past {
    /// It is one of them, and goes past the others' waiting.
    Gate,
    /// It waits, as all others do.
    Nothing,
}

/// See the module. Its lock is taken alone.
#[derive(Debug, Default)]
pub(in crate::nfs) struct Gate {
    /// Directories in `shut`, without asking the lock.
    count: AtomicUsize,
    /// Each directory, and how many changes of it the server has not answered.
    shut: Mutex<Vec<(FileHandle, usize)>>,
    opened: Notify,
}

impl Gate {
    /// Any directory is shut.
    pub(super) fn is_shut(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// A change of this directory was accepted.
    pub(in crate::nfs) fn shut(&self, dir: &FileHandle) {
        let mut shut = self.shut.lock();
        match shut.iter_mut().find(|(known, _)| known == dir) {
            Some((_, changes)) => *changes += 1,
            None => shut.push((dir.clone(), 1)),
        }
        self.count.store(shut.len(), Ordering::Release);
    }

    /// So many changes of it were answered, or will never be sent.
    pub(in crate::nfs) fn open(&self, dir: &FileHandle, answered: usize) {
        let mut shut = self.shut.lock();
        if let Some(at) = shut.iter().position(|(known, _)| known == dir) {
            let changes = &mut shut[at].1;
            *changes = changes.saturating_sub(answered);
            if *changes == 0 {
                shut.swap_remove(at);
            }
        }
        self.count.store(shut.len(), Ordering::Release);
        drop(shut);
        self.opened.notify_waiters();
    }

    /// Waits until none of these objects is a directory that is shut.
    pub(super) async fn passes(&self, named: &[FileHandle]) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if !self.stops(named) {
                return;
            }
            opened.await;
        }
    }

    /// One of these objects is a directory that is shut.
    pub(super) fn stops(&self, named: &[FileHandle]) -> bool {
        let shut = self.shut.lock();
        named
            .iter()
            .any(|handle| shut.iter().any(|(dir, _)| dir == handle))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn handle(byte: u8) -> FileHandle {
        Bytes::copy_from_slice(&[byte])
            .try_into()
            .expect("a handle")
    }

    #[tokio::test]
    async fn what_is_about_a_directory_waits_for_the_last_change_of_it_and_nothing_else_does() {
        let gate = Gate::default();
        assert!(!gate.is_shut());
        gate.shut(&handle(1));
        gate.shut(&handle(1));
        gate.shut(&handle(2));
        assert!(gate.is_shut() && gate.stops(&[handle(9), handle(1)]));
        gate.passes(&[handle(3)]).await;
        gate.open(&handle(1), 1);
        assert!(gate.stops(&[handle(1)]));
        let one = [handle(1)];
        let waiting = gate.passes(&one);
        let opening = async {
            tokio::task::yield_now().await;
            gate.open(&handle(1), 1);
        };
        tokio::join!(waiting, opening);
        gate.open(&handle(2), 5);
        assert!(!gate.is_shut() && !gate.stops(&[handle(2)]));
    }

    #[tokio::test]
    async fn a_directory_that_is_promised_stays_shut_when_it_is_given() {
        let gate = Gate::default();
        let (dir, promise) = FileHandle::promised();
        gate.shut(&dir);
        promise.keep(&handle(7));
        assert!(gate.stops(&[handle(7)]));
        gate.open(&dir, 1);
        assert!(!gate.is_shut());
    }
}
