//! CLOSE, and the LOCKU that a server may want before it.

use std::sync::Arc;

use super::fore_channel::ForeChannel;
use super::fore_channel::gate::Past;
use super::proto::ops::Op;
use super::proto::reply::NfsError;
use super::proto::status::{Status, state_is_gone};
use super::proto::types::StateId;
use super::session::slots::Class;
use super::state::locks::{LockState, Turn};
use super::state::ranges::Span;
use super::state::{OpenState, STATE_RETRIES};

/// How often a file is unlocked that the server does not close for its locks.
pub(super) const UNLOCKS: u32 = 3;

/// CLOSE. `stateid` is what it was when this began. What the server does not close for
/// its locks is unlocked first.
///
/// # Errors
/// The server's, of PUTFH and CLOSE.
pub(super) async fn close(
    fore: &ForeChannel,
    open: &Arc<OpenState>,
    stateid: StateId,
) -> Result<(), NfsError> {
    let locks = open.lock_states();
    let mut unlocks = 0;
    loop {
        let mut reply = fore
            .call_past(Past::Gate, &open.cred, Class::Metadata, |c| {
                c.once()
                    .put(&open.handle)
                    .close(open.exact().unwrap_or(stateid));
            })
            .await?;
        reply.ok(Op::PutFh)?;
        match reply.stateid(Op::Close) {
            Err(NfsError::Status(_, Status::LOCKS_HELD)) if unlocks < UNLOCKS => {
                unlocks += 1;
                unlock_all(fore, &locks).await;
            }
            result => {
                open.closed();
                return result.map(drop);
            }
        }
    }
}

/// LOCKU. That the server has forgotten the state is as good: nothing is
/// locked.
///
/// # Errors
/// The server's, of PUTFH and LOCKU; [`NfsError::StateLost`] if the state was replaced
/// time and again.
pub(super) async fn unlock(
    fore: &ForeChannel,
    lock: &Turn<'_>,
    span: Span,
) -> Result<(), NfsError> {
    let _leaving = lock.gives_up(span);
    for _ in 0..STATE_RETRIES {
        let Some(used) = lock.stateid() else {
            if lock.held().is_empty() {
                return Ok(());
            }
            // It is being reclaimed, and will be there when that is over.
            fore.session().await?;
            continue;
        };
        let mut reply = fore
            .call_past(Past::Gate, &lock.open.cred, Class::Metadata, |c| {
                let stateid = lock.stateid().unwrap_or(used);
                c.once()
                    .put(&lock.open.handle)
                    .unlock(stateid.newest(), (span.start, span.length()));
            })
            .await?;
        reply.ok(Op::PutFh)?;
        match reply.stateid(Op::LockU) {
            Ok(stateid) => {
                lock.changed(stateid, span, None);
                return Ok(());
            }
            Err(NfsError::Status(_, status)) if state_is_gone(status) => {
                if lock.stateid() == Some(used) {
                    lock.lose();
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(NfsError::StateLost)
}

/// LOCKU of all that was locked with an open that the server does not close for
/// its locks, whatever is known of them here. Nobody else uses them any more.
pub(super) async fn unlock_all(fore: &ForeChannel, locks: &[Arc<LockState>]) {
    tracing::debug!("a file that is to be closed is locked at the server, unlocking it");
    for lock in locks {
        let turn = lock.turn().await;
        if let Err(error) = unlock(fore, &turn, Span::ALL).await {
            tracing::warn!("unlocking a file that is to be closed: {error}");
        }
    }
}
