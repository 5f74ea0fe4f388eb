//! Places where a test can make a task panic. They exist only in builds with debug
//! assertions; in a release build [`Tasks::point`](super::Tasks::point) is empty.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What is armed from the beginning: see [`Tasks::arm`](super::Tasks::arm).
const VARIABLE: &str = "EFS_FUSE_TEST_PANIC";

#[derive(Debug)]
struct Point {
    task: String,
    /// Times that it may still be passed, the one with the panic included.
    rest: u64,
    always: bool,
}

/// The armed places of one mount.
#[derive(Debug, Default)]
pub(super) struct Points {
    any: AtomicBool,
    points: Mutex<Vec<Point>>,
}

impl Points {
    pub(super) fn of_environment() -> Self {
        let points = Self::default();
        if let Ok(armed) = std::env::var(VARIABLE) {
            points.arm(&armed);
        }
        points
    }

    pub(super) fn arm(&self, armed: &str) {
        let mut points = self.points.lock();
        for (task, times) in armed.split(',').filter_map(|one| one.split_once(':')) {
            let (times, always) = match times.strip_suffix('+') {
                Some(times) => (times, true),
                None => (times, false),
            };
            points.push(Point {
                task: task.to_owned(),
                rest: times.parse().unwrap_or(1),
                always,
            });
        }
        self.any.store(!points.is_empty(), Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn pass(&self, task: &str) {
        if self.any.load(Ordering::Relaxed) {
            self.pass_armed(task);
        }
    }

    #[cold]
    fn pass_armed(&self, task: &str) {
        let mut panics = false;
        for point in self.points.lock().iter_mut() {
            if point.task == task && point.rest > 0 {
                panics |= point.rest == 1;
                if point.rest > 1 || !point.always {
                    point.rest -= 1;
                }
            }
        }
        assert!(!panics, "a test wants {task} to panic");
    }
}
