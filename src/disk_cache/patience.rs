//! How long readers wait for room in the queue of what is to be put on the disk: a plain state
//! machine, which is told the time.
//!
//! A disk that is a little slower than the server would have something of each large file dropped, and
//! that crosses the wire once more. So readers wait, but a disk that is much slower than the server must not
//! make reading as slow: there is an account of time, which grows while nobody waits, at
//! [`SHARE`] of it and up to [`MOST`], and shrinks while anybody does. When it is empty, what has no room is
//! dropped. So of any long time readers wait for a ninth, however slow the disk is.

use std::time::{Duration, Instant};

/// The part of the time that may be waited for: one eighth of that in which nobody waits.
const SHARE: u32 = 8;

/// The most that is saved up.
const MOST: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Patience {
    /// What may be waited for, as of `at`.
    saved: Duration,
    at: Instant,
    /// So many wait.
    waiting: usize,
}

impl Patience {
    /// Nobody has waited yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            saved: MOST,
            at: now,
            waiting: 0,
        }
    }

    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.saved = match self.waiting {
            0 => (self.saved + passed / SHARE).min(MOST),
            _ => self.saved.saturating_sub(passed),
        };
        self.at = now;
    }

    /// One more begins to wait, until that moment at the longest. `None`: he does not.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Instant> {
        self.settle(now);
        if self.saved.is_zero() {
            return None;
        }
        self.waiting += 1;
        Some(now + self.saved)
    }

    /// One of them waits no more.
    pub(super) fn end(&mut self, now: Instant) {
        self.settle(now);
        self.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn several_who_wait_at_the_same_time_wait_once() {
        let t0 = Instant::now();
        let mut patience = Patience::new(t0);
        assert_eq!(patience.begin(t0), Some(t0 + MOST));
        assert_eq!(patience.begin(t0 + 10 * MS), Some(t0 + MOST));
        patience.end(t0 + 20 * MS);
        patience.end(t0 + 100 * MS);
        let now = t0 + 100 * MS;
        assert_eq!(patience.begin(now), Some(now + MOST - 100 * MS));
    }

    #[test]
    fn however_slow_the_disk_is_a_ninth_of_the_time_is_waited_for() {
        let t0 = Instant::now();
        let (mut patience, mut now) = (Patience::new(t0), t0);
        let mut waited = Duration::ZERO;
        while now < t0 + Duration::from_secs(100) {
            match patience.begin(now) {
                Some(until) => {
                    waited += until - now;
                    now = until;
                    patience.end(now);
                }
                None => now += MS,
            }
        }
        let most = Duration::from_secs(100) / (SHARE + 1) + MOST + MS;
        assert!((most - 100 * MS..most).contains(&waited), "{waited:?}");
    }

    #[test]
    fn no_more_is_saved_than_half_a_second() {
        let t0 = Instant::now();
        let mut patience = Patience::new(t0);
        let later = t0 + Duration::from_secs(3600);
        assert_eq!(patience.begin(later), Some(later + MOST));
    }
}
