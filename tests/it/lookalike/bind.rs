//! The bind protocol, as the official client speaks it: what a client asks on a fresh
//! connection before any NFS, and what partition it is told it has come to. Of two
//! generations, by their program numbers; a codec of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::Shared;

const LAST: u32 = 0x8000_0000;
/// xid, CALL, 2, program, version, procedure.
const HEAD: usize = 24;
/// A bind call is no longer.
const MAX_BIND: usize = 256;

/// What the mount target says to bind calls; may be changed while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    /// Generations that are spoken (1, 2); others do not exist here.
    pub(crate) generations: Vec<u32>,
    /// Connections are spread over so many partitions, in turn.
    pub(crate) partitions: u8,
    /// What is said to the next ones instead.
    pub(crate) script: VecDeque<Saying>,
    /// max_multiplexed_connections
    pub(crate) most: u32,
}

impl Default for Binding {
    fn default() -> Self {
        Self {
            generations: vec![1, 2],
            partitions: 1,
            script: VecDeque::new(),
            most: 5,
        }
    }
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saying {
    Retry,
    RetryLater,
    Preferred(u8),
    Ready(u8),
    Error,
    /// A status that nobody knows.
    Unknown,
    /// A reply that stops in the middle.
    Damaged,
    /// None: the connection is closed.
    HangUp,
    /// None: the connection stays.
    Silence,
}

/// A connection, as far as it was let in.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// Of the bind call, if there was one.
    pub(crate) generation: Option<u32>,
    pub(crate) identifier: Vec<u8>,
    pub(crate) incarnation: i64,
    /// What it was told.
    pub(crate) said: Option<Saying>,
    /// NFS came over it.
    pub(crate) nfs: bool,
    pub(crate) ended: bool,
    /// Ends it.
    pub(crate) cut: Arc<Notify>,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            generation: None,
            identifier: Vec::new(),
            incarnation: 0,
            said: None,
            nfs: false,
            ended: false,
            cut: Arc::new(Notify::new()),
        }
    }
}

/// Reads what comes first. Bind calls are answered; the beginning of anything else
/// (record mark and head) is given back, for who goes on with it.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    shared: &Shared,
    stream: usize,
) -> io::Result<Vec<u8>> {
    loop {
        let mark = client.read_u32().await?;
        let mut head = vec![0; HEAD];
        client.read_exact(&mut head).await?;
        let program = word(&head, 12);
        let generation = match (program, word(&head, 16), word(&head, 20)) {
            (100_200, 1, 1) => Some(1),
            (400_123, 1, 2) => Some(2),
            _ => None,
        };
        if generation.is_none() && program != 100_200 && program != 400_123 {
            shared.record().streams[stream].nfs = true;
            return Ok([&mark.to_be_bytes()[..], &head].concat());
        }
        let length = (mark & !LAST) as usize;
        if !(HEAD..=MAX_BIND).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut arguments = vec![0; length - HEAD];
        client.read_exact(&mut arguments).await?;
        let spoken = {
            let world = shared.world();
            generation.filter(|it| world.binding.generations.contains(it))
        };
        let Some(generation) = spoken else {
            // Accepted, no verifier, PROG_UNAVAIL.
            let refusal = [word(&head, 0), 1, 0, 0, 0, 1]
                .map(u32::to_be_bytes)
                .concat();
            send(client, &refusal).await?;
            continue;
        };
        let saying = {
            let mut world = shared.world();
            let mut record = shared.record();
            let before = record.streams.iter().filter(|it| it.said.is_some()).count();
            let turn = before % usize::from(world.binding.partitions.max(1));
            let ready = Saying::Ready(turn as u8);
            let saying = world.binding.script.pop_front().unwrap_or(ready);
            let (identifier, incarnation) = identifier(&arguments)?;
            let it = &mut record.streams[stream];
            it.generation = Some(generation);
            it.identifier = identifier;
            it.incarnation = incarnation;
            it.said = Some(saying);
            saying
        };
        match saying {
            Saying::HangUp => return Err(io::ErrorKind::ConnectionAborted.into()),
            Saying::Silence => std::future::pending().await,
            _ => {}
        }
        let most = shared.world().binding.most;
        let reply = reply(word(&head, 0), saying, most, generation);
        send(client, &reply).await?;
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4);
    bytes.map_or(0, |it| u32::from_be_bytes([it[0], it[1], it[2], it[3]]))
}

/// No credential, no verifier, then the identifier (at most 16 bytes) and the
/// incarnation (8 of at most 8).
fn identifier(arguments: &[u8]) -> io::Result<(Vec<u8>, i64)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    if arguments.len() < 20 || arguments[..16] != [0; 16] {
        return Err(bad());
    }
    let length = word(arguments, 16) as usize;
    let behind = 20 + length.next_multiple_of(4);
    if length > 16 || word(arguments, behind) != 8 || arguments.len() != behind + 12 {
        return Err(bad());
    }
    let incarnation = arguments[behind + 4..].try_into().map_err(|_| bad())?;
    let identifier = arguments[20..20 + length].to_vec();
    Ok((identifier, i64::from_be_bytes(incarnation)))
}

fn reply(xid: u32, saying: Saying, most: u32, generation: u32) -> Vec<u8> {
    let mut out = [xid, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat();
    let put = |out: &mut Vec<u8>, word: u32| out.extend(word.to_be_bytes());
    let text = |out: &mut Vec<u8>, kind: u32, text: &str| {
        put(out, kind);
        put(out, text.len() as u32);
        out.extend(text.as_bytes());
        out.resize(out.len().next_multiple_of(4), 0);
    };
    let partition = |out: &mut Vec<u8>, kind: u32, id: u8| {
        put(out, kind);
        out.extend([id; 64]);
    };
    match saying {
        Saying::Retry => text(&mut out, 0, "once more"),
        Saying::RetryLater => text(&mut out, 1, "there is no room"),
        Saying::Preferred(id) => partition(&mut out, 2, id),
        Saying::Ready(id) => partition(&mut out, 3, id),
        Saying::Error => text(&mut out, 4, "it does not work"),
        Saying::Unknown => put(&mut out, 9),
        Saying::Damaged => {
            put(&mut out, 3);
            out.extend([7; 10]);
            return out;
        }
        Saying::HangUp | Saying::Silence => {}
    }
    put(&mut out, most);
    put(&mut out, 300 << 20);
    put(&mut out, 1);
    if generation == 2 {
        put(&mut out, 1);
    }
    out
}

async fn send<S: AsyncWrite + Unpin>(client: &mut S, message: &[u8]) -> io::Result<()> {
    let mark = (LAST | message.len() as u32).to_be_bytes();
    client.write_all(&[&mark[..], message].concat()).await?;
    client.flush().await
}
