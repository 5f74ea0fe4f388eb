//! What became of the compounds that a killed process has left unanswered.
//!
//! Before its sessions are destroyed each of them is sent once more on its own slot, with its own
//! sequence id: a server that has executed it answers with the reply that it kept, and one that has
//! not executes it now. One whose caller was answered is not: nobody waits for it, so it
//! gets a lone SEQUENCE, as in [`resolve`](super::resolve). Both may be repeated as often
//! as a taker is killed. Where the session is gone nothing is known, and the redo rules of
//! `nfs::calls` count.
//!
//! It is a step of recovery: a server that is silent is waited for as there.

use bytes::Bytes;
use smallvec::SmallVec;

use super::super::backoff::Backoff;
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::session::establish;
use super::ForeChannel;
use super::once::{Asked, OnSlot, SentRecord, Settled};
use super::resolve::told;
use super::slot_request::GARBLED_TRIES;
use crate::rpc::Load;
use crate::rpc::call::Call;
use crate::xdr::DecodeError;

impl ForeChannel {
    /// Settles all of them.
    ///
    /// # Errors
    /// The connection's: it has to be gone on with, and what is settled stays settled.
    pub(in crate::nfs) async fn settle(&self) -> Result<(), NfsError> {
        while let Some((serial, record, given_up)) = self.once.unsettled() {
            let settled = match record.at {
                Some(at) => self.ask(&record, at, given_up).await?,
                None => Some(Settled::Unknown),
            };
            self.once.settled(serial, settled);
        }
        Ok(())
    }

    async fn ask(&self, record: &SentRecord, at: OnSlot, given_up: bool) -> Asked {
        let mut backoff = Backoff::up_to(self.channel.pause());
        let (mut garbled, mut misordered) = (0, 0);
        let ops = record.ops();
        loop {
            let head = match given_up {
                true => record.alone(),
                false => record.call.to_vec(),
            };
            let rest = SmallVec::new();
            let answer = self.channel.call(Call { head, rest }, Load::Small).await?;
            self.metrics.round_trip();
            let error = match answer_of(&answer.body, &ops, at, given_up) {
                Ok(reply) if given_up && reply.results() == 1 => return Ok(None),
                Ok(reply) => return Ok(record.settled_by(&reply, answer.body)),
                Err(error) => error,
            };
            match error.status() {
                // It is at work on it.
                Some(Status::DELAY) => backoff.pause().await,
                Some(Status::CONN_NOT_BOUND_TO_SESSION) => {
                    let (connection, identity) = (answer.connection, &self.config.identity);
                    let bind =
                        establish::bind_connection(&self.channel, connection, identity, at.session);
                    match bind.await {
                        Err(error @ NfsError::Rpc(_)) => return Err(error),
                        Err(_) => return Ok(Some(Settled::Unknown)),
                        Ok(()) => backoff.pause().await,
                    }
                }
                // An earlier request of the slot may still be on its way to it.
                Some(Status::SEQ_MISORDERED) if misordered < GARBLED_TRIES => {
                    misordered += 1;
                    backoff.pause().await;
                }
                None if garbled < GARBLED_TRIES => {
                    garbled += 1;
                    self.channel.distrust(answer.connection);
                }
                _ => {
                    tracing::warn!(
                        slot = at.slot,
                        "what became of a request of the process before is not known: {error}"
                    );
                    return Ok(Some(Settled::Unknown));
                }
            }
        }
    }
}

/// The reply, if it is that of this use of the slot.
fn answer_of(body: &Bytes, ops: &[Op], at: OnSlot, alone: bool) -> Result<Reply, NfsError> {
    let mut reply = match alone {
        true => told(body.clone(), ops)?,
        false => Reply::parse(body.clone(), ops)?,
    };
    let (session, seqid, slot) = reply.skip_sequence()?;
    if (session, seqid, slot) != (at.session, at.seqid, at.slot) {
        let what = DecodeError::Invalid("slot (not the one that was sent)");
        return Err(NfsError::Garbled(Op::Sequence, what));
    }
    Ok(reply)
}
