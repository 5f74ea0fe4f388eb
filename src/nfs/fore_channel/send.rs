//! One compound on one slot: sent until its SEQUENCE is answered.
//!
//! What a reply means is decided by [`super::slot_request`]; here it is done: sending,
//! waiting, binding, and giving the slot back when the server has said that it moved, or
//! that it did not. Where neither is known it is retired. What the server wishes of the
//! session (target slots, status flags) is heeded here, for each reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::proto::compound::{Compound, SlotUse};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::types::SessionId;
use super::super::session::establish;
use super::super::session::live::Session;
use super::super::session::slots::Slot;
use super::ForeChannel;
use super::once::Recording;
use super::slot_request::{Action, Arrival, SlotFate, SlotRequest};
use crate::rpc::call::Call;
use crate::rpc::caller::Request;
use crate::rpc::channel::RpcReply;
use crate::rpc::{Load, RpcError};
use crate::xdr::DecodeError;

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
        recording: Option<&Recording>,
    ) -> Result<Sent, NfsError> {
        let sent = self.send_on(session, slot, compound, load, recording);
        let sent = sent.await;
        if let Some(recording) = recording {
            match &sent {
                Ok(Sent::Reply(_)) => {}
                Ok(Sent::Again(may_have_run)) => recording.left(*may_have_run),
                Err(error) => recording.left(match error {
                    NfsError::Rpc(_) => error.abandoned() != Some(false),
                    NfsError::Garbled(..) => true,
                    _ => false,
                }),
            }
        }
        sent
    }

    async fn send_on(
        &self,
        session: &Arc<Session>,
        slot: Slot,
        compound: &Compound,
        load: Load,
        recording: Option<&Recording>,
    ) -> Result<Sent, NfsError> {
        if compound.len() > session.attrs.max_ops as usize {
            session.release(slot.id, false);
            return Err(NfsError::Unfit("more operations than the session allows"));
        }
        let slot_use = SlotUse {
            session: session.id,
            seqid: slot.seqid,
            slot: slot.id,
            highest: slot.highest,
            keeps: session.attrs.max_cached >= establish::CACHED_REPLY,
        };
        let mut on_slot = OnSlot {
            fore: self,
            session,
            compound,
            load,
            slot_use,
            request: Request::new(),
            recording,
            held: HeldSlot::new(self, session, slot.id),
        };
        if let Some(recording) = recording {
            recording.sending(compound, &slot_use);
        }
        let mut state = SlotRequest::new(slot.id, Instant::now());
        let mut action = on_slot.send_once(&mut state).await;
        loop {
            action = match action {
                Action::Done(reply) => return Ok(Sent::Reply(reply)),
                Action::Resend { after, distrust } => {
                    if let Some(connection) = distrust {
                        self.channel.distrust(connection);
                    }
                    if !after.is_zero() {
                        tokio::time::sleep(after).await;
                    }
                    on_slot.send_once(&mut state).await
                }
                Action::Rebind(connection) => {
                    let (channel, identity) = (&self.channel, &self.config.identity);
                    let bound =
                        establish::bind_connection(channel, connection, identity, session.id);
                    state.on_bound(bound.await)
                }
                Action::Resolve => {
                    let held = on_slot.held;
                    return self.resolve(session, held, slot_use, compound).await;
                }
                Action::Again { slot, may_have_run } => {
                    on_slot.held.leave(slot);
                    return Ok(Sent::Again(may_have_run));
                }
                Action::Recover { may_have_run } => {
                    on_slot.held.leave(SlotFate::Unmoved);
                    self.recover(session.generation);
                    return Ok(Sent::Again(may_have_run));
                }
                Action::Fail { error, slot } => {
                    on_slot.held.leave(slot);
                    return Err(error);
                }
            }
        }
    }

    /// Sends a call, and counts it as a round trip unless it was abandoned.
    async fn exchange(
        &self,
        request: &Arc<Request>,
        call: Call,
        load: Load,
    ) -> Result<RpcReply, RpcError> {
        self.metrics.gauges.rpc_in_flight.inc();
        let answer = self.channel.call_for(Arc::clone(request), call, load).await;
        self.metrics.gauges.rpc_in_flight.dec();
        if !matches!(answer, Err(RpcError::Abandoned { .. })) {
            self.metrics.round_trip();
        }
        answer
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
        recorded: impl FnOnce(),
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
        // Before anybody else has the slot: with its next use the server forgets the reply.
        recorded();
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
            let ok = failed != Some(index) || op.is_answered_by(status);
            self.metrics.nfs_op(op as u32, ok);
        }
        self.metrics.compound(compound.sent_for() as u32, elapsed);
    }
}

