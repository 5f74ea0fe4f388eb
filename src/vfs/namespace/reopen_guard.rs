//! Names that an open is on its way through.
//!
//! An open that was refused because its name leads elsewhere walks once more, and
//! what that finds is all it gets (see `fuse::estale_retry`): a second refusal goes to
//! the program. Another host may take the file away in between; this one does not.
//! From before the name is asked for until the file is open, whoever is about to
//! remove it or to put another file there waits, upon which the open file is kept
//! under a hidden name; for [`PATIENCE`] at most, as the open may never come. And
//! the walk waits first for what of that was under way already.
//!
//! Owned by its own lock, with which no other is taken.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Namespace;
use super::changing::Changing;
use crate::vfs::inode::Inode;
use crate::vfs::types::Ino;

/// The longest that anybody waits: many times what the kernel takes from a lookup to
/// the open that it was for.
const PATIENCE: Duration = Duration::from_millis(400);

/// Walks beyond this are not waited for.
const MOST: usize = 64;

#[derive(Debug)]
struct Walk {
    dir: Ino,
    name: Box<[u8]>,
    /// The file, once the server has said which.
    found: Option<Ino>,
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReopenGuard {
    walks: Mutex<Vec<Walk>>,
    changed: Notify,
}

impl ReopenGuard {
    /// A name is about to be asked for.
    fn begin(&self, dir: Ino, name: &[u8], now: Instant) {
        let mut walks = self.walks.lock();
        walks.retain(|walk| now < walk.until);
        if walks.len() < MOST {
            walks.push(Walk {
                dir,
                name: name.into(),
                found: None,
                until: now + PATIENCE,
            });
        }
    }

    /// The name leads to this file, or (`None`) to none that could be opened.
    pub(super) fn found(&self, dir: Ino, name: &[u8], file: Option<Ino>) {
        let mut walks = self.walks.lock();
        let mine = |walk: &Walk| walk.dir == dir && *walk.name == *name && walk.found.is_none();
        if let Some(at) = walks.iter().position(mine) {
            match file {
                Some(_) => walks[at].found = file,
                None => drop(walks.swap_remove(at)),
            }
        }
        drop(walks);
        self.changed.notify_waiters();
    }

    /// The file is open, or will not be.
    pub(super) fn done(&self, file: Ino) {
        let mut walks = self.walks.lock();
        let walk = walks.iter().position(|walk| walk.found == Some(file));
        if let Some(at) = walk {
            walks.swap_remove(at);
            drop(walks);
            self.changed.notify_waiters();
        }
    }

    /// A change of ours to some directory has ended.
    pub(super) fn change_ended(&self) {
        self.changed.notify_waiters();
    }

    /// Until when somebody may walk through the name; `None`: nobody does.
    fn until(&self, dir: Ino, name: &[u8]) -> Option<Instant> {
        let now = Instant::now();
        let walks = self.walks.lock();
        let through = walks
            .iter()
            .filter(|walk| walk.dir == dir && *walk.name == *name && now < walk.until);
        through.map(|walk| walk.until).max()
    }

    /// Comes back when `time` says `None`, or when the time that it says has come.
    async fn wait(&self, time: impl Fn() -> Option<Instant>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(until) = time() else { return };
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }
}

impl Namespace {
    /// A second walk is about to ask for this name.
    pub(in crate::vfs) async fn walk_again(&self, dir: &Arc<Inode>, name: &[u8]) {
        let now = Instant::now();
        self.reopen_guard.begin(dir.ino, name, now);
        let begun = dir.names().lock().tracker.begun();
        let until = now + PATIENCE / 2;
        let under_way = || dir.names().lock().tracker.has_under_way(begun);
        self.reopen_guard
            .wait(|| under_way().then_some(until))
            .await;
    }

    /// A second walk has found this file by the name, or (`None`) none that could be opened.
    pub(in crate::vfs) fn walk_found(&self, dir: Ino, name: &[u8], file: Option<Ino>) {
        self.reopen_guard.found(dir, name, file);
    }

    /// The file that a second walk has found is open, or will not be.
    pub(in crate::vfs) fn end_walk(&self, file: Ino) {
        self.reopen_guard.done(file);
    }

    /// The name is about to be taken from the file that it leads to. From when this
    /// returns until the result is dropped, who walks waits for that to be done.
    pub(in crate::vfs) async fn let_opens_pass<'a>(
        &'a self,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> Option<Changing<'a>> {
        let patience = Instant::now() + PATIENCE;
        loop {
            // In this order: one of the two sees the other.
            let changing = self.changing(dir);
            let until = self.reopen_guard.until(dir.ino, name);
            if until.is_none() || Instant::now() >= patience {
                return changing;
            }
            drop(changing);
            let until = || {
                self.reopen_guard
                    .until(dir.ino, name)
                    .map(|at| at.min(patience))
            };
            self.reopen_guard.wait(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_held_until_the_open_has_come_or_is_overdue() {
        let awaited = ReopenGuard::default();
        let start = Instant::now();
        let passed = || awaited.wait(|| awaited.until(1, b"f"));
        passed().await;
        awaited.begin(1, b"f", start);
        awaited.begin(1, b"g", start);
        let opened = async {
            tokio::time::sleep(Duration::from_millis(7)).await;
            awaited.found(1, b"f", Some(5));
            tokio::time::sleep(Duration::from_millis(7)).await;
            awaited.done(6);
            awaited.done(5);
        };
        tokio::join!(passed(), opened);
        assert_eq!(start.elapsed(), Duration::from_millis(14));
        awaited.found(1, b"g", None);
        assert_eq!(awaited.until(1, b"g"), None, "no file");
        awaited.begin(1, b"f", Instant::now());
        passed().await;
        assert_eq!(start.elapsed(), Duration::from_millis(14) + PATIENCE);
        assert_eq!(awaited.until(1, b"f"), None, "nobody else waits for it");
    }

    #[test]
    fn walks_that_never_end_are_bounded() {
        let awaited = ReopenGuard::default();
        for _ in 0..2 * MOST {
            awaited.begin(1, b"f", Instant::now());
        }
        assert_eq!(awaited.walks.lock().len(), MOST);
    }
}
