//! Runs compounds: the one way from a call to the server and back.
//!
//! A compound takes a slot, is sent, and its slot is given back when its reply
//! is in, whatever became of the caller: calls run in tasks that nobody aborts.
//! Statuses that are not about the caller's request are dealt with here (see
//! [`Client::call`]); what comes out is the server's answer to the request.
//!
//! Who owns what: the current session is in a watch channel and replaced only by
//! the recovery task. A session's slot table has a short mutex; so has the table
//! of opens. They are never held together, and none across an await.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::calls::Lacks;
use super::closing::Closing;
use super::proto::compound::{Compound, SlotUse};
use super::proto::ops::Op;
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::proto::types::SessionId;
use super::session::establish::{self, ChannelAttrs, ClientId, Identity};
use super::session::slots::{Class, Slot, SlotTable};
use super::state::OpenTable;
use crate::rpc::auth::Credential;
use crate::rpc::transport::Connector;
use crate::rpc::{Channel, Connections, Load, RpcError, Tolerance};
use crate::telemetry::Metrics;
use crate::xdr::DecodeError;

/// How to be a client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Who we are to the server.
    pub identity: Identity,
    /// Slots to ask for.
    pub slots: u32,
    /// Largest READ, bytes; the server may allow less.
    pub rsize: u32,
    /// Largest WRITE, bytes; the server may allow less.
    pub wsize: u32,
    /// What is thought of calls that wait.
    pub tolerance: Tolerance,
    /// How many connections the session may be spread over.
    pub connections: Connections,
    /// How long the machine has been suspended in all: [`super::suspended`]. Leases
    /// run on while we sleep, and tokio's clock does not.
    pub suspended: fn() -> Duration,
}

/// A session and its slots.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) attrs: ChannelAttrs,
    /// Counts the sessions of this client.
    pub(super) generation: u64,
    slots: Mutex<SlotTable<oneshot::Sender<Slot>>>,
    /// When the last request left that the server answered: the lease runs
    /// from there (RFC 8881 §8.3). And how long the machine had slept by then.
    renewed: Mutex<(Instant, Duration)>,
    suspended: fn() -> Duration,
    /// SEQUENCE status flags last seen, to act on rising edges only.
    flags: AtomicU32,
}

impl Session {
    /// `flags` are those seen last in the session before it, if there was one: a
    /// new session does not make an old flag news.
    pub(super) fn new(
        new: &establish::NewSession,
        generation: u64,
        flags: u32,
        suspended: fn() -> Duration,
    ) -> Self {
        Self {
            id: new.id,
            attrs: new.attrs,
            generation,
            slots: Mutex::new(SlotTable::new(new.attrs.max_requests)),
            renewed: Mutex::new((Instant::now(), suspended())),
            suspended,
            flags: AtomicU32::new(flags),
        }
    }

    /// Time since the lease was last renewed, asleep or awake.
    pub(super) fn idle(&self) -> Duration {
        let (at, slept) = *self.renewed.lock();
        at.elapsed() + (self.suspended)().saturating_sub(slept)
    }

    /// SEQUENCE status flags seen last.
    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Requests that are under way in it.
    pub(super) fn busy(&self) -> u32 {
        self.slots.lock().busy()
    }

    /// Takes a slot, waiting in line for one. `None`: the session has ended.
    async fn slot(&self, class: Class) -> Option<Slot> {
        let (turn, waiting) = {
            let mut waiting = None;
            let slot = self.slots.lock().acquire(class, || {
                let (tx, rx) = oneshot::channel();
                waiting = Some(rx);
                tx
            });
            // In a session that has ended, `acquire` drops what it is given.
            (slot, waiting)
        };
        match (turn, waiting) {
            (Some(slot), _) => Some(slot),
            (None, Some(waiting)) => waiting.await.ok(),
            (None, None) => None,
        }
    }

    fn release(&self, id: u32, spent: bool) {
        let next = self.slots.lock().release(id, spent);
        self.hand_over(next);
    }

