//! The calls of a channel that wait for their replies: a plain state machine.
//!
//! Invariants:
//! - A call is in `calls` from [`Pending::submit`] until its reply is taken or
//!   the channel is closed; it is in `unsent` while no live connection has been
//!   given it.
//! - A call is given to one connection at most once. It goes out again only on
//!   a later connection (RFC 8881 §2.9.2), with the bytes it had.
//! - The bound of both queues is the caller's: the session's slot table lets
//!   through one call a slot.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::time::Instant;

use super::call::{Call, Message};

/// Calls without a reply, each with what is owed to its caller.
#[derive(Debug)]
pub struct Pending<T> {
    next_xid: u32,
    next_order: u64,
    calls: HashMap<u32, Waiting<T>>,
    unsent: VecDeque<u32>,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Submission order: replays keep it.
    order: u64,
    /// When it was submitted.
    since: Instant,
    message: Message,
    /// Number of connections it was given to.
    sent: u32,
    owed: T,
}

/// What is known of a call when its reply comes.
#[derive(Debug, PartialEq, Eq)]
pub struct Replied<T> {
    /// What is owed to its caller.
    pub owed: T,
    /// It went out more than once: the server may have run it under a reply
    /// that was lost.
    pub resent: bool,
    /// When it was submitted.
    pub since: Instant,
}

impl<T> Pending<T> {
    /// No calls; the first xid is `xid` (random, so that a restarted client
    /// does not repeat the xids of its predecessor).
    pub fn new(xid: u32) -> Self {
        Self {
            next_xid: xid,
            next_order: 0,
            calls: HashMap::new(),
            unsent: VecDeque::new(),
        }
    }

    /// Adds a call, to be sent next. Returns its xid.
    pub fn submit(&mut self, call: Call, owed: T, now: Instant) -> u32 {
        while self.calls.contains_key(&self.next_xid) {
            self.next_xid = self.next_xid.wrapping_add(1);
        }
        let xid = self.next_xid;
        self.next_xid = xid.wrapping_add(1);
        let order = self.next_order;
        self.next_order += 1;
        let message = Message::seal(call, xid);
        self.calls.insert(
            xid,
            Waiting {
                order,
                since: now,
                message,
                sent: 0,
                owed,
            },
        );
        self.unsent.push_back(xid);
        xid
    }

    /// Takes the next call that the current connection has not been given.
    pub fn next_to_send(&mut self) -> Option<Message> {
        while let Some(xid) = self.unsent.pop_front() {
            if let Some(waiting) = self.calls.get_mut(&xid) {
                waiting.sent += 1;
                return Some(waiting.message.clone());
            }
        }
        None
    }

    /// A new connection is there: everything unanswered goes out again, in
    /// the order it was submitted. Returns how many calls are replayed.
    pub fn connected(&mut self) -> usize {
        let never_sent = self.unsent.len();
        let in_order: BTreeMap<u64, u32> = self
            .calls
            .iter()
            .map(|(&xid, waiting)| (waiting.order, xid))
            .collect();
        self.unsent = in_order.into_values().collect();
        self.unsent.len().saturating_sub(never_sent)
    }

    /// A reply came: returns what is owed, or `None` for an xid that nobody
    /// waits for (a duplicate, or a late answer to a replayed call).
    pub fn replied(&mut self, xid: u32) -> Option<Replied<T>> {
        self.calls.remove(&xid).map(|waiting| Replied {
            owed: waiting.owed,
            resent: waiting.sent > 1,
            since: waiting.since,
        })
    }

    /// Gives up every call.
    pub fn close(&mut self) -> Vec<T> {
        self.unsent.clear();
        self.calls
            .drain()
            .map(|(_, waiting)| waiting.owed)
            .collect()
    }

    /// When the call was submitted that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.calls.values().map(|waiting| waiting.since).min()
    }

    /// Number of calls without a reply.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// No call waits.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smallvec::SmallVec;

    use super::*;

    fn call(tag: u8) -> Call {
        Call {
            head: vec![0, 0, 0, 0, 0, 0, 0, 0, tag],
            rest: SmallVec::new(),
        }
    }

    fn sent(pending: &mut Pending<u8>) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| pending.next_to_send())
            .map(|message| message.parts.concat())
            .collect()
    }

    #[test]
    fn unanswered_calls_are_replayed_in_order_with_the_same_bytes() {
        let mut pending = Pending::new(u32::MAX);
        let since = Instant::now();
        let a = pending.submit(call(1), 1, Instant::now());
        let b = pending.submit(call(2), 2, since);
        let c = pending.submit(call(3), 3, Instant::now());
        assert_eq!([a, b, c], [u32::MAX, 0, 1]);
        let first = sent(&mut pending);
        assert_eq!(first.len(), 3);
        assert!(sent(&mut pending).is_empty(), "once a connection");

        assert_eq!(
            pending.replied(b),
            Some(Replied {
                owed: 2,
                resent: false,
                since,
            })
        );
        assert_eq!(pending.connected(), 2);
        assert_eq!(sent(&mut pending), [first[0].clone(), first[2].clone()]);
        assert!(pending.replied(a).unwrap().resent);
    }

    #[test]
    fn a_reply_is_taken_once() {
        let mut pending = Pending::new(5);
        let xid = pending.submit(call(1), 1, Instant::now());
        assert_eq!(pending.replied(77), None);
        assert_eq!(pending.replied(xid).unwrap().owed, 1);
        assert_eq!(pending.replied(xid), None);
        assert!(pending.is_empty());
        assert!(sent(&mut pending).is_empty(), "answered before it was sent");
    }

    #[test]
    fn the_call_that_waits_longest_is_known() {
        let mut pending = Pending::new(5);
        let begun = Instant::now();
        assert_eq!(pending.oldest(), None);
        let old = pending.submit(call(1), 1, begun);
        pending.submit(call(2), 2, begun + Duration::from_secs(3));
        pending.connected();
        assert_eq!(pending.oldest(), Some(begun), "a replay is not a new call");
        pending.replied(old);
        assert_eq!(pending.oldest(), Some(begun + Duration::from_secs(3)));
    }

    #[test]
    fn an_xid_in_use_is_not_given_again() {
        let mut pending = Pending::new(1);
        let a = pending.submit(call(1), 1, Instant::now());
        pending.next_xid = a;
        assert_ne!(pending.submit(call(2), 2, Instant::now()), a);
    }
}
