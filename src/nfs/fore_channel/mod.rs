//! The fore channel (RFC 8881 §2.10.2.2): the one way from a call to the server and
//! back.
//!
//! A compound takes a slot of the current session, is sent, and its slot is given back
//! when its reply is in ([`send`]), whatever became of the caller: calls run in tasks
//! that nobody aborts. Statuses that are not about the caller's request are dealt with
//! here (see [`ForeChannel::call`]); what comes out is the server's answer to the
//! request.
//!
//! It knows sessions and slots, and nothing of what is kept open at the server. Whoever
//! brings back a lost session, or looks for revoked state, is told by the trait
//! [`Upkeep`].

pub(super) mod gate;
mod once;
mod resolve;
mod send;
mod settle;
mod slot_request;

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use self::gate::{Gate, Past};
pub use self::once::Unanswered;
pub(super) use self::once::UnusedOpen;
use self::once::{Begun, Once, Recording};
use self::send::Sent;
use super::backoff::Backoff;
use super::config::ClientConfig;
use super::proto::compound::Compound;
use super::proto::ops::Op;
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::session::current::CurrentSession;
use super::session::live::Session;
use super::session::slots::Class;
use crate::rpc::auth::Credential;
use crate::rpc::{Channel, Load, RpcError, caller};
use crate::telemetry::Metrics;

/// Until the server has told its lease time, seconds.
const DEFAULT_LEASE: u32 = 90;

/// What there is to do about a session besides sending requests in it. Both are called
/// by whoever happens to read a reply, and must not wait.
pub(super) trait Upkeep: Send + Sync {
    /// The session is lost, and requests wait for the next one. False: nobody is left
    /// who could make one.
    fn session_lost(&self, lost: Arc<Session>) -> bool;

    /// The server has raised these SEQUENCE status flags in `session`.
    fn flags_raised(&self, session: &Arc<Session>, raised: u32);
}

/// See the module.
pub(super) struct ForeChannel {
    pub(super) channel: Channel,
    pub(super) config: ClientConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) session: CurrentSession,
    /// Seconds; from the server's lease_time.
    pub(super) lease: watch::Sender<u32>,
    upkeep: OnceLock<Box<dyn Upkeep>>,
    once: Arc<Once>,
    pub(super) gate: Gate,
}

impl ForeChannel {
    /// Nothing is to be sent before [`Self::keep_up`].
    pub(super) fn new(
        channel: Channel,
        config: ClientConfig,
        metrics: Arc<Metrics>,
        session: CurrentSession,
    ) -> Arc<Self> {
        Arc::new(Self {
            once: Once::new(config.wal.clone()),
            channel,
            config,
            metrics,
            session,
            lease: watch::Sender::new(DEFAULT_LEASE),
            upkeep: OnceLock::new(),
            gate: Gate::default(),
        })
    }

    /// Who sees to the session. Only the first one given is kept.
    pub(super) fn keep_up(&self, upkeep: impl Upkeep + 'static) {
        let _ = self.upkeep.set(Box::new(upkeep));
    }

    /// The session with this generation is lost. If it is still the current one,
    /// requests wait from now on for the next, which the [`Upkeep`] is told to make: a
    /// late finding about an older session starts nothing.
    pub(super) fn recover(&self, generation: u64) {
        let Some(lost) = self.session.lose(generation) else {
            return;
        };
        tracing::info!("the session is lost, recovering");
        self.metrics.recoveries.inc();
        // Bound to the lost session; see `nfs::trunk`.
        self.channel.fold();
        let upkeep = self.upkeep.get();
        if !upkeep.is_some_and(|upkeep| upkeep.session_lost(Arc::clone(&lost))) {
            self.session.shut_down();
            lost.end();
        }
    }

    /// The session to use, once there is one.
    ///
    /// # Errors
    /// [`RpcError::Closed`] once the client was shut down.
    pub(super) async fn session(&self) -> Result<Arc<Session>, NfsError> {
        let session = self.session.wait().await;
        session.ok_or(NfsError::Rpc(RpcError::Closed))
    }

    /// Runs a compound for `cred` and returns its results, those after
    /// SEQUENCE still to be taken. `build` adds the operations; it runs again
    /// for every attempt, so that it picks up stateids that recovery renewed.
    ///
    /// DELAY and GRACE are waited out, a lost session is rebuilt; what failed
    /// otherwise is the caller's to look at. All of that ends, with
    /// [`RpcError::Abandoned`], when this task's [caller](crate::rpc::caller) has been
    /// answered. What names an object that is yet to be made waits for that, and what names
    /// one that is [shut](gate) for its changes.
    pub(super) fn call(
        &self,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
    ) -> impl Future<Output = Result<Reply, NfsError>> + Send {
        self.call_past(Past::Nothing, cred, class, build)
    }

    /// The same of a request that is, or is not, one of the changes that others wait for.
    pub(super) fn call_past(
        &self,
        past: Past,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
    ) -> impl Future<Output = Result<Reply, NfsError>> + Send {
        self.run(past, cred, class, build, || ())
    }

    /// The same of a request that has with it what such changes may wait for: if it has to wait for
    /// them, `give_way` is called first, which lets go of that.
    pub(super) fn call_giving_way(
        &self,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
        give_way: impl Fn() + Send,
    ) -> impl Future<Output = Result<Reply, NfsError>> + Send {
        self.run(Past::Nothing, cred, class, build, give_way)
    }

