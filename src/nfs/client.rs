//! Runs compounds: the one way from a call to the server and back.
//!
//! A compound takes a slot, is sent, and its slot is given back when its reply
//! is in ([`super::send`]), whatever became of the caller: calls run in tasks that
//! nobody aborts.
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
use tokio::sync::watch;

use super::calls::ServerFeatures;
use super::close_queue::CloseQueue;
use super::proto::compound::Compound;
use super::proto::ops::Op;
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::send::Sent;
use super::session::establish::{self, ChannelAttrs, ClientId, Identity, ServerId};
use super::session::live::Session;
use super::session::slots::Class;
use super::state::OpenTable;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::rpc::transport::Connector;
use crate::rpc::{Channel, Connections, Load, RpcError, Tolerance};
use crate::telemetry::Metrics;

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
    /// What was agreed upon for the session; `None` while there is none.
    pub agreed: Option<ChannelAttrs>,
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
    pub(super) close_queue: CloseQueue,
    /// What the server was found to lack of what saves requests.
    pub(super) features: ServerFeatures,
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
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(5);
    /// A grace period ends for everybody at once, and nobody is told.
    const LONGEST_IN_GRACE: Duration = Duration::from_millis(1500);

    pub(super) fn new() -> Self {
        Self::up_to(Self::LONGEST)
    }

    /// For what has to be done while the server's grace period lasts: no pause is longer
    /// than this ([`Channel::pause`]).
    pub(super) fn up_to(longest: Duration) -> Self {
        Self {
            next: Self::FIRST.min(longest),
            longest,
        }
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.longest);
    }

    /// A pause because of this status (DELAY or GRACE).
    pub(super) async fn pause_for(&mut self, status: Status) {
        if status == Status::GRACE {
            self.next = self.next.min(Self::LONGEST_IN_GRACE);
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
            biased;
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
            close_queue: CloseQueue::default(),
            features: ServerFeatures::default(),
            lease: watch::Sender::new(super::lease::DEFAULT_LEASE),
            restarted: std::sync::OnceLock::new(),
            fs: std::sync::OnceLock::new(),
        });
        client.reclaim_complete(&session).await?;
        super::session::trunk::offer(&client);
        let renewed = Arc::downgrade(&client);
        let renew = move || super::lease::renew(renewed.clone());
        client.metrics.tasks.restarted("renew", renew);
        Ok(client)
    }

    /// The state of the session.
    pub fn session_info(&self) -> SessionInfo {
        let (state, session) = match &*self.phase.borrow() {
            Phase::Up(session) => ("up", Some(Arc::clone(session))),
            Phase::Recovering => ("recovering", None),
            Phase::Down => ("down", None),
        };
        let slots = session.as_ref().map(|session| session.usage());
        SessionInfo {
            state,
            lease: *self.lease.borrow(),
            idle: session.as_ref().map_or(Duration::ZERO, |s| s.idle()),
            slots: slots.map_or(0, |(limit, _)| limit),
            in_use: slots.map_or(0, |(_, busy)| busy),
            agreed: session.as_ref().map(|s| s.attrs),
            max_ops: session.as_ref().map_or(0, |s| s.attrs.max_ops),
            rsize: self.rsize(),
            wsize: self.wsize(),
        }
    }

    /// Who the server says it is.
    pub fn server(&self) -> ServerId {
        self.client_id.lock().server.clone()
    }

    /// Files open at the server, those that are about to be closed among them.
    pub fn opens(&self) -> usize {
        self.opens.len() + self.close_queue.pending()
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
    /// otherwise is the caller's to look at. All of that ends, with
    /// [`RpcError::Abandoned`], when this task's [caller](crate::rpc::caller) has been
    /// answered.
    pub(super) async fn call(
        self: &Arc<Self>,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
    ) -> Result<Reply, NfsError> {
        let mut redone = false;
        let mut backoff = Backoff::new();
        loop {
            if caller::is_answered() {
                return Err(RpcError::Abandoned { sent: redone }.into());
            }
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
            // Of this one the second operation is told, whichever that is: nothing
            // is known of any of them.
            let uncached = reply.status() == Status::RETRY_UNCACHED_REP;
            let callers = |index| index > essential || !uncached && compound.is_in_front(index);
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
        let mut backoff = Backoff::up_to(self.channel.pause());
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
    /// `patience`, and closes the connection. Calls still running fail. True if the
    /// server has said that nothing of this client is left.
    pub async fn shut_down(&self, patience: Duration) -> bool {
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
        let farewell = tokio::time::timeout(patience, farewell).await;
        match &farewell {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("leaving the server: {error}"),
            Err(_) => tracing::warn!(
                "the server did not answer DESTROY_CLIENTID: it keeps the session until its lease is over"
            ),
        }
        self.channel.close();
        matches!(farewell, Ok(Ok(())))
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

/// This many first connections may come to nothing.
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
