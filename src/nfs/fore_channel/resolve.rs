//! What became of a request whose connection was lost and whose caller does not wait
//! any more.
//!
//! Sending it again would be right by the protocol (RFC 8881 §2.10.6) and wrong for
//! everybody else: its caller is gone, minutes may have passed, and other hosts act on
//! what they have seen since. But the original may still be in the network, or at work
//! in the server. So its slot is resolved: a lone SEQUENCE goes out with the same slot
//! and sequence id. Either the server has not seen that id, and now has: the
//! original, should it arrive, is answered from the reply cache and not executed. Or
//! the server has executed the original, and says so: with the reply that it kept, with
//! SEQ_FALSE_RETRY, or with RETRY_UNCACHED_REP.
//!
//! The operation ends with [`RpcError::Abandoned`] in any case but that of a kept
//! reply, which it takes as if it had come in time, to undo what must not be left
//! behind (an OPEN).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::proto::compound::{Compound, SlotUse};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::session::establish;
use super::super::session::live::Session;
use super::ForeChannel;
use super::send::{HeldSlot, Sent};
use super::slot_request::GARBLED_TRIES;
use crate::rpc::{Load, RpcError};

/// The request may have been executed, and nobody waits for it.
const ABANDONED: NfsError = NfsError::Rpc(RpcError::Abandoned { sent: true });

impl ForeChannel {
    /// Resolves the slot of an abandoned request, which is given back, or retired
    /// where the server does not tell.
    ///
    /// # Errors
    /// [`RpcError::Abandoned`] unless the server has kept the reply.
    pub(super) async fn resolve(
        &self,
        session: &Arc<Session>,
        mut held: HeldSlot<'_>,
        slot_use: SlotUse,
        compound: &Compound,
    ) -> Result<Sent, NfsError> {
        let mut backoff = Backoff::new();
        let mut garbled = 0;
        loop {
            let sent_at = Instant::now();
            let call = compound.alone(slot_use);
            let answer = self.channel.call(call, Load::Small).await;
            let answer = answer.map_err(|error| unresolved(slot_use, &error))?;
            self.metrics.round_trip();
            let mut reply = match told(answer.body, compound.ops()) {
                Ok(reply) => reply,
                Err(_) if garbled < GARBLED_TRIES => {
                    garbled += 1;
                    self.channel.distrust(answer.connection);
                    continue;
                }
                Err(error) => return Err(unresolved(slot_use, &error)),
            };
            let error = match reply.ok(Op::Sequence) {
                Ok(_) => {
                    let recorded = || ();
                    self.sequenced(session, &mut held, &slot_use, &mut reply, sent_at, recorded)
                        .map_err(|error| unresolved(slot_use, &error))?;
                    if reply.results() > 1 {
                        return Ok(Sent::Reply(reply));
                    }
                    tracing::debug!(slot = slot_use.slot, "an abandoned request is resolved");
                    return Err(ABANDONED);
                }
                Err(error) => error,
            };
            match error.status() {
                // It is at work on the original.
                Some(Status::DELAY) => backoff.pause().await,
                Some(Status::RETRY_UNCACHED_REP | Status::SEQ_FALSE_RETRY) => {
                    held.give_back(true);
                    return Err(ABANDONED);
                }
                Some(Status::CONN_NOT_BOUND_TO_SESSION) => {
                    let (connection, identity) = (answer.connection, &self.config.identity);
                    establish::bind_connection(&self.channel, connection, identity, session.id)
                        .await
                        .map_err(|error| unresolved(slot_use, &error))?;
                    backoff.pause().await;
                }
                Some(
                    Status::BADSESSION
                    | Status::DEADSESSION
                    | Status::EXPIRED
                    | Status::STALE_CLIENTID,
                ) => {
                    held.give_back(false);
                    self.recover(session.generation);
                    return Err(ABANDONED);
                }
                // Dropping `held` takes the slot out of use.
                _ => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    return Err(unresolved(slot_use, &error));
                }
            }
        }
    }
}

/// The slot is given up without knowing what became of its request. To whoever cleans up behind
/// it that is a request which may have been executed, whatever it was that went wrong.
fn unresolved(slot_use: SlotUse, error: &dyn std::fmt::Display) -> NfsError {
    tracing::warn!(slot = slot_use.slot, "slot given up: {error}");
    ABANDONED
}

/// The reply to a lone SEQUENCE: its own, or the one that was kept of the compound.
pub(super) fn told(body: bytes::Bytes, ops: &[Op]) -> Result<Reply, NfsError> {
    match Reply::parse(body.clone(), ops) {
        Ok(kept) if kept.results() > 1 => Ok(kept),
        _ => Reply::parse(body, &ops[..1]),
    }
}
