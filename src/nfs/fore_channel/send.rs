//! One compound on one slot: sent until its SEQUENCE is answered.
//!
//! The slot and its sequence id stay the same over every sending, so the server
//! runs the request once (RFC 8881 §2.10.6). The slot is given back when the
//! server has said that it moved, or that it did not; where neither is known it
//! is retired. What the server wishes of the session (target slots, status
//! flags) is heeded here, for each reply.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::proto::compound::{Compound, SlotUse};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::SessionId;
use super::super::session::establish;
use super::super::session::live::Session;
use super::super::session::slots::Slot;
use super::ForeChannel;
use crate::rpc::caller::Request;
use crate::rpc::{Load, RpcError};
use crate::xdr::DecodeError;

/// How often a reply that does not decode, as far as it says whose it is, is asked
/// for again.
pub(super) const GARBLED_TRIES: u32 = 3;

/// What a sending of a compound came to.
pub(super) enum Sent {
    Reply(Reply),
    /// Not answered; to be sent again. True: an earlier sending may have run.
    Again(bool),
}

impl ForeChannel {
    /// Sends a compound on a slot until its SEQUENCE is answered.
    pub(super) async fn send(
        &self,
        session: &Arc<Session>,
        slot: Slot,
        compound: &Compound,
        load: Load,
    ) -> Result<Sent, NfsError> {
        if compound.len() > session.attrs.max_ops as usize {
            session.release(slot.id, false);
            return Err(NfsError::Unfit("more operations than the session allows"));
        }
        self.metrics.gauges.slots_in_use.inc();
        let mut held = HeldSlot {
            fore: self,
            session,
            id: Some(slot.id),
            unmoved: false,
        };
        let slot_use = SlotUse {
            session: session.id,
            seqid: slot.seqid,
            slot: slot.id,
            highest: slot.highest,
            keeps: session.attrs.max_cached >= establish::CACHED_REPLY,
        };
        let mut misordered = 0;
        let mut garbled = 0;
        let mut resent = false;
        // It was found at work on an earlier sending.
        let mut slow = false;
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let request = Request::new();
        loop {
            let sent_at = Instant::now();
            self.metrics.gauges.rpc_in_flight.inc();
            let call = compound.finish(Some(slot_use));
            let answer = self
                .channel
                .call_for(Arc::clone(&request), call, load)
                .await;
            self.metrics.gauges.rpc_in_flight.dec();
            if matches!(answer, Err(RpcError::Abandoned { .. })) {
                if request.was_started() {
                    return self.resolve(session, held, slot_use, compound).await;
                }
                held.unmoved = true;
                return Err(RpcError::Abandoned { sent: false }.into());
            }
            self.metrics.round_trip();
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    // Refused before any of it was looked at.
                    held.unmoved =
                        matches!(error, RpcError::NotSpoken(_) | RpcError::AuthRefused(_));
                    return Err(error.into());
                }
            };
            resent |= answer.resent;
            let connection = answer.connection;
            let parsed = Reply::parse(answer.body, compound.ops()).and_then(|mut reply| {
                self.count(compound, &reply, sent_at.elapsed());
                match reply.ok(Op::Sequence) {
                    // Although it may have been sent more than once, the reply
                    // is that of the one time it ran: the slot sees to that.
                    Ok(_) => self.sequenced(session, &mut held, &slot_use, &mut reply, sent_at)?,
                    Err(error) => return Err(error),
                }
                Ok(reply)
            });
            let at_work = parsed
                .as_ref()
                .is_err_and(|error| matches!(error, NfsError::Status(Op::Sequence, Status::DELAY)));
            slow |= at_work && resent;
            if slow && !at_work {
                self.channel.needed(begun.elapsed());
            }
            let error = match parsed {
                Ok(reply) => return Ok(Sent::Reply(reply)),
                Err(error) => error,
            };
            match error.status().filter(|status| status.name().is_some()) {
                // Nobody knows whose reply that was. The connection is not to be
                // trusted; on another one the slot has the right reply, or says
                // that there is none.
                None if garbled < GARBLED_TRIES => {
                    garbled += 1;
                    tracing::warn!("a reply that is none ({error}), asking again");
                    self.channel.distrust(connection);
                    resent = true;
                }
                // The slot may have moved or not: `held` takes it out of use.
                None => return Err(error),
                // Perhaps still at work on an earlier sending: same slot, same
                // seqid.
                Some(Status::DELAY) => backoff.pause().await,
                // It ran, and the slot moved, but the reply was not kept.
                Some(Status::RETRY_UNCACHED_REP) => {
                    held.give_back(true);
                    return Ok(Sent::Again(true));
                }
                Some(Status::SEQ_MISORDERED) if misordered < 3 => {
                    misordered += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Some(Status::CONN_NOT_BOUND_TO_SESSION) => {
                    let bound = establish::bind_connection(
                        &self.channel,
                        connection,
                        &self.config.identity,
                        session.id,
                    );
                    match bound.await {
                        // Not at once: a server may say so for ever.
                        Ok(()) => backoff.pause().await,
                        Err(NfsError::Rpc(error)) => return Err(error.into()),
                        Err(error) => {
                            tracing::warn!("a connection cannot join the session: {error}");
                            held.give_back(false);
                            self.recover(session.generation);
                            return Ok(Sent::Again(resent));
                        }
                    }
                }
                Some(Status::SEQ_MISORDERED | Status::BADSLOT | Status::BAD_HIGH_SLOT) => {
                    tracing::warn!(slot = slot.id, "slot given up: {error}");
                    drop(held);
                    return Ok(Sent::Again(resent));
                }
                Some(Status::SEQ_FALSE_RETRY) => {
                    held.give_back(true);
                    return Ok(Sent::Again(resent));
                }
                // The last two are what some servers say of a client whose lease
                // ran out, until they have forgotten its sessions as well.
                Some(
                    Status::BADSESSION
                    | Status::DEADSESSION
                    | Status::EXPIRED
                    | Status::STALE_CLIENTID,
                ) => {
                    held.give_back(false);
                    self.recover(session.generation);
                    return Ok(Sent::Again(resent));
                }
                _ => {
                    held.give_back(false);
                    return Err(error);
                }
            }
        }
    }

    /// Takes the result of SEQUENCE: checks that it answers what was sent,
    /// gives the slot back, and heeds what the server wishes.
    pub(super) fn sequenced(
        &self,
        session: &Arc<Session>,
        held: &mut HeldSlot<'_>,
        sent: &SlotUse,
        reply: &mut Reply,
        sent_at: Instant,
    ) -> Result<(), NfsError> {
        let (id, seqid, slot, target, flags) = reply.get(Op::Sequence, |dec| {
            let id: SessionId = dec.fixed("sessionid")?;
            let seqid = dec.u32("sequenceid")?;
            let slot = dec.u32("slotid")?;
            dec.u32("highest_slotid")?;
            let target = dec.u32("target_highest_slotid")?;
            Ok((id, seqid, slot, target, dec.u32("status_flags")?))
        })?;
        if (id, seqid, slot) != (sent.session, sent.seqid, sent.slot) {
            return Err(NfsError::Garbled(
                Op::Sequence,
                DecodeError::Invalid("slot (not the one that was sent)"),
            ));
        }
        held.give_back(true);
        let (raised, any_left) = session.answered(sent_at, target, flags);
        if !any_left {
            self.recover(session.generation);
        }
        if raised != 0
            && let Some(upkeep) = self.upkeep.get()
        {
            upkeep.flags_raised(session, raised);
        }
        Ok(())
    }

    fn count(&self, compound: &Compound, reply: &Reply, elapsed: Duration) {
        let failed = reply.failed_at();
        let (status, ops) = (reply.status(), || {
            let names: Vec<_> = compound.ops().iter().map(|op| op.name()).collect();
            names.join(" ")
        });
        if let Some(left_out) = self.metrics.slow.line(elapsed) {
            let ops = ops();
            tracing::warn!(%status, left_out, "slow: the server took {elapsed:.1?} over {ops}");
        }
        tracing::trace!(%status, "{elapsed:.1?} {}", ops());
        let ran = failed.map_or(compound.len(), |index| index + 1);
        for (index, &op) in compound.ops()[..ran].iter().enumerate() {
            self.metrics
                .nfs_op(op as u32, failed != Some(index), elapsed);
        }
    }
}

/// A slot with a request on it. Dropped without being given back, the slot is
/// retired: nobody knows what the server made of the request.
pub(super) struct HeldSlot<'a> {
    fore: &'a ForeChannel,
    session: &'a Session,
    /// `None` once given back.
    id: Option<u32>,
    /// The slot's sequence id is known not to have moved.
    unmoved: bool,
}

impl HeldSlot<'_> {
    pub(super) fn give_back(&mut self, spent: bool) {
        if let Some(id) = self.id.take() {
            self.fore.metrics.gauges.slots_in_use.dec();
            self.session.release(id, spent);
        }
    }
}

impl Drop for HeldSlot<'_> {
    fn drop(&mut self) {
        if self.unmoved {
            self.give_back(false);
        } else if let Some(id) = self.id.take() {
            self.fore.metrics.gauges.slots_in_use.dec();
            if !self.session.retire(id) {
                self.fore.recover(self.session.generation);
            }
        }
    }
}
