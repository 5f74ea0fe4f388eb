//! The slow-operation log (`-o slow_op_ms=`): which requests took longer than
//! the user finds right.
//!
//! A server that stalls makes everything slow at once, so lines are bounded:
//! at most [`PER_SECOND`] a second, and the next one says how many were left
//! out. Every slow operation is counted.
//!
//! Off, asking costs one load and one comparison.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::counters::Counter;

/// Lines that are logged in one second at most.
const PER_SECOND: u32 = 10;

/// The threshold, and how much was logged lately.
#[derive(Debug)]
pub struct SlowLog {
    /// Nanoseconds; all ones: off.
    after: AtomicU64,
    lately: Mutex<Lately>,
    /// Operations that took longer than the threshold.
    pub(super) seen: Counter,
}

#[derive(Debug)]
struct Lately {
    second: Instant,
    lines: u32,
    left_out: u64,
}

impl Default for SlowLog {
    fn default() -> Self {
        Self {
            after: AtomicU64::new(u64::MAX),
            lately: Mutex::new(Lately {
                second: Instant::now(),
                lines: 0,
                left_out: 0,
            }),
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
        self.room(Instant::now())
    }

    fn room(&self, now: Instant) -> Option<u64> {
        let mut lately = self.lately.lock();
        if now.duration_since(lately.second) >= Duration::from_secs(1) {
            lately.second = now;
            lately.lines = 0;
        }
        if lately.lines >= PER_SECOND {
            lately.left_out += 1;
            return None;
        }
        lately.lines += 1;
        Some(std::mem::take(&mut lately.left_out))
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

    #[test]
    fn lines_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let log = SlowLog::default();
        let start = Instant::now();
        let lines = (0..100).filter(|_| log.room(start).is_some()).count();
        assert_eq!(lines, PER_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(log.room(later), Some(100 - u64::from(PER_SECOND)));
        assert_eq!(log.room(later), Some(0));
    }
}
