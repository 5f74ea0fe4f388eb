//! The slow-operation log (`-o slow_op_ms=`): which requests took longer than
//! the user finds right.
//!
//! A server that stalls makes everything slow at once, so lines are bounded ([`LineLimit`]).
//! Every slow operation is counted.
//!
//! Off, asking costs one load and one comparison.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::counters::Counter;
use super::line_limit::LineLimit;

/// The threshold, and how much was logged lately.
#[derive(Debug)]
pub struct SlowLog {
    /// Nanoseconds; all ones: off.
    after: AtomicU64,
    limit: LineLimit,
    /// Operations that took longer than the threshold.
    pub(super) seen: Counter,
}

impl Default for SlowLog {
    fn default() -> Self {
        Self {
            after: AtomicU64::new(u64::MAX),
            limit: LineLimit::default(),
            seen: Counter::default(),
        }
    }
}

impl SlowLog {
    /// From now on, what takes at least `threshold` is slow.
    pub fn set(&self, threshold: Duration) {
        let ns = u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX);
        self.after.store(ns, Relaxed);
    }

    /// Whether an operation that took `elapsed` deserves a line; the number is
    /// that of lines left out since the last one.
    pub fn line(&self, elapsed: Duration) -> Option<u64> {
        let after = self.after.load(Relaxed);
        if u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX - 1) < after {
            return None;
        }
        self.seen.inc();
        self.limit.room(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_slow_until_somebody_says_what_slow_is() {
        let log = SlowLog::default();
        assert_eq!(log.line(Duration::from_secs(1 << 30)), None);
        log.set(Duration::from_millis(5));
        assert_eq!(log.line(Duration::from_millis(4)), None);
        assert_eq!(log.line(Duration::from_millis(5)), Some(0));
        assert_eq!(log.seen.get(), 1);
    }
}
