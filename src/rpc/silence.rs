//! How long a connection may be silent while calls are out: a plain state machine.
//!
//! A silent connection may be dead (a router forgot it, the peer is gone without a
//! word), or its server slow. TCP notices a peer that is gone, but not one behind a
//! middlebox that goes on acknowledging, nor a path that lets small segments through
//! and no large ones. Giving up a dead one late costs time, and the state at the
//! server if its lease runs out meanwhile (RFC 8881 §8.3); giving up a slow one early
//! costs the server the same calls again. So
//! - each connection in a row that was silent leaves twice the time to the next one,
//! - an answer that came soon takes that back, unless the server was found at work on
//!   a call when it came again: then it is known to be slow, for a while,
//! - no connection is waited for longer than half of what is left of the lease, so
//!   that there is always time for another one, and the attempts come the faster the
//!   nearer its end is.

use std::time::Duration;

use tokio::time::Instant;

/// No silence is longer: half a lease, or this.
const LONGEST: Duration = Duration::from_secs(60);
/// A server that was slow is believed to be so for this time.
const MEMORY: Duration = Duration::from_secs(600);
/// A machine that is busy is silent for so long.
const SHORTEST: Duration = Duration::from_secs(1);

/// A server that is away costs one attempt in so much time, whatever its lease is.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Nor is one with a very short lease to be hammered.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// How long calls may wait before something is thought of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// A connection on which nothing has come back for so long, although calls
    /// are out, is given up.
    pub silence: Duration,
    /// A server that has answered nothing for so long, although calls are out, is
    /// said not to respond.
    pub wait: Duration,
}

impl Tolerance {
    const LONGEST: Duration = Duration::from_secs(15);

    /// By the times of `nfs(5)`: what a call may take, and in how many such times
    /// the server must have answered. A dead connection is found within the first,
    /// and neither is left to wait longer than 15 s.
    pub fn of(timeo: Duration, retrans: u32) -> Self {
        let bounded = |time: Duration| time.clamp(SHORTEST, Self::LONGEST);
        Self {
            silence: bounded(timeo),
            wait: bounded(timeo.saturating_mul(retrans.max(1))),
        }
    }
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            silence: Self::LONGEST,
            wait: Self::LONGEST,
        }
    }
}

/// When a silent connection is given up. See the module. It is one for all connections
/// to a server; what each was last heard is its own.
#[derive(Debug)]
pub struct SilenceLimit {
    /// Of the first silent connection.
    first: Duration,
    /// Of this one, as far as the lease allows it.
    current: Duration,
    /// When the last call was made that was answered: the server counts from its
    /// arrival at the earliest.
    renewed: Instant,
    lease: Option<Duration>,
    /// What the server was found to need, and when.
    needed: Option<(Duration, Instant)>,
}

impl SilenceLimit {
    /// Without a lease so far.
    pub fn new(first: Duration, now: Instant) -> Self {
        Self {
            first,
            current: first,
            renewed: now,
            lease: None,
            needed: None,
        }
    }

