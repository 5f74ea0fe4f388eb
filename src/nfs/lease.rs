//! Keeping the lease (RFC 8881 §8.3): any request renews it; when nobody sends
//! one, a lone SEQUENCE does.

use std::sync::Weak;
use std::time::Duration;

use super::fore_channel::ForeChannel;
use super::session::current::Phase;
use super::session::slots::Class;
use crate::rpc::auth::Credential;

/// How long this machine has been suspended since it was started: what
/// CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not.
pub fn suspended() -> Duration {
    let read = |clock| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: a valid pointer to a timespec; both clocks exist on Linux.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    // In this order, so that the time between the readings is never negative.
    let awake = read(libc::CLOCK_MONOTONIC);
    read(libc::CLOCK_BOOTTIME).saturating_sub(awake)
}

/// The longest that is slept at once: the timer stands still while the machine is
/// suspended, and the lease does not.
const LOOK: Duration = Duration::from_secs(10);

/// When to look next, and whether to renew now: a third of the lease after the
/// last request that was answered, so that two renewals may be lost.
fn plan(lease: Duration, idle: Duration) -> (bool, Duration) {
    let due = lease / 3;
    match due.checked_sub(idle) {
        Some(rest) if !rest.is_zero() => (false, rest),
        _ => (true, due.max(Duration::from_millis(100))),
    }
}

/// Renews the lease until the client is gone.
pub(super) async fn renew(fore: Weak<ForeChannel>) {
    let Some(mut lease) = fore.upgrade().map(|fore| fore.lease.subscribe()) else {
        return;
    };
    loop {
        let time = Duration::from_secs((*lease.borrow_and_update()).max(1).into());
        let pause = {
            let Some(fore) = fore.upgrade() else {
                return;
            };
            fore.metrics.tasks.point("renew");
            match fore.session.phase() {
                Phase::Down => return,
                Phase::Recovering => time / 3,
                Phase::Up(session) => {
                    let (now, pause) = plan(time, session.idle());
                    if now {
                        let result = fore
                            .call(&Credential::machine(), Class::Control, |_| {})
                            .await;
                        if let Err(error) = result {
                            tracing::warn!("renewing the lease: {error}");
                        }
                    }
                    pause
                }
            }
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause.min(LOOK)) => {}
            // The server has told its lease time, which may be shorter than
            // what we went by; or the client is gone.
            changed = lease.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_counted_and_being_awake_is_not() {
        let before = suspended();
        std::thread::sleep(Duration::from_millis(30));
        assert!(suspended().saturating_sub(before) < Duration::from_millis(20));
    }

    #[test]
    fn a_lease_is_renewed_at_a_third_of_its_time_unless_traffic_did() {
        let lease = Duration::from_secs(90);
        let secs = Duration::from_secs;
        assert_eq!(plan(lease, secs(0)), (false, secs(30)));
        assert_eq!(plan(lease, secs(20)), (false, secs(10)));
        assert_eq!(plan(lease, secs(30)), (true, secs(30)));
        assert_eq!(plan(lease, secs(500)), (true, secs(30)));
    }
}
