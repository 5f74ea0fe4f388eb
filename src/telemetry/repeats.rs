//! Many events of one kind as one line of the log.
//!
//! A server that forgets this host makes every open file and every lock an event of its
//! own, hundreds at a time. The first of them is told at once (the process may end before
//! anything else is) and begins a moment in which further ones are counted; at its end
//! one line tells how many those were. State: the count, nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long they are counted.
const MOMENT: Duration = Duration::from_secs(1);

/// The events of one kind.
#[derive(Debug)]
pub struct Repeats {
    /// Since the moment began, the first one included; 0 while there is none.
    count: AtomicU64,
    say: fn(u64),
}

impl Repeats {
    /// `say` writes the line for so many of them.
    pub const fn new(say: fn(u64)) -> Self {
        Self {
            count: AtomicU64::new(0),
            say,
        }
    }

    /// It has happened once more. Where no runtime is there to wait, each is told.
    pub fn happened(&'static self) {
        if self.count.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        (self.say)(1);
        let saying = Saying(self);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(MOMENT).await;
                drop(saying);
            });
        }
    }
}

/// Says it when it is dropped, so that a runtime that ends first hides nothing.
struct Saying(&'static Repeats);

impl Drop for Saying {
    fn drop(&mut self) {
        let further = self.0.count.swap(0, Ordering::Relaxed).saturating_sub(1);
        if further > 0 {
            (self.0.say)(further);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_hundreds_of_times_is_two_lines_and_later_another() {
        static LINES: AtomicU64 = AtomicU64::new(0);
        static TOLD: AtomicU64 = AtomicU64::new(0);
        static LOST: Repeats = Repeats::new(|count| {
            LINES.fetch_add(1, Ordering::Relaxed);
            TOLD.fetch_add(count, Ordering::Relaxed);
        });
        let said = || (LINES.load(Ordering::Relaxed), TOLD.load(Ordering::Relaxed));
        for _ in 0..150 {
            LOST.happened();
        }
        assert_eq!(said(), (1, 1), "at once");
        tokio::time::sleep(MOMENT * 2).await;
        assert_eq!(said(), (2, 150));
        LOST.happened();
        tokio::time::sleep(MOMENT * 2).await;
        assert_eq!(said(), (3, 151));
    }

    #[test]
    fn nothing_is_left_unsaid_where_no_runtime_is_or_it_ends() {
        static TOLD: AtomicU64 = AtomicU64::new(0);
        static LOST: Repeats = Repeats::new(|count| {
            TOLD.fetch_add(count, Ordering::Relaxed);
        });
        LOST.happened();
        assert_eq!(TOLD.load(Ordering::Relaxed), 1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            LOST.happened();
            LOST.happened();
        });
        drop(runtime);
        assert_eq!(TOLD.load(Ordering::Relaxed), 3);
    }
}
