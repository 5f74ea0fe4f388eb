//! SEQUENCE status flags (RFC 8881 §18.46.3): what the server says about our state
//! with every reply.
//!
//! Flags stay up until what they are about is dealt with, so only their rising
//! counts; a session inherits them from the one before it. What there is to do is
//! done by tasks of their own, never by the request whose reply said so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::Client;
use super::proto::reply::NfsError;
use super::reopen;
use super::session::live::Session;
use super::stateids::{self, StateOwner};

/// EXPIRED_ALL_STATE_REVOKED, EXPIRED_SOME_STATE_REVOKED, ADMIN_STATE_REVOKED,
/// RECALLABLE_STATE_REVOKED: some stateids are of no more use; which, has to be
/// asked. They stay up until FREE_STATEID.
const REVOKED: u32 = 0x8 | 0x10 | 0x20 | 0x40;
/// RESTART_RECLAIM_NEEDED: the server restarted and has kept the session, but not
/// the opens and locks.
const RESTARTED: u32 = 0x100;
/// BACKCHANNEL_FAULT: this session must not be used any more.
const SESSION_BROKEN: u32 = 0x400;
/// CB_PATH_DOWN, CB_GSS_*, CB_PATH_DOWN_SESSION: about a back channel, which we
/// never ask for. DEVID_*: about pNFS.
const NOT_OURS: u32 = 0x1 | 0x2 | 0x4 | 0x200 | 0x800 | 0x1000;

/// The server has raised these flags in `session`. Nothing is waited for.
pub(super) fn heed(client: &Arc<Client>, session: &Arc<Session>, raised: u32) {
    if raised & !NOT_OURS != 0 {
        tracing::warn!("the server raises SEQUENCE status flags {raised:#x}");
    }
    if raised & RESTARTED != 0 {
        client.must_reclaim.store(true, Ordering::Relaxed);
        client.record();
        client.fore.recover(session.generation);
    } else if raised & SESSION_BROKEN != 0 {
        client.fore.recover(session.generation);
    }
    if raised & REVOKED != 0 {
        let (client, session) = (Arc::clone(client), Arc::clone(session));
        let tasks = Arc::clone(&client.metrics.tasks);
        tasks.restarted("check_states", move || {
            let (client, session) = (Arc::clone(&client), Arc::clone(&session));
            async move {
                client.metrics.tasks.point("check_states");
                if let Err(error) = check_states(&client, &session).await {
                    // What is revoked is found where it is used.
                    tracing::warn!("asking for revoked state: {error}");
                }
            }
        });
    }
}

/// Finds out which opens and locks the server has taken away, and deals with
/// each as if it had been met by a request.
async fn check_states(client: &Arc<Client>, session: &Arc<Session>) -> Result<(), NfsError> {
    for lost in stateids::lost(&client.fore, session, &client.opens).await? {
        match lost.owner {
            StateOwner::Open(open, token) => {
                // The error is that of the open, which is lost then.
                let _ = reopen::renew_state(client, &open, token, lost.status).await;
            }
            StateOwner::Lock(lock) => {
                stateids::free(&client.fore, &lock.open.cred, lost.stateid).await;
                let known = lock.stateid();
                if known.is_some_and(|now| now.other == lost.stateid.other) {
                    lock.lose();
                }
            }
        }
    }
    Ok(())
}
