//! One connection of a channel: the reader and the writer on it, and what ends it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::call::{self, Incoming};
use super::error::RpcError;
use super::pending::Next;
use super::placement::{ConnectionId, Load};
use super::record::RecordReader;
use super::shared::{ChannelState, ConnectionSignals, End, RpcReply};
use super::transport::BoxStream;
use crate::background::Died;

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) connection: ConnectionId,
    /// `None`: it was let go.
    pub(super) error: Option<io::Error>,
    /// A reply came over it.
    pub(super) useful: bool,
    /// By a bug of ours.
    pub(super) died: bool,
}

impl Ended {
    /// Its task has died; the connection went with it.
    pub(super) fn dead(connection: ConnectionId, died: Died) -> Self {
        Self {
            connection,
            error: Some(io::Error::other(died)),
            // So that there are pauses between them.
            useful: false,
            died: true,
        }
    }
}

/// Runs one connection until it fails or is ended. Its calls stay in the table.
pub(super) async fn serve(
    shared: Arc<ChannelState>,
    connection: ConnectionId,
    stream: BoxStream,
    signals: Arc<ConnectionSignals>,
) -> Ended {
    let (rx, tx) = tokio::io::split(stream);
    let mut useful = false;
    let mut end = signals.end.subscribe();
    // In this order, not by chance: the tests' histories are made again from their seeds.
    let error = tokio::select! {
        biased;
        error = read_replies(&shared, connection, &signals, rx, &mut useful) => Some(error),
        error = write_calls(&shared, connection, &signals, tx) => Some(error),
        error = silence(&shared, connection, &signals) => Some(error),
        // The sender is in `signals`, so waiting does not fail.
        end = end.wait_for(Option::is_some) => match end.as_deref() {
            Ok(Some(End::LetGo)) => None,
            Ok(Some(End::Suspect)) => {
                Some(io::Error::new(io::ErrorKind::TimedOut, "silent, as others were"))
            }
            _ => Some(io::Error::new(io::ErrorKind::InvalidData, "a reply made no sense")),
        },
    };
    Ended {
        connection,
        error,
        useful,
        died: false,
    }
}

/// Completes when calls are out on it and it has been silent for too long.
async fn silence(
    shared: &ChannelState,
    connection: ConnectionId,
    signals: &ConnectionSignals,
) -> io::Error {
    loop {
        let busy = shared.table.lock().pending.busy_since(connection);
        let heard = signals.heard();
        let pause = {
            let silence = shared.silence.lock();
            // The limit may shrink meanwhile, but not below the least.
            let least = silence.least();
            match busy.map(|since| since.max(heard)) {
                None => least,
                Some(since) => {
                    let rest = silence.rest(since, Instant::now());
                    if rest.is_zero() {
                        let limit = silence.limit(since).as_secs_f64();
                        let what = format!("no answer for {limit:.1} s");
                        return io::Error::new(io::ErrorKind::TimedOut, what);
                    }
                    rest.min(least)
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn read_replies<R: AsyncRead + Unpin>(
    shared: &ChannelState,
    connection: ConnectionId,
    signals: &ConnectionSignals,
    stream: R,
    useful: &mut bool,
) -> io::Error {
    let mut records = RecordReader::new(Heard { stream, signals }, shared.max_record);
    loop {
        let record = match records.next().await {
            Ok(Some(record)) => record,
            Ok(None) => {
                return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
            }
            Err(error) => return error,
        };
        shared.metrics.tasks.point("connection");
        let incoming = call::parse(record);
        let now = Instant::now();
        let owed = {
            let mut table = shared.table.lock();
            match &incoming {
                Ok(Incoming::Reply(xid, _)) => {
                    let owed = table.pending.replied(*xid);
                    if owed.as_ref().is_some_and(|of| of.load == Load::Bulk) {
                        table.scaling.answered(now);
                    }
                    owed
                }
                _ => None,
            }
        };
        match (incoming, owed) {
            (Ok(Incoming::Reply(_, result)), Some(replied)) => {
                *useful = true;
                answered(shared, replied.since);
                let resent = replied.resent;
                // The caller may be gone; nothing is owed then.
                let _ = (replied.owed).send(result.map(|body| RpcReply {
                    body,
                    resent,
                    connection,
                }));
            }
            (Ok(Incoming::Reply(xid, _)), None) => {
                tracing::debug!(xid, "a reply that nobody waits for");
            }
            (Ok(Incoming::Call(xid)), _) => {
                tracing::debug!(xid, "a call by the server, dropped");
            }
            (Err(error), _) => return io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// The server has answered a call that was made at `since`.
fn answered(shared: &ChannelState, since: Instant) {
    let now = Instant::now();
    shared.silence.lock().answered(since, now);
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

async fn write_calls<W: AsyncWrite + Unpin>(
    shared: &ChannelState,
    connection: ConnectionId,
    signals: &ConnectionSignals,
    mut stream: W,
) -> io::Error {
    let mut rope = Rope::default();
    loop {
        {
            let mut table = shared.table.lock();
            // Everything that is ready leaves in one writev; a bulk of data
            // goes by itself, so that memory is held for few of them.
            while rope.bytes < 256 * 1024
                && let Some(next) = table.pending.next_to_send(connection)
            {
                match next {
                    Next::Send(message) => rope.extend(message.parts),
                    Next::Abandoned { owed, sent } => {
                        let _ = owed.send(Err(RpcError::Abandoned { sent }));
                    }
                }
            }
        }
        if rope.bytes == 0 {
            signals.submitted.notified().await;
            continue;
        }
        while rope.has_remaining() {
            match write_some(signals, &mut stream, &mut rope).await {
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
    signals: &ConnectionSignals,
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
        signals.hear();
    }
    Ok(written)
}

/// The receiving half of a connection; whatever comes is a sign of life.
struct Heard<'a, R> {
    stream: R,
    signals: &'a ConnectionSignals,
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
            self.signals.hear();
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
