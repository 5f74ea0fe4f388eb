//! How many crashes are too many.
//!
//! A daemon that crashes now and then is followed by another, for years. One that crashes because
//! of what it finds when it starts would do so for ever, with all who use the mount waiting; they
//! are better served by an error, and whoever looks after the machine by a mount that is gone.

use std::time::Duration;

/// A mount is given up at the crash that makes more than so many within [`WITHIN`].
const MOST: usize = 5;
/// See [`MOST`].
const WITHIN: Duration = Duration::from_secs(60);
/// A daemon that lives no longer than this has not got over its start.
const AT_START: Duration = Duration::from_secs(1);
/// So many of them, one after the other, and the next one would not either.
const STARTS: u32 = 2;

/// Why no daemon is started any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hopeless {
    /// There were too many crashes within a short time.
    Often,
    /// Several daemons have died at their start, one after the other.
    AtStart,
}

impl Hopeless {
    /// In words.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Often => "daemons of it have crashed more than 5 times within 60 s",
            Self::AtStart => "two daemons have died within 1 s of their start",
        }
    }
}

/// The crashes so far.
#[derive(Debug)]
pub(super) struct Crashes {
    /// The last ones, the oldest first; those that there were not are `None`.
    last: [Option<Duration>; MOST],
    at_start: u32,
    total: u32,
    unlimited: bool,
}

impl Crashes {
    /// None. `unlimited`: none is too many, for tests.
    pub(super) const fn new(unlimited: bool) -> Self {
        Self {
            last: [None; MOST],
            at_start: 0,
            total: 0,
            unlimited,
        }
    }

    /// How many there were.
    pub(super) const fn total(&self) -> u32 {
        self.total
    }

    /// A daemon that was started at `begun` has crashed `now`.
    ///
    /// # Errors
    /// That was one too many.
    pub(super) fn count(&mut self, begun: Duration, now: Duration) -> Result<(), Hopeless> {
        self.total = self.total.saturating_add(1);
        let oldest = self.last[0].replace(now);
        self.last.rotate_left(1);
        self.at_start = match now.saturating_sub(begun) <= AT_START {
            true => self.at_start + 1,
            false => 0,
        };
        if self.unlimited {
            return Ok(());
        }
        if self.at_start >= STARTS {
            return Err(Hopeless::AtStart);
        }
        match oldest.is_some_and(|oldest| now.saturating_sub(oldest) < WITHIN) {
            true => Err(Hopeless::Often),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn the_sixth_crash_within_a_minute_is_one_too_many() {
        let mut crashes = Crashes::new(false);
        for n in 0..5 {
            assert_eq!(crashes.count(at(10 * n), at(10 * n + 9)), Ok(()));
        }
        assert_eq!(crashes.count(at(50), at(59)), Err(Hopeless::Often));
        assert_eq!(crashes.total(), 6);
    }

    #[test]
    fn crashes_that_are_far_apart_are_never_too_many() {
        let mut crashes = Crashes::new(false);
        for n in 0..100 {
            assert_eq!(crashes.count(at(13 * n), at(13 * n + 12)), Ok(()), "{n}");
        }
    }

    #[test]
    fn two_that_die_at_their_start_are_enough_if_nothing_was_between() {
        let mut crashes = Crashes::new(false);
        assert_eq!(crashes.count(at(0), at(1)), Ok(()));
        assert_eq!(crashes.count(at(1), at(20)), Ok(()));
        assert_eq!(crashes.count(at(20), at(21)), Ok(()));
        assert_eq!(crashes.count(at(21), at(22)), Err(Hopeless::AtStart));
    }
}
