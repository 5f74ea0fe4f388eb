//! The slot table of a session (RFC 8881 §2.10.6): a plain state machine.
//!
//! The slot table is the only concurrency limit of the client. A slot carries
//! one request at a time; its sequence id moves when the server has answered
//! that request's SEQUENCE with OK, and only then, so that a replay on another
//! connection is recognised.
//!
//! Rules:
//! - The lowest free slot is taken, so that the server may shrink its table.
//! - Slot 0 is kept for requests that must go through while every other slot
//!   is stuck (lease renewal, recovery), if there is more than one slot. They
//!   have a line of their own, which is served first.
//! - Bulk requests (READ and WRITE of data, read-ahead) leave some slots to
//!   metadata, so that a copy does not starve `ls`.
//! - Who finds no slot waits in line, metadata before bulk. The lines are
//!   bounded by the number of callers.
//! - A slot whose request was never answered is never used again.

use std::collections::VecDeque;

/// What a request is for; decides which slots it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Keeps client and session alive.
    Control,
    /// Small requests that somebody waits for.
    Metadata,
    /// Data.
    Bulk,
}

/// A slot taken for one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// The sequence id for this request.
    pub seqid: u32,
    /// The highest slot in use, itself included (sa_highest_slotid).
    pub highest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Busy,
    /// Of unknown sequence id.
    Retired,
}

/// The slots of one session, and who waits for one.
#[derive(Debug)]
pub struct SlotTable<W> {
    slots: Vec<(State, u32)>,
    /// Slots with a number at or above are not to be taken (the server's
    /// target).
    limit: u32,
    busy: u32,
    /// The session has ended: nobody waits any more.
    closed: bool,
    control: VecDeque<W>,
    metadata: VecDeque<W>,
    bulk: VecDeque<W>,
}

impl<W> SlotTable<W> {
    /// A table of `size` slots, at least one.
    pub fn new(size: u32) -> Self {
        let size = size.max(1);
        Self {
            slots: vec![(State::Free, 1); size as usize],
            limit: size,
            busy: 0,
            closed: false,
            control: VecDeque::new(),
            metadata: VecDeque::new(),
            bulk: VecDeque::new(),
        }
    }

    /// Number of slots that may be taken now.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Number of slots in use.
    pub fn busy(&self) -> u32 {
        self.busy
    }

    /// Takes a slot for a request of this class, or gets in line with what
    /// `waiter` makes; if the table is closed, neither.
    pub fn acquire(&mut self, class: Class, waiter: impl FnOnce() -> W) -> Option<Slot> {
        if self.closed {
            return None;
        }
        let must_queue = match class {
            Class::Control => false,
            Class::Metadata => !self.metadata.is_empty(),
            Class::Bulk => !self.metadata.is_empty() || !self.bulk.is_empty(),
        };
        if !must_queue && let Some(slot) = self.take(class) {
            return Some(slot);
        }
        self.line(class).push_back(waiter());
        None
    }

    /// Bulk requests may hold this many slots at once.
    fn bulk_share(&self) -> u32 {
        (self.limit - self.limit / 4).max(1)
    }

    fn take(&mut self, class: Class) -> Option<Slot> {
        let first = match class {
            Class::Control => 0,
            Class::Metadata | Class::Bulk => u32::from(self.limit > 1),
        };
        if class == Class::Bulk && self.busy >= self.bulk_share() {
            return None;
        }
        let id = (first..self.limit).find(|&id| self.slots[id as usize].0 == State::Free)?;
        let slot = &mut self.slots[id as usize];
        slot.0 = State::Busy;
        let seqid = slot.1;
        self.busy += 1;
        let highest = self
            .slots
            .iter()
            .rposition(|slot| slot.0 == State::Busy)
            .map_or(0, |highest| highest as u32);
        Some(Slot { id, seqid, highest })
    }

