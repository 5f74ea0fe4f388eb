//! The bind call: which partition of EFS does this connection lead to?
//!
//! BindClientToPartition is a call of a program of its own. Two generations of it
//! are known: 100200, and 400123 which the official client uses since 3.0. Nothing
//! of this is documented; it is what the official client sends and reads.

use std::fmt;

use bytes::Bytes;
use smallvec::SmallVec;

use super::sigv4::hex;
use crate::rpc::RpcError;
use crate::rpc::call::Call;
use crate::xdr::{DecodeError, Decoder, Encoder};

/// Texts of the server, bytes.
const MAX_TEXT: usize = 4096;

/// UUID version 4 of random bytes (RFC 9562 §5.4): who asks.
pub(super) fn uuid(mut random: [u8; 16]) -> [u8; 16] {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    random
}

/// A partition's name.
pub(super) type PartitionId = [u8; 64];

/// The two programs that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 100200
    One,
    /// 400123
    Two,
}

impl Generation {
    /// Program and procedure; the version is 1.
    pub(super) fn number(self) -> (u32, u32) {
        match self {
            Self::One => (100_200, 1),
            Self::Two => (400_123, 2),
        }
    }
}

/// What a server says to a bind call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Retry(String),
    RetryLater(String),
    Preferred(PartitionId),
    Ready(PartitionId),
    Error(String),
    Unknown(u32),
}

/// The reply to a bind call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindReply {
    pub(super) bound: Bound,
    /// max_multiplexed_connections
    pub(super) connections: u32,
}

impl fmt::Display for BindReply {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |out: &mut fmt::Formatter<'_>, kind, text: &str| {
            write!(out, "{kind} \"{}\"", text.escape_debug())
        };
        match &self.bound {
            Bound::Retry(why) => text(out, "RETRY", why)?,
            Bound::RetryLater(why) => text(out, "RETRY_LATER", why)?,
            Bound::Error(why) => text(out, "ERROR", why)?,
            // As much of its name as tells it from the others.
            Bound::Preferred(id) => write!(out, "PREFERRED, partition {}", hex(&id[..8]))?,
            Bound::Ready(id) => write!(out, "READY, partition {}", hex(&id[..8]))?,
            Bound::Unknown(status) => write!(out, "status {status}")?,
        }
        write!(out, ", connections: {}", self.connections)
    }
}

impl BindReply {
    /// The body of a reply.
    ///
    /// # Errors
    /// It is shorter than what it says, or its text is too long.
    pub fn decode(body: Bytes, generation: Generation) -> Result<Self, DecodeError> {
        let mut dec = Decoder::new(body);
        let kind = dec.u32("bind status")?;
        let bound = match kind {
            0 | 1 | 4 => {
                let text = dec.opaque("bind text", MAX_TEXT)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                match kind {
                    0 => Bound::Retry(text),
                    1 => Bound::RetryLater(text),
                    _ => Bound::Error(text),
                }
            }
            2 => Bound::Preferred(dec.fixed("partition")?),
            3 => Bound::Ready(dec.fixed("partition")?),
            other => Bound::Unknown(other),
        };
        let connections = dec.u32("max_multiplexed_connections")?;
        // When the official client makes more: by throughput. We go by what waits.
        dec.u32("scale_up_bytes_per_sec_threshold")?;
        dec.u32("scale_up_threshold_breached_duration_sec")?;
        if generation == Generation::Two {
            dec.u32("scale_up_lookback_window_size_sec")?;
        }
        Ok(Self { bound, connections })
    }
}

/// Why a bind call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoReply {
    /// The server has no such program.
    NotSpoken,
    /// It failed, hung up, or said what makes no sense.
    Failed(String),
}

/// A bind call to be made on a fresh connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) generation: Generation,
    /// ProxyIdentifier: a UUID of the mount, and which of its first connections this
    /// is about.
    pub(super) identifier: [u8; 16],
    pub(super) incarnation: i64,
    /// How many came before it for the same connection.
    pub(super) tried: u32,
}

