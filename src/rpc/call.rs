//! RPC messages: the call header, and what a reply record says (RFC 5531 §9).

use bytes::Bytes;
use smallvec::SmallVec;

use super::auth::Credential;
use super::error::RpcError;
use super::record::LAST_FRAGMENT;
use crate::xdr::{DecodeError, Decoder, Encoder};

/// The NFS program.
const NFS_PROGRAM: u32 = 100_003;
/// Version 4; the minor version is inside COMPOUND.
const NFS_V4: u32 = 4;
const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;

/// The procedures of NFS version 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// Does nothing; for pinging.
    Null = 0,
    /// Everything else.
    Compound = 1,
}

/// Starts a call: a record mark and an xid still to be filled in by the
/// channel, then the header. The body follows.
pub fn begin(procedure: Procedure, cred: &Credential, machine_name: &str) -> Encoder {
    let mut enc = Encoder::with_capacity(512);
    enc.u32(0).u32(0); // record mark, xid
    enc.u32(CALL).u32(RPC_VERSION).u32(NFS_PROGRAM).u32(NFS_V4);
    enc.u32(procedure as u32);
    cred.encode(machine_name, &mut enc);
    enc
}

/// A call ready to go: header and first part of the body, then further parts
/// that are sent from where they lie.
#[derive(Debug)]
pub struct Call {
    /// What [`begin`] started.
    pub head: Vec<u8>,
    /// The rest of the body, in order.
    pub rest: SmallVec<[Bytes; 2]>,
}

/// A call with its xid and record mark, to be sent, and sent again, as it is.
#[derive(Clone, Debug)]
pub struct Message {
    /// The pieces, in order.
    pub parts: SmallVec<[Bytes; 3]>,
}

impl Message {
    /// Fills in the record mark and the xid.
    ///
    /// # Panics
    /// If the call is longer than a fragment can be (2 GiB).
    pub fn seal(call: Call, xid: u32) -> Self {
        let Call { mut head, rest } = call;
        let len = head.len() - 4 + rest.iter().map(Bytes::len).sum::<usize>();
        let mark = u32::try_from(len).expect("a call of 2 GiB") | LAST_FRAGMENT;
        head[..4].copy_from_slice(&mark.to_be_bytes());
        head[4..8].copy_from_slice(&xid.to_be_bytes());
        let mut parts = SmallVec::with_capacity(1 + rest.len());
        parts.push(Bytes::from(head));
        parts.extend(rest);
        Self { parts }
    }
}

/// A record from the server.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to the call with this xid.
    Reply(u32, Result<Bytes, RpcError>),
    /// A call by the server. We offer no back channel, so it is dropped.
    Call(u32),
}

/// Tells what a record is.
///
/// # Errors
/// If it is no RPC message: the stream cannot be trusted any more.
pub fn parse(record: Bytes) -> Result<Incoming, DecodeError> {
    let mut dec = Decoder::new(record);
    let xid = dec.u32("xid")?;
    match dec.u32("message type")? {
        REPLY => {}
        CALL => return Ok(Incoming::Call(xid)),
        _ => return Err(DecodeError::Invalid("message type")),
    }
    let result = match dec.u32("reply_stat")? {
        0 => {
            dec.u32("verifier flavor")?;
            dec.opaque("verifier", 400)?;
            match dec.u32("accept_stat")? {
                0 => Ok(dec.into_rest()),
                1 => Err(RpcError::NotSpoken("PROG_UNAVAIL")),
                2 => Err(RpcError::NotSpoken("PROG_MISMATCH")),
                3 => Err(RpcError::NotSpoken("PROC_UNAVAIL")),
                4 => Err(RpcError::Failed("GARBAGE_ARGS")),
                5 => Err(RpcError::Failed("SYSTEM_ERR")),
                _ => return Err(DecodeError::Invalid("accept_stat")),
            }
        }
        1 => match dec.u32("reject_stat")? {
            0 => Err(RpcError::NotSpoken("RPC_MISMATCH")),
            1 => Err(RpcError::AuthRefused(dec.u32("auth_stat")?)),
            _ => return Err(DecodeError::Invalid("reject_stat")),
        },
        _ => return Err(DecodeError::Invalid("reply_stat")),
    };
    Ok(Incoming::Reply(xid, result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_call_carries_its_length_and_xid() {
        let cred = Credential {
            uid: 0,
            gid: 0,
            gids: Vec::new(),
        };
        let mut enc = begin(Procedure::Null, &cred, "h");
        enc.u32(7);
        let call = Call {
            head: enc.into_vec(),
            rest: SmallVec::from_iter([Bytes::from_static(b"data")]),
        };
        let message = Message::seal(call, 0x0102_0304);
        let bytes = message.parts.concat();
        assert_eq!(
            bytes,
            [
                &[0x80, 0, 0, 72][..],
                &[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 2], // xid, CALL, version 2
                &[0, 1, 0x86, 0xa3, 0, 0, 0, 4, 0, 0, 0, 0], // 100003, 4, NULL
                &[0, 0, 0, 1, 0, 0, 0, 24, 0, 0, 0, 0], // AUTH_SYS, stamp
                &[0, 0, 0, 1, b'h', 0, 0, 0],          // machine name
                &[0; 12],                              // uid, gid, no groups
                &[0; 8],                               // verifier
                &[0, 0, 0, 7],
                b"data",
            ]
            .concat()
        );
        assert_eq!(bytes.len(), 76);
    }

    fn reply(words: &[u32]) -> Result<Incoming, DecodeError> {
        parse(Bytes::from_iter(
            words.iter().flat_map(|word| word.to_be_bytes()),
        ))
    }

    #[test]
    fn replies_tell_acceptance_from_refusal() {
        let Ok(Incoming::Reply(9, Ok(body))) = reply(&[9, 1, 0, 0, 0, 0, 5]) else {
            panic!("accepted reply");
        };
        assert_eq!(body, [0, 0, 0, 5][..]);
        for (words, error) in [
            (
                &[9, 1, 0, 0, 0, 2, 3, 3][..],
                RpcError::NotSpoken("PROG_MISMATCH"),
            ),
            (&[9, 1, 0, 0, 0, 4], RpcError::Failed("GARBAGE_ARGS")),
            (&[9, 1, 1, 1, 5], RpcError::AuthRefused(5)),
        ] {
            let Ok(Incoming::Reply(9, Err(got))) = reply(words) else {
                panic!("refused reply");
            };
            assert_eq!(got, error);
        }
        assert!(matches!(reply(&[3, 0, 2]), Ok(Incoming::Call(3))));
        assert!(reply(&[3, 2]).is_err());
        assert!(reply(&[3]).is_err());
    }
}
