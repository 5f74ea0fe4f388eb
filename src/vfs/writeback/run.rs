//! A run of writes to a file, one soon after the other, with nothing that waits for them:
//! how long the next one is worth waiting for.
//!
//! Who has written for a while will go on for a while. So what he has written waits for as
//! long as the run is old, within bounds: a single write, or a burst of a millisecond,
//! goes almost at once; of a stream whole requests are made, and of a log one request holds
//! many lines. What a run that has ended has left behind is late by no more than it took.

use std::time::{Duration, Instant};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    since: Instant,
    /// Its latest write.
    last: Instant,
}

impl Run {
    /// The run that a write at `now` belongs to: this one, if it has not paused for `pause`.
    pub(super) fn go_on(run: Option<Run>, now: Instant, pause: Duration) -> Run {
        let goes_on = run.filter(|run| now.saturating_duration_since(run.last) <= pause);
        let since = goes_on.map_or(now, |run| run.since);
        Run { since, last: now }
    }

    /// When the next write is waited for no longer: after as much time as the run has taken,
    /// from `least` to `most`.
    pub(super) fn ends_at(self, least: Duration, most: Duration) -> Option<Instant> {
        let age = self.last.saturating_duration_since(self.since);
        self.last.checked_add(age.min(most).max(least))
    }
}
