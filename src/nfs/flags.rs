//! SEQUENCE status flags (RFC 8881 §18.46.3): what the server says about our state
//! with every reply.
//!
//! Flags stay up until what they are about is dealt with, so only their rising
//! counts; a session inherits them from the one before it. What there is to do is
//! done by tasks of their own, never by the request whose reply said so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::Client;
use super::proto::ops::Op;
use super::proto::reply::NfsError;
use super::proto::status::Status;
use super::proto::types::StateId;
use super::recovery::state_is_gone;
use super::session::live::Session;
use super::state::OpenState;
use super::state::locks::LockState;
use crate::rpc::auth::Credential;

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

/// Stateids asked about at once: 16 bytes each in a request of at least 4 KiB.
const AT_ONCE: usize = 128;

/// What a stateid stands for.
enum Held {
    /// An open, and its token from before it was asked about.
    Open(Arc<OpenState>, u32),
    Lock(Arc<LockState>),
}

impl Client {
    /// The server has raised these flags in `session`.
    pub(super) fn flags_raised(self: &Arc<Self>, session: &Arc<Session>, raised: u32) {
        if raised & !NOT_OURS != 0 {
            tracing::warn!("the server raises SEQUENCE status flags {raised:#x}");
        }
        if raised & RESTARTED != 0 {
            self.must_reclaim.store(true, Ordering::Relaxed);
            self.recover(session.generation);
        } else if raised & SESSION_BROKEN != 0 {
            self.recover(session.generation);
        }
        if raised & REVOKED != 0 {
            let (client, session) = (Arc::clone(self), Arc::clone(session));
            self.metrics.tasks.restarted("check_states", move || {
                let (client, session) = (Arc::clone(&client), Arc::clone(&session));
                async move {
                    client.metrics.tasks.point("check_states");
                    if let Err(error) = client.check_states(&session).await {
                        // What is revoked is found where it is used.
                        tracing::warn!("asking for revoked state: {error}");
                    }
                }
            });
        }
    }

    /// Finds out which opens and locks the server has taken away, and deals with
    /// each as if it had been met by a request.
    async fn check_states(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), NfsError> {
        for (held, stateid, status) in self.lost_states(session).await? {
            match held {
                Held::Open(open, token) => {
                    // The error is that of the open, which is lost then.
                    let _ = self.renew_state(&open, token, status).await;
                }
                Held::Lock(lock) => {
                    self.free_state(&lock.open.cred, stateid).await;
                    if lock.stateid().is_some_and(|now| now.other == stateid.other) {
                        lock.lose();
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens whose state, locks included, the server knows to be good.
    pub(super) async fn intact(
        self: &Arc<Self>,
        session: &Arc<Session>,
        opens: &[Arc<OpenState>],
    ) -> Result<Vec<u64>, NfsError> {
        let lost: Vec<u64> = (self.lost_states(session).await?.iter())
            .map(|(held, ..)| match held {
                Held::Open(open, _) => open.owner,
                Held::Lock(lock) => lock.open.owner,
            })
            .collect();
        let owners = opens.iter().map(|open| open.owner);
        Ok(owners.filter(|owner| !lost.contains(owner)).collect())
    }

    /// TEST_STATEID of everything we have: what is not good any more.
    async fn lost_states(
        self: &Arc<Self>,
        session: &Arc<Session>,
    ) -> Result<Vec<(Held, StateId, Status)>, NfsError> {
        let mut all = Vec::new();
        for open in self.opens.live() {
            let token = open.for_io().1;
            let locks = open.lock_states();
            if let Some(stateid) = open.exact() {
                all.push((Held::Open(open, token), stateid));
            }
            for lock in locks {
                if let Some(stateid) = lock.stateid() {
                    all.push((Held::Lock(lock), stateid));
                }
            }
        }
        let mut lost = Vec::new();
        let mut rest = all.into_iter();
        loop {
            let some: Vec<_> = rest.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                return Ok(lost);
            }
            // Seqid 0 would not do here: TEST_STATEID does not know it as "the
            // newest" (RFC 8881 §18.48.3), and an older one is no loss.
            let stateids: Vec<StateId> = some.iter().map(|(_, stateid)| *stateid).collect();
            let mut reply = self
                .call_on(session, &Credential::machine(), |c| {
                    c.test_states(&stateids);
                })
                .await?;
            let statuses = reply.states_tested()?;
            for ((held, stateid), status) in some.into_iter().zip(statuses) {
                if state_is_gone(status) && status != Status::OLD_STATEID {
                    lost.push((held, stateid, status));
                }
            }
        }
    }

    /// FREE_STATEID of something revoked: until then the server remembers it, and
    /// says so with every reply.
    pub(super) async fn free_state(self: &Arc<Self>, cred: &Credential, stateid: StateId) {
        let reply = self
            .call(cred, super::session::slots::Class::Control, |c| {
                c.once().free_state(stateid);
            })
            .await;
        let freed = reply.and_then(|mut reply| reply.ok(Op::FreeStateId).map(|_| ()));
        if let Err(error) = freed {
            tracing::debug!("freeing a revoked state: {error}");
        }
    }
}