    /// The server forgets whom it has not heard for so long.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease = Some(lease);
    }

    /// A call that was made at `asked` was answered.
    pub fn answered(&mut self, asked: Instant, now: Instant) {
        self.renewed = self.renewed.max(asked);
        let took = now.saturating_duration_since(asked);
        self.current = self.current.min(self.enough(took, now));
    }

    /// A call needed so long although the server had it all the time: it was still at
    /// work on it when it came again.
    pub fn needed(&mut self, time: Duration, now: Instant) {
        let known = self.needed.filter(|(_, at)| now < *at + MEMORY);
        let time = known.map_or(time, |(known, _)| known.max(time));
        self.needed = Some((time, now));
        self.current = self.current.max(self.enough(time, now)).min(LONGEST);
    }

    /// What is left to a connection on which calls take so long.
    fn enough(&self, took: Duration, now: Instant) -> Duration {
        let known = self.needed.filter(|(_, at)| now < *at + MEMORY);
        let took = known.map_or(took, |(known, _)| known.max(took));
        (took * 2).max(self.first)
    }

    /// A connection was given up for its silence, and there is no other.
    pub fn given_up(&mut self) {
        self.current = (self.current * 2).min(LONGEST);
    }

    /// How much longer a connection may be silent; zero: no longer. `heard`: when
    /// something last came over it, or when the silence that counts began: with the
    /// first call after a pause, with a new connection.
    pub fn rest(&self, heard: Instant, now: Instant) -> Duration {
        let silent = now.saturating_duration_since(heard);
        self.limit(heard).saturating_sub(silent)
    }

    /// What each connection is given in any case: a lease has room for six of them.
    /// As long as it is not known, it may be short.
    pub fn least(&self) -> Duration {
        let sixth = self.lease.map_or(SHORTEST, |lease| lease / 6);
        self.first.min(sixth.max(SHORTEST))
    }

    /// The longest pause between two attempts to reach a server that is away. When it
    /// is back, its grace period runs, which may be shorter than a lease; who comes
    /// after it has lost all locks. So this is a small part of the lease, by which
    /// servers choose their grace, and of the shortest that is known to be used.
    pub fn pause(&self) -> Duration {
        (self.lease.unwrap_or(LONGEST) / 16).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    /// How long a connection that was heard then may be silent in all.
    pub fn limit(&self, heard: Instant) -> Duration {
        let Some(lease) = self.lease else {
            return self.current;
        };
        let least = self.least();
        let limit = self.current.min(lease / 2).max(least);
        let end = self.renewed + lease;
        // It may have begun later than we know, and no server is in a hurry to end it.
        if heard >= end + lease / 2 {
            return limit; // nothing to be saved any more
        }
        let left = end.saturating_duration_since(heard);
        limit.min((left / 2).max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// How long each of the next connections is waited for, if none ever answers.
    fn silences(silence: &mut SilenceLimit, mut now: Instant, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| {
                let heard = now;
                let limit = silence.limit(heard);
                assert_eq!(silence.rest(heard, now), limit);
                now += limit;
                assert_eq!(silence.rest(heard, now), Duration::ZERO);
                silence.given_up();
                limit.as_secs()
            })
            .collect()
    }

    #[test]
    fn a_dead_connection_is_found_within_timeo_and_never_later_than_that() {
        let of = |timeo, retrans| Tolerance::of(secs(timeo), retrans);
        assert_eq!(of(60, 2), Tolerance::default());
        assert_eq!((of(5, 2).silence, of(5, 2).wait), (secs(5), secs(10)));
        assert_eq!((of(3, 0).silence, of(3, 0).wait), (secs(3), secs(3)));
        assert_eq!(of(0, 0).silence, secs(1));
    }

    #[test]
    fn a_server_that_is_away_is_looked_for_in_small_parts_of_its_lease() {
        let mut silence = SilenceLimit::new(secs(5), Instant::now());
        assert_eq!(silence.pause(), Duration::from_millis(500));
        for (lease, pause) in [(1, 100), (4, 250), (8, 500), (90, 500)] {
            silence.set_lease(secs(lease));
            assert_eq!(silence.pause(), Duration::from_millis(pause), "{lease} s");
        }
    }

    #[test]
    fn without_a_lease_each_silent_connection_leaves_twice_the_time_to_the_next() {
        let now = Instant::now();
        let mut silence = SilenceLimit::new(secs(5), now);
        assert_eq!(silences(&mut silence, now, 6), [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn an_answer_that_came_soon_takes_the_doubling_back_and_one_that_took_long_does_not() {
        let now = Instant::now();
        let mut silence = SilenceLimit::new(secs(5), now);
        silences(&mut silence, now, 4);
        silence.answered(now, now + secs(25));
        assert_eq!(
            silence.limit(now),
            secs(50),
            "a server that needs that long"
        );
        silence.answered(now, now + secs(1));
        assert_eq!(silence.limit(now), secs(5));
    }

    #[test]
    fn a_server_that_was_found_at_work_is_left_the_time_it_needs_for_ten_minutes() {
        let now = Instant::now();
        let mut silence = SilenceLimit::new(secs(5), now);
        silence.given_up();
        silence.needed(secs(20), now);
        assert_eq!(silence.limit(now), secs(40));
        silence.needed(secs(6), now + secs(100));
        silence.answered(now + secs(600), now + secs(601));
        assert_eq!(
            silence.limit(now),
            secs(40),
            "not forgotten for a quick answer"
        );
        silence.answered(now + secs(701), now + secs(702));
        assert_eq!(silence.limit(now), secs(5));
    }

    #[test]
    fn there_is_time_for_another_connection_until_the_lease_is_nearly_over() {
        for (lease, first) in [(90, 15), (60, 5), (60, 15), (20, 2), (10, 15)] {
            for idle in [0, lease / 3] {
                let now = Instant::now();
                let mut silence = SilenceLimit::new(secs(first), now);
                silence.set_lease(secs(lease));
                let silences = silences(&mut silence, now + secs(idle), 20);
                let mut at = idle;
                let before = silences.iter().map(|silence| {
                    at += silence;
                    at
                });
                let last = before.filter(|at| *at < lease).last();
                let from = lease - first.min(lease / 6) - 1;
                assert!(last >= Some(from), "{lease} {first} {idle}: {silences:?}");
                // Not a storm of them either.
                let most = (lease / 6).min(first).max(1);
                assert!(silences.iter().all(|silence| *silence >= most));
                // And then half a lease at most.
                assert_eq!(silences.last(), Some(&(lease / 2)), "{silences:?}");
            }
        }
    }

    #[test]
    fn the_lease_runs_from_when_the_answered_call_was_made() {
        let now = Instant::now();
        let mut silence = SilenceLimit::new(secs(60), now);
        silence.set_lease(secs(60));
        silence.answered(now + secs(10), now + secs(40));
        let heard = now + secs(40);
        assert_eq!(silence.limit(heard), secs(15), "half of the 30 s left");
        silence.answered(now + secs(5), now + secs(40));
        assert_eq!(
            silence.limit(heard),
            secs(15),
            "an earlier call changes nothing"
        );
    }
}
