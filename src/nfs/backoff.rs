//! Pauses before a request is repeated that the server put off.

use std::time::Duration;

use super::proto::status::Status;

/// Pauses before a request is repeated that the server put off (DELAY, GRACE).
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(5);
    /// A grace period ends for everybody at once, and nobody is told.
    const LONGEST_IN_GRACE: Duration = Duration::from_millis(1500);

    pub(super) fn new() -> Self {
        Self::up_to(Self::LONGEST)
    }

    /// For what has to be done while the server's grace period lasts: no pause is longer
    /// than this ([`Channel::pause`](crate::rpc::Channel::pause)).
    pub(super) fn up_to(longest: Duration) -> Self {
        Self {
            next: Self::FIRST.min(longest),
            longest,
        }
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// A pause because of this status (DELAY or GRACE).
    pub(super) async fn pause_for(&mut self, status: Status) {
        if status == Status::GRACE {
            self.next = self.next.min(Self::LONGEST_IN_GRACE);
        }
        self.pause().await;
    }

    /// The pause to make now. The one after it is twice as long.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let millis = |backoff: &mut Backoff, count: usize| -> Vec<u128> {
            (0..count).map(|_| backoff.next().as_millis()).collect()
        };
        let usual = [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000];
        assert_eq!(millis(&mut Backoff::new(), 10), usual);
        let mut short = Backoff::up_to(Duration::from_millis(100));
        assert_eq!(millis(&mut short, 4), [20, 40, 80, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_in_a_grace_period_is_long() {
        let mut backoff = Backoff::new();
        while backoff.next < Backoff::LONGEST {
            backoff.next();
        }
        let begun = tokio::time::Instant::now();
        backoff.pause_for(Status::GRACE).await;
        assert_eq!(begun.elapsed(), Backoff::LONGEST_IN_GRACE);
    }
}
