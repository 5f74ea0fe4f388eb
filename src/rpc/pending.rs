//! The calls of a channel that wait for their replies, and which connection each
//! is on: a plain state machine.
//!
//! A *connection* is one that lives. Invariants:
//! - A call is in `calls` from [`Pending::submit`] until its reply is taken or
//!   the channel is closed. It belongs to one connection, or, while there is none, to
//!   the one that comes next.
//! - A connection is given a call at most once. A call goes out again only on another
//!   connection, when its own has ended (RFC 8881 §2.9.2), with the bytes it had; the
//!   calls of other connections are not touched by that.
//! - Which connection a call is put on is decided by [`super::placement`].
//! - A call whose caller does not wait any more is not given to a connection, neither for
//!   the first time nor again ([`Next::Abandoned`]).
//! - The bound of all queues is the caller's: the session's slot table lets
//!   through one call a slot.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::call::{Call, Message};
use super::caller::Request;
use super::placement::{ConnectionId, ConnectionLoad, ConnectionTable, Load};

/// Calls without a reply, each with what is owed to its caller.
#[derive(Debug)]
pub struct Pending<T> {
    next_xid: u32,
    next_order: u64,
    calls: HashMap<u32, PendingCall<T>>,
    connections: ConnectionTable,
    /// Calls without a connection, by order.
    homeless: BTreeMap<u64, u32>,
    /// Bulk calls among all.
    bulk: usize,
}

#[derive(Debug)]
struct PendingCall<T> {
    /// Submission order: replays keep it.
    order: u64,
    /// When it was submitted.
    since: Instant,
    message: Message,
    load: Load,
    connection: Option<ConnectionId>,
    /// Number of connections it was given to.
    sent: u32,
    request: Arc<Request>,
    owed: T,
}

/// What is next on a connection.
#[derive(Debug)]
pub enum Next<T> {
    /// A call is to be sent.
    Send(Message),
    /// Nobody waits for this call any more: it is not sent (again). `sent` says that it
    /// was given to a connection before, which has ended.
    Abandoned {
        /// What is owed to its caller.
        owed: T,
        /// It may have been executed.
        sent: bool,
    },
}

