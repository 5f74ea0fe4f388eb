//! The tasks that carry calls to the server and replies back.
//!
//! One supervisor task owns the connection: it connects, runs a reader and a
//! writer on it until either fails, and starts over with back-off. The table of
//! waiting calls ([`Pending`]) is behind a short mutex that callers, reader and
//! writer take for one map operation each and never hold across an await; `patience`
//! and `answered` are taken inside it or alone.
//!
//! A second task watches whether the server responds at all, over however many
//! connections: that is said once in the log when it stops and once when it is
//! over, and shown by [`Channel::link`].
//!
//! Dropping a call's future does not take the call back: its reply is received
//! and dropped.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::RpcError;
use super::call::{self, Call, Incoming};
use super::patience::{Patience, Tolerance};
use super::pending::{Pending, Replied};
use super::record::RecordReader;
use super::transport::{BoxStream, Connector};
use crate::telemetry::Metrics;

/// Pauses between attempts to connect: at once, then from here ...
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// ... doubling up to here.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

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
    /// Ends the current connection.
    distrusted: Notify,
    /// What the channel is doing, for `status` and for who waits on it.
    link: watch::Sender<Link>,
    /// When a silent connection is given up.
    patience: Mutex<Patience>,
    /// When a reply last came, over whatever connection, or the first call went
    /// out after a pause.
    answered: Mutex<Instant>,
    tolerance: Tolerance,
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
    /// Since when the server answers nothing, once that is longer than it should
    /// be.
    pub silent_since: Option<Instant>,
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
        tolerance: Tolerance,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let stream = connector.connect().await?;
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let shared = Arc::new(Shared {
            pending: Mutex::new(Pending::new(u32::from_ne_bytes(seed))),
            submitted: Notify::new(),
            closing: watch::Sender::new(false),
            distrusted: Notify::new(),
            link: watch::Sender::new(Link {
                connected: true,
                connections: 1,
                fruitless: 0,
                last_error: None,
                cause: None,
                garbled: false,
                silent_since: None,
            }),
            patience: Mutex::new(Patience::new(tolerance.silence, Instant::now())),
            answered: Mutex::new(Instant::now()),
            tolerance,
            connector,
            metrics,
            max_record,
        });
        tokio::spawn(supervise(Arc::clone(&shared), stream));
        tokio::spawn(watch_responses(Arc::clone(&shared)));
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
            let now = Instant::now();
            if pending.is_empty() {
                self.shared.patience.lock().heard(now);
                *self.shared.answered.lock() = now;
            }
            pending.submit(call, owed, now);
        }
        self.shared.submitted.notify_one();
        reply.await.unwrap_or(Err(RpcError::Closed))
    }

    /// The server forgets whom it has not heard for so long (RFC 8881 §8.3): a
    /// connection that is silent is given up in time.
    pub fn set_lease(&self, lease: Duration) {
        self.shared.patience.lock().set_lease(lease);
    }

    /// A call needed so long although the server had it all the time: it was still at
    /// work on it when it came again on another connection.
    pub fn needed(&self, time: Duration) {
        self.shared.patience.lock().needed(time, Instant::now());
    }

    /// What the connection is doing.
    pub fn link(&self) -> Link {
        self.shared.link.borrow().clone()
    }

    /// How long the call has waited that has waited longest; zero if none does.
    pub fn longest_wait(&self) -> Duration {
        let oldest = self.shared.pending.lock().oldest();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What came over the current connection makes no sense: another one takes its
    /// place, on which everything unanswered goes out again.
    pub fn distrust(&self) {
        self.shared.distrusted.notify_waiters();
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
                    ended = serve(&shared, stream) => ended,
                };
                // A server that accepts and hangs up at once is not to be
                // hammered: only a connection that carried a reply resets the
                // pause.
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
async fn serve(shared: &Arc<Shared>, stream: BoxStream) -> (io::Error, bool) {
    shared.patience.lock().heard(Instant::now());
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
        error = silence(shared) => error,
        () = shared.distrusted.notified() => {
            io::Error::new(io::ErrorKind::InvalidData, "a reply made no sense")
        }
    };
    (error, useful)
}

