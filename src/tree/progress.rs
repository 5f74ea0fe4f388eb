//! How far a walk is: counters that any task moves and the command shows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::quoting;

/// Errors that are kept with their text; of more than these only the number.
const KEPT_ERRORS: usize = 100;

/// The counters of one walk.
#[derive(Debug, Default)]
pub struct Progress {
    /// Directories that were found.
    pub directories: AtomicU64,
    /// Directories that are done with.
    pub finished: AtomicU64,
    /// Objects that are no directories.
    pub files: AtomicU64,
    /// Bytes of what was found (or removed).
    pub bytes: AtomicU64,
    /// Objects that were removed, directories too.
    pub removed: AtomicU64,
    /// Objects that were left because they are too young.
    pub kept: AtomicU64,
    stop: AtomicBool,
    errors: Mutex<Errors>,
}

#[derive(Debug, Default)]
struct Errors {
    all: u64,
    kept: Vec<String>,
}

impl Progress {
    /// Nothing new is begun from now on.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Somebody said [`stop`](Self::stop).
    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Something could not be done.
    pub fn failed(&self, path: &[u8], why: impl std::fmt::Display) {
        let mut errors = self.errors.lock();
        errors.all += 1;
        if errors.kept.len() < KEPT_ERRORS {
            errors.kept.push(format!("{}: {why}", quoting::name(path)));
        }
    }

    /// Number of errors, and the first of them.
    pub fn errors(&self) -> (u64, Vec<String>) {
        let errors = self.errors.lock();
        (errors.all, errors.kept.clone())
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
