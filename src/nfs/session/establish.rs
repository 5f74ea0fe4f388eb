//! EXCHANGE_ID, CREATE_SESSION and their ends (RFC 8881 §18.35–37, §18.50).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::proto::compound::Compound;
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::{SessionId, Verifier};
use crate::rpc::auth::Credential;
use crate::rpc::{Channel, ConnectionId, Load};
use crate::xdr::{DecodeError, Decoder, Encoder};

/// EXCHGID4_FLAG_SUPP_MOVED_REFER | EXCHGID4_FLAG_BIND_PRINC_STATEID: what the
/// Linux client sends. We use neither; EFS may have met no other value.
const EXCHANGE_FLAGS: u32 = 0x1 | 0x100;

/// Room that a READ reply or WRITE call needs beside its data.
pub const OVERHEAD: u32 = 1024;

/// The longest reply of a request that must not run twice: a create, with the
/// attributes of two objects and the longest handle. A session that cannot
/// keep so much is not asked to keep any: a replay then says that it ran, and
/// the redo rules decide.
pub const CACHED_REPLY: u32 = 2048;

/// The largest I/O we ask for. EFS and every common server stop here.
pub const MAX_IO: u32 = 1 << 20;

/// Operations a compound of ours may have. EFS allows no more, so we ask for no
/// more, and whatever works with a server that gives more works with EFS.
pub const MAX_OPS: u32 = 16;

/// A session with fewer operations a compound, or smaller messages, cannot carry
/// every request of ours.
const MIN_OPS: u32 = 8;
const MIN_MESSAGE: u32 = 4096;

/// Who we are to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// co_ownerid: unique to this mount, so that two mounts, or two clones of
    /// one machine, are never taken for one client.
    pub owner: Vec<u8>,
    /// co_verifier: new at every start, so that the server knows that state of
    /// an earlier run is gone.
    pub verifier: Verifier,
    /// For AUTH_SYS.
    pub machine_name: String,
}

/// A client id the server has given us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientId {
    /// The number.
    pub id: u64,
    /// For the next CREATE_SESSION.
    pub sequence: u32,
    /// Who gave it.
    pub server: ServerId,
}

/// Who a server says it is (RFC 8881 §2.10.4, §18.35): connections that are told the
/// same may belong to one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerId {
    /// so_major_id.
    pub major: Bytes,
    /// so_minor_id.
    pub minor: u64,
    /// eir_server_scope.
    pub scope: Bytes,
    /// eir_flags.
    pub flags: u32,
}

/// The limits of a channel (channel_attrs4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelAttrs {
    /// Longest request, bytes.
    pub max_request: u32,
    /// Longest reply, bytes.
    pub max_response: u32,
    /// Longest reply that is kept for a replay, bytes.
    pub max_cached: u32,
    /// Operations in a compound.
    pub max_ops: u32,
    /// Slots.
    pub max_requests: u32,
}

impl ChannelAttrs {
    /// What we ask for.
    pub fn wanted(slots: u32) -> Self {
        Self {
            max_request: MAX_IO + OVERHEAD,
            max_response: MAX_IO + OVERHEAD,
            max_cached: 8192,
            max_ops: MAX_OPS,
            max_requests: slots,
        }
    }

    /// A back channel that is never used: some servers refuse zeros in it even
    /// when none is asked for.
    fn unused() -> Self {
        Self {
            max_request: 4096,
            max_response: 4096,
            max_cached: 0,
            max_ops: 2,
            max_requests: 16,
        }
    }

    fn encode(self, enc: &mut Encoder) {
        enc.u32(0) // header padding
            .u32(self.max_request)
            .u32(self.max_response)
            .u32(self.max_cached)
            .u32(self.max_ops)
            .u32(self.max_requests)
            .u32(0); // no RDMA
    }

    fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        dec.u32("headerpadsize")?;
        let attrs = Self {
            max_request: dec.u32("maxrequestsize")?,
            max_response: dec.u32("maxresponsesize")?,
            max_cached: dec.u32("maxresponsesize_cached")?,
            max_ops: dec.u32("maxoperations")?,
            max_requests: dec.u32("maxrequests")?,
        };
        for _ in 0..dec.count("rdma_ird", 4)? {
            dec.u32("rdma_ird")?;
        }
        Ok(attrs)
    }
}

/// A session the server has made.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its name.
    pub id: SessionId,
    /// What the server grants; never more than was asked for.
    pub attrs: ChannelAttrs,
}

async fn run(channel: &Channel, compound: Compound) -> Result<Reply, NfsError> {
    let answer = channel.call(compound.finish(None), Load::Small).await?;
    Reply::parse(answer.body, compound.ops())
}