    fn hand_over(&self, mut next: Vec<(oneshot::Sender<Slot>, Slot)>) {
        while let Some((waiter, slot)) = next.pop() {
            // Who waited may be gone; the slot goes to the next in line.
            if let Err(slot) = waiter.send(slot) {
                next.extend(self.slots.lock().release(slot.id, false));
            }
        }
    }

    /// Ends the waiting of everybody in line, and of who comes later.
    pub(super) fn end(&self) {
        drop(self.slots.lock().close());
    }
}

/// What the client is doing about its session.
#[derive(Clone)]
pub(super) enum Phase {
    /// Requests may be sent.
    Up(Arc<Session>),
    /// The recovery task is at work; requests wait.
    Recovering,
    /// The client was shut down.
    Down,
}

/// What a sending of a compound came to.
enum Sent {
    Reply(Reply),
    /// Not answered; to be sent again. True: an earlier sending may have run.
    Again(bool),
}

/// The session, for people.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Up, recovering or down.
    pub state: &'static str,
    /// Seconds the server keeps our state without hearing from us.
    pub lease: u32,
    /// Time since we were last heard.
    pub idle: Duration,
    /// Slots that may be used.
    pub slots: u32,
    /// Slots in use.
    pub in_use: u32,
    /// Operations a compound may have.
    pub max_ops: u32,
    /// Largest READ, bytes.
    pub rsize: u32,
    /// Largest WRITE, bytes.
    pub wsize: u32,
}

/// A client of one server.
pub struct Client {
    pub(super) channel: Channel,
    pub(super) config: ClientConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) client_id: Mutex<ClientId>,
    /// The client id under which all state is known to the server:
    /// RECLAIM_COMPLETE was sent for it, and nothing is left to be reclaimed.
    pub(super) reclaimed: AtomicU64,
    /// The server says that it restarted, although it knows the client id.
    pub(super) must_reclaim: AtomicBool,
    /// Largest READ and WRITE in the current session.
    pub(super) io_sizes: IoSizes,
    pub(super) opens: OpenTable,
    pub(super) closing: Closing,
    /// What the server was found to lack of what saves requests.
    pub(super) lacks: Lacks,
    /// Seconds; from the server's lease_time.
    pub(super) lease: watch::Sender<u32>,
    /// See [`Client::on_restart`].
    pub(super) restarted: std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// See [`super::calls`].
    pub(super) fs: std::sync::OnceLock<super::calls::FileSystem>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session_info())
            .finish_non_exhaustive()
    }
}

/// Largest READ and WRITE, bytes: what was asked for, as far as the file system and
/// the current session allow it.
pub(super) struct IoSizes {
    pub(super) read: AtomicU32,
    pub(super) write: AtomicU32,
}

impl IoSizes {
    /// The smallest that is tried when the server finds a message too large.
    const SMALLEST: u32 = 4096;

    fn new(config: &ClientConfig) -> Self {
        Self {
            read: AtomicU32::new(config.rsize),
            write: AtomicU32::new(config.wsize),
        }
    }

    /// Halves a size that turned out to be too large; false if it cannot be.
    pub(super) fn shrink(size: &AtomicU32) -> bool {
        size.try_update(Ordering::Relaxed, Ordering::Relaxed, |size| {
            (size > Self::SMALLEST).then(|| (size / 2).max(Self::SMALLEST))
        })
        .is_ok()
    }
}

/// Pauses before a request is repeated that the server put off (DELAY, GRACE).
pub(super) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(5);
    /// A grace period ends for everybody at once, and nobody is told.
    const LONGEST_IN_GRACE: Duration = Duration::from_millis(1500);

    pub(super) fn new() -> Self {
        Self(Self::FIRST)
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }

    /// A pause because of this status (DELAY or GRACE).
    pub(super) async fn pause_for(&mut self, status: Status) {
        if status == Status::GRACE {
            self.0 = self.0.min(Self::LONGEST_IN_GRACE);
        }
        self.pause().await;
    }
}

