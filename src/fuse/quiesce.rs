//! Brings the mount to rest, so that another process can take it over.
//!
//! ```text
//! the gate closes ─► reader threads have answered what had passed it
//!   ─► who waits for a file lock is withdrawn, and parked
//!   ─► tasks end, the kernel has been told everything ─► the vfs drains
//!   ─► still nothing under way and nothing to tell? frozen, at rest. Else once more.
//! ```
//!
//! All of that has one deadline. When it passes, or whoever has asked for it goes away, the
//! gate opens and what was parked is worked off: to callers it was a pause.
//!
//! # Why it does not lock up
//!
//! An invalidation waits in the kernel for the lock of a page, which a READ or WRITE holds
//! until it is answered, or for that of a directory, which the caller of a LOOKUP, CREATE or
//! READDIR holds. Such a request may be parked. Then the thread that sends is stuck, with it
//! every task that waits for what it sends ([`Vfs::pages_go_first`]), and in the end this
//! process, which could not even exit. So an invalidation that has been in the kernel for
//! [`STUCK`] while something is parked has the parked requests let through, while the gate
//! stays closed for what comes after them. The kernel's locks are handed on in turn: those
//! that hold what the invalidation waits for are parked or arrive, are let through, and are
//! then not ahead of it any more. Who waits for a file lock holds neither page nor directory,
//! and is not let through.
//!
//! Nothing else under way waits for what is parked: tasks wait for the server, for each other
//! and for the kernel. An operation whose caller is gone is a task until its end, and is
//! waited for with the others.
//!
//! [`Vfs::pages_go_first`]: crate::vfs::Vfs::pages_go_first

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::gate::Gate;
use super::interrupt::InterruptWatcher;
use super::notify::{Calls, Notify};
use super::place::MountPlace;

/// The time between two looks. A look costs a few loads.
const LOOK: Duration = Duration::from_millis(1);

/// An invalidation that waits for nothing takes microseconds.
const STUCK: Duration = Duration::from_millis(20);

/// Why the mount did not come to rest. It goes on as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotQuiet {
    /// Somebody brings it to rest already.
    Already,
    /// So many requests were still being worked on.
    UnderWay(usize),
    /// The kernel did not take what it was told.
    Kernel,
    /// The file system had not settled.
    Draining,
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Already => f.write_str("the mount is being handed over already"),
            Self::UnderWay(1) => f.write_str("one call is still waiting for the server"),
            Self::UnderWay(calls) => write!(f, "{calls} calls are still waiting for the server"),
            Self::Kernel => f.write_str("the kernel has not taken all invalidations"),
            Self::Draining => {
                f.write_str("the server has not taken everything that was written and closed")
            }
        }
    }
}

impl std::error::Error for NotQuiet {}

/// What is brought to rest.
#[derive(Clone)]
pub(super) struct Traffic {
    pub(super) gate: Arc<Gate>,
    pub(super) watcher: Arc<InterruptWatcher>,
    pub(super) notify: Arc<Notify>,
    pub(super) place: MountPlace,
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic")
            .field("gate", &self.gate)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A mount at rest: no request is under way, the kernel has nothing to hear, and what arrives
/// is parked. Dropping it goes on as before.
#[derive(Debug)]
#[must_use = "dropping it lets the mount go on"]
pub struct Quiesced {
    traffic: Traffic,
    ends: bool,
}

impl Quiesced {
    /// Requests that wait, for this process or the next one.
    pub fn parked(&self) -> usize {
        self.traffic.gate.parked()
    }

    /// Nothing has come up by itself since: to be asked when the state was taken.
    pub fn is_still_quiet(&self) -> bool {
        self.traffic.gate.under_way() == 0 && self.traffic.notify.is_idle()
    }

    /// Leaves everything that is parked, and what may still be read, to the process that
    /// serves the mount next: nothing is answered here any more, and nothing unmounts. This
    /// process has to end by `_exit`. Returns how many requests those are.
    pub fn leave(mut self) -> usize {
        self.ends = true;
        self.traffic.place.leave();
        self.traffic.gate.leave()
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        if !self.ends {
            self.traffic.notify.thaw();
            self.traffic.gate.open();
        }
    }
}

/// Sees whether the kernel takes what it is told.
struct Lookout<'a> {
    traffic: &'a Traffic,
    calls: Calls,
    since: Instant,
    /// What was parked has been let through.
    let_through: bool,
}

impl<'a> Lookout<'a> {
    fn new(traffic: &'a Traffic) -> Self {
        Self {
            traffic,
            calls: Calls::default(),
            since: Instant::now(),
            let_through: false,
        }
    }

    /// Lets through what is parked if an invalidation seems to wait for it.
    fn look(&mut self) {
        let calls = self.traffic.notify.calls();
        if calls != self.calls || calls.inside == 0 {
            (self.calls, self.since) = (calls, Instant::now());
        } else if self.since.elapsed() >= STUCK {
            self.since = Instant::now();
            self.let_through |= self.traffic.gate.let_through() > 0;
        }
    }

    /// Comes back when nothing is under way and nothing to be told.
    async fn at_rest(&mut self) {
        while self.traffic.gate.under_way() > 0 || !self.traffic.notify.is_idle() {
            self.look();
            sleep(LOOK).await;
        }
    }

    /// Looks while `work` is going on.
    async fn during(&mut self, work: impl Future<Output = ()>) {
        let mut work = std::pin::pin!(work);
        while tokio::time::timeout(LOOK, &mut work).await.is_err() {
            self.look();
        }
    }
}

/// Closes the gate and waits for everything behind it, of which `drain` is what the file
/// system has to do once no request is under way.
///
/// # Errors
/// It has not come to rest by `deadline`.
pub(super) async fn quiesce<D, F>(
    traffic: Traffic,
    deadline: Instant,
    mut drain: D,
) -> Result<Quiesced, NotQuiet>
where
    D: FnMut() -> F,
    F: Future<Output = ()>,
{
    if !traffic.gate.close() {
        return Err(NotQuiet::Already);
    }
    // From here on it opens whichever way this ends.
    let closed = Quiesced {
        traffic,
        ends: false,
    };
    let traffic = &closed.traffic;
    let mut draining = false;
    let rest = async {
        while !traffic.gate.none_passes() {
            sleep(LOOK).await;
        }
        traffic.watcher.withdraw_waits();
        loop {
            let mut lookout = Lookout::new(traffic);
            draining = false;
            lookout.at_rest().await;
            lookout.let_through = false;
            draining = true;
            lookout.during(drain()).await;
            let quiet = !lookout.let_through && traffic.gate.under_way() == 0;
            if quiet && traffic.notify.freeze() {
                return;
            }
        }
    };
    match timeout_at(deadline, rest).await {
        Ok(()) => Ok(closed),
        Err(_) => Err(match traffic.gate.under_way() {
            0 if draining => NotQuiet::Draining,
            0 => NotQuiet::Kernel,
            calls => NotQuiet::UnderWay(calls),
        }),
    }
}
