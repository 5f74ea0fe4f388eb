//! Changes that are still at work although their callers are gone.
//!
//! A caller that is killed, or that a soft mount tells to wait no longer, has its
//! answer before the request ends. What it had locked to protect the change must
//! not be unlocked before that, or the next one to lock finds the change half done, or
//! sees it happen. So who gives locks up waits until every change that was
//! abandoned before has ended.
//!
//! A change itself never waits here: it gives no locks up. The lock in here is held
//! for moments, with nothing locked inside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The abandoned changes of a mount.
#[derive(Debug, Default)]
pub struct Abandoned {
    running: Mutex<Running>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    numbers: BTreeSet<u64>,
}

/// One change, abandoned and not ended: it ends when this is dropped.
#[derive(Debug)]
pub struct AtWork {
    of: Arc<Abandoned>,
    number: u64,
}

impl Abandoned {
    /// The caller of a change is about to be gone.
    pub fn begin(self: &Arc<Self>) -> AtWork {
        let mut running = self.running.lock();
        let number = running.next;
        running.next += 1;
        running.numbers.insert(number);
        AtWork {
            of: Arc::clone(self),
            number,
        }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.running.lock().numbers.is_empty()
    }

    /// Waits for the end of all that were abandoned so far.
    pub(super) async fn ended(&self) {
        let until = self.running.lock().next;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let first = self.running.lock().numbers.first().copied();
            if first.is_none_or(|first| first >= until) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.of.running.lock().numbers.remove(&self.number);
        self.of.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_that_came_before_are_waited_for_and_those_after_are_not() {
        let abandoned = Arc::new(Abandoned::default());
        abandoned.ended().await;
        let (first, second) = (abandoned.begin(), abandoned.begin());
        let waits = tokio::spawn({
            let abandoned = Arc::clone(&abandoned);
            async move { abandoned.ended().await }
        });
        tokio::task::yield_now().await;
        let _later = abandoned.begin();
        drop(second);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(first);
        waits.await.unwrap();
    }
}
