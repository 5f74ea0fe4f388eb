//! Connections: record marking (RFC 5531 section 11), one task for every
//! request, and the connector that makes in-memory connections.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use efs_fuse::rpc::transport::{BoxStream, Connecting, Connector};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};

use super::Peer;
use super::compound::{Outcome, answer};

/// Bytes in flight in each direction of an in-memory connection.
const PIPE: usize = 4 << 20;
/// Longest record that is read; a client that sends more is cut off.
const MAX_RECORD: usize = 64 << 20;
/// Requests of one connection that may run at once.
const MAX_RUNNING: usize = 4096;

/// Which connection, and to which incarnation of the server: what was under
/// way in a crash must not reach the server that comes after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conn {
    pub(super) id: u64,
    pub(super) epoch: u32,
}

/// Makes connections to a [`Peer`].
pub(super) struct PeerConnector(pub(super) Arc<Peer>);

impl Connector for PeerConnector {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let latency = self.0.latency();
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            if self.0.refuses() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(PIPE);
            self.0.serve(ours);
            Ok(Box::new(theirs) as BoxStream)
        })
    }

    fn peer(&self) -> String {
        "peer in memory".to_owned()
    }
}

/// Serves one connection until either side ends it or `cut` says so. Requests
/// that run by then run on; their replies are lost.
pub(super) async fn serve<S>(peer: Arc<Peer>, conn: Conn, stream: S, mut cut: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (replies, queue) = mpsc::channel(MAX_RUNNING);
    let fragment = peer.config().reply_fragment;
    let reading = read_requests(&peer, conn, reader, replies);
    tokio::select! {
        _ = cut.wait_for(|cut| *cut) => {}
        () = async { tokio::join!(reading, write_replies(writer, queue, fragment)); } => {}
    }
    peer.disconnected(conn.id);
}

async fn read_requests(
    peer: &Arc<Peer>,
    conn: Conn,
    mut reader: impl AsyncRead + Unpin,
    replies: mpsc::Sender<Vec<u8>>,
) {
    let running = Arc::new(Semaphore::new(MAX_RUNNING));
    while let Ok(record) = read_record(&mut reader).await {
        if peer.is_lost(conn.id) {
            continue;
        }
        let Ok(permit) = running.clone().acquire_owned().await else {
            return;
        };
        let (peer, replies) = (peer.clone(), replies.clone());
        tokio::spawn(async move {
            let latency = peer.latency();
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            match answer(&peer, conn, record).await {
                Outcome::Reply(_) if peer.is_lost(conn.id) => {}
                Outcome::Reply(messages) => {
                    for message in messages {
                        // The connection may be gone: then the reply is lost.
                        replies.send(message).await.ok();
                    }
                }
                Outcome::Silence => {}
                Outcome::Cut => peer.cut_connection(conn.id),
            }
            drop(permit);
        });
    }
}

/// One record, put together from its fragments.
async fn read_record(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut record = BytesMut::new();
    loop {
        let mark = reader.read_u32().await?;
        let len = (mark & 0x7fff_ffff) as usize;
        if record.len() + len > MAX_RECORD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut left = len;
        while left > 0 {
            // Grows with what came, not with what was announced.
            let at = record.len();
            record.resize(at + left.min(1 << 20), 0);
            reader.read_exact(&mut record[at..]).await?;
            left -= record.len() - at;
        }
        if mark >> 31 == 1 {
            return Ok(record.freeze());
        }
    }
}

async fn write_replies(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    fragment: usize,
) {
    while let Some(message) = queue.recv().await {
        let size = if fragment == 0 {
            message.len()
        } else {
            fragment
        };
        let mut out = Vec::with_capacity(message.len() + 4);
        let mut parts = message.chunks(size.max(1)).peekable();
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { 1 << 31 } else { 0 };
            out.extend_from_slice(&(part.len() as u32 | last).to_be_bytes());
            out.extend_from_slice(part);
        }
        if writer.write_all(&out).await.is_err() {
            return;
        }
    }
}