impl Ask {
    /// The call: `ProxyIdentifier`, by nobody (AUTH_NONE).
    pub(super) fn call(&self) -> Call {
        let mut enc = Encoder::with_capacity(80);
        enc.u32(0).u32(0); // record mark, xid
        let (program, procedure) = self.generation.number();
        enc.u32(0).u32(2).u32(program).u32(1).u32(procedure);
        enc.u32(0).u32(0).u32(0).u32(0); // credential, verifier
        enc.opaque(&self.identifier);
        enc.opaque(&self.incarnation.to_be_bytes());
        Call {
            head: enc.into_vec(),
            rest: SmallVec::new(),
        }
    }

    /// What the answer says.
    pub(super) fn read(&self, answer: Result<Bytes, RpcError>) -> Result<BindReply, NoReply> {
        match answer {
            Ok(body) => BindReply::decode(body, self.generation)
                .map_err(|error| NoReply::Failed(error.to_string())),
            Err(RpcError::NotSpoken(_)) => Err(NoReply::NotSpoken),
            Err(error) => Err(NoReply::Failed(error.to_string())),
        }
    }

    pub(super) fn again(mut self) -> Self {
        self.tried += 1;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::call::Message;

    const A: PartitionId = [0xaa; 64];

    #[test]
    fn the_call_is_byte_for_byte_that_of_the_official_client() {
        let mut identifier = [0; 16];
        for (index, byte) in identifier.iter_mut().enumerate() {
            *byte = index as u8;
        }
        for (generation, program) in [
            (Generation::Two, "00061afb0000000100000002"),
            (Generation::One, "000187680000000100000001"),
        ] {
            let ask = Ask {
                generation,
                identifier,
                incarnation: 1,
                tried: 0,
            };
            let sent = Message::seal(ask.call(), 0x1122_3344).parts.concat();
            assert_eq!(
                hex(&sent),
                format!(
                    "80000048112233440000000000000002{program}\
                     00000000000000000000000000000000\
                     00000010000102030405060708090a0b0c0d0e0f\
                     000000080000000000000001"
                )
            );
        }
    }

    #[test]
    fn every_answer_is_read_and_damage_is_no_answer() {
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|w| w.to_be_bytes())
                .collect::<Vec<_>>()
        };
        let text = |kind| [&words(&[kind, 3]), &b"why\0"[..]].concat();
        let id = |kind| [&words(&[kind]), &A[..]].concat();
        let limits = words(&[4, 300, 1, 1]);
        for (head, bound) in [
            (text(0), Bound::Retry("why".to_owned())),
            (text(1), Bound::RetryLater("why".to_owned())),
            (id(2), Bound::Preferred(A)),
            (id(3), Bound::Ready(A)),
            (text(4), Bound::Error("why".to_owned())),
            (words(&[77]), Bound::Unknown(77)),
        ] {
            let body = [&head[..], &limits].concat();
            let read = BindReply::decode(body.clone().into(), Generation::Two).expect("whole");
            assert_eq!((read.bound, read.connections), (bound, 4));
            let short = body[..body.len() - 4].to_vec();
            assert!(BindReply::decode(short.clone().into(), Generation::Two).is_err());
            assert!(BindReply::decode(short.into(), Generation::One).is_ok());
            for cut in 0..head.len() {
                assert!(BindReply::decode(body[..cut].to_vec().into(), Generation::One).is_err());
            }
        }
        let long = words(&[0, u32::MAX]);
        assert!(BindReply::decode(long.into(), Generation::Two).is_err());
    }

    #[test]
    fn a_reply_in_words_tells_the_partition_and_how_many_connections() {
        let reply = |bound| BindReply {
            bound,
            connections: 5,
        };
        assert_eq!(
            reply(Bound::Ready(A)).to_string(),
            "READY, partition aaaaaaaaaaaaaaaa, connections: 5"
        );
        assert_eq!(
            reply(Bound::Error("no\n".to_owned())).to_string(),
            "ERROR \"no\\n\", connections: 5"
        );
    }
}
