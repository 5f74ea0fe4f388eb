//! LOCK, LOCKT, LOCKU.
//!
//! A LOCK of unknown fate is asked for again: the same owner gets what it has.
//! Both stateids go with seqid 0, "the newest" (RFC 8881 §8.2.2): the requests
//! of one owner are one at a time, and an OPEN merged in meanwhile does no harm.

use std::sync::Arc;

use super::super::client::Client;
use super::super::close;
use super::super::proto::attrs::Attributes;
use super::super::proto::ops::{LockType, Op};
use super::super::proto::reply::{Denied, NfsError};
use super::super::proto::status::{Status, state_is_gone};
use super::super::proto::types::FileHandle;
use super::super::reopen::renew_state;
use super::super::session::slots::Class;
use super::super::state::locks::{LockState, Turn};
use super::super::state::ranges::{LockKind, Span};
use super::super::state::{OpenState, STATE_RETRIES};
use crate::rpc::auth::Credential;

/// What a LOCK came to.
#[derive(Clone, Debug)]
pub enum Locked {
    /// It is ours; and the file as it was right after that.
    Granted(Option<Attributes>),
    /// Somebody else has it.
    Denied(Denied),
}

fn wire(kind: LockKind, waits: bool) -> LockType {
    match (kind, waits) {
        (LockKind::Read, false) => LockType::Read,
        (LockKind::Write, false) => LockType::Write,
        (LockKind::Read, true) => LockType::ReadWaiting,
        (LockKind::Write, true) => LockType::WriteWaiting,
    }
}

impl Client {
    /// The locks of a new owner on an open file. Nothing is locked yet.
    pub fn prepare_lock(&self, open: &Arc<OpenState>) -> Arc<LockState> {
        LockState::new(Arc::clone(open), self.opens.next_owner())
    }

    /// LOCK. `waits`: it will be asked for again if it is denied.
    pub async fn lock(
        self: &Arc<Self>,
        lock: &Turn<'_>,
        span: Span,
        kind: LockKind,
        waits: bool,
    ) -> Result<Locked, NfsError> {
        for _ in 0..STATE_RETRIES {
            if lock.is_lost() {
                return Err(NfsError::StateLost);
            }
            let (used, token) = (lock.stateid(), lock.open.for_io().1);
            lock.asks(span, kind);
            let mut reply = self
                .call(&lock.open.cred, Class::Metadata, |c| {
                    c.once()
                        .put(&lock.open.handle)
                        .lock(
                            wire(kind, waits),
                            false,
                            (span.start, span.length()),
                            self.locker(lock),
                        )
                        .then()
                        .get_attrs(self.object());
                })
                .await?;
            if let Err(error) = reply.ok(Op::PutFh) {
                lock.is_refused();
                return Err(error);
            }
            match reply.locked() {
                Ok(Ok(stateid)) => {
                    lock.changed(stateid, span, Some(kind));
                    return Ok(Locked::Granted(reply.attrs().ok()));
                }
                Ok(Err(denied)) => {
                    lock.is_refused();
                    return Ok(Locked::Denied(denied));
                }
                Err(NfsError::Status(_, status)) if state_is_gone(status) => {
                    if lock.stateid() != used {
                        continue;
                    }
                    match used {
                        Some(_) => lock.lose(),
                        None => renew_state(self, &lock.open, token, status).await?,
                    }
                }
                // It may be ours by now, and under a stateid that nobody has seen.
                Err(error @ NfsError::Garbled(..)) => {
                    tracing::warn!("LOCK: {error}, asking again");
                }
                Err(error) => {
                    lock.is_refused();
                    return Err(error);
                }
            }
        }
        Err(NfsError::StateLost)
    }

    /// LOCKU. That the server has forgotten the state is as good: nothing is
    /// locked.
    ///
    /// # Errors
    /// The server's; [`NfsError::StateLost`] if the state was replaced time and again.
    pub async fn unlock(&self, lock: &Turn<'_>, span: Span) -> Result<(), NfsError> {
        close::unlock(&self.fore, lock, span).await
    }

    /// LOCKT: who keeps an owner (`None`: one who has no lock) from a lock.
    pub async fn test_lock(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
        owner: Option<&LockState>,
        span: Span,
        kind: LockKind,
    ) -> Result<Option<Denied>, NfsError> {
        let owner = owner.map_or_else(|| self.opens.next_owner(), |lock| lock.owner);
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                let client = self.client_id.lock().id;
                c.put(handle).lock_test(
                    wire(kind, false),
                    (span.start, span.length()),
                    (client, owner),
                );
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.lock_tested()
    }

    /// FREE_STATEID: the owner is gone while the file stays open, and would
    /// else cost the server memory until CLOSE.
    pub async fn free_lock(self: &Arc<Self>, lock: &LockState) -> Result<(), NfsError> {
        let Some(stateid) = lock.stateid() else {
            return Ok(());
        };
        let mut reply = self
            .call(&lock.open.cred, Class::Metadata, |c| {
                c.once().free_state(stateid);
            })
            .await?;
        match reply.ok(Op::FreeStateId) {
            Err(NfsError::Status(_, status)) if status != Status::LOCKS_HELD => Ok(()),
            result => result.map(|_| ()),
        }
    }
}
