//! Directories whose names, and files whose attributes, were changed here without the server knowing
//! yet (`writeback`): no request about one gets there before those changes.
//!
//! Whoever asks about such an object would be told what is not true here any more, and whoever
//! changes it would overtake what was done before. So a request that names one waits, whatever it
//! is and whoever has made it, until nothing of that object is under way. Only the changes
//! themselves go past ([`Past::Gate`]), and what they may wait for and nobody is told anything by: CLOSE,
//! and LOCKU, before which everything was waited for already. Whoever waits is not made to wait for company
//! ([`Gate::hurry`]), and not for changes without end: nothing more is accepted for an object that
//! somebody waits for ([`Gate::is_awaited`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::nfs::proto::types::FileHandle;

/// Whether a request waits for changes of names that were accepted before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nfs) enum Past {
    /// It is one of them, or what they may wait for, and goes past the others' waiting.
    Gate,
    /// It waits, as all others do.
    Nothing,
}

/// Called when somebody begins to wait.
type Hurry = Box<dyn Fn() + Send + Sync>;

/// See the module. Its lock is taken alone.
#[derive(Default)]
pub(in crate::nfs) struct Gate {
    /// Objects that are shut, without asking the lock.
    count: AtomicUsize,
    known: Mutex<Known>,
    opened: Notify,
    hurry: OnceLock<Hurry>,
}

#[derive(Debug, Default)]
struct Known {
    /// Each object that is ahead, and how many changes of it the server has not answered.
    shut: HashMap<FileHandle, usize>,
    /// The same of those that were promised when they were shut, which no map finds again.
    promised: Vec<(FileHandle, usize)>,
    /// What is waited for: once for each request that does.
    awaited: Vec<FileHandle>,
}

impl Known {
    fn changes_of(&mut self, object: &FileHandle) -> Option<&mut usize> {
        let promised = self.promised.iter_mut().find(|(known, _)| known == object);
        match promised {
            Some((_, changes)) => Some(changes),
            None => self.shut.get_mut(object),
        }
    }

    fn shut(&mut self, object: &FileHandle) {
        match self.changes_of(object) {
            Some(changes) => *changes += 1,
            None if object.is_given() => drop(self.shut.insert(object.clone(), 1)),
            None => self.promised.push((object.clone(), 1)),
        }
    }

    fn answered(&mut self, object: &FileHandle, answered: usize) {
        let Some(changes) = self.changes_of(object) else {
            return;
        };
        *changes = changes.saturating_sub(answered);
        if *changes == 0 {
            self.promised.retain(|(known, _)| known != object);
            self.shut.remove(object);
        }
    }

    fn is_shut(&self, object: &FileHandle) -> bool {
        self.shut.contains_key(object) || self.promised.iter().any(|(known, _)| known == object)
    }

    fn len(&self) -> usize {
        self.shut.len() + self.promised.len()
    }
}

/// Somebody waits for these objects, as long as it lives.
struct Waiting<'a> {
    gate: &'a Gate,
    named: &'a [FileHandle],
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let awaited = &mut self.gate.known.lock().awaited;
        for handle in self.named {
            if let Some(at) = awaited.iter().position(|awaited| awaited == handle) {
                awaited.swap_remove(at);
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.known).finish()
    }
}

impl Gate {
    /// Any object is shut.
    pub(super) fn is_shut(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// A change of this object was accepted.
    pub(in crate::nfs) fn shut(&self, object: &FileHandle) {
        let mut known = self.known.lock();
        known.shut(object);
        self.count.store(known.len(), Ordering::Release);
    }

    /// So many changes of it were answered, or will never be sent.
    pub(in crate::nfs) fn open(&self, object: &FileHandle, answered: usize) {
        let mut known = self.known.lock();
        known.answered(object, answered);
        self.count.store(known.len(), Ordering::Release);
        drop(known);
        self.opened.notify_waiters();
    }

    /// Has this called whenever somebody begins to wait. Only the first one given is kept.
    pub(in crate::nfs) fn on_waiting(&self, hurry: impl Fn() + Send + Sync + 'static) {
        let _ = self.hurry.set(Box::new(hurry));
    }

    /// Somebody waits for what was accepted and not sent yet.
    pub(super) fn hurry(&self) {
        if let Some(hurry) = self.hurry.get() {
            hurry();
        }
    }

    /// Requests wait for what is under way of this object.
    pub(in crate::nfs) fn is_awaited(&self, object: &FileHandle) -> bool {
        self.is_shut() && self.known.lock().awaited.contains(object)
    }

    /// Waits until none of these objects is shut.
    pub(super) async fn passes(&self, named: &[FileHandle]) {
        if !self.stops(named) {
            return;
        }
        self.known.lock().awaited.extend_from_slice(named);
        let _waiting = Waiting { gate: self, named };
        self.hurry();
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

    /// Changes of this object are under way.
    pub(in crate::nfs) fn is_shut_for(&self, object: &FileHandle) -> bool {
        self.is_shut() && self.known.lock().is_shut(object)
    }

    /// One of these objects is shut.
    pub(super) fn stops(&self, named: &[FileHandle]) -> bool {
        let known = self.known.lock();
        named.iter().any(|handle| known.is_shut(handle))
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
    async fn whoever_waits_is_known_until_he_is_gone_and_hurries_what_he_waits_for() {
        let gate = Gate::default();
        let hurried = std::sync::Arc::new(AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&hurried);
        gate.on_waiting(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        gate.shut(&handle(1));
        gate.passes(&[handle(2)]).await;
        assert_eq!(hurried.load(Ordering::Relaxed), 0, "nobody waits");
        let one = [handle(1)];
        {
            let waiting = gate.passes(&one);
            tokio::pin!(waiting);
            let now = std::time::Duration::ZERO;
            assert!(tokio::time::timeout(now, waiting.as_mut()).await.is_err());
            assert!(gate.is_awaited(&handle(1)) && !gate.is_awaited(&handle(2)));
            assert_eq!(hurried.load(Ordering::Relaxed), 1);
        }
        assert!(!gate.is_awaited(&handle(1)), "he has given up");
    }

    #[tokio::test]
    async fn a_directory_that_is_promised_stays_shut_when_it_is_given() {
        let gate = Gate::default();
        let (dir, promise) = FileHandle::promised(1);
        gate.shut(&dir);
        promise.keep(&handle(7));
        assert!(gate.stops(&[handle(7)]));
        gate.shut(&handle(7));
        gate.open(&dir, 1);
        assert!(gate.stops(&[dir]), "one of two changes");
        gate.open(&handle(7), 1);
        assert!(!gate.is_shut());
    }
}
