//! Which version of a file may be read from the disk of this host
//! ([`disk_cache`](crate::disk_cache)): plain state under the file's lock.
//!
//! A view is given by an open, which has asked the server, or by one that need not (`nocto`). It is
//! the file's, not the handle's: a later open sees the file as new as an earlier one, or newer. It is
//! good as long as the file is not known to have moved, be it by others or by this host.
//!
//! A change attribute may be coarse. Some servers make it of the time of the change, in ticks of
//! some milliseconds, and two changes within a tick have one value: who reads between them, and
//! looks at the attribute behind, finds nothing wrong. So data are kept under a change attribute
//! only when it is *settled*: when no change after the READ can have the same value, because the tick
//! was over when the READ was sent. It is, if this client knew the value for [`KNOWN`] by then; or if
//! the file's ctime was [`OLD`] ago by this host's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::inline_read::FileVersion;
use crate::disk_cache::Version;

/// So long a change attribute must have been known: many ticks of any server's clock.
const KNOWN: Duration = Duration::from_secs(1);
/// So long ago by this host's clock the file must have been changed otherwise: the clocks of this
/// host and of the server may differ by as much, less a tick.
const OLD: Duration = Duration::from_secs(60);

/// A version of a file that the server has told, and since when that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct KnownVersion {
    /// The version at the server.
    pub(in crate::vfs) at: Version,
    /// Since when this change attribute is known.
    since: Instant,
    /// The file's ctime, in seconds since 1970.
    ctime: i64,
}

impl KnownVersion {
    /// The file is at this version, as is known `now`.
    pub(in crate::vfs) fn new(at: Version, ctime: i64, now: Instant) -> Self {
        Self {
            at,
            since: now,
            ctime,
        }
    }

    /// What a READ that was sent then has brought is this version's for good, if the change
    /// attribute behind it is this one.
    pub(in crate::vfs) fn was_settled(&self, sent: Instant) -> bool {
        self.is_old() || sent.saturating_duration_since(self.since) >= known_for()
    }

    /// From when on a READ may be sent for that.
    pub(in crate::vfs) fn settles(&self) -> Instant {
        match self.is_old() {
            true => self.since,
            false => self.since + known_for(),
        }
    }

    /// A server that does not tell the time of the last change says 0.
    fn is_old(&self) -> bool {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = wall.map_or(0, |since| since.as_secs() as i64);
        self.ctime > 0 && wall.saturating_sub(self.ctime) > OLD.as_secs() as i64
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct DiskView {
    /// What is known of it.
    pub(in crate::vfs) known: KnownVersion,
    /// How the file stands here while that is so.
    pub(in crate::vfs) file: FileVersion,
}

impl DiskView {
    /// The file is at this version, as is known `now`; `before` is what was last known of it.
    pub(in crate::vfs) fn new(
        at: Version,
        file: FileVersion,
        ctime: i64,
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        let same = before.filter(|before| before.known.at == at);
        let since = same.map_or(now, |before| before.known.since);
        Self {
            known: KnownVersion::new(at, ctime, since),
            file,
        }
    }
}

/// [`KNOWN`]; in builds with debug assertions `EFS_FUSE_TEST_SETTLED` has another number of
/// milliseconds, for tests whose servers have short ticks and whose files live shortly.
fn known_for() -> Duration {
    #[cfg(debug_assertions)]
    {
        use std::sync::OnceLock;
        static OTHER: OnceLock<Option<u64>> = OnceLock::new();
        let other = OTHER.get_or_init(|| {
            let text = std::env::var("EFS_FUSE_TEST_SETTLED").ok()?;
            text.parse().ok()
        });
        if let Some(millis) = other {
            return Duration::from_millis(*millis);
        }
    }
    KNOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Version = Version { change: 5, size: 9 };
    const FILE: FileVersion = FileVersion {
        epoch: 0,
        writes: 0,
    };

    fn wall() -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as i64)
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_attribute_is_settled_when_it_was_known_for_a_second() {
        let begun = Instant::now();
        let view = DiskView::new(AT, FILE, wall(), None, begun);
        assert!(!view.known.was_settled(begun));
        assert!(
            !view
                .known
                .was_settled(begun + KNOWN - Duration::from_millis(1))
        );
        assert!(view.known.was_settled(begun + KNOWN));
        assert_eq!(view.known.settles(), begun + KNOWN);
        let later = begun + Duration::from_secs(5);
        let again = DiskView::new(AT, FILE, wall(), Some(&view), later);
        assert!(again.known.was_settled(later), "it was known all the time");
        let moved = Version { change: 6, ..AT };
        let moved = DiskView::new(moved, FILE, wall(), Some(&view), later);
        assert!(!moved.known.was_settled(later));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_not_changed_for_a_minute_is_settled_at_once() {
        let now = Instant::now();
        for (age, settled) in [(0, false), (50, false), (70, true), (-100, false)] {
            let view = DiskView::new(AT, FILE, wall() - age, None, now);
            assert_eq!(view.known.was_settled(now), settled, "{age}");
        }
        let view = DiskView::new(AT, FILE, 0, None, now);
        assert!(!view.known.was_settled(now), "the server does not tell");
    }
}
