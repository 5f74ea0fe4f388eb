//! Whether the cache steps aside, because its disk is full or fails.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::dir::is_full;

/// How long it steps aside after an error. The disk is tried again then.
const REST: Duration = Duration::from_secs(60);
/// After so many errors it is not tried again.
const LAST: u32 = 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Something has failed, and it is looked at what.
    ill: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    why: Option<String>,
    errors: u32,
    said: Option<io::ErrorKind>,
}

impl Health {
    /// The cache may be used.
    pub(super) fn is_well(&self) -> bool {
        if !self.ill.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.state.lock();
        if state.errors >= LAST || state.until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        state.until = None;
        self.ill.store(false, Ordering::Relaxed);
        true
    }

    /// The disk has failed: one line says so, again only for another reason.
    pub(super) fn failed(&self, what: &str, why: &io::Error) {
        let mut state = self.state.lock();
        if state.until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        state.errors += 1;
        state.until = Some(Instant::now() + rest());
        let full = is_full(why);
        if full {
            // That passes when somebody removes something.
            state.errors = 0;
        }
        let text = format!("{what} the disk cache: {why}");
        let remedy = match full {
            true => "free space on its disk, or give cache_size= and cache_min_free=",
            false => "look at the disk (dmesg), and mount again with another cache=",
        };
        if state.said.replace(why.kind()) != Some(why.kind()) {
            tracing::warn!(
                "{text}. Reads go to the server meanwhile, and it is tried again every {REST:?}. Try: {remedy}"
            );
        }
        state.why = Some(text);
        self.ill.store(true, Ordering::Relaxed);
    }

    /// Why it steps aside at this moment.
    pub(super) fn ailment(&self) -> Option<String> {
        match self.is_well() {
            true => None,
            false => self.state.lock().why.clone(),
        }
    }
}

/// [`REST`]; in builds with debug assertions `EFS_FUSE_TEST_REST` has another number of milliseconds,
/// for tests that fill the disk again and again.
fn rest() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(millis) = std::env::var("EFS_FUSE_TEST_REST")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Duration::from_millis(millis);
    }
    REST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_is_left_alone_for_a_while_and_status_says_why() {
        let health = Health::default();
        assert!(health.is_well() && health.ailment().is_none());
        health.failed("writing", &io::ErrorKind::StorageFull.into());
        assert!(!health.is_well());
        let why = health.ailment().unwrap_or_default();
        assert!(why.contains("writing the disk cache"), "{why}");
        health.state.lock().until = Some(Instant::now());
        assert!(health.is_well(), "it is tried again");
    }

    #[test]
    fn a_disk_that_fails_again_and_again_is_given_up() {
        let health = Health::default();
        for _ in 0..LAST {
            assert!(health.is_well());
            health.failed("reading", &io::Error::from_raw_os_error(libc::EIO));
            health.state.lock().until = Some(Instant::now());
        }
        assert!(!health.is_well());
    }
}
