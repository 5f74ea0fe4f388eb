//! A channel to a server: calls go in, replies come out, over one connection or
//! several.
//!
//! Who owns what: the table of waiting calls ([`Pending`]), which knows the connection of
//! each, and what is decided of the number of connections ([`Scaling`]) are behind
//! one short mutex ([`super::shared`]). The connections belong to the supervisor task ([`super::supervise`]), each to a task
//! of its own ([`super::connection`]).
//!
//! Another task watches whether the server responds at all, over however many
//! connections: that is said once in the log when it stops and once when it is
//! over, and shown by [`Channel::link`].
//!
//! Dropping a call's future does not take the call back: its reply is received
//! and dropped.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::call::Call;
use super::caller::Request;
use super::error::RpcError;
use super::pending::Pending;
use super::placement::{ConnectionId, ConnectionLoad, Load};
use super::scaling::{Connections, Scaling};
use super::shared::{ChannelState, End, Table};
pub use super::shared::{Greet, Greeting, GreetingRefused, Judge, Link, RpcReply};
use super::silence::{SilenceLimit, Tolerance};
use super::supervise::{supervise, watch_responses};
use super::transport::{BoxStream, Connector};
use crate::telemetry::Metrics;

/// Connections to the server that replace themselves when they break.
pub struct Channel {
    shared: Arc<ChannelState>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("link", &*self.shared.link.borrow())
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Makes the first connection. Records from the server longer than
    /// `max_record` bytes end a connection. There are further connections only once
    /// it is known how to greet them ([`Self::greet_with`]).
    ///
    /// # Errors
    /// If that first connection fails. Later ones are retried for ever.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        connections: Connections,
        max_record: usize,
        tolerance: Tolerance,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let stream = connector.connect().await?;
        Self::begin(
            Some(stream),
            connector,
            connections,
            max_record,
            tolerance,
            metrics,
        )
    }

    /// The same without waiting: the first connection is tried for as later ones are, for
    /// ever.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn connecting(
        connector: Arc<dyn Connector>,
        connections: Connections,
        max_record: usize,
        tolerance: Tolerance,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::begin(None, connector, connections, max_record, tolerance, metrics)
    }

    fn begin(
        first: Option<BoxStream>,
        connector: Arc<dyn Connector>,
        connections: Connections,
        max_record: usize,
        tolerance: Tolerance,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let now = Instant::now();
        let shared = Arc::new(ChannelState {
            table: Mutex::new(Table {
                pending: Pending::new(u32::from_ne_bytes(seed)),
                scaling: Scaling::new(connections, now),
                signals: Vec::new(),
            }),
            recount: Notify::new(),
            closing: watch::Sender::new(false),
            link: watch::Sender::new(Link {
                connected: first.is_some(),
                connections: 0,
                fruitless: 0,
                last_error: None,
                cause: None,
                garbled: false,
                silent_since: None,
            }),
            silence: Mutex::new(SilenceLimit::new(tolerance.silence, now)),
            answered: Mutex::new(now),
            greet: OnceLock::new(),
            tolerance,
            connector,
            metrics,
            max_record,
        });
        let tasks = &shared.metrics.tasks;
        let (supervised, bereaved) = (Arc::clone(&shared), Arc::clone(&shared));
        tasks.vital("supervise", supervise(supervised, first), move || {
            bereaved.close();
        });
        let watched = Arc::clone(&shared);
        tasks.restarted("watch_responses", move || {
            watch_responses(Arc::clone(&watched))
        });
        Ok(Self { shared })
    }

    /// Sends a call and waits for its reply body, over as many connections as
    /// it takes.
    ///
    /// # Errors
    /// [`RpcError::Closed`] once the channel is closed; else what the server
    /// said at the RPC level.
    pub async fn call(&self, call: Call, load: Load) -> Result<RpcReply, RpcError> {
        self.call_for(Request::of_nobody(), call, load).await
    }

    /// The same for a call that is made only as long as somebody waits for it.
    ///
    /// # Errors
    /// As [`Self::call`], and [`RpcError::Abandoned`].
    pub async fn call_for(
        &self,
        request: Arc<Request>,
        call: Call,
        load: Load,
    ) -> Result<RpcReply, RpcError> {
        self.submit(request, call, load, None).await
    }

    /// The same for a call about one connection: on that one, if it still lives.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_on(
        &self,
        connection: ConnectionId,
        call: Call,
    ) -> Result<RpcReply, RpcError> {
        let request = Request::of_nobody();
        self.submit(request, call, Load::Small, Some(connection))
            .await
    }

    async fn submit(
        &self,
        request: Arc<Request>,
        call: Call,
        load: Load,
        wish: Option<ConnectionId>,
    ) -> Result<RpcReply, RpcError> {
        let (owed, reply) = oneshot::channel();
        {
            let mut table = self.shared.table.lock();
            // Under the lock: a call that comes in after `close` has emptied
            // the table would wait for ever.
            if *self.shared.closing.borrow() {
                return Err(RpcError::Closed);
            }
            let now = Instant::now();
            if table.pending.is_empty() {
                *self.shared.answered.lock() = now;
            }
            let (_, connection) = table.pending.submit(call, load, wish, request, owed, now);
            if let Some(connection) = connection {
                table.wake(connection);
            }
            let bulk = table.pending.bulk();
            if load == Load::Bulk && table.scaling.submitted(bulk, now) {
                self.shared.recount.notify_one();
            }
        }
        reply.await.unwrap_or(Err(RpcError::Closed))
    }

    /// From now on there may be further connections; each is greeted like this
    /// first. Only the first one given is kept.
    pub fn greet_with(&self, greet: impl Fn() -> Option<Greeting> + Send + Sync + 'static) {
        let _ = self.shared.greet.set(Box::new(greet));
        self.shared.recount.notify_one();
    }

    /// All connections but one are let go: what they were greeted for is no more.
    pub fn fold(&self) {
        let mut table = self.shared.table.lock();
        let others: Vec<_> = table
            .pending
            .connections()
            .skip(1)
            .map(|connection| connection.id)
            .collect();
        for connection in others {
            table.end(connection, End::LetGo);
        }
    }

    /// The server forgets whom it has not heard for so long (RFC 8881 §8.3): a
    /// connection that is silent is given up in time.
    pub fn set_lease(&self, lease: Duration) {
        self.shared.silence.lock().set_lease(lease);
    }

    /// The longest pause between two requests that try whether the server can do what it
    /// could not before. See [`SilenceLimit::pause`].
    pub fn pause(&self) -> Duration {
        self.shared.silence.lock().pause()
    }

    /// A call needed so long although the server had it all the time: it was still at
    /// work on it when it came again on another connection.
    pub fn needed(&self, time: Duration) {
        self.shared.silence.lock().needed(time, Instant::now());
    }

    /// What the connections are doing.
    pub fn link(&self) -> Link {
        self.shared.link.borrow().clone()
    }

    /// Each connection that is up.
    pub fn connections(&self) -> Vec<ConnectionLoad> {
        self.shared.table.lock().pending.connections().collect()
    }

    /// How long the call has waited that has waited longest; zero if none does.
    pub fn longest_wait(&self) -> Duration {
        let oldest = self.shared.table.lock().pending.oldest();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What came over this connection makes no sense: another one takes its
    /// place, and everything unanswered goes out again elsewhere.
    pub fn distrust(&self, connection: ConnectionId) {
        self.shared.table.lock().end(connection, End::Distrusted);
    }

    /// Completes when so many connections in a row came to nothing. Mounting
    /// gives up then; a mounted file system never does.
    pub async fn fruitless(&self, times: u32) -> Link {
        let mut link = self.shared.link.subscribe();
        // The sender is in `self`, so waiting does not fail.
        let _ = link.wait_for(|link| link.fruitless >= times).await;
        self.link()
    }

    /// The server, for messages.
    pub fn peer(&self) -> String {
        self.shared.connector.peer()
    }

    /// See [`Connector::vouches`].
    pub fn vouched(&self) -> bool {
        self.shared.connector.vouches()
    }

    /// Ends the connections; calls without a reply get [`RpcError::Closed`].
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}
