//! How many connections a channel should have: a plain state machine.
//!
//! One is enough as long as little is to be carried. More are made when bulk has
//! been deep for a while, and let go when there has been none for long: every
//! connection counts against a limit of the server. What the server refuses for
//! good is not asked again; other failures are tried again after pauses that grow.

use std::time::Duration;

use tokio::time::Instant;

/// This many bulk calls without a reply say that the connection may be what holds
/// things up ...
const DEEP: usize = 4;
/// ... if there have been some for so long: what a connection and a TLS handshake
/// cost should be worth it.
const DEEP_FOR: Duration = Duration::from_millis(250);
/// Without any for no longer than this, it is still the same stream of data.
const GAP: Duration = Duration::from_millis(100);
/// Without bulk for so long, connections are let go.
const IDLE: Duration = Duration::from_secs(60);
/// Pauses after an attempt that came to nothing: from here ...
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// ... doubling up to here.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Connections made at once, after a first one has shown that it works.
const AT_ONCE: usize = 3;

/// How many connections a channel may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// This many connections are made at once, and kept.
    pub least: usize,
    /// This many connections are made when there is much to carry.
    pub most: usize,
}

impl Connections {
    /// One, whatever happens.
    pub const ONE: Self = Self { least: 1, most: 1 };
}

/// How long to wait after an attempt that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The usual pause, which is longer after each attempt.
    Growing,
    /// The next attempt is made after this time.
    For(Duration),
    /// No further attempt.
    Forever,
}

/// What is to be done about the number of connections.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// This many attempts to connect are begun.
    pub make: usize,
    /// This many connections are let go.
    pub drop: usize,
    /// Ask again then, if nothing happens before.
    pub look: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct Scaling {
    wish: Connections,
    /// One could be made beside the first.
    proved: bool,
    /// More were refused for good.
    refused: bool,
    /// Since when there has been bulk, from when it was deep.
    deep_since: Option<Instant>,
    /// There is much to carry.
    busy: bool,
    /// When there last was bulk.
    bulk_at: Instant,
    pause: Duration,
    not_before: Instant,
}

impl Scaling {
    /// For a channel with one connection.
    pub fn new(wish: Connections, now: Instant) -> Self {
        Self {
            wish,
            proved: false,
            refused: false,
            deep_since: None,
            busy: false,
            bulk_at: now,
            pause: Duration::ZERO,
            not_before: now,
        }
    }

    /// A bulk call was submitted; `bulk` of them wait. True: more connections are
    /// wanted from now on.
    pub fn submitted(&mut self, bulk: usize, now: Instant) -> bool {
        if self.wish.most <= self.wish.least {
            return false;
        }
        if bulk == 1 && now > self.bulk_at + GAP {
            self.deep_since = None;
        }
        self.bulk_at = now;
        if bulk >= DEEP {
            self.deep_since.get_or_insert(now);
        }
        let was_busy = self.busy;
        self.busy |= self.deep_since.is_some_and(|since| now >= since + DEEP_FOR);
        self.busy && !was_busy
    }

    /// A bulk call was answered.
    pub fn answered(&mut self, now: Instant) {
        self.bulk_at = now;
    }

    /// What to do with `living` connections and `attempts` under way, if the server
    /// allows `allowed` and `bulk` calls wait.
    pub fn plan(
        &mut self,
        (living, attempts): (usize, usize),
        allowed: usize,
        bulk: usize,
        now: Instant,
    ) -> Plan {
        if self.busy && bulk == 0 && now >= self.bulk_at + IDLE {
            self.busy = false;
        }
        let wanted = match self.busy {
            true => self.wish.most,
            false => self.wish.least,
        };
        let wanted = wanted.min(allowed).max(1);
        let missing = match self.refused {
            true => 0,
            false => wanted.saturating_sub(living + attempts),
        };
        let room = match self.proved {
            true => AT_ONCE.saturating_sub(attempts),
            false => 1_usize.saturating_sub(attempts),
        };
        let paused = now < self.not_before;
        let idle_at = match bulk {
            0 => self.bulk_at + IDLE,
            _ => now + IDLE,
        };
        let look = [
            (missing > 0 && paused).then_some(self.not_before),
            self.busy.then_some(idle_at),
        ];
        Plan {
            make: if paused { 0 } else { missing.min(room) },
            drop: living.saturating_sub(wanted),
            look: look.into_iter().flatten().min(),
        }
    }

    /// A further connection was made.
    pub fn made(&mut self) {
        self.proved = true;
    }

    /// An attempt came to nothing, or a connection that was made carried nothing.
    pub fn failed(&mut self, pause: Pause, now: Instant) {
        let pause = match pause {
            Pause::Growing => {
                self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                self.pause
            }
            Pause::For(time) => time,
            Pause::Forever => {
                self.refused = true;
                return;
            }
        };
        self.not_before = self.not_before.max(now + pause);
    }

