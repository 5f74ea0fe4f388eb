//! Partitions: the servers behind a mount target, and how several connections come
//! to the same one.
//!
//! A mount target spreads connections over partitions, and an NFS session lives in
//! one of them. Asked by a bind call ([`super::bind`]) before anything else goes over
//! a connection, EFS says which partition it leads to; connections that lead to
//! another than the session's are closed and tried again.
//!
//! [`Partitions`] is a plain state machine: it says what to ask and is told what
//! came. It owns which generation is spoken, the partition of the session and how
//! many connections the server allows; [`super::connector`] has the connections.

use std::time::Duration;

use tokio::time::Instant;

use super::bind::{self, Ask, BindReply, Bound, Generation, NoReply, PartitionId};
use crate::rpc::Pause;
use crate::rpc::transport::NoFurther;

/// How long the answer to a bind call may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A search for further connections is over after this time ...
pub(super) const SEARCH: Duration = Duration::from_secs(15);
/// ... or so many that lead elsewhere. (The official client gives up after 121, in
/// three searches at once.)
const SEARCH_TRIES: u32 = 40;
/// After a search that found nothing, and after a bind call that came to nothing.
const REST: Duration = Duration::from_secs(300);
/// A first connection is tried so many times for one whose partition is known.
const FIRST_TRIES: u32 = 3;
/// The server's limit is believed up to here.
const MAX_CONNECTIONS: usize = 16;

/// What to do about a first connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Use it.
    Use,
    /// Close it, make another and ask that.
    Ask(Ask),
    /// Close it, make another and use that without asking.
    Plain,
}

/// What to do about a further connection.
#[derive(Debug)]
pub(super) enum Further {
    /// It leads to the session.
    Use,
    /// Close it, make another and ask that.
    Ask(Ask),
    /// Give up.
    Stop(NoFurther),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Partitions {
    identifier: [u8; 16],
    /// Counts first connections.
    incarnation: i64,
    /// What the server speaks, once that is known.
    generation: Option<Generation>,
    /// It is not asked before this time: it speaks none, or did not answer.
    not_before: Option<Instant>,
    /// Where the session is.
    ours: Option<PartitionId>,
    /// How many connections the server allows.
    allowed: usize,
}

impl Partitions {
    /// `identifier` is random, and the same for the whole life of a mount.
    pub(super) fn new(identifier: [u8; 16]) -> Self {
        Self {
            identifier: bind::uuid(identifier),
            incarnation: 0,
            generation: None,
            not_before: None,
            ours: None,
            allowed: 1,
        }
    }

    /// The session's partition is known, so that there may be further connections.
    pub(super) fn known(&self) -> bool {
        self.ours.is_some()
    }

    /// Connections that there may be.
    pub(super) fn allowed(&self) -> usize {
        match self.ours {
            Some(_) => self.allowed,
            None => 1,
        }
    }

    fn ask(&self, generation: Generation) -> Ask {
        Ask {
            generation,
            identifier: self.identifier,
            incarnation: self.incarnation,
            tried: 0,
        }
    }

    /// A first connection is to be made. What to ask it; `None`: nothing.
    pub(super) fn first(&mut self, now: Instant) -> Option<Ask> {
        self.ours = None;
        if self.not_before.is_some_and(|time| now < time) {
            return None;
        }
        self.incarnation = self.incarnation.wrapping_add(1);
        Some(self.ask(self.generation.unwrap_or(Generation::Two)))
    }

    /// What came of asking a first connection.
    pub(super) fn first_answered(
        &mut self,
        asked: Ask,
        reply: Result<BindReply, NoReply>,
        now: Instant,
    ) -> First {
        let reply = match (reply, asked.generation) {
            (Ok(reply), generation) => {
                self.generation = Some(generation);
                reply
            }
            (Err(NoReply::NotSpoken), Generation::Two) => {
                return First::Ask(self.ask(Generation::One));
            }
            (Err(_), _) => {
                self.generation = None;
                self.not_before = Some(now + REST);
                return First::Plain;
            }
        };
        self.heed(&reply);
        match reply.bound {
            Bound::Ready(partition) => {
                self.ours = Some(partition);
                First::Use
            }
            Bound::Retry(_) | Bound::Preferred(_) if asked.tried + 1 < FIRST_TRIES => {
                First::Ask(asked.again())
            }
            // It is as good as any, only alone.
            _ => First::Use,
        }
    }

