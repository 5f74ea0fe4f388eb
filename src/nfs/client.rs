//! A client of one server: its session, and what the server keeps for it.
//!
//! Who owns what: the current session is in a watch channel and replaced only by
//! the recovery task. A session's slot table has a short mutex; so has the table
//! of opens. They are never held together, and none across an await.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::close_queue::CloseQueue;
use super::config::ClientConfig;
use super::fore_channel::ForeChannel;
use super::proto::compound::Compound;
use super::proto::ops::Locker;
use super::proto::reply::{NfsError, Reply};
use super::server::{FileSystem, IoSizes, RestartHook, ServerFeatures};
use super::session::current::Phase;
use super::session::establish::{self, ChannelAttrs, ClientId, ServerId};
use super::session::known::KnownSessions;
use super::session::live::Session;
use super::session::slots::Class;
use super::state::OpenTable;
use super::state::locks::LockState;
use crate::rpc::Channel;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::telemetry::Metrics;
use crate::wal::Wal;

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
    pub(super) fore: Arc<ForeChannel>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) client_id: Mutex<ClientId>,
    /// The client id under which all state is known to the server:
    /// RECLAIM_COMPLETE was sent for it, and nothing is left to be reclaimed.
    pub(super) reclaimed: AtomicU64,
    /// The client id under which state was last begun to be reclaimed.
    pub(super) reclaiming: AtomicU64,
    /// The server says that it restarted, although it knows the client id.
    pub(super) must_reclaim: AtomicBool,
    /// What the server may still have of sessions.
    pub(super) sessions: KnownSessions,
    /// Why the last attempt to bring back the session has failed.
    pub(super) recovery_failed: watch::Sender<Option<NfsError>>,
    /// Largest READ and WRITE in the current session.
    pub(super) io_sizes: IoSizes,
    pub(super) opens: OpenTable,
    pub(super) close_queue: Arc<CloseQueue>,
    /// Held while what is known of the client is put into the log, so that the record is the
    /// newest.
    pub(super) recorded: Mutex<()>,
    /// What the server was found to lack of what saves requests.
    pub(super) features: ServerFeatures,
    /// See [`Client::on_restart`].
    pub(super) restarted: RestartHook,
    /// See [`FileSystem`].
    pub(super) fs: OnceLock<FileSystem>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session_info())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that nothing is open for yet.
    pub(super) fn new(fore: Arc<ForeChannel>, client_id: ClientId) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::clone(&fore.metrics),
            reclaimed: AtomicU64::new(client_id.id),
            reclaiming: AtomicU64::new(client_id.id),
            client_id: Mutex::new(client_id),
            must_reclaim: AtomicBool::new(false),
            sessions: KnownSessions::default(),
            recovery_failed: watch::Sender::new(None),
            io_sizes: IoSizes::new(&fore.config),
            opens: OpenTable::of(fore.config.wal.clone()),
            recorded: Mutex::default(),
            close_queue: CloseQueue::new(Arc::clone(&fore)),
            features: ServerFeatures::default(),
            restarted: RestartHook::default(),
            fs: OnceLock::new(),
            fore,
        })
    }

    /// The state of the session.
    pub fn session_info(&self) -> SessionInfo {
        let (state, session) = match self.fore.session.phase() {
            Phase::Up(session) => ("up", Some(session)),
            Phase::Recovering => ("recovering", None),
            Phase::Down => ("down", None),
        };
        let slots = session.as_ref().map(|session| session.usage());
        SessionInfo {
            state,
            lease: *self.fore.lease.borrow(),
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
    /// through, or at once for a restart that was found while nobody had said this, and
    /// must not wait. Only the first one given is kept.
    pub fn on_restart(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.restarted.set(Arc::new(hook));
    }

    /// The connections, for people.
    pub fn channel(&self) -> &Channel {
        &self.fore.channel
    }

    /// Largest READ, bytes. A new session may have another.
    pub fn rsize(&self) -> u32 {
        self.io_sizes.read()
    }

    /// Largest WRITE, bytes. A new session may have another.
    pub fn wsize(&self) -> u32 {
        self.io_sizes.write()
    }

    /// Takes in what a session allows, and what the file system does, once it is
    /// known.
    pub(super) fn fit_io(&self, session: &ChannelAttrs) {
        self.io_sizes.fit(self.config(), session, self.fs.get());
    }

    /// What the next process must know should this one be killed.
    pub fn wal(&self) -> &Wal {
        &self.fore.config.wal
    }

    /// A number for the request of the kernel that this task's operation is about: the same when
    /// it runs again in another process, and like that of no other request or mount. `None` for
    /// work that is about none.
    pub fn mark(&self) -> Option<u64> {
        let unique = caller::request().unique;
        (unique != 0).then(|| {
            // SplitMix64's last step, which maps no two numbers to one.
            let mixed = u64::from_be_bytes(self.config().identity.verifier) ^ unique;
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }

    pub(super) fn config(&self) -> &ClientConfig {
        &self.fore.config
    }

    /// See [`ForeChannel::session`].
    pub(super) fn session(
        &self,
    ) -> impl Future<Output = Result<Arc<Session>, NfsError>> + Send + '_ {
        self.fore.session()
    }

    /// See [`ForeChannel::call`].
    pub(super) fn call(
        &self,
        cred: &Credential,
        class: Class,
        build: impl Fn(&mut Compound) + Send,
    ) -> impl Future<Output = Result<Reply, NfsError>> + Send {
        self.fore.call(cred, class, build)
    }

    /// The open owner of an OPEN: the client id of this moment, and its number.
    pub(super) fn open_owner<'a>(&self, owner: &'a [u8]) -> (u64, &'a [u8]) {
        (self.client_id.lock().id, owner)
    }

    /// How a LOCK names its owner: by the state that there is, or as a new one.
    pub(super) fn locker(&self, lock: &LockState) -> Locker {
        match lock.stateid() {
            Some(stateid) => Locker::Known(stateid.newest()),
            None => Locker::New {
                open: lock.open.for_io().0,
                client: self.client_id.lock().id,
                owner: lock.owner,
            },
        }
    }

    /// Ends the session and the client id, as far as the server answers within
    /// `patience`, and closes the connection. Calls still running fail. True if the
    /// server has said that nothing of this client is left.
    pub async fn shut_down(&self, patience: Duration) -> bool {
        let phase = self.fore.session.shut_down();
        let client_id = self.client_id.lock().clone();
        let (channel, identity) = (&self.fore.channel, &self.config().identity);
        let farewell = async {
            if let Phase::Up(session) = &phase {
                session.end();
                let _ = establish::destroy_session(channel, identity, session.id).await;
            }
            establish::destroy_client(channel, identity, &client_id).await
        };
        let farewell = tokio::time::timeout(patience, farewell).await;
        match &farewell {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("leaving the server: {error}"),
            Err(_) => tracing::warn!(
                "the server did not answer DESTROY_CLIENTID: it keeps the session until its lease is over"
            ),
        }
        channel.close();
        matches!(farewell, Ok(Ok(())))
    }
}
