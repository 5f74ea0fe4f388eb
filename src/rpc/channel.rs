//! The tasks that carry calls to the server and replies back.
//!
//! One supervisor task owns the connection: it connects, runs a reader and a
//! writer on it until either fails, and starts over with back-off. The table of
//! waiting calls ([`Pending`]) is behind a short mutex that callers, reader and
//! writer take for one map operation each and never hold across an await; `heard`
//! is taken inside it or alone.
//!
//! Dropping a call's future does not take the call back: its reply is received
//! and dropped.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::RpcError;
use super::call::{self, Call, Incoming};
use super::pending::{Pending, Replied};
use super::record::RecordReader;
use super::transport::{BoxStream, Connector};
use crate::telemetry::Metrics;

/// Pauses between attempts to connect: at once, then from here ...
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// ... doubling up to here.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A connection on which nothing has come back for so long, although calls are
/// out, is given up ...
const SILENCE_MIN: Duration = Duration::from_secs(15);
/// ... and each one after it has twice the time, up to this: a server that is
/// only slow must not drown in repeated calls.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A reply to a call.
#[derive(Debug)]
pub struct Answer {
    /// The body of the reply.
    pub body: Bytes,
    /// The call went out more than once.
    pub resent: bool,
}

type Owed = oneshot::Sender<Result<Answer, RpcError>>;

struct Shared {
    pending: Mutex<Pending<Owed>>,
    /// Tells the writer that a call was submitted.
    submitted: Notify,
    /// True once the channel is to end.
    closing: watch::Sender<bool>,
    /// What the channel is doing, for `status` and for who waits on it.
    link: watch::Sender<Link>,
    /// When something was last heard of the server, or the first call went out
    /// after a pause.
    heard: Mutex<Instant>,
    connector: Arc<dyn Connector>,
    metrics: Arc<Metrics>,
    max_record: usize,
}

/// The state of the connection, for people.
#[derive(Clone, Debug)]
pub struct Link {
    /// A connection is up.
    pub connected: bool,
    /// Connections made so far.
    pub connections: u64,
    /// Connections in a row, up to now, that failed or ended without a reply.
    pub fruitless: u32,
    /// Why the last one ended, or could not be made.
    pub last_error: Option<String>,
    /// The same for programs.
    pub cause: Option<Arc<io::Error>>,
    /// What came over it was no RPC.
    pub garbled: bool,
}

