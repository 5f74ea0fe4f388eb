//! A single call on a connection that nothing else uses yet: what must be said, and
//! answered, before the connection carries anything else.
//!
//! Nothing behind the reply is read, so that the stream can be handed on.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::call::{self, Call, Incoming, Message};
use super::error::RpcError;
use super::record::LAST_FRAGMENT;
use super::transport::BoxStream;

/// The longest reply, bytes: such calls bind or greet, they fetch no data.
const MAX_REPLY: usize = 64 << 10;
/// The most records that are skipped because they are not the reply.
const MAX_OTHERS: usize = 16;

/// Sends `call` under `xid` and waits `patience` for the reply.
///
/// # Errors
/// The connection failed or made no sense: it is of no more use. What the server
/// said at the RPC level is inside.
pub async fn ask(
    stream: &mut BoxStream,
    call: Call,
    xid: u32,
    patience: Duration,
) -> io::Result<Result<Bytes, RpcError>> {
    let asked = async {
        for part in Message::seal(call, xid).parts {
            stream.write_all(&part).await?;
        }
        stream.flush().await?;
        for _ in 0..=MAX_OTHERS {
            match call::parse(record(stream).await?) {
                Ok(Incoming::Reply(of, result)) if of == xid => return Ok(result),
                Ok(_) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Err(invalid("the reply does not come"))
    };
    match tokio::time::timeout(patience, asked).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer for {} s", patience.as_secs()),
        )),
    }
}

/// One record, and not a byte more.
async fn record(stream: &mut BoxStream) -> io::Result<Bytes> {
    let mut record = Vec::new();
    for _ in 0..=MAX_OTHERS {
        let mark = stream.read_u32().await?;
        let len = (mark & !LAST_FRAGMENT) as usize;
        if record.len() + len > MAX_REPLY {
            return Err(invalid("a record over the size limit"));
        }
        let at = record.len();
        record.resize(at + len, 0);
        stream.read_exact(&mut record[at..]).await?;
        if mark & LAST_FRAGMENT != 0 {
            return Ok(record.into());
        }
    }
    Err(invalid("a record of too many fragments"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use smallvec::SmallVec;

    use super::*;

    const XID: u32 = 7;

    fn call() -> Call {
        Call {
            head: vec![0; 40],
            rest: SmallVec::new(),
        }
    }

    fn reply(xid: u32, body: &[u8]) -> Vec<u8> {
        let words = [xid, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat();
        [&words, body].concat()
    }

    fn framed(parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let last = if index + 1 == parts.len() {
                LAST_FRAGMENT
            } else {
                0
            };
            out.extend_from_slice(&(part.len() as u32 | last).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// Asks a server that answers this.
    async fn answered(bytes: Vec<u8>) -> (io::Result<Result<Bytes, RpcError>>, BoxStream) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&bytes).await.unwrap();
        let mut stream: BoxStream = Box::new(ours);
        let asked = ask(&mut stream, call(), XID, Duration::from_secs(1)).await;
        (asked, stream)
    }

    #[tokio::test(start_paused = true)]
    async fn the_reply_is_found_behind_others_and_nothing_behind_it_is_read() {
        let whole = reply(XID, b"body");
        let bytes = [
            framed(&[&reply(99, b"of another")]),
            framed(&[&[0, 0, 0, 1, 0, 0, 0, 0]]),
            framed(&[&whole[..9], &[], &whole[9..]]),
            b"next".to_vec(),
        ]
        .concat();
        let (asked, mut stream) = answered(bytes).await;
        assert_eq!(asked.unwrap().unwrap(), b"body"[..]);
        let mut next = [0; 4];
        stream.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"next");
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_no_sense_or_never_comes_is_an_error() {
        let (asked, _stream) = answered(Vec::new()).await;
        assert!(asked.is_err(), "the server hung up");
        for bytes in [
            vec![0xff, 0xff, 0xff, 0xff],
            framed(&[&[][..]; 30]),
            framed(&[&[0, 0, 0, 7, 0, 0, 0, 9]]),
            framed(&[&reply(99, b"")]).repeat(30),
        ] {
            assert!(answered(bytes).await.0.is_err());
        }
        let (ours, _theirs) = tokio::io::duplex(1 << 20);
        let mut stream: BoxStream = Box::new(ours);
        let asked = ask(&mut stream, call(), XID, Duration::from_secs(3)).await;
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