    /// A further connection is to be made. What to ask it.
    pub(super) fn further(&self) -> Result<Ask, NoFurther> {
        match (self.generation, self.ours) {
            (Some(generation), Some(_)) => Ok(self.ask(generation)),
            _ => Err(NoFurther {
                why: "the partition of the session is not known".to_owned(),
                pause: Pause::For(REST),
            }),
        }
    }

    /// What came of asking a further connection.
    pub(super) fn further_answered(
        &mut self,
        asked: Ask,
        reply: Result<BindReply, NoReply>,
    ) -> Further {
        let stop = |why: String, pause| Further::Stop(NoFurther { why, pause });
        let reply = match reply {
            Ok(reply) => reply,
            Err(NoReply::NotSpoken) => {
                return stop(
                    "the server knows no partitions".to_owned(),
                    Pause::For(REST),
                );
            }
            Err(NoReply::Failed(why)) => return stop(why, Pause::Growing),
        };
        self.heed(&reply);
        match reply.bound {
            Bound::Ready(partition) if Some(partition) == self.ours => Further::Use,
            Bound::Ready(_) | Bound::Retry(_) | Bound::Preferred(_)
                if asked.tried + 1 < SEARCH_TRIES =>
            {
                Further::Ask(asked.again())
            }
            Bound::Ready(_) | Bound::Retry(_) | Bound::Preferred(_) => stop(
                format!("{SEARCH_TRIES} connections, none to the session's partition"),
                Pause::For(REST),
            ),
            Bound::RetryLater(why) => stop(format!("not now: {why}"), Pause::For(REST)),
            Bound::Error(why) => stop(format!("the server says: {why}"), Pause::For(REST)),
            Bound::Unknown(status) => stop(format!("bind status {status}"), Pause::For(REST)),
        }
    }

    /// The search took too long.
    pub(super) fn search_over() -> NoFurther {
        NoFurther {
            why: format!(
                "none to the session's partition within {} s",
                SEARCH.as_secs()
            ),
            pause: Pause::For(REST),
        }
    }