impl Client {
    /// Connects and makes a session. RECLAIM_COMPLETE is sent: a new client
    /// has nothing to reclaim, and must say so before its first OPEN
    /// (RFC 8881 §18.51).
    ///
    /// # Errors
    /// If the server cannot be reached or does not speak NFSv4.1.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        config: ClientConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ConnectError> {
        let max_record = (establish::MAX_IO + 8 * establish::OVERHEAD) as usize;
        let channel = Channel::connect(
            connector,
            config.connections,
            max_record,
            config.tolerance,
            Arc::clone(&metrics),
        )
        .await?;
        // What listens there may be no NFS server at all. A channel would try
        // for ever; a mount must not.
        let mut client_id = tokio::select! {
            client_id = exchange_id_patiently(&channel, &config.identity) => client_id?,
            link = channel.fruitless(FRUITLESS) => {
                return Err(ConnectError::NotNfs {
                    garbled: link.garbled,
                    why: link.last_error.unwrap_or_default(),
                    cause: link.cause,
                });
            }
        };
        let wanted = ChannelAttrs::wanted(config.slots);
        let new =
            create_session_patiently(&channel, &config.identity, &mut client_id, wanted).await?;
        let session = Arc::new(Session::new(&new, 1, 0, config.suspended));
        let client = Arc::new(Self {
            io_sizes: IoSizes::new(&config),
            must_reclaim: AtomicBool::new(false),
            channel,
            config,
            metrics,
            phase: watch::Sender::new(Phase::Up(Arc::clone(&session))),
            reclaimed: AtomicU64::new(client_id.id),
            client_id: Mutex::new(client_id),
            opens: OpenTable::default(),
            closing: Closing::default(),
            lacks: Lacks::default(),
            lease: watch::Sender::new(super::lease::DEFAULT_LEASE),
            restarted: std::sync::OnceLock::new(),
            fs: std::sync::OnceLock::new(),
        });
        client.reclaim_complete(&session).await?;
        super::session::trunk::offer(&client);
        tokio::spawn(super::lease::renew(Arc::downgrade(&client)));
        Ok(client)
    }

    /// The state of the session.
    pub fn session_info(&self) -> SessionInfo {
        let (state, session) = match &*self.phase.borrow() {
            Phase::Up(session) => ("up", Some(Arc::clone(session))),
            Phase::Recovering => ("recovering", None),
            Phase::Down => ("down", None),
        };
        let slots = session.as_ref().map(|session| {
            let slots = session.slots.lock();
            (slots.limit(), slots.busy())
        });
        SessionInfo {
            state,
            lease: *self.lease.borrow(),
            idle: session.as_ref().map_or(Duration::ZERO, |s| s.idle()),
            slots: slots.map_or(0, |(limit, _)| limit),
            in_use: slots.map_or(0, |(_, busy)| busy),
            max_ops: session.as_ref().map_or(0, |s| s.attrs.max_ops),
            rsize: self.rsize(),
            wsize: self.wsize(),
        }
    }

    /// Files open at the server, those that are about to be closed among them.
    pub fn opens(&self) -> usize {
        self.opens.len() + self.closing.pending()
    }

    /// What is to be done when the server has restarted and has lost data that
    /// it had not committed. It is called before any other request gets
    /// through, and must not wait. Only the first one given is kept.
    pub fn on_restart(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.restarted.set(Box::new(hook));
    }

    /// The connections, for people.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The session to use, once there is one.
    pub(super) async fn session(&self) -> Result<Arc<Session>, NfsError> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Up(session) => return Ok(Arc::clone(session)),
                Phase::Down => return Err(RpcError::Closed.into()),
                Phase::Recovering => {}
            }
            if phase.changed().await.is_err() {
                return Err(RpcError::Closed.into());
            }
        }
    }

    /// Runs a compound for `cred` and returns its results, those after
    /// SEQUENCE still to be taken. `build` adds the operations; it runs again
    /// for every attempt, so that it picks up stateids that recovery renewed.
    ///
    /// DELAY and GRACE are waited out, a lost session is rebuilt; what failed
    /// otherwise is the caller's to look at.
    pub(super) async fn call(
        self: &Arc<Self>,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
    ) -> Result<Reply, NfsError> {
        let mut redone = false;
        let mut backoff = Backoff::new();
        loop {
            let session = self.session().await?;
            let Some(slot) = session.slot(class).await else {
                continue;
            };
            let mut compound = Compound::in_session(cred, &self.config.identity.machine_name);
            compound.at_most(session.attrs.max_ops as usize);
            build(&mut compound);
            let load = match class {
                Class::Bulk => Load::Bulk,
                Class::Control | Class::Metadata => Load::Small,
            };
            let mut reply = match self.send(&session, slot, &compound, load).await? {
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
            let callers = |index| index > essential || compound.is_in_front(index);
            if reply.failed_at().is_none_or(callers) {
                return Ok(reply);
            }
            match reply.status() {
                status @ (Status::DELAY | Status::GRACE) => backoff.pause_for(status).await,
                Status::RETRY_UNCACHED_REP => redone = true,
                Status::STALE_CLIENTID => self.recover(session.generation),
                _ => return Ok(reply),
            }
        }
    }

    /// Runs a compound on this very session, for recovery: a lost session is
    /// an error, DELAY and GRACE are waited out.
    pub(super) async fn call_on(
        self: &Arc<Self>,
        session: &Arc<Session>,
        cred: &Credential,
        build: impl Fn(&mut Compound) + Send,
    ) -> Result<Reply, NfsError> {
        let mut backoff = Backoff::new();
        loop {
            let Some(slot) = session.slot(Class::Control).await else {
                return Err(NfsError::Status(Op::Sequence, Status::BADSESSION));
            };
            let mut compound = Compound::in_session(cred, &self.config.identity.machine_name);
            compound.at_most(session.attrs.max_ops as usize);
            build(&mut compound);
            match self.send(session, slot, &compound, Load::Small).await? {
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

    /// Sends a compound on a slot until its SEQUENCE is answered.
    async fn send(
        self: &Arc<Self>,
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
            client: self,
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
        loop {
            let sent_at = Instant::now();
            self.metrics.gauges.rpc_in_flight.inc();
            let call = compound.finish(Some(slot_use));
            let answer = self.channel.call(call, load).await;
            self.metrics.gauges.rpc_in_flight.dec();
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
            let lane = answer.lane;
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
                    self.channel.distrust(lane);
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
                        lane,
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
    fn sequenced(
        self: &Arc<Self>,
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
        let (next, any_left) = {
            let mut slots = session.slots.lock();
            (slots.set_target(target), slots.any_left())
        };
        session.hand_over(next);
        if !any_left {
            self.recover(session.generation);
        }
        {
            let slept = (session.suspended)();
            let mut renewed = session.renewed.lock();
            if renewed.0 < sent_at {
                *renewed = (sent_at, slept);
            }
        }
        let before = session.flags.swap(flags, Ordering::Relaxed);
        if flags & !before != 0 {
            self.flags_raised(session, flags & !before);
        }
        Ok(())
    }

    fn count(&self, compound: &Compound, reply: &Reply, elapsed: Duration) {
        let failed = reply.failed_at();
        if let Some(left_out) = self.metrics.slow.line(elapsed) {
            let ops: Vec<_> = compound.ops().iter().map(|op| op.name()).collect();
            tracing::warn!(
                status = %reply.status(),
                left_out,
                "slow: the server took {elapsed:.1?} over {}",
                ops.join(" "),
            );
        }
        let ran = failed.map_or(compound.len(), |index| index + 1);
        for (index, &op) in compound.ops()[..ran].iter().enumerate() {
            self.metrics
                .nfs_op(op as u32, failed != Some(index), elapsed);
        }
    }

    /// RECLAIM_COMPLETE for all file systems (RFC 8881 §18.51).
    pub(super) async fn reclaim_complete(
        self: &Arc<Self>,
        session: &Arc<Session>,
    ) -> Result<(), NfsError> {
        let mut reply = self
            .call_on(session, &Credential::machine(), |c| {
                c.once().other(Op::ReclaimComplete, |enc| {
                    enc.bool(false);
                });
            })
            .await?;
        match reply.ok(Op::ReclaimComplete) {
            Err(error) if error.status() != Some(Status::COMPLETE_ALREADY) => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends the session and the client id, as far as the server answers within
    /// `patience`, and closes the connection. Calls still running fail.
    pub async fn shut_down(&self, patience: Duration) {
        let phase = self.phase.send_replace(Phase::Down);
        let client_id = self.client_id.lock().clone();
        let farewell = async {
            if let Phase::Up(session) = &phase {
                session.end();
                let _ =
                    establish::destroy_session(&self.channel, &self.config.identity, session.id)
                        .await;
            }
            establish::destroy_client(&self.channel, &self.config.identity, &client_id).await
        };
        match tokio::time::timeout(patience, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("leaving the server: {error}"),
            Err(_) => tracing::warn!("the server did not answer our farewell"),
        }
        self.channel.close();
    }
}

/// EXCHANGE_ID, repeated while the server puts it off.
async fn exchange_id_patiently(
    channel: &Channel,
    identity: &Identity,
) -> Result<ClientId, NfsError> {
    let mut backoff = Backoff::new();
    loop {
        match establish::exchange_id(channel, identity).await {
            Err(NfsError::Status(_, Status::DELAY)) => backoff.pause().await,
            result => return result,
        }
    }
}

/// CREATE_SESSION, repeated under the same sequence while the server puts it
/// off.
async fn create_session_patiently(
    channel: &Channel,
    identity: &Identity,
    client_id: &mut ClientId,
    wanted: ChannelAttrs,
) -> Result<establish::NewSession, NfsError> {
    let mut backoff = Backoff::new();
    loop {
        match establish::create_session(channel, identity, client_id, wanted).await {
            Err(NfsError::Status(_, Status::DELAY)) => backoff.pause().await,
            result => return result,
        }
    }
}

/// A slot with a request on it. Dropped without being given back, the slot is
/// retired: nobody knows what the server made of the request.
struct HeldSlot<'a> {
    client: &'a Arc<Client>,
    session: &'a Session,
    /// `None` once given back.
    id: Option<u32>,
    /// The slot's sequence id is known not to have moved.
    unmoved: bool,
}

impl HeldSlot<'_> {
    fn give_back(&mut self, spent: bool) {
        if let Some(id) = self.id.take() {
            self.client.metrics.gauges.slots_in_use.dec();
            self.session.release(id, spent);
        }
    }
}

impl Drop for HeldSlot<'_> {
    fn drop(&mut self) {
        if self.unmoved {
            self.give_back(false);
        } else if let Some(id) = self.id.take() {
            self.client.metrics.gauges.slots_in_use.dec();
            let (next, any_left) = {
                let mut slots = self.session.slots.lock();
                (slots.retire(id), slots.any_left())
            };
            self.session.hand_over(next);
            if !any_left {
                self.client.recover(self.session.generation);
            }
        }
    }
}

/// How often a reply that does not decode, as far as it says whose it is, is asked
/// for again.
const GARBLED_TRIES: u32 = 3;

/// So many first connections may come to nothing.
const FRUITLESS: u32 = 3;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection could not be made.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The server was reached and refused, or talks something else.
    #[error(transparent)]
    Nfs(#[from] NfsError),
    /// Whatever accepts connections there does not answer as an NFS server.
    #[error("no NFS server: {why}")]
    NotNfs {
        /// It answered, with something else.
        garbled: bool,
        /// How the last connection ended.
        why: String,
        /// The same for programs.
        cause: Option<Arc<std::io::Error>>,
    },
}
