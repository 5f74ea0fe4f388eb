//! What is done about a request on a slot, whatever comes back: a plain machine.
//!
//! The slot and its sequence id stay the same over every sending, so the server runs
//! the request once (RFC 8881 §2.10.6). [`SlotRequest`] is told what became of each
//! sending and says what is next; it sends nothing, does not sleep, and reads no clock.
//! [`super::send`] does what it says.
//!
//! Invariants:
//! - The fate of the slot is said with every end ([`SlotFate`]): spent or unmoved where
//!   the server has said so, unknown where it has not.
//! - Once a sending may have reached the server, whatever is sent anew under another
//!   slot is said to have perhaps run.

use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::proto::ops::Op;
use super::super::proto::reply::NfsError;
use super::super::proto::status::Status;
use crate::rpc::{ConnectionId, RpcError};

/// How often a reply that does not decode, as far as it says whose it is, is asked
/// for again.
pub(super) const GARBLED_TRIES: u32 = 3;

/// How often a sequence id that the server finds misordered is tried again: an earlier
/// request of the slot may still be on its way to it.
const MISORDERED_TRIES: u32 = 3;
/// What is left to that earlier request each time.
const MISORDERED_PAUSE: Duration = Duration::from_millis(100);

/// What is known of the slot when the request leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotFate {
    /// Its sequence id has moved.
    Spent,
    /// Its sequence id has not moved.
    Unmoved,
    /// Nobody knows: the slot must not be used again.
    Unknown,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<T> {
    /// The request was answered. The slot went back with the result of SEQUENCE.
    Done(T),
    /// The same is sent again on the same slot after this time. What came over the
    /// connection `distrust` made no sense: another one takes its place.
    Resend {
        after: Duration,
        distrust: Option<ConnectionId>,
    },
    /// The connection is bound to the session first; [`SlotRequest::on_bound`] is told.
    Rebind(ConnectionId),
    /// Nobody waits any more, and a sending may have reached the server: what became of
    /// it is found out, and it is not sent again.
    Resolve,
    /// The request leaves the slot and is made anew on another one.
    Again { slot: SlotFate, may_have_run: bool },
    /// The session is lost, and the slot with it, unmoved. The request is made anew in
    /// the next session.
    Recover { may_have_run: bool },
    /// The request has failed.
    Fail { error: NfsError, slot: SlotFate },
}

/// What is known of a reply beside its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// The connection that it came over.
    pub(super) connection: ConnectionId,
    /// The channel has sent the request more than once.
    pub(super) resent: bool,
}

/// One request on one slot. See the module.
pub(super) struct SlotRequest {
    /// The number of the slot, for the log.
    slot: u32,
    begun: Instant,
    backoff: Backoff,
    /// An earlier sending may have run.
    resent: bool,
    /// The server was found at work on an earlier sending.
    was_at_work: bool,
    /// See [`Self::take_needed`].
    needed: Option<Duration>,
    misordered: u32,
    garbled: u32,
}

impl SlotRequest {
    /// It is sent for the first time at `now`.
    pub(super) fn new(slot: u32, now: Instant) -> Self {
        Self {
            slot,
            begun: now,
            backoff: Backoff::new(),
            resent: false,
            was_at_work: false,
            needed: None,
            misordered: 0,
            garbled: 0,
        }
    }

    /// There will be no reply. `was_started`: the request was handed to a connection.
    pub(super) fn on_no_reply<T>(&self, error: RpcError, was_started: bool) -> Action<T> {
        let (error, slot) = match error {
            RpcError::Abandoned { .. } if was_started => return Action::Resolve,
            RpcError::Abandoned { .. } => (RpcError::Abandoned { sent: false }, SlotFate::Unmoved),
            // Refused before any of it was looked at.
            RpcError::NotSpoken(_) | RpcError::AuthRefused(_) => (error, SlotFate::Unmoved),
            RpcError::Closed | RpcError::Failed(_) => (error, SlotFate::Unknown),
        };
        Action::Fail {
            error: error.into(),
            slot,
        }
    }