    fn heed(&mut self, reply: &BindReply) {
        let allowed = usize::try_from(reply.connections).unwrap_or(1);
        self.allowed = allowed.clamp(1, MAX_CONNECTIONS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = [0xaa; 64];
    const B: PartitionId = [0xbb; 64];

    fn reply(bound: Bound) -> Result<BindReply, NoReply> {
        Ok(BindReply {
            bound,
            connections: 5,
        })
    }

    fn not_spoken() -> Result<BindReply, NoReply> {
        Err(NoReply::NotSpoken)
    }

    fn machine() -> (Partitions, Instant) {
        (Partitions::new([7; 16]), Instant::now())
    }

    /// One whose session is in partition A.
    fn in_a() -> Partitions {
        let (mut partitions, now) = machine();
        let ask = partitions.first(now).expect("asked");
        let ready = reply(Bound::Ready(A));
        assert_eq!(partitions.first_answered(ask, ready, now), First::Use);
        partitions
    }

    #[test]
    fn the_second_generation_is_tried_then_the_first_then_none() {
        let (mut partitions, now) = machine();
        let two = partitions.first(now).expect("asked");
        assert_eq!(two.generation, Generation::Two);
        let First::Ask(one) = partitions.first_answered(two.clone(), not_spoken(), now) else {
            panic!("the other generation");
        };
        assert_eq!(one.generation, Generation::One);
        // Spoken: asked at once the next time.
        let ready = reply(Bound::Ready(A));
        assert_eq!(partitions.first_answered(one, ready, now), First::Use);
        assert_eq!((partitions.known(), partitions.allowed()), (true, 5));
        let next = partitions.first(now).expect("asked");
        assert_eq!(next.generation, Generation::One);
        assert!(!partitions.known(), "a first connection may lead anywhere");
        assert_eq!(next.incarnation, two.incarnation + 1);
        // Neither: left alone for a while.
        let gone = partitions.first_answered(next, not_spoken(), now);
        assert_eq!((gone, partitions.allowed()), (First::Plain, 1));
        assert_eq!(partitions.first(now + REST - Duration::from_secs(1)), None);
        let later = partitions.first(now + REST).expect("asked again");
        assert_eq!(later.generation, Generation::Two);
    }

    #[test]
    fn a_server_that_does_not_answer_costs_one_connection_not_two() {
        let (mut partitions, now) = machine();
        let ask = partitions.first(now).expect("asked");
        let failed = Err(NoReply::Failed("hung up".to_owned()));
        assert_eq!(partitions.first_answered(ask, failed, now), First::Plain);
        assert_eq!(partitions.first(now), None);
    }

    #[test]
    fn a_first_connection_is_used_whatever_the_server_says_of_it() {
        for bound in [
            Bound::RetryLater("busy".to_owned()),
            Bound::Error("no".to_owned()),
            Bound::Unknown(9),
        ] {
            let (mut partitions, now) = machine();
            let ask = partitions.first(now).expect("asked");
            assert_eq!(
                partitions.first_answered(ask, reply(bound), now),
                First::Use
            );
            assert_eq!((partitions.known(), partitions.allowed()), (false, 1));
            assert!(partitions.further().is_err());
        }
        let (mut partitions, now) = machine();
        let mut ask = partitions.first(now).expect("asked");
        for _ in 1..FIRST_TRIES {
            let retry = reply(Bound::Preferred(B));
            let First::Ask(again) = partitions.first_answered(ask, retry, now) else {
                panic!("another try");
            };
            ask = again;
        }
        let last = partitions.first_answered(ask, reply(Bound::Retry(String::new())), now);
        assert_eq!(last, First::Use);
    }

    #[test]
    fn a_further_connection_is_used_only_if_it_leads_to_the_sessions_partition() {
        let mut partitions = in_a();
        let mut ask = partitions.further().expect("asked");
        for bound in [
            Bound::Ready(B),
            Bound::Retry(String::new()),
            Bound::Preferred(A),
        ] {
            ask = match partitions.further_answered(ask, reply(bound)) {
                Further::Ask(ask) => ask,
                other => panic!("{other:?}"),
            };
        }
        let used = partitions.further_answered(ask, reply(Bound::Ready(A)));
        assert!(matches!(used, Further::Use), "{used:?}");
    }

    #[test]
    fn a_search_ends_and_rests() {
        let mut partitions = in_a();
        let mut ask = partitions.further().expect("asked");
        let mut tries = 0;
        let stopped = loop {
            tries += 1;
            match partitions.further_answered(ask, reply(Bound::Ready(B))) {
                Further::Ask(next) => ask = next,
                Further::Stop(stopped) => break stopped,
                Further::Use => panic!("partition B"),
            }
        };
        assert_eq!((tries, stopped.pause), (SEARCH_TRIES, Pause::For(REST)));
        for bound in [
            Bound::RetryLater("busy".to_owned()),
            Bound::Error("no".to_owned()),
            Bound::Unknown(9),
        ] {
            let ask = partitions.further().expect("asked");
            let Further::Stop(stopped) = partitions.further_answered(ask, reply(bound)) else {
                panic!("the server said no");
            };
            assert_eq!(stopped.pause, Pause::For(REST));
        }
        let ask = partitions.further().expect("asked");
        let failed = Err(NoReply::Failed("reset".to_owned()));
        let Further::Stop(stopped) = partitions.further_answered(ask, failed) else {
            panic!("a connection that broke");
        };
        assert_eq!(stopped.pause, Pause::Growing);
    }

    #[test]
    fn the_servers_limit_is_heeded_within_reason() {
        let mut partitions = in_a();
        for (said, allowed) in [(0, 1), (2, 2), (5, 5), (u32::MAX, MAX_CONNECTIONS)] {
            let ask = partitions.further().expect("asked");
            let reply = BindReply {
                bound: Bound::Ready(A),
                connections: said,
            };
            partitions.further_answered(ask, Ok(reply));
            assert_eq!(partitions.allowed(), allowed);
        }
    }
}