/// Says when the server stops to respond; when it does again, [`read_replies`]
/// says so.
async fn watch_responses(shared: Arc<Shared>) {
    let mut closing = shared.closing.subscribe();
    let wait = shared.tolerance.wait;
    loop {
        let idle = shared.pending.lock().is_empty();
        let silent_since = *shared.answered.lock();
        let mut rest = wait;
        if !idle {
            rest = wait.saturating_sub(silent_since.elapsed());
            if rest.is_zero() {
                rest = wait;
                let first = shared.link.send_if_modified(|link| {
                    let first = link.silent_since.is_none();
                    link.silent_since.get_or_insert(silent_since);
                    first
                });
                if first {
                    let peer = shared.connector.peer();
                    tracing::warn!("server {peer} not responding, still trying");
                    shared
                        .metrics
                        .set_last_error(format!("server {peer} not responding"));
                }
            }
        }
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// Completes when calls are out and the connection has been silent for too long.
async fn silence(shared: &Shared) -> io::Error {
    loop {
        let idle = shared.pending.lock().is_empty();
        let pause = {
            let mut patience = shared.patience.lock();
            let rest = patience.rest(Instant::now());
            if rest.is_zero() && !idle {
                let limit = patience.limit();
                patience.given_up();
                let what = format!("no answer for {:.1} s", limit.as_secs_f64());
                return io::Error::new(io::ErrorKind::TimedOut, what);
            }
            // The limit may shrink meanwhile, but not below the least.
            let least = patience.least();
            if rest.is_zero() {
                least
            } else {
                rest.min(least)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn read_replies<R: AsyncRead + Unpin>(
    shared: &Shared,
    stream: R,
    useful: &mut bool,
) -> io::Error {
    let mut records = RecordReader::new(Heard { stream, shared }, shared.max_record);
    loop {
        let record = match records.next().await {
            Ok(Some(record)) => record,
            Ok(None) => {
                return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
            }
            Err(error) => return error,
        };
        match call::parse(record) {
            Ok(Incoming::Reply(xid, result)) => {
                let owed = shared.pending.lock().replied(xid);
                match owed {
                    Some(Replied {
                        owed,
                        resent,
                        since,
                    }) => {
                        *useful = true;
                        answered(shared, since);
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

/// The server has answered a call that was made at `since`.
fn answered(shared: &Shared, since: Instant) {
    let now = Instant::now();
    shared.patience.lock().answered(since, now);
    *shared.answered.lock() = now;
    if shared.link.borrow().silent_since.is_none() {
        return;
    }
    let mut silent = None;
    shared
        .link
        .send_modify(|link| silent = link.silent_since.take());
    if let Some(since) = silent {
        tracing::warn!(
            "server {} OK, after {} s",
            shared.connector.peer(),
            since.elapsed().as_secs()
        );
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
        while rope.has_remaining() {
            match write_some(shared, &mut stream, &mut rope).await {
                Ok(0) => return io::ErrorKind::WriteZero.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        if let Err(error) = stream.flush().await {
            return error;
        }
    }
}

/// Writes what fits. If it had to wait for room, the peer has taken something in the
/// meantime: that is a sign of life, as long data over a slow line give no other.
/// (While there is room, a dead connection takes calls as well.)
async fn write_some<W: AsyncWrite + Unpin>(
    shared: &Shared,
    stream: &mut W,
    rope: &mut Rope,
) -> io::Result<usize> {
    let mut waited = false;
    let mut write = pin!(stream.write_buf(rope));
    let written = poll_fn(|cx| {
        let written = write.as_mut().poll(cx);
        waited |= written.is_pending();
        written
    })
    .await?;
    if waited {
        shared.patience.lock().heard(Instant::now());
    }
    Ok(written)
}

/// The receiving half of a connection; whatever comes is a sign of life.
struct Heard<'a, R> {
    stream: R,
    shared: &'a Shared,
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.shared.patience.lock().heard(Instant::now());
        }
        read
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
