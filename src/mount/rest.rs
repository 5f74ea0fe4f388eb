//! A daemon that nobody asks for anything gives back what it does not need.
//!
//! One look every few seconds: the first at which no request has come since the look before gives
//! back the program's constant pages, what the allocator holds and what the write-ahead log has
//! left over ([`memory`], [`Wal::rest`]). While requests come, nothing is given back, and nothing is
//! slower; the first ones after a rest read again what they need, from the page cache.

use std::sync::Arc;
use std::time::Duration;

use super::memory;
use crate::fuse::Running;
use crate::telemetry::Metrics;
use crate::wal::Wal;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// When to rest.
#[derive(Debug, Clone, Default)]
struct Idleness {
    /// Requests that had come at the last look.
    seen: Option<u64>,
    rested: bool,
}

impl Idleness {
    /// Whether to rest now: no request has come since the last look, and some since the last rest.
    fn look(&mut self, requests: u64) -> bool {
        if self.seen.replace(requests) != Some(requests) {
            self.rested = false;
            return false;
        }
        !std::mem::replace(&mut self.rested, true)
    }
}

/// Has the daemon rest when it may, for as long as it serves.
pub(super) fn start(running: &Arc<Running>, metrics: &Arc<Metrics>, wal: Wal) {
    let (running, of) = (Arc::downgrade(running), Arc::clone(metrics));
    metrics.tasks.restarted("rest", move || {
        let (running, of, wal) = (running.clone(), Arc::clone(&of), wal.clone());
        async move {
            let mut idleness = Idleness::default();
            loop {
                tokio::time::sleep(LOOK).await;
                of.tasks.point("rest");
                if running.upgrade().is_none_or(|running| running.has_ended()) {
                    return;
                }
                if idleness.look(of.fuse_requests()) {
                    rest(&wal);
                }
            }
        }
    });
}

fn rest(wal: &Wal) {
    wal.rest();
    memory::trim();
    if let Err(why) = memory::give_back_program() {
        tracing::debug!(%why, "pages of the program stay in memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_rests_once_when_requests_have_ceased_and_again_after_others() {
        let mut idleness = Idleness::default();
        let rests = [0, 0, 0, 5, 9, 9, 9, 10, 10].map(|requests| idleness.look(requests));
        let expected = [false, true, false, false, false, true, false, false, true];
        assert_eq!(rests, expected);
    }
}