    /// A reply came. It was taken apart: `parsed` is what is behind a SEQUENCE that
    /// answers this request and went well, or the error of it.
    pub(super) fn on_reply<T>(
        &mut self,
        now: Instant,
        arrival: Arrival,
        parsed: Result<T, NfsError>,
    ) -> Action<T> {
        self.resent |= arrival.resent;
        let at_work = matches!(parsed, Err(NfsError::Status(Op::Sequence, Status::DELAY)));
        self.was_at_work |= at_work && self.resent;
        if self.was_at_work && !at_work {
            self.needed = Some(now.saturating_duration_since(self.begun));
        }
        match parsed {
            Ok(reply) => Action::Done(reply),
            Err(error) => self.on_error(arrival.connection, error),
        }
    }

    fn on_error<T>(&mut self, connection: ConnectionId, error: NfsError) -> Action<T> {
        let may_have_run = self.resent;
        let Some(status) = error.status().filter(|status| status.name().is_some()) else {
            return self.on_garbled(connection, error);
        };
        match status {
            // Perhaps still at work on an earlier sending: same slot, same seqid.
            Status::DELAY => self.after_a_pause(),
            // It ran, and the slot moved, but the reply was not kept.
            Status::RETRY_UNCACHED_REP => Action::Again {
                slot: SlotFate::Spent,
                may_have_run: true,
            },
            Status::SEQ_MISORDERED if self.misordered < MISORDERED_TRIES => {
                self.misordered += 1;
                Action::Resend {
                    after: MISORDERED_PAUSE,
                    distrust: None,
                }
            }
            Status::CONN_NOT_BOUND_TO_SESSION => Action::Rebind(connection),
            Status::SEQ_MISORDERED | Status::BADSLOT | Status::BAD_HIGH_SLOT => {
                tracing::warn!(slot = self.slot, "slot given up: {error}");
                Action::Again {
                    slot: SlotFate::Unknown,
                    may_have_run,
                }
            }
            Status::SEQ_FALSE_RETRY => Action::Again {
                slot: SlotFate::Spent,
                may_have_run,
            },
            // The last two are what some servers say of a client whose lease
            // ran out, until they have forgotten its sessions as well.
            Status::BADSESSION | Status::DEADSESSION | Status::EXPIRED | Status::STALE_CLIENTID => {
                Action::Recover { may_have_run }
            }
            _ => Action::Fail {
                error,
                slot: SlotFate::Unmoved,
            },
        }
    }

    /// Nobody knows whose reply that was. The connection is not to be trusted; on
    /// another one the slot has the right reply, or says that there is none.
    fn on_garbled<T>(&mut self, connection: ConnectionId, error: NfsError) -> Action<T> {
        if self.garbled == GARBLED_TRIES {
            // The slot may have moved or not.
            return Action::Fail {
                error,
                slot: SlotFate::Unknown,
            };
        }
        self.garbled += 1;
        self.resent = true;
        tracing::warn!("a reply that is none ({error}), asking again");
        Action::Resend {
            after: Duration::ZERO,
            distrust: Some(connection),
        }
    }

    /// What became of [`Action::Rebind`].
    pub(super) fn on_bound<T>(&mut self, bound: Result<(), NfsError>) -> Action<T> {
        match bound {
            // Not at once: a server may say so for ever.
            Ok(()) => self.after_a_pause(),
            Err(error @ NfsError::Rpc(_)) => Action::Fail {
                error,
                slot: SlotFate::Unknown,
            },
            Err(error) => {
                tracing::warn!("a connection cannot join the session: {error}");
                Action::Recover {
                    may_have_run: self.resent,
                }
            }
        }
    }

    /// The server has needed this time for the request although it had it all the time:
    /// it was found at work on it when it came again. Said once for each reply.
    pub(super) fn take_needed(&mut self) -> Option<Duration> {
        self.needed.take()
    }