/// A compound on its slot.
struct OnSlot<'a> {
    fore: &'a ForeChannel,
    session: &'a Arc<Session>,
    compound: &'a Compound,
    load: Load,
    slot_use: SlotUse,
    request: Arc<Request>,
    held: HeldSlot<'a>,
    recording: Option<&'a Recording>,
}

impl OnSlot<'_> {
    /// Sends it once, and says what comes of that.
    async fn send_once(&mut self, state: &mut SlotRequest) -> Action<Reply> {
        let sent_at = Instant::now();
        let call = self.compound.finish(Some(self.slot_use));
        let answer = self.fore.exchange(&self.request, call, self.load).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return state.on_no_reply(error, self.request.was_started()),
        };
        let arrival = Arrival {
            connection: answer.connection,
            resent: answer.resent,
        };
        let parsed = self.take(answer.body, sent_at);
        let action = state.on_reply(Instant::now(), arrival, parsed);
        if let Some(time) = state.take_needed() {
            self.fore.channel.needed(time);
        }
        action
    }

    /// Takes a reply apart as far as SEQUENCE.
    fn take(&mut self, body: Bytes, sent_at: Instant) -> Result<Reply, NfsError> {
        let mut reply = Reply::parse(body.clone(), self.compound.ops())?;
        self.fore.count(self.compound, &reply, sent_at.elapsed());
        reply.ok(Op::Sequence)?;
        // Although it may have been sent more than once, the reply
        // is that of the one time it ran: the slot sees to that.
        let (held, slot_use) = (&mut self.held, &self.slot_use);
        let recorded = || {
            if let Some(recording) = self.recording {
                recording.replied(body);
            }
        };
        self.fore
            .sequenced(self.session, held, slot_use, &mut reply, sent_at, recorded)?;
        Ok(reply)
    }
}

/// A slot with a request on it. Dropped without being given back, the slot is
/// retired: nobody knows what the server made of the request.
pub(super) struct HeldSlot<'a> {
    fore: &'a ForeChannel,
    session: &'a Session,
    /// `None` once given back.
    id: Option<u32>,
}

impl<'a> HeldSlot<'a> {
    fn new(fore: &'a ForeChannel, session: &'a Session, id: u32) -> Self {
        fore.metrics.gauges.slots_in_use.inc();
        Self {
            fore,
            session,
            id: Some(id),
        }
    }

    /// Gives the slot back, if it was not given back before; `spent` says that its
    /// sequence id has moved.
    pub(super) fn give_back(&mut self, spent: bool) {
        if let Some(id) = self.id.take() {
            self.fore.metrics.gauges.slots_in_use.dec();
            self.session.release(id, spent);
        }
    }

    fn leave(mut self, slot: SlotFate) {
        match slot {
            SlotFate::Spent => self.give_back(true),
            SlotFate::Unmoved => self.give_back(false),
            // Dropping it takes the slot out of use.
            SlotFate::Unknown => {}
        }
    }
}

impl Drop for HeldSlot<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.fore.metrics.gauges.slots_in_use.dec();
            if !self.session.retire(id) {
                self.fore.recover(self.session.generation);
            }
        }
    }
}
