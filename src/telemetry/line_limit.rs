//! A bound for lines of one kind in the log.
//!
//! A server that stalls or refuses does so to every request at once: at most [`PER_SECOND`]
//! lines a second are logged, and the next one says how many were left out.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that are logged in one second at most.
const PER_SECOND: u32 = 10;

/// How much was logged lately.
#[derive(Debug)]
pub struct LineLimit(Mutex<Lately>);

#[derive(Debug)]
struct Lately {
    second: Instant,
    lines: u32,
    left_out: u64,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self(Mutex::new(Lately {
            second: Instant::now(),
            lines: 0,
            left_out: 0,
        }))
    }
}

impl LineLimit {
    /// Whether one more line may be logged; the number is that of lines left out since
    /// the last one.
    pub fn room(&self, now: Instant) -> Option<u64> {
        let mut lately = self.0.lock();
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
    fn lines_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let limit = LineLimit::default();
        let start = Instant::now();
        let lines = (0..100).filter(|_| limit.room(start).is_some()).count();
        assert_eq!(lines, PER_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.room(later), Some(100 - u64::from(PER_SECOND)));
        assert_eq!(limit.room(later), Some(0));
    }
}