/// EXCHANGE_ID: makes us known, or tells that we are known already.
pub async fn exchange_id(channel: &Channel, identity: &Identity) -> Result<ClientId, NfsError> {
    let mut compound = Compound::bare(&Credential::machine(), &identity.machine_name);
    compound.other(Op::ExchangeId, |enc| {
        enc.fixed(&identity.verifier).opaque(&identity.owner);
        enc.u32(EXCHANGE_FLAGS);
        enc.u32(0); // SP4_NONE
        enc.u32(0); // no implementation id
    });
    let mut reply = run(channel, compound).await?;
    reply.ok(Op::ExchangeId)?;
    reply.get(Op::ExchangeId, |dec| {
        let (id, sequence) = (dec.u64("clientid")?, dec.u32("sequenceid")?);
        let flags = dec.u32("flags")?;
        if dec.u32("state protection")? != 0 {
            return Err(DecodeError::Invalid("state protection"));
        }
        let minor = dec.u64("server minor id")?;
        let major = Bytes::copy_from_slice(&dec.opaque("server major id", 1024)?);
        let scope = Bytes::copy_from_slice(&dec.opaque("server scope", 1024)?);
        let server = ServerId {
            major,
            minor,
            scope,
            flags,
        };
        Ok(ClientId {
            id,
            sequence,
            server,
        })
    })
}

/// CREATE_SESSION. The client's sequence moves when the server says OK.
pub async fn create_session(
    channel: &Channel,
    identity: &Identity,
    client: &mut ClientId,
    wanted: ChannelAttrs,
) -> Result<NewSession, NfsError> {
    let mut compound = Compound::bare(&Credential::machine(), &identity.machine_name);
    compound.other(Op::CreateSession, |enc| {
        enc.u64(client.id).u32(client.sequence);
        enc.u32(0); // neither persistence nor a back channel
        wanted.encode(enc);
        ChannelAttrs::unused().encode(enc);
        enc.u32(0x4000_0000); // callback program, never called
        enc.u32(1).u32(0); // one way to authenticate callbacks: AUTH_NONE
    });
    let mut reply = run(channel, compound).await?;
    reply.ok(Op::CreateSession)?;
    let (id, mut attrs) = reply.get(Op::CreateSession, |dec| {
        let id = dec.fixed("sessionid")?;
        dec.u32("sequence")?;
        dec.u32("flags")?;
        Ok((id, ChannelAttrs::decode(dec)?))
    })?;
    client.sequence = client.sequence.wrapping_add(1);
    attrs.max_request = attrs.max_request.min(wanted.max_request);
    attrs.max_response = attrs.max_response.min(wanted.max_response);
    attrs.max_cached = attrs.max_cached.min(wanted.max_cached);
    attrs.max_ops = attrs.max_ops.min(wanted.max_ops);
    attrs.max_requests = attrs.max_requests.min(wanted.max_requests);
    if attrs.max_requests == 0
        || attrs.max_ops < MIN_OPS
        || attrs.max_request < MIN_MESSAGE
        || attrs.max_response < MIN_MESSAGE
    {
        return Err(NfsError::Unfit(
            "the server grants a session too small to work with",
        ));
    }
    Ok(NewSession { id, attrs })
}

/// DESTROY_SESSION. A server that wants it over a connection of that session gets one.
pub async fn destroy_session(
    channel: &Channel,
    identity: &Identity,
    id: SessionId,
) -> Result<(), NfsError> {
    let mut compound = Compound::bare(&Credential::machine(), &identity.machine_name);
    compound.other(Op::DestroySession, |enc| {
        enc.fixed(&id);
    });
    let destroyed = |body| {
        Reply::parse(body, compound.ops())?
            .ok(Op::DestroySession)
            .map(drop)
    };
    let answer = channel.call(compound.finish(None), Load::Small).await?;
    match destroyed(answer.body) {
        Err(NfsError::Status(_, Status::CONN_NOT_BOUND_TO_SESSION)) => {
            let connection = answer.connection;
            bind_connection(channel, connection, identity, id).await?;
            let answer = channel.call_on(connection, compound.finish(None)).await?;
            destroyed(answer.body)
        }
        result => result,
    }
}

/// DESTROY_CLIENTID.
pub async fn destroy_client(
    channel: &Channel,
    identity: &Identity,
    client: &ClientId,
) -> Result<(), NfsError> {
    let mut compound = Compound::bare(&Credential::machine(), &identity.machine_name);
    compound.other(Op::DestroyClientId, |enc| {
        enc.u64(client.id);
    });
    run(channel, compound).await?.ok(Op::DestroyClientId)?;
    Ok(())
}

/// BIND_CONN_TO_SESSION, fore channel: for servers that do not bind a new
/// connection at its first SEQUENCE. It is about the connection that it comes over.
pub async fn bind_connection(
    channel: &Channel,
    connection: ConnectionId,
    identity: &Identity,
    id: SessionId,
) -> Result<(), NfsError> {
    let compound = bind(identity, id);
    let answer = channel.call_on(connection, compound.finish(None)).await?;
    bound(Reply::parse(answer.body, compound.ops())?)
}

/// The compound of BIND_CONN_TO_SESSION (§18.34): the fore channel, no RDMA.
pub(in crate::nfs) fn bind(identity: &Identity, id: SessionId) -> Compound {
    let mut compound = Compound::bare(&Credential::machine(), &identity.machine_name);
    compound.other(Op::BindConnToSession, |enc| {
        enc.fixed(&id).u32(1).bool(false);
    });
    compound
}

/// What became of it.
pub(in crate::nfs) fn bound(mut reply: Reply) -> Result<(), NfsError> {
    reply.ok(Op::BindConnToSession).map(drop)
}