/// A connection to the server that replaces itself when it breaks.
pub struct Channel {
    shared: Arc<Shared>,
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
    /// `max_record` bytes end a connection.
    ///
    /// # Errors
    /// If that first connection fails. Later ones are retried for ever.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        max_record: usize,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let stream = connector.connect().await?;
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let shared = Arc::new(Shared {
            pending: Mutex::new(Pending::new(u32::from_ne_bytes(seed))),
            submitted: Notify::new(),
            closing: watch::Sender::new(false),
            link: watch::Sender::new(Link {
                connected: true,
                connections: 1,
                fruitless: 0,
                last_error: None,
                cause: None,
                garbled: false,
            }),
            heard: Mutex::new(Instant::now()),
            connector,
            metrics,
            max_record,
        });
        tokio::spawn(supervise(Arc::clone(&shared), stream));
        Ok(Self { shared })
    }

    /// Sends a call and waits for its reply body, over as many connections as
    /// it takes.
    ///
    /// # Errors
    /// [`RpcError::Closed`] once the channel is closed; else what the server
    /// said at the RPC level.
    pub async fn call(&self, call: Call) -> Result<Answer, RpcError> {
        let (owed, reply) = oneshot::channel();
        {
            let mut pending = self.shared.pending.lock();
            // Under the lock: a call that comes in after `close` has emptied
            // the table would wait for ever.
            if *self.shared.closing.borrow() {
                return Err(RpcError::Closed);
            }
            if pending.is_empty() {
                *self.shared.heard.lock() = Instant::now();
            }
            pending.submit(call, owed);
        }
        self.shared.submitted.notify_one();
        reply.await.unwrap_or(Err(RpcError::Closed))
    }

    /// What the connection is doing.
    pub fn link(&self) -> Link {
        self.shared.link.borrow().clone()
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

    /// Ends the connection; calls without a reply get [`RpcError::Closed`].
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
        self.shared.pending.lock().close();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

async fn supervise(shared: Arc<Shared>, first: BoxStream) {
    let mut closing = shared.closing.subscribe();
    let mut stream = Some(first);
    let mut backoff = Duration::ZERO;
    let mut patience = SILENCE_MIN;
    loop {
        let connected = match stream.take() {
            Some(stream) => Ok(stream),
            None => {
                tokio::select! {
                    _ = closing.wait_for(|closing| *closing) => return,
                    stream = async {
                        tokio::time::sleep(backoff).await;
                        shared.connector.connect().await
                    } => stream,
                }
            }
        };
        let (ended, useful) = match connected {
            Ok(stream) => {
                let replayed = shared.pending.lock().connected();
                tracing::debug!(replayed, "connected to {}", shared.connector.peer());
                let (error, useful) = tokio::select! {
                    _ = closing.wait_for(|closing| *closing) => return,
                    ended = serve(&shared, stream, patience) => ended,
                };
                // A server that accepts and hangs up at once is not to be
                // hammered: only a connection that carried a reply resets the
                // pause.
                patience = if error.kind() == io::ErrorKind::TimedOut {
                    (patience * 2).min(SILENCE_MAX)
                } else {
                    SILENCE_MIN
                };
                if useful {
                    backoff = Duration::ZERO;
                } else {
                    backoff = (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
                }
                (error, useful)
            }
            Err(error) => {
                backoff = (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
                (error, false)
            }
        };
        tracing::debug!(%ended, "connection to {} lost", shared.connector.peer());
        shared.link.send_modify(|link| {
            link.connected = false;
            link.fruitless = if useful { 0 } else { link.fruitless + 1 };
            link.garbled = ended.kind() == io::ErrorKind::InvalidData;
            link.last_error = Some(ended.to_string());
            link.cause = Some(Arc::new(ended));
        });
        shared.metrics.reconnects.inc();
    }
}

/// Runs one connection until it fails. Returns why, and whether any reply came
/// over it.
async fn serve(shared: &Arc<Shared>, stream: BoxStream, patience: Duration) -> (io::Error, bool) {
    *shared.heard.lock() = Instant::now();
    shared.link.send_modify(|link| {
        if !link.connected {
            link.connections += 1;
        }
        link.connected = true;
    });
    let (rx, tx) = tokio::io::split(stream);
    let mut useful = false;
    let error = tokio::select! {
        error = read_replies(shared, rx, &mut useful) => error,
        error = write_calls(shared, tx) => error,
        error = silence(shared, patience) => error,
    };
    (error, useful)
}

/// Completes when calls are out and nothing has been heard for `patience`. TCP
/// notices a peer that is gone, but not one behind a middlebox that goes on
/// acknowledging, nor a path that lets small segments through and no large ones.
async fn silence(shared: &Shared, patience: Duration) -> io::Error {
    loop {
        let rest = if shared.pending.lock().is_empty() {
            patience
        } else {
            let rest = patience.saturating_sub(shared.heard.lock().elapsed());
            if rest.is_zero() {
                return io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer for {} s", patience.as_secs()),
                );
            }
            rest
        };
        tokio::time::sleep(rest).await;
    }
}

async fn read_replies<R: tokio::io::AsyncRead + Unpin>(
    shared: &Shared,
    stream: R,
    useful: &mut bool,
) -> io::Error {
    let mut records = RecordReader::new(stream, shared.max_record);
    loop {
        let record = match records.next().await {
            Ok(Some(record)) => record,
            Ok(None) => {
                return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
            }
            Err(error) => return error,
        };
        *shared.heard.lock() = Instant::now();
        match call::parse(record) {
            Ok(Incoming::Reply(xid, result)) => {
                let owed = shared.pending.lock().replied(xid);
                match owed {
                    Some(Replied { owed, resent }) => {
                        *useful = true;
                        // The caller may be gone; nothing is owed then.
                        let _ = owed.send(result.map(|body| Answer { body, resent }));
                    }
                    None => tracing::debug!(xid, "a reply that nobody waits for"),
                }
            }
            Ok(Incoming::Call(xid)) => tracing::debug!(xid, "a call by the server, dropped"),
            Err(error) => return io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

async fn write_calls<W: AsyncWrite + Unpin>(shared: &Shared, mut stream: W) -> io::Error {
    let mut rope = Rope::default();
    loop {
        {
            let mut pending = shared.pending.lock();
            // Everything that is ready leaves in one writev; a bulk of data
            // goes by itself, so that memory is held for few of them.
            while rope.bytes < 256 * 1024
                && let Some(message) = pending.next_to_send()
            {
                rope.extend(message.parts);
            }
        }
        if rope.bytes == 0 {
            shared.submitted.notified().await;
            continue;
        }
        if let Err(error) = stream.write_all_buf(&mut rope).await {
            return error;
        }
        if let Err(error) = stream.flush().await {
            return error;
        }
    }
}

/// Pieces of messages on their way into the socket.
#[derive(Default)]
struct Rope {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Rope {
    fn extend(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        for part in parts {
            if !part.is_empty() {
                self.bytes += part.len();
                self.parts.push_back(part);
            }
        }
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slot, part) in dst.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            let Some(front) = self.parts.front_mut() else {
                return;
            };
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rope_advances_over_piece_boundaries() {
        let mut rope = Rope::default();
        rope.extend(["abc", "", "defg", "h"].map(|s| Bytes::from_static(s.as_bytes())));
        assert_eq!(rope.remaining(), 8);
        rope.advance(4);
        assert_eq!(rope.chunk(), b"efg");
        rope.advance(3);
        assert_eq!(rope.chunk(), b"h");
        rope.advance(1);
        assert!(!rope.has_remaining());
    }
}