    fn after_a_pause<T>(&mut self) -> Action<T> {
        Action::Resend {
            after: self.backoff.next(),
            distrust: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::DecodeError;

    const CONNECTION: ConnectionId = 7;

    /// The slot and its request, told what comes back, with a clock by hand.
    struct Script {
        request: SlotRequest,
        now: Instant,
    }

    impl Script {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                request: SlotRequest::new(3, now),
                now,
            }
        }

        fn reply(&mut self, resent: bool, parsed: Result<(), NfsError>) -> Action<()> {
            let arrival = Arrival {
                connection: CONNECTION,
                resent,
            };
            self.request.on_reply(self.now, arrival, parsed)
        }

        fn status(&mut self, resent: bool, status: Status) -> Action<()> {
            self.reply(resent, Err(NfsError::Status(Op::Sequence, status)))
        }
    }

    fn resend(millis: u64) -> Action<()> {
        Action::Resend {
            after: Duration::from_millis(millis),
            distrust: None,
        }
    }

    fn again(slot: SlotFate, may_have_run: bool) -> Action<()> {
        Action::Again { slot, may_have_run }
    }

    fn garbled() -> NfsError {
        NfsError::Garbled(Op::Sequence, DecodeError::Invalid("slot"))
    }

    /// What each status of SEQUENCE leads to, at the first sending and after one whose
    /// connection was lost.
    #[test]
    fn each_status_of_sequence_has_one_answer() {
        let fails = |status| {
            let fail = Action::Fail {
                error: NfsError::Status(Op::Sequence, status),
                slot: SlotFate::Unmoved,
            };
            (status, fail)
        };
        for resent in [false, true] {
            let lost = || Action::Recover {
                may_have_run: resent,
            };
            let cases = [
                (Status::DELAY, resend(20)),
                (Status::RETRY_UNCACHED_REP, again(SlotFate::Spent, true)),
                (Status::SEQ_MISORDERED, resend(100)),
                (
                    Status::CONN_NOT_BOUND_TO_SESSION,
                    Action::Rebind(CONNECTION),
                ),
                (Status::BADSLOT, again(SlotFate::Unknown, resent)),
                (Status::BAD_HIGH_SLOT, again(SlotFate::Unknown, resent)),
                (Status::SEQ_FALSE_RETRY, again(SlotFate::Spent, resent)),
                (Status::BADSESSION, lost()),
                (Status::DEADSESSION, lost()),
                (Status::EXPIRED, lost()),
                (Status::STALE_CLIENTID, lost()),
                fails(Status::GRACE),
                fails(Status::REQ_TOO_BIG),
                fails(Status::TOO_MANY_OPS),
                fails(Status::SERVERFAULT),
            ];
            for (status, expected) in cases {
                let action = Script::new().status(resent, status);
                assert_eq!(action, expected, "{status}, resent: {resent}");
            }
        }
    }

    #[test]
    fn what_came_behind_a_good_sequence_is_the_callers() {
        assert_eq!(Script::new().reply(false, Ok(())), Action::Done(()));
        assert_eq!(Script::new().reply(true, Ok(())), Action::Done(()));
    }

    #[test]
    fn a_server_that_puts_off_is_asked_after_pauses_that_grow_to_a_bound() {
        let mut script = Script::new();
        for millis in [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000] {
            assert_eq!(script.status(false, Status::DELAY), resend(millis));
        }
        assert_eq!(script.reply(false, Ok(())), Action::Done(()));
        assert_eq!(script.request.take_needed(), None, "it was sent once");
    }

    #[test]
    fn a_misordered_sequence_id_is_tried_three_times_and_then_the_slot_is_given_up() {
        let mut script = Script::new();
        for _ in 0..MISORDERED_TRIES {
            assert_eq!(script.status(false, Status::SEQ_MISORDERED), resend(100));
        }
        let action = script.status(false, Status::SEQ_MISORDERED);
        assert_eq!(action, again(SlotFate::Unknown, false));
    }

    #[test]
    fn a_reply_that_is_none_costs_its_connection_and_in_the_end_the_slot() {
        let unknown = NfsError::Status(Op::Sequence, Status(4711));
        for error in [garbled(), unknown, NfsError::Compound(Status(4711))] {
            let mut script = Script::new();
            let distrusted = Action::Resend {
                after: Duration::ZERO,
                distrust: Some(CONNECTION),
            };
            for _ in 0..GARBLED_TRIES {
                assert_eq!(script.reply(false, Err(error.clone())), distrusted);
            }
            let failed = Action::Fail {
                error: error.clone(),
                slot: SlotFate::Unknown,
            };
            assert_eq!(script.reply(false, Err(error)), failed);
        }
    }

