//! A session while it lasts: its slots and who waits for one, its lease, and what
//! the server said last of its state.
//!
//! Each of the locks here is held for a moment and none inside another.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::establish::{self, ChannelAttrs};
use super::slots::{Class, Slot, SlotTable};
use crate::nfs::proto::types::SessionId;

/// A session and its slots.
pub(in super::super) struct Session {
    pub(in super::super) id: SessionId,
    pub(in super::super) attrs: ChannelAttrs,
    /// Counts the sessions of this client.
    pub(in super::super) generation: u64,
    slots: Mutex<SlotTable<oneshot::Sender<Slot>>>,
    /// When the last request left that the server answered: the lease runs
    /// from there (RFC 8881 §8.3). And how long the machine had slept by then.
    renewed: Mutex<(Instant, Duration)>,
    suspended: fn() -> Duration,
    /// SEQUENCE status flags last seen, to act on rising edges only.
    flags: AtomicU32,
}

impl Session {
    /// `flags` are those seen last in the session before it, if there was one: a
    /// new session does not make an old flag news.
    pub(in super::super) fn new(
        new: &establish::NewSession,
        generation: u64,
        flags: u32,
        suspended: fn() -> Duration,
    ) -> Self {
        Self {
            id: new.id,
            attrs: new.attrs,
            generation,
            slots: Mutex::new(SlotTable::new(new.attrs.max_requests)),
            renewed: Mutex::new((Instant::now(), suspended())),
            suspended,
            flags: AtomicU32::new(flags),
        }
    }

    /// Time since the lease was last renewed, asleep or awake.
    pub(in super::super) fn idle(&self) -> Duration {
        let (at, slept) = *self.renewed.lock();
        at.elapsed() + (self.suspended)().saturating_sub(slept)
    }

    /// SEQUENCE status flags seen last.
    pub(in super::super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Slots that may be used, and those in use.
    pub(in super::super) fn usage(&self) -> (u32, u32) {
        let slots = self.slots.lock();
        (slots.limit(), slots.busy())
    }

    /// Requests that are under way in it.
    pub(in super::super) fn busy(&self) -> u32 {
        self.slots.lock().busy()
    }

    /// Takes a slot, waiting in line for one. `None`: the session has ended.
    pub(in super::super) async fn slot(&self, class: Class) -> Option<Slot> {
        let (turn, waiting) = {
            let mut waiting = None;
            let slot = self.slots.lock().acquire(class, || {
                let (tx, rx) = oneshot::channel();
                waiting = Some(rx);
                tx
            });
            // In a session that has ended, `acquire` drops what it is given.
            (slot, waiting)
        };
        match (turn, waiting) {
            (Some(slot), _) => Some(slot),
            (None, Some(waiting)) => waiting.await.ok(),
            (None, None) => None,
        }
    }

    /// Gives a slot back; `spent` says that its sequence id has moved.
    pub(in super::super) fn release(&self, id: u32, spent: bool) {
        let next = self.slots.lock().release(id, spent);
        self.hand_over(next);
    }

    /// Takes a slot out of use: nobody knows what became of it. False if none is left.
    pub(in super::super) fn retire(&self, id: u32) -> bool {
        let (next, any_left) = {
            let mut slots = self.slots.lock();
            (slots.retire(id), slots.any_left())
        };
        self.hand_over(next);
        any_left
    }

    /// SEQUENCE of a request sent at `sent_at` was answered: the lease is renewed, and
    /// the server wishes for so many slots. Returns the status flags that this reply
    /// raises, and false if no slot is left.
    pub(in super::super) fn answered(
        &self,
        sent_at: Instant,
        target: u32,
        flags: u32,
    ) -> (u32, bool) {
        let (next, any_left) = {
            let mut slots = self.slots.lock();
            (slots.set_target(target), slots.any_left())
        };
        self.hand_over(next);
        {
            let slept = (self.suspended)();
            let mut renewed = self.renewed.lock();
            if renewed.0 < sent_at {
                *renewed = (sent_at, slept);
            }
        }
        let before = self.flags.swap(flags, Ordering::Relaxed);
        (flags & !before, any_left)
    }

    fn hand_over(&self, mut next: Vec<(oneshot::Sender<Slot>, Slot)>) {
        while let Some((waiter, slot)) = next.pop() {
            // Who waited may be gone; the slot goes to the next in line.
            if let Err(slot) = waiter.send(slot) {
                next.extend(self.slots.lock().release(slot.id, false));
            }
        }
    }

    /// Ends the waiting of everybody in line, and of who comes later.
    pub(in super::super) fn end(&self) {
        drop(self.slots.lock().close());
    }
}
