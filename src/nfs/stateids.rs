//! TEST_STATEID and FREE_STATEID: which opens and locks the server still knows.

use std::sync::Arc;

use super::fore_channel::ForeChannel;
use super::proto::ops::Op;
use super::proto::reply::NfsError;
use super::proto::status::{Status, state_is_gone};
use super::proto::types::StateId;
use super::session::live::Session;
use super::session::slots::Class;
use super::state::locks::LockState;
use super::state::{OpenState, OpenTable};
use crate::rpc::auth::Credential;

/// Stateids asked about at once: 16 bytes each in a request of at least 4 KiB.
const AT_ONCE: usize = 128;

/// What a stateid stands for.
pub(super) enum StateOwner {
    /// An open, and its token from before it was asked about.
    Open(Arc<OpenState>, u32),
    /// Locks.
    Lock(Arc<LockState>),
}

/// A state that the server does not know any more.
pub(super) struct LostState {
    pub(super) owner: StateOwner,
    /// What was asked about.
    pub(super) stateid: StateId,
    /// What the server said of it.
    pub(super) status: Status,
}

/// Opens whose state, locks included, the server knows to be good: their owners. Locks of
/// which nobody knows whether they have been reclaimed are not.
///
/// # Errors
/// The server's, of TEST_STATEID; BADSESSION if the session is lost.
pub(super) async fn intact(
    fore: &ForeChannel,
    session: &Arc<Session>,
    table: &OpenTable,
    opens: &[Arc<OpenState>],
) -> Result<Vec<u64>, NfsError> {
    let lost: Vec<u64> = (lost(fore, session, table).await?.iter())
        .map(|lost| match &lost.owner {
            StateOwner::Open(open, _) => open.owner,
            StateOwner::Lock(lock) => lock.open.owner,
        })
        .collect();
    let is_intact = |open: &&Arc<OpenState>| {
        let mut locks = open.lock_states().into_iter();
        !lost.contains(&open.owner) && !locks.any(|lock| lock.is_unproved())
    };
    Ok(opens
        .iter()
        .filter(is_intact)
        .map(|open| open.owner)
        .collect())
}

/// TEST_STATEID of everything we have: what is not good any more.
///
/// # Errors
/// As [`intact`].
pub(super) async fn lost(
    fore: &ForeChannel,
    session: &Arc<Session>,
    table: &OpenTable,
) -> Result<Vec<LostState>, NfsError> {
    let mut all = Vec::new();
    for open in table.live() {
        let token = open.for_io().1;
        let locks = open.lock_states();
        if let Some(stateid) = open.exact() {
            all.push((StateOwner::Open(open, token), stateid));
        }
        for lock in locks {
            if let Some(stateid) = lock.stateid() {
                all.push((StateOwner::Lock(lock), stateid));
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
        let mut reply = fore
            .call_on(session, &Credential::machine(), |c| {
                c.test_states(&stateids);
            })
            .await?;
        let statuses = reply.states_tested()?;
        for ((owner, stateid), status) in some.into_iter().zip(statuses) {
            if state_is_gone(status) && status != Status::OLD_STATEID {
                lost.push(LostState {
                    owner,
                    stateid,
                    status,
                });
            }
        }
    }
}

/// FREE_STATEID of something revoked: until then the server remembers it, and
/// says so with every reply.
pub(super) async fn free(fore: &ForeChannel, cred: &Credential, stateid: StateId) {
    let reply = fore
        .call(cred, Class::Control, |c| {
            c.once().free_state(stateid);
        })
        .await;
    let freed = reply.and_then(|mut reply| reply.ok(Op::FreeStateId).map(|_| ()));
    if let Err(error) = freed {
        tracing::debug!("freeing a revoked state: {error}");
    }
}