    async fn run(
        &self,
        past: Past,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
        give_way: impl Fn() + Send,
    ) -> Result<Reply, NfsError> {
        let mut redone = false;
        let mut recording = None;
        let mut backoff = Backoff::new();
        loop {
            if caller::is_answered() {
                return Err(RpcError::Abandoned { sent: redone }.into());
            }
            let session = self.session().await?;
            let Some(slot) = session.slot(class).await else {
                continue;
            };
            let compound = self.compound(&session, cred, &build);
            if compound.is_outgrown() {
                session.release(slot.id, false);
                return Err(NfsError::Outgrown {
                    may_have_run: redone,
                });
            }
            if self.is_in_the_way(past, &compound) {
                session.release(slot.id, false);
                give_way();
                self.out_of_the_way(past, &compound).await?;
                continue;
            }
            if recording.is_none() && self.once.is_on() {
                match self.once.begin(&compound, cred) {
                    Begun::Known(reply) => {
                        session.release(slot.id, false);
                        return Ok(reply);
                    }
                    Begun::New(new) => recording = new,
                }
                redone |= recording.as_ref().is_some_and(Recording::redone);
            }
            let load = match class {
                Class::Bulk => Load::Bulk,
                Class::Control | Class::Metadata => Load::Small,
            };
            let mut reply = match self
                .send(&session, slot, &compound, load, recording.as_ref())
                .await?
            {
                Sent::Reply(reply) => reply,
                Sent::Again(may_have_run) => {
                    redone |= may_have_run;
                    continue;
                }
            };
            if redone {
                reply.set_redone();
            }
            let essential = compound.essential();
            // Of this one the second operation is told, whichever that is: nothing
            // is known of any of them.
            let uncached = reply.status() == Status::RETRY_UNCACHED_REP;
            let callers = |index| index > essential || !uncached && compound.is_in_front(index);
            if reply.failed_at().is_none_or(callers) {
                return Ok(reply);
            }
            match reply.status() {
                status @ (Status::DELAY | Status::GRACE) => backoff.pause_for(status).await,
                Status::RETRY_UNCACHED_REP => {
                    redone = true;
                    if let Some(recording) = &recording {
                        recording.left(true);
                    }
                }
                Status::STALE_CLIENTID => self.recover(session.generation),
                _ => return Ok(reply),
            }
        }
    }

    /// The compound is not to be sent now: the server has yet to make what it names, or to change it.
    fn is_in_the_way(&self, past: Past, compound: &Compound) -> bool {
        compound.awaits().is_some()
            || past == Past::Nothing && self.gate.is_shut() && self.gate.stops(compound.named())
    }

    #[cold]
    async fn out_of_the_way(&self, past: Past, compound: &Compound) -> Result<(), NfsError> {
        let made = async {
            if let Some(handle) = compound.awaits() {
                self.gate.hurry();
                let refused = |status| NfsError::Status(Op::PutFh, status);
                handle.given().await.map_err(refused)?;
            }
            if past == Past::Nothing {
                self.gate.passes(compound.named()).await;
            }
            Ok(())
        };
        tokio::select! {
            biased;
            made = made => made,
            // The loop of the call finds it out.
            () = caller::answered() => Ok(()),
        }
    }

    /// Runs a compound on this very session, for recovery: a lost session is
    /// an error, DELAY and GRACE are waited out.
    pub(super) async fn call_on(
        &self,
        session: &Arc<Session>,
        cred: &Credential,
        build: impl Fn(&mut Compound) + Send,
    ) -> Result<Reply, NfsError> {
        let mut backoff = Backoff::up_to(self.channel.pause());
        loop {
            let Some(slot) = session.slot(Class::Control).await else {
                return Err(NfsError::Status(Op::Sequence, Status::BADSESSION));
            };
            let compound = self.compound(session, cred, &build);
            match self
                .send(session, slot, &compound, Load::Small, None)
                .await?
            {
                Sent::Reply(reply) => match reply.status() {
                    status @ (Status::DELAY | Status::GRACE) => backoff.pause_for(status).await,
                    // It ran; whatever recovery asks for may run again.
                    Status::RETRY_UNCACHED_REP => {}
                    _ => return Ok(reply),
                },
                Sent::Again(_) => {
                    return Err(NfsError::Status(Op::Sequence, Status::BADSESSION));
                }
            }
        }
    }

    /// See [`Once::take_in`].
    pub(super) fn take_in(&self, left: Unanswered) {
        self.once.take_in(left);
    }

    /// See [`Once::answered`].
    pub(super) fn request_answered(&self, unique: u64) -> Vec<UnusedOpen> {
        self.once.answered(unique)
    }

    /// See [`Once::given_up`].
    pub(super) fn request_given_up(&self, unique: u64) {
        self.once.given_up(unique);
    }

    /// See [`Once::through`].
    pub(super) fn outcomes_are_through(&self) -> Vec<UnusedOpen> {
        self.once.through()
    }

    fn compound(
        &self,
        session: &Session,
        cred: &Credential,
        build: impl Fn(&mut Compound),
    ) -> Compound {
        let mut compound = Compound::in_session(cred, &self.config.identity.machine_name);
        compound.at_most(session.attrs.max_ops as usize);
        if self.gate.is_shut() {
            compound.keep_names();
        }
        build(&mut compound);
        compound
    }
}