    #[test]
    fn after_a_reply_that_was_none_the_request_may_have_run() {
        let mut script = Script::new();
        script.reply(false, Err(garbled()));
        let action = script.status(false, Status::BADSESSION);
        assert_eq!(action, Action::Recover { may_have_run: true });
    }

    #[test]
    fn a_sending_that_may_have_run_is_not_forgotten_by_the_next_reply() {
        let mut script = Script::new();
        script.status(true, Status::DELAY);
        let action = script.status(false, Status::BADSLOT);
        assert_eq!(action, again(SlotFate::Unknown, true));
    }

    #[test]
    fn a_connection_that_is_not_bound_is_bound_or_the_session_is_lost() {
        let mut script = Script::new();
        for millis in [20, 40] {
            let action = script.status(false, Status::CONN_NOT_BOUND_TO_SESSION);
            assert_eq!(action, Action::Rebind(CONNECTION));
            assert_eq!(script.request.on_bound(Ok(())), resend(millis));
        }
        let refused = NfsError::Status(Op::BindConnToSession, Status::BADSESSION);
        let action = script.request.on_bound::<()>(Err(refused));
        assert_eq!(
            action,
            Action::Recover {
                may_have_run: false
            }
        );
        let closed = NfsError::Rpc(RpcError::Closed);
        let failed = Action::Fail {
            error: closed.clone(),
            slot: SlotFate::Unknown,
        };
        assert_eq!(script.request.on_bound::<()>(Err(closed)), failed);
    }

    /// Without a reply: by the error, and by whether a connection had the request.
    #[test]
    fn a_request_without_a_reply_leaves_its_slot_as_it_is_known_to_be() {
        let fail = |error: RpcError, slot| Action::<()>::Fail {
            error: error.into(),
            slot,
        };
        let (before, after) = (
            RpcError::Abandoned { sent: false },
            RpcError::Abandoned { sent: true },
        );
        let cases = [
            // The caller was answered before a connection had the request, and after.
            (
                before.clone(),
                false,
                fail(before.clone(), SlotFate::Unmoved),
            ),
            (
                after.clone(),
                false,
                fail(before.clone(), SlotFate::Unmoved),
            ),
            (before, true, Action::Resolve),
            (after, true, Action::Resolve),
            // The channel was closed with the request on its way or not.
            (
                RpcError::Closed,
                true,
                fail(RpcError::Closed, SlotFate::Unknown),
            ),
            (
                RpcError::Closed,
                false,
                fail(RpcError::Closed, SlotFate::Unknown),
            ),
            (
                RpcError::AuthRefused(5),
                true,
                fail(RpcError::AuthRefused(5), SlotFate::Unmoved),
            ),
            (
                RpcError::NotSpoken("PROG_MISMATCH"),
                true,
                fail(RpcError::NotSpoken("PROG_MISMATCH"), SlotFate::Unmoved),
            ),
            (
                RpcError::Failed("SYSTEM_ERR"),
                true,
                fail(RpcError::Failed("SYSTEM_ERR"), SlotFate::Unknown),
            ),
        ];
        for (error, was_started, expected) in cases {
            let action = Script::new()
                .request
                .on_no_reply(error.clone(), was_started);
            assert_eq!(action, expected, "{error}, started: {was_started}");
        }
    }

    #[test]
    fn a_server_found_at_work_on_an_earlier_sending_is_known_to_need_the_time() {
        let mut script = Script::new();
        assert_eq!(script.status(true, Status::DELAY), resend(20));
        assert_eq!(script.request.take_needed(), None, "it still is at work");
        script.now += Duration::from_secs(8);
        assert_eq!(script.reply(false, Ok(())), Action::Done(()));
        assert_eq!(script.request.take_needed(), Some(Duration::from_secs(8)));
        assert_eq!(script.request.take_needed(), None, "said once");
    }
}