    /// Gives a slot back. `spent`: the server answered SEQUENCE with OK, so
    /// the sequence id moves. Returns who is next, each with a slot.
    pub fn release(&mut self, id: u32, spent: bool) -> Vec<(W, Slot)> {
        let slot = &mut self.slots[id as usize];
        if slot.0 == State::Busy {
            slot.0 = State::Free;
            self.busy -= 1;
        }
        if spent {
            slot.1 = slot.1.wrapping_add(1);
        }
        self.serve()
    }

    /// Takes a slot out of use for good: what the server thinks of it is not
    /// known any more. Returns who is next, each with a slot: bulk requests are
    /// let through by the number of busy slots.
    pub fn retire(&mut self, id: u32) -> Vec<(W, Slot)> {
        let slot = &mut self.slots[id as usize];
        if slot.0 == State::Busy {
            self.busy -= 1;
        }
        slot.0 = State::Retired;
        self.serve()
    }

    /// Whether there is a slot for ordinary requests. If not, they would wait
    /// for ever.
    pub fn any_left(&self) -> bool {
        let first = usize::from(self.limit > 1);
        self.slots[first..self.limit as usize]
            .iter()
            .any(|slot| slot.0 != State::Retired)
    }

    /// The server's wish (sr_target_highest_slotid): slots above are not
    /// taken any more. Returns who is next if there are more slots now.
    pub fn set_target(&mut self, highest: u32) -> Vec<(W, Slot)> {
        let limit = highest.saturating_add(1).min(self.slots.len() as u32);
        if limit == self.limit {
            return Vec::new();
        }
        self.limit = limit;
        self.serve()
    }

    fn line(&mut self, class: Class) -> &mut VecDeque<W> {
        match class {
            Class::Control => &mut self.control,
            Class::Metadata => &mut self.metadata,
            Class::Bulk => &mut self.bulk,
        }
    }

    fn serve(&mut self) -> Vec<(W, Slot)> {
        let mut served = Vec::new();
        loop {
            let class = match () {
                () if !self.control.is_empty() => Class::Control,
                () if !self.metadata.is_empty() => Class::Metadata,
                () if !self.bulk.is_empty() => Class::Bulk,
                () => return served,
            };
            let Some(slot) = self.take(class) else {
                return served;
            };
            if let Some(waiter) = self.line(class).pop_front() {
                served.push((waiter, slot));
            }
        }
    }

