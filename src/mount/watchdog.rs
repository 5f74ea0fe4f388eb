//! Signs of life for the service manager (`WatchdogSec=`, sd_watchdog_enabled(3)).
//!
//! A ping says that this daemon serves, not that its server does: a dead server
//! must not get the daemon killed, which would lose what programs have open.
//! Before each ping a request of our own goes through the kernel and back
//! ([`Running::probe`]); the ping itself is sent by a task of the runtime. So
//! pings stop when the reader threads, the way back to the kernel, or the
//! runtime are stuck, or a task that everything waits for has died
//! ([`Tasks::ended`]), and then the manager starts the daemon anew.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Mutex;

use super::keeper::{BEAT, KeeperLink};
use super::notify;
use crate::background::Tasks;
use crate::fuse::Running;

/// A probe is known by its thread, so there is one at a time.
static PROBING: Mutex<()> = Mutex::const_new(());

/// Pings at a third of the time that the service manager allows, if it asks
/// for pings: of this process, or of the keeper, which is the main process then. Ends with
/// the mount.
pub fn start(running: &Arc<Running>, tasks: &Arc<Tasks>, keeper: Option<u32>) {
    let Some(limit) = asked_for(
        std::env::var("WATCHDOG_USEC").ok().as_deref(),
        std::env::var("WATCHDOG_PID").ok().as_deref(),
        &[Some(std::process::id()), keeper],
    ) else {
        return;
    };
    tracing::debug!("a sign of life for the watchdog every {:?}", limit / 3);
    let (running, of) = (Arc::downgrade(running), Arc::clone(tasks));
    tasks.restarted("watchdog", move || {
        watch(limit / 3, running.clone(), Arc::clone(&of))
    });
}

/// Signs of life for the keeper, which come about in the same way: a daemon that serves nobody any
/// more is killed by it, and followed by another.
pub fn beat(running: &Arc<Running>, tasks: &Arc<Tasks>, keeper: KeeperLink) {
    let (running, of) = (Arc::downgrade(running), Arc::clone(tasks));
    tasks.restarted("heartbeat", move || {
        let (running, of) = (running.clone(), Arc::clone(&of));
        let keeper = keeper.clone();
        async move {
            loop {
                tokio::time::sleep(BEAT).await;
                of.point("heartbeat");
                let Some(running) = running.upgrade() else {
                    return;
                };
                if running.has_ended() {
                    return;
                }
                let _one = PROBING.lock().await;
                match tokio::task::spawn_blocking(move || running.probe()).await {
                    Ok(Ok(())) => keeper.beat(),
                    // It is no mount any more, or hidden from this process; what this task
                    // proves then is the runtime.
                    Ok(Err(why)) => {
                        tracing::debug!(%why, "the mount does not answer its own daemon");
                        keeper.beat();
                    }
                    Err(why) => tracing::error!(%why, "the mount could not be asked"),
                }
            }
        }
    });
}

async fn watch(pause: Duration, running: Weak<Running>, tasks: Arc<Tasks>) {
    loop {
        tokio::time::sleep(pause).await;
        tasks.point("watchdog");
        let Some(running) = running.upgrade() else {
            return;
        };
        if running.has_ended() || tasks.has_ended() {
            return;
        }
        let _one = PROBING.lock().await;
        // Without an answer this never goes on, and nobody pings.
        match tokio::task::spawn_blocking(move || running.probe()).await {
            Ok(Ok(())) => notify::alive(),
            Ok(Err(why)) => tracing::warn!(%why, "the mount does not answer its own daemon"),
            // It panicked: no ping, and the next time it may not.
            Err(why) => tracing::error!(%why, "the mount could not be asked"),
        }
    }
}

/// The time between pings that the manager bears, if it watches this process.
fn asked_for(usec: Option<&str>, pid: Option<&str>, own: &[Option<u32>]) -> Option<Duration> {
    let usec = usec?.parse().ok().filter(|&usec| usec > 0)?;
    let is_own = |pid: &str| own.iter().flatten().any(|own| pid == own.to_string());
    let ours = pid.is_none_or(|pid| pid.is_empty() || is_own(pid));
    ours.then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watchdog_that_watches_this_process_is_heeded() {
        let minute = Some(Duration::from_secs(60));
        let own = &[Some(7), None];
        assert_eq!(asked_for(Some("60000000"), None, own), minute);
        assert_eq!(asked_for(Some("60000000"), Some("7"), own), minute);
        assert_eq!(asked_for(Some("60000000"), Some("8"), own), None);
        let kept = &[Some(7), Some(8)];
        assert_eq!(asked_for(Some("60000000"), Some("8"), kept), minute);
        for usec in [None, Some(""), Some("0"), Some("soon")] {
            assert_eq!(asked_for(usec, None, own), None);
        }
    }
}