/// What is known of a call when its reply comes.
#[derive(Debug, PartialEq, Eq)]
pub struct Replied<T> {
    /// What is owed to its caller.
    pub owed: T,
    /// It went out more than once: the server may have run it under a reply
    /// that was lost.
    pub resent: bool,
    /// What it weighed.
    pub load: Load,
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
            connections: ConnectionTable::default(),
            homeless: BTreeMap::new(),
            bulk: 0,
        }
    }

    /// Adds a call, to be sent next on connection `wish`, if that is there, or the one
    /// with the least to do. Returns its xid, and the connection that has something to send
    /// now.
    pub fn submit(
        &mut self,
        call: Call,
        load: Load,
        wish: Option<ConnectionId>,
        request: Arc<Request>,
        owed: T,
        now: Instant,
    ) -> (u32, Option<ConnectionId>) {
        while self.calls.contains_key(&self.next_xid) {
            self.next_xid = self.next_xid.wrapping_add(1);
        }
        let xid = self.next_xid;
        self.next_xid = xid.wrapping_add(1);
        let order = self.next_order;
        self.next_order += 1;
        self.bulk += usize::from(load == Load::Bulk);
        let call = PendingCall {
            order,
            since: now,
            message: Message::seal(call, xid),
            load,
            connection: None,
            sent: 0,
            request,
            owed,
        };
        self.calls.insert(xid, call);
        (xid, self.place(xid, wish, now))
    }

    /// Puts a call on a connection.
    fn place(
        &mut self,
        xid: u32,
        wish: Option<ConnectionId>,
        now: Instant,
    ) -> Option<ConnectionId> {
        let call = self.calls.get_mut(&xid)?;
        call.connection = self.connections.put(xid, call.load, wish, now);
        if call.connection.is_none() {
            self.homeless.insert(call.order, xid);
        }
        call.connection
    }

    /// Takes the next call that this connection has not been given.
    pub fn next_to_send(&mut self, id: ConnectionId) -> Option<Next<T>> {
        while let Some(xid) = self.connections.next_unsent(id) {
            let Some(call) = self.calls.get_mut(&xid) else {
                continue;
            };
            if call.request.start() {
                call.sent += 1;
                return Some(Next::Send(call.message.clone()));
            }
            let sent = call.sent > 0;
            let owed = self.replied(xid)?.owed;
            return Some(Next::Abandoned { owed, sent });
        }
        None
    }

    /// A new connection is there: what has no connection goes out on it, in the order it
    /// was submitted. Returns how many of these calls are replayed.
    pub fn join(&mut self, id: ConnectionId, now: Instant) -> usize {
        self.connections.join(id, now);
        let mut replayed = 0;
        for xid in std::mem::take(&mut self.homeless).into_values() {
            replayed += usize::from(self.calls.get(&xid).is_some_and(|call| call.sent > 0));
            self.place(xid, Some(id), now);
        }
        replayed
    }

    /// A connection gets no more calls: it is about to end.
    pub fn close_to_calls(&mut self, id: ConnectionId) {
        self.connections.close_to_calls(id);
    }

    /// The same, if nothing is under way on it. False: it goes on.
    pub fn retire(&mut self, id: ConnectionId) -> bool {
        self.connections.retire(id)
    }

    /// A connection has ended: its calls go out again on the others, in the order
    /// they were submitted. Returns the connections that have something to send now.
    pub fn leave(&mut self, id: ConnectionId, now: Instant) -> Vec<ConnectionId> {
        self.connections.remove(id);
        let left: BTreeMap<u64, u32> = self
            .calls
            .iter()
            .filter(|(_, call)| call.connection == Some(id))
            .map(|(&xid, call)| (call.order, xid))
            .collect();
        let mut given: Vec<_> = left
            .into_values()
            .filter_map(|xid| self.place(xid, None, now))
            .collect();
        given.sort_unstable();
        given.dedup();
        given
    }

    /// A reply came: returns what is owed, or `None` for an xid that nobody
    /// waits for (a duplicate, or a late answer to a replayed call).
    pub fn replied(&mut self, xid: u32) -> Option<Replied<T>> {
        let call = self.calls.remove(&xid)?;
        self.bulk -= usize::from(call.load == Load::Bulk);
        if let Some(connection) = call.connection {
            self.connections.answered(connection, call.load);
        }
        Some(Replied {
            owed: call.owed,
            resent: call.sent > 1,
            load: call.load,
            since: call.since,
        })
    }

    /// Gives up every call.
    pub fn close(&mut self) -> Vec<T> {
        self.homeless.clear();
        self.bulk = 0;
        self.connections.clear();
        let mut left: Vec<_> = self.calls.drain().map(|(_, call)| call).collect();
        left.sort_unstable_by_key(|call| call.order);
        left.into_iter().map(|call| call.owed).collect()
    }

    /// When the call was submitted that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.calls.values().map(|call| call.since).min()
    }

    /// Since when calls are out on this connection, one or another.
    pub fn busy_since(&self, id: ConnectionId) -> Option<Instant> {
        self.connections.busy_since(id)
    }

    /// The connections, in the order they joined, without those that are about to end.
    pub fn connections(&self) -> impl DoubleEndedIterator<Item = ConnectionLoad> {
        self.connections.loads()
    }

    /// Number of bulk calls without a reply.
    pub fn bulk(&self) -> usize {
        self.bulk
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

    use super::super::caller::{self, Caller};
    use super::*;

    const A: ConnectionId = 1;
    const B: ConnectionId = 2;
    const C: ConnectionId = 3;

    fn call(tag: u8) -> Call {
        Call {
            head: vec![0, 0, 0, 0, 0, 0, 0, 0, tag],
            rest: SmallVec::new(),
        }
    }

    fn with_connections(xid: u32, connections: &[ConnectionId]) -> Pending<u8> {
        let mut pending = Pending::new(xid);
        for &connection in connections {
            pending.join(connection, Instant::now());
        }
        pending
    }

    fn submit(pending: &mut Pending<u8>, tag: u8, load: Load) -> (u32, Option<ConnectionId>) {
        pending.submit(
            call(tag),
            load,
            None,
            Request::of_nobody(),
            tag,
            Instant::now(),
        )
    }

    fn small(pending: &mut Pending<u8>, tag: u8) -> u32 {
        submit(pending, tag, Load::Small).0
    }

    fn sent(pending: &mut Pending<u8>, connection: ConnectionId) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| pending.next_to_send(connection))
            .map(|next| match next {
                Next::Send(message) => message.parts.concat(),
                Next::Abandoned { .. } => panic!("nobody gave up"),
            })
            .collect()
    }

    #[tokio::test]
    async fn a_call_whose_caller_was_answered_goes_out_neither_first_nor_again() {
        let caller = Caller::new(None, 1);
        let requests = caller::on_behalf_of(Some(Arc::clone(&caller)), async {
            [(); 3].map(|()| Request::new())
        });
        let [sent, held, answered] = requests.await;
        let mut pending = with_connections(0, &[A]);
        let add = |pending: &mut Pending<u8>, request: &Arc<Request>, tag| {
            let request = Arc::clone(request);
            pending.submit(call(tag), Load::Small, None, request, tag, Instant::now())
        };
        add(&mut pending, &sent, 1);
        let (xid, _) = add(&mut pending, &answered, 2);
        for _ in 0..2 {
            assert!(matches!(pending.next_to_send(A), Some(Next::Send(_))));
        }
        add(&mut pending, &held, 3);
        caller.give_up();
        // What is out on a living connection is still waited for.
        assert_eq!(pending.replied(xid).unwrap().owed, 2);
        let next = pending.next_to_send(A);
        assert!(matches!(
            next,
            Some(Next::Abandoned {
                owed: 3,
                sent: false
            })
        ));
        pending.leave(A, Instant::now());
        pending.join(B, Instant::now());
        let next = pending.next_to_send(B);
        assert!(matches!(
            next,
            Some(Next::Abandoned {
                owed: 1,
                sent: true
            })
        ));
        assert!(
            pending.is_empty()
                && pending
                    .connections()
                    .all(|connection| connection.small == 0)
        );
    }

    #[test]
    fn unanswered_calls_are_replayed_in_order_with_the_same_bytes() {
        let mut pending = with_connections(u32::MAX, &[A]);
        let since = Instant::now();
        let [a, b, c] = [1, 2, 3].map(|tag| {
            let (load, wish) = (Load::Small, None);
            pending
                .submit(call(tag), load, wish, Request::of_nobody(), tag, since)
                .0
        });
        assert_eq!([a, b, c], [u32::MAX, 0, 1]);
        let first = sent(&mut pending, A);
        assert_eq!(first.len(), 3);
        assert!(sent(&mut pending, A).is_empty(), "once a connection");

        assert_eq!(
            pending.replied(b),
            Some(Replied {
                owed: 2,
                resent: false,
                load: Load::Small,
                since,
            })
        );
        assert!(pending.leave(A, Instant::now()).is_empty(), "nowhere to go");
        let d = small(&mut pending, 4);
        assert_eq!(pending.join(B, Instant::now()), 2);
        let again = sent(&mut pending, B);
        assert_eq!(again[..2], [first[0].clone(), first[2].clone()]);
        assert_eq!(again.len(), 3);
        assert!(pending.replied(a).unwrap().resent);
        assert!(!pending.replied(d).unwrap().resent);
    }

    #[test]
    fn a_lane_that_ends_disturbs_no_other_and_its_calls_go_to_the_living() {
        let mut pending = with_connections(10, &[A, B, C]);
        let placed: Vec<_> = (0..4)
            .map(|tag| submit(&mut pending, tag, Load::Bulk))
            .collect();
        let connections: Vec<_> = placed
            .iter()
            .map(|(_, connection)| connection.unwrap())
            .collect();
        assert_eq!(connections, [B, C, B, C]);
        let (on_b, on_c) = (sent(&mut pending, B), sent(&mut pending, C));
        assert_eq!((on_b.len(), on_c.len()), (2, 2));

        assert_eq!(pending.leave(B, Instant::now()), [C]);
        assert_eq!(sent(&mut pending, C), on_b, "the same bytes, in order");
        assert!(sent(&mut pending, A).is_empty());
        let resent: Vec<_> = placed
            .iter()
            .map(|&(xid, _)| pending.replied(xid).unwrap().resent)
            .collect();
        assert_eq!(resent, [true, false, true, false]);
        assert_eq!(pending.connections().map(|l| l.bulk).sum::<usize>(), 0);
    }

    #[test]
    fn a_small_call_never_stands_behind_bulk_if_there_are_several_lanes() {
        let mut pending = with_connections(0, &[A]);
        assert_eq!(submit(&mut pending, 0, Load::Bulk).1, Some(A), "the only");
        pending.replied(0);
        pending.join(B, Instant::now());
        for tag in 1..20 {
            assert_eq!(submit(&mut pending, tag, Load::Bulk).1, Some(B));
            assert_eq!(submit(&mut pending, tag, Load::Small).1, Some(A));
        }
        // The next in line takes over when the first is gone, with one left for all.
        pending.join(C, Instant::now());
        pending.leave(A, Instant::now());
        let small = submit(&mut pending, 99, Load::Small).1;
        assert_eq!(
            (small, submit(&mut pending, 99, Load::Bulk).1),
            (Some(C), Some(C))
        );
    }

    #[test]
    fn a_lane_that_is_about_to_end_gets_nothing_and_an_idle_one_may_end() {
        let mut pending = with_connections(0, &[A, B]);
        let (xid, connection) = pending.submit(
            call(1),
            Load::Small,
            Some(B),
            Request::of_nobody(),
            1,
            Instant::now(),
        );
        assert_eq!(connection, Some(B));
        assert!(!pending.retire(B), "something is under way");
        pending.replied(xid);
        assert!(pending.retire(B));
        assert_eq!(submit(&mut pending, 2, Load::Bulk).1, Some(A));
        let (_, connection) = pending.submit(
            call(3),
            Load::Small,
            Some(B),
            Request::of_nobody(),
            3,
            Instant::now(),
        );
        assert_eq!(connection, Some(A), "a wish that cannot be met");
        pending.close_to_calls(A);
        assert_eq!(submit(&mut pending, 4, Load::Small).1, None);
        pending.leave(A, Instant::now());
        assert_eq!(pending.join(C, Instant::now()), 0);
        assert_eq!(sent(&mut pending, C).len(), 3);
    }

    #[test]
    fn a_connection_is_busy_from_the_first_call_of_its_own_until_none_is_out() {
        let begun = Instant::now();
        let at = |secs| begun + Duration::from_secs(secs);
        let mut pending = Pending::new(0);
        pending.join(A, begun);
        pending.join(B, begun);
        assert_eq!(pending.busy_since(A), None);
        let (a, _) = pending.submit(
            call(1),
            Load::Small,
            Some(A),
            Request::of_nobody(),
            1,
            at(5),
        );
        pending.submit(
            call(2),
            Load::Small,
            Some(A),
            Request::of_nobody(),
            2,
            at(8),
        );
        assert_eq!(pending.busy_since(A), Some(at(5)));
        assert_eq!(pending.busy_since(B), None);
        pending.replied(a);
        assert_eq!(pending.busy_since(A), Some(at(5)));
        pending.leave(A, at(9));
        assert_eq!(pending.busy_since(B), Some(at(9)), "it was given one");
    }

    #[test]
    fn a_reply_is_taken_once() {
        let mut pending = with_connections(5, &[A]);
        let xid = small(&mut pending, 1);
        assert_eq!(pending.replied(77), None);
        assert_eq!(pending.replied(xid).unwrap().owed, 1);
        assert_eq!(pending.replied(xid), None);
        assert!(pending.is_empty());
        assert!(
            sent(&mut pending, A).is_empty(),
            "answered before it was sent"
        );
    }

    #[test]
    fn the_call_that_waits_longest_is_known() {
        let mut pending = with_connections(5, &[A]);
        let begun = Instant::now();
        assert_eq!(pending.oldest(), None);
        let later = begun + Duration::from_secs(3);
        let (old, _) = pending.submit(call(1), Load::Small, None, Request::of_nobody(), 1, begun);
        pending.submit(call(2), Load::Small, None, Request::of_nobody(), 2, later);
        pending.leave(A, later);
        pending.join(B, later);
        assert_eq!(pending.oldest(), Some(begun), "a replay is not a new call");
        pending.replied(old);
        assert_eq!(pending.oldest(), Some(later));
    }

    #[test]
    fn an_xid_in_use_is_not_given_again() {
        let mut pending = with_connections(1, &[A]);
        let a = small(&mut pending, 1);
        pending.next_xid = a;
        assert_ne!(small(&mut pending, 2), a);
    }
}