    /// The session has ended: gives back everybody in line, and lets nobody in
    /// line any more.
    pub fn close(&mut self) -> Vec<W> {
        self.closed = true;
        let lines = [&mut self.control, &mut self.metadata, &mut self.bulk];
        lines.into_iter().flat_map(std::mem::take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(size: u32) -> SlotTable<&'static str> {
        SlotTable::new(size)
    }

    fn take(table: &mut SlotTable<&'static str>, class: Class) -> Slot {
        table.acquire(class, || "no slot").expect("a free slot")
    }

    #[test]
    fn the_lowest_free_slot_is_taken_and_slot_zero_is_kept_for_control() {
        let mut table = table(8);
        let a = take(&mut table, Class::Metadata);
        assert_eq!((a.id, a.seqid, a.highest), (1, 1, 1));
        let b = take(&mut table, Class::Metadata);
        assert_eq!((b.id, b.highest), (2, 2));
        let c = take(&mut table, Class::Control);
        assert_eq!((c.id, c.highest), (0, 2));
        table.release(a.id, true);
        let a = take(&mut table, Class::Bulk);
        assert_eq!((a.id, a.seqid), (1, 2));
    }

    #[test]
    fn a_sequence_id_moves_only_when_spent_and_wraps() {
        let mut table = table(1);
        let slot = take(&mut table, Class::Metadata);
        assert_eq!((slot.id, slot.seqid), (0, 1));
        table.release(0, false);
        assert_eq!(take(&mut table, Class::Metadata).seqid, 1);
        table.release(0, true);
        assert_eq!(take(&mut table, Class::Metadata).seqid, 2);
        table.slots[0].1 = u32::MAX;
        table.release(0, true);
        assert_eq!(take(&mut table, Class::Metadata).seqid, 0);
    }

    #[test]
    fn bulk_leaves_slots_to_metadata_and_metadata_goes_first() {
        let mut table = table(4);
        take(&mut table, Class::Bulk);
        take(&mut table, Class::Bulk);
        let third = take(&mut table, Class::Bulk);
        assert_eq!(third.id, 3);
        assert_eq!(table.acquire(Class::Bulk, || "bulk"), None);
        assert_eq!(table.acquire(Class::Metadata, || "meta"), None);
        let served = table.release(third.id, true);
        assert_eq!(served.len(), 1);
        assert_eq!((served[0].0, served[0].1.seqid), ("meta", 2));
        let served = table.release(1, true);
        assert_eq!((served.len(), served[0].0), (1, "bulk"));
    }

    #[test]
    fn a_newcomer_does_not_overtake_the_line() {
        let mut table = table(2);
        let only = take(&mut table, Class::Metadata);
        assert_eq!(table.acquire(Class::Metadata, || "first"), None);
        assert_eq!(table.acquire(Class::Metadata, || "second"), None);
        let served = table.release(only.id, true);
        assert_eq!(served[0].0, "first");
    }

    #[test]
    fn a_smaller_target_lets_running_requests_end_and_takes_no_new_ones() {
        let mut table = table(8);
        let slots: Vec<_> = (0..4).map(|_| take(&mut table, Class::Metadata)).collect();
        assert!(table.set_target(1).is_empty());
        assert_eq!(table.acquire(Class::Metadata, || "waits"), None);
        assert!(table.release(slots[3].id, true).is_empty());
        let served = table.release(slots[0].id, true);
        assert_eq!(served[0].1.id, 1);
        assert_eq!(table.acquire(Class::Metadata, || "later"), None);
        let served = table.set_target(7);
        assert_eq!(served.len(), 1);
    }

    #[test]
    fn a_target_beyond_the_table_is_cut_and_an_extreme_one_is_no_overflow() {
        let mut table = table(4);
        table.set_target(u32::MAX);
        assert_eq!(table.limit(), 4);
        table.set_target(0);
        assert_eq!(table.limit(), 1);
        assert_eq!(take(&mut table, Class::Bulk).id, 0);
    }

    #[test]
    fn a_retired_slot_is_never_used_again() {
        let mut table = table(3);
        let a = take(&mut table, Class::Metadata);
        table.retire(a.id);
        assert!(table.any_left());
        assert_eq!(take(&mut table, Class::Metadata).id, 2);
        assert_eq!(table.acquire(Class::Metadata, || ""), None);
        table.retire(2);
        assert!(!table.any_left());
        assert_eq!(table.busy(), 0);
    }

    #[test]
    fn a_target_that_leaves_only_retired_slots_leaves_none() {
        let mut table = table(4);
        let a = take(&mut table, Class::Metadata);
        table.retire(a.id);
        table.set_target(1);
        assert!(!table.any_left());
    }

    #[test]
    fn slot_zero_goes_from_control_to_control() {
        let mut table = table(2);
        take(&mut table, Class::Metadata);
        let zero = take(&mut table, Class::Control);
        assert_eq!(table.acquire(Class::Metadata, || "meta"), None);
        assert_eq!(table.acquire(Class::Control, || "control"), None);
        let served = table.release(zero.id, true);
        assert_eq!((served[0].0, served[0].1.id), ("control", 0));
    }

    #[test]
    fn bulk_goes_on_when_the_slots_that_held_it_up_are_retired() {
        let mut table = table(4);
        for _ in 0..3 {
            take(&mut table, Class::Bulk);
        }
        assert_eq!(table.acquire(Class::Bulk, || "bulk"), None);
        table.retire(1);
        assert!(table.retire(2).is_empty(), "slot 0 is not for bulk");
        assert_eq!(table.release(3, true)[0].0, "bulk");
    }

    #[test]
    fn nobody_waits_for_a_slot_of_a_closed_table() {
        let mut table = table(1);
        take(&mut table, Class::Metadata);
        assert_eq!(table.acquire(Class::Bulk, || "waits"), None);
        assert_eq!(table.close(), ["waits"]);
        assert_eq!(table.acquire(Class::Bulk, || panic!("in line")), None);
    }
}
