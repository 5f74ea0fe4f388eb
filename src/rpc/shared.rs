//! What the tasks of a channel share: the calls and connections behind one short
//! mutex, and what is known of the server's answers.
//!
//! The mutex is taken for one map operation at a time and never held across an await;
//! `silence`, `answered` and what a connection was last heard are taken inside it or
//! alone. Who knows it: [`super::channel`] puts calls in, [`super::supervise`] makes the
//! connections, [`super::connection`] moves the bytes of one. None of them is known here.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::call::Call;
use super::error::RpcError;
use super::pending::Pending;
use super::placement::ConnectionId;
use super::scaling::{Pause, Scaling};
use super::silence::{SilenceLimit, Tolerance};
use super::transport::Connector;
use crate::telemetry::Metrics;

/// A reply to a call.
#[derive(Debug)]
pub struct RpcReply {
    /// The body of the reply.
    pub body: Bytes,
    /// The call went out more than once.
    pub resent: bool,
    /// The connection that it came over.
    pub connection: ConnectionId,
}

/// Says whether a connection may be used, by the reply to its greeting.
pub type Judge = Box<dyn FnOnce(Result<Bytes, RpcError>) -> Result<(), GreetingRefused> + Send>;

/// What a further connection is greeted with, before calls go over it.
pub struct Greeting {
    /// The call.
    pub call: Call,
    /// What the reply means.
    pub judge: Judge,
}

impl std::fmt::Debug for Greeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Greeting")
    }
}

/// A further connection may not be used.
#[derive(Debug)]
pub struct GreetingRefused {
    /// The reason.
    pub why: String,
    /// When to try another.
    pub pause: Pause,
}

/// Makes greetings. `None`: no connection can be added now.
pub type Greet = dyn Fn() -> Option<Greeting> + Send + Sync;

/// Why a connection is to end although it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// What came over it makes no sense.
    Distrusted,
    /// Nothing came over it for as long as over another one that was silent.
    Suspect,
    /// It is not needed any more.
    LetGo,
}

/// How the task of a connection is told things.
#[derive(Debug)]
pub(super) struct ConnectionSignals {
    /// A call was submitted.
    pub(super) submitted: Notify,
    /// It is to end.
    pub(super) end: watch::Sender<Option<End>>,
    /// When something last came over it.
    heard: Mutex<Instant>,
}

impl ConnectionSignals {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            submitted: Notify::new(),
            end: watch::Sender::new(None),
            heard: Mutex::new(Instant::now()),
        })
    }

    /// Something came over it.
    pub(super) fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// When something last came over it.
    pub(super) fn heard(&self) -> Instant {
        *self.heard.lock()
    }
}

/// How a caller gets its reply.
pub(super) type Owed = oneshot::Sender<Result<RpcReply, RpcError>>;

/// What the one mutex guards.
pub(super) struct Table {
    pub(super) pending: Pending<Owed>,
    pub(super) scaling: Scaling,
    /// How to reach the task of each connection.
    pub(super) signals: Vec<(ConnectionId, Arc<ConnectionSignals>)>,
}

impl Table {
    /// Tells a connection that there is something to send.
    pub(super) fn wake(&self, connection: ConnectionId) {
        if let Some((_, signals)) = self.signals.iter().find(|(id, _)| *id == connection) {
            signals.submitted.notify_one();
        }
    }

    /// Ends a connection; it gets no more calls.
    pub(super) fn end(&mut self, connection: ConnectionId, end: End) {
        self.pending.close_to_calls(connection);
        if let Some((_, signals)) = self.signals.iter().find(|(id, _)| *id == connection) {
            signals.end.send_replace(Some(end));
        }
    }
}

/// See the module.
pub(super) struct ChannelState {
    pub(super) table: Mutex<Table>,
    /// Wakes the supervisor: the number of connections may be wrong.
    pub(super) recount: Notify,
    /// True once the channel is to end.
    pub(super) closing: watch::Sender<bool>,
    /// What the channel is doing, for `status` and for who waits on it.
    pub(super) link: watch::Sender<Link>,
    /// When a silent connection is given up.
    pub(super) silence: Mutex<SilenceLimit>,
    /// When a reply last came, over whatever connection, or the first call went
    /// out after a pause.
    pub(super) answered: Mutex<Instant>,
    pub(super) greet: OnceLock<Box<Greet>>,
    pub(super) tolerance: Tolerance,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_record: usize,
}

impl ChannelState {
    /// Ends the channel: calls without a reply get [`RpcError::Closed`], by the end of
    /// what they wait on.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
        self.table.lock().pending.close();
    }
}

/// The state of the connections, for people.
#[derive(Clone, Debug)]
pub struct Link {
    /// A connection is up.
    pub connected: bool,
    /// Connections made so far.
    pub connections: u64,
    /// Connections in a row, up to now, that failed or ended without a reply, while
    /// there was no other.
    pub fruitless: u32,
    /// Why the last one ended, or could not be made.
    pub last_error: Option<String>,
    /// The same for programs.
    pub cause: Option<Arc<io::Error>>,
    /// What came over it was no RPC.
    pub garbled: bool,
    /// Since when the server answers nothing, once that is longer than it should
    /// be.
    pub silent_since: Option<Instant>,
}