    /// A connection that was made has carried something.
    pub fn useful(&mut self) {
        self.pause = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON_DEMAND: Connections = Connections { least: 1, most: 5 };

    fn plan(make: usize, drop: usize) -> (usize, usize) {
        (make, drop)
    }

    struct Rig(Scaling, Instant);

    impl Rig {
        fn new(wish: Connections) -> Self {
            let now = Instant::now();
            Self(Scaling::new(wish, now), now)
        }

        fn wait(&mut self, millis: u64) {
            self.1 += Duration::from_millis(millis);
        }

        fn ask(&mut self, counts: (usize, usize), bulk: usize) -> (usize, usize) {
            let asked = self.0.plan(counts, usize::MAX, bulk, self.1);
            (asked.make, asked.drop)
        }

        fn make_busy(&mut self) {
            assert!(!self.0.submitted(DEEP, self.1));
            self.wait(250);
            assert!(self.0.submitted(DEEP, self.1));
        }
    }

    #[test]
    fn more_connections_are_made_when_bulk_is_deep_for_a_while_and_not_for_a_burst() {
        let mut rig = Rig::new(ON_DEMAND);
        assert_eq!(rig.ask((1, 0), 0), plan(0, 0));
        for _ in 0..10 {
            for bulk in 1..20 {
                assert!(!rig.0.submitted(bulk, rig.1), "a burst that is soon over");
            }
            rig.wait(200);
            rig.0.answered(rig.1);
            rig.wait(200);
        }
        rig.0.submitted(1, rig.1);
        for _ in 0..100 {
            assert!(!rig.0.submitted(DEEP - 1, rig.1), "never deep");
            rig.wait(50);
        }
        rig.make_busy();
        assert!(!rig.0.submitted(DEEP, rig.1), "said once");
        assert_eq!(rig.ask((1, 0), 4), plan(1, 0), "one to try");
        assert_eq!(rig.ask((1, 1), 4), plan(0, 0));
        rig.0.made();
        assert_eq!(rig.ask((2, 0), 4), plan(3, 0), "three at a time");
        assert_eq!(rig.ask((2, 2), 4), plan(1, 0));
        assert_eq!(rig.ask((2, 3), 4), plan(0, 0));
        assert_eq!(rig.ask((5, 0), 4), plan(0, 0));
    }

    #[test]
    fn a_stream_that_is_answered_in_bursts_is_one_stream() {
        let mut rig = Rig::new(ON_DEMAND);
        let mut wanted = false;
        for _ in 0..5 {
            for bulk in 1..=8 {
                wanted |= rig.0.submitted(bulk, rig.1);
            }
            rig.wait(80);
            rig.0.answered(rig.1);
            rig.wait(10);
        }
        assert!(wanted);
    }

    #[test]
    fn connections_are_let_go_after_a_minute_without_bulk() {
        let mut rig = Rig::new(ON_DEMAND);
        rig.make_busy();
        rig.wait(3_600_000);
        assert_eq!(rig.ask((5, 0), 1), plan(0, 0), "an hour for one call");
        rig.0.answered(rig.1);
        rig.wait(59_000);
        let asked = rig.0.plan((5, 0), usize::MAX, 0, rig.1);
        assert_eq!(
            (asked.drop, asked.look),
            (0, Some(rig.1 + Duration::from_secs(1)))
        );
        rig.wait(1_000);
        let asked = rig.0.plan((5, 0), usize::MAX, 0, rig.1);
        assert_eq!((asked.drop, asked.look), (4, None));
    }

    #[test]
    fn a_fixed_number_is_made_at_once_and_kept() {
        let mut rig = Rig::new(Connections { least: 4, most: 4 });
        assert_eq!(rig.ask((1, 0), 0), plan(1, 0));
        rig.0.made();
        assert_eq!(rig.ask((2, 0), 0), plan(2, 0));
        assert!(!rig.0.submitted(64, rig.1));
        rig.wait(3_600_000);
        assert_eq!(rig.ask((4, 0), 0), plan(0, 0));
        let asked = rig.0.plan((4, 0), usize::MAX, 0, rig.1);
        assert_eq!(asked.look, None, "nothing to wake up for");
    }

    #[test]
    fn the_server_may_allow_fewer() {
        let mut rig = Rig::new(Connections { least: 2, most: 8 });
        rig.make_busy();
        rig.0.made();
        assert_eq!(rig.0.plan((1, 0), 3, 4, rig.1).make, 2);
        assert_eq!(rig.0.plan((3, 0), 3, 4, rig.1).make, 0);
        assert_eq!(
            rig.0.plan((1, 0), 0, 4, rig.1),
            Plan {
                make: 0,
                drop: 0,
                look: Some(rig.1 + IDLE)
            }
        );
    }

    #[test]
    fn attempts_that_fail_are_repeated_after_growing_pauses() {
        let mut rig = Rig::new(Connections { least: 2, most: 2 });
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(rig.ask((1, 0), 0), plan(1, 0));
            rig.0.failed(Pause::Growing, rig.1);
            let look = rig.0.plan((1, 0), usize::MAX, 0, rig.1).look;
            assert_eq!(look, Some(rig.1 + Duration::from_secs(pause)));
            rig.wait(pause * 1000);
        }
        rig.0.useful();
        rig.0.failed(Pause::Growing, rig.1);
        rig.wait(1000);
        assert_eq!(rig.ask((1, 0), 0), plan(1, 0));
        rig.0.failed(Pause::For(Duration::from_secs(300)), rig.1);
        rig.wait(299_000);
        assert_eq!(rig.ask((1, 0), 0), plan(0, 0));
        rig.wait(1_000);
        assert_eq!(rig.ask((1, 0), 0), plan(1, 0));
    }

    #[test]
    fn what_is_refused_for_good_is_not_asked_again() {
        let mut rig = Rig::new(Connections { least: 3, most: 3 });
        rig.0.failed(Pause::Forever, rig.1);
        rig.wait(3_600_000);
        assert_eq!(rig.ask((1, 0), 0), plan(0, 0));
        assert_eq!(rig.ask((2, 0), 0), plan(0, 0), "what there is stays");
    }
}
