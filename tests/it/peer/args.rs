//! The arguments of a COMPOUND, decoded as a whole before the first operation
//! runs, so that a script sees all operation numbers.

use bytes::Bytes;

use super::attr::RawAttrs;
use super::proto::{ftype, op};
use super::xdr::{BadXdr, Bits, Dec, Decoded};

/// stateid4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stateid {
    pub(crate) seqid: u32,
    pub(crate) other: [u8; 12],
}

impl Stateid {
    pub(crate) const ANONYMOUS: Self = Self::special(0, 0);
    pub(crate) const BYPASS: Self = Self::special(u32::MAX, 0xff);
    pub(crate) const CURRENT: Self = Self::special(1, 0);
    pub(crate) const INVALID: Self = Self::special(u32::MAX, 0);

    const fn special(seqid: u32, fill: u8) -> Self {
        Self {
            seqid,
            other: [fill; 12],
        }
    }

    fn decode(d: &mut Dec) -> Decoded<Self> {
        Ok(Self {
            seqid: d.u32()?,
            other: d.fixed()?,
        })
    }
}

/// channel_attrs4 without the RDMA part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChannelAttrs {
    pub(crate) headerpad: u32,
    pub(crate) max_request: u32,
    pub(crate) max_response: u32,
    pub(crate) max_cached: u32,
    pub(crate) max_ops: u32,
    pub(crate) max_requests: u32,
}

impl ChannelAttrs {
    fn decode(d: &mut Dec) -> Decoded<Self> {
        let attrs = Self {
            headerpad: d.u32()?,
            max_request: d.u32()?,
            max_response: d.u32()?,
            max_cached: d.u32()?,
            max_ops: d.u32()?,
            max_requests: d.u32()?,
        };
        d.array(1, Dec::u32)?;
        Ok(attrs)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ExchangeId {
    pub(crate) verifier: [u8; 8],
    pub(crate) owner: Bytes,
    pub(crate) flags: u32,
    /// state_protect_how4; only 0 (none) is served.
    pub(crate) protect: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct CreateSession {
    pub(crate) clientid: u64,
    pub(crate) sequence: u32,
    pub(crate) flags: u32,
    pub(crate) fore: ChannelAttrs,
    pub(crate) back: ChannelAttrs,
    pub(crate) cb_program: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence {
    pub(crate) session: [u8; 16],
    pub(crate) seqid: u32,
    pub(crate) slot: u32,
    pub(crate) highest_slot: u32,
    pub(crate) cache: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum HowOpen {
    NoCreate,
    Unchecked(RawAttrs),
    Guarded(RawAttrs),
    /// The verifier; attributes only with EXCLUSIVE4_1.
    Exclusive([u8; 8], Option<RawAttrs>),
}

#[derive(Debug, Clone)]
pub(crate) enum Claim {
    Null(Bytes),
    Previous(u32),
    Fh,
    /// Any of the delegation claims, which this server has no use for.
    Delegation,
}

#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) access: u32,
    pub(crate) deny: u32,
    pub(crate) owner: Bytes,
    pub(crate) how: HowOpen,
    pub(crate) claim: Claim,
}

#[derive(Debug, Clone)]
pub(crate) enum Locker {
    New { open: Stateid, owner: Bytes },
    Known(Stateid),
}

/// The first three arguments of LOCK, LOCKT and LOCKU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum CreateType {
    Dir,
    Link(Bytes),
    /// FIFO, SOCK, BLK, CHR.
    Special(u32, (u32, u32)),
    /// REG or a number that is no type.
    Bad,
}

#[derive(Debug, Clone)]
pub(crate) enum Args {
    Access(u32),
    Close(Stateid),
    Commit {
        offset: u64,
        count: u32,
    },
    Create {
        what: CreateType,
        name: Bytes,
        attrs: RawAttrs,
    },
    GetAttr(Bits),
    GetFh,
    Link(Bytes),
    Lock {
        kind: u32,
        reclaim: bool,
        range: Range,
        locker: Locker,
    },
    LockT {
        kind: u32,
        range: Range,
        owner: Bytes,
    },
    LockU {
        stateid: Stateid,
        range: Range,
    },
    Lookup(Bytes),
    LookupP,
    Verify {
        attrs: RawAttrs,
        negate: bool,
    },
    Open(Open),
    OpenDowngrade {
        stateid: Stateid,
        access: u32,
        deny: u32,
    },
    PutFh(Bytes),
    PutRootFh,
    Read {
        stateid: Stateid,
        offset: u64,
        count: u32,
    },
    ReadDir {
        cookie: u64,
        verifier: u64,
        maxcount: u32,
        attrs: Bits,
    },
    ReadLink,
    Remove(Bytes),
    Rename(Bytes, Bytes),
    RestoreFh,
    SaveFh,
    SecInfo(Bytes),
    SecInfoNoName(u32),
    SetAttr {
        stateid: Stateid,
        attrs: RawAttrs,
    },
    Write {
        stateid: Stateid,
        offset: u64,
        stable: u32,
        data: Bytes,
    },
    BindConn {
        session: [u8; 16],
        direction: u32,
    },
    ExchangeId(ExchangeId),
    CreateSession(CreateSession),
    DestroySession([u8; 16]),
    FreeStateid(Stateid),
    Sequence(Sequence),
    TestStateid(Vec<Stateid>),
    DestroyClientid(u64),
    ReclaimComplete(bool),
    /// Defined by the protocol, not served here (delegations, pNFS, GSS).
    Unserved,
    /// No operation of NFSv4.1.
    Illegal,
    /// The operation is known, its arguments do not decode.
    Garbage,
}

/// One operation of a COMPOUND.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) op: u32,
    pub(crate) args: Args,
}

/// COMPOUND4args.
#[derive(Debug, Clone)]
pub(crate) struct Compound {
    pub(crate) tag: Bytes,
    pub(crate) minor: u32,
    /// Up to and with the first that does not decode.
    pub(crate) calls: Vec<Call>,
    /// The count the client claimed.
    pub(crate) claimed: u32,
}

impl Compound {
    /// Decodes the arguments; an error means that not even the head is right.
    pub(crate) fn decode(d: &mut Dec) -> Decoded<Self> {
        let tag = d.opaque(1024)?;
        let minor = d.u32()?;
        let claimed = d.u32()?;
        let mut calls = Vec::new();
        for _ in 0..claimed {
            let op = d.u32()?;
            let args = decode_args(op, d).unwrap_or(Args::Garbage);
            let last = matches!(args, Args::Garbage | Args::Illegal | Args::Unserved);
            calls.push(Call { op, args });
            if last {
                break;
            }
        }
        Ok(Self {
            tag,
            minor,
            calls,
            claimed,
        })
    }
}

fn name(d: &mut Dec) -> Decoded<Bytes> {
    d.opaque(64 * 1024)
}

fn range(d: &mut Dec) -> Decoded<Range> {
    Ok(Range {
        offset: d.u64()?,
        length: d.u64()?,
    })
}

/// lock_owner4 or open_owner4: the clientid is ignored in favour of the session's.
fn owner(d: &mut Dec) -> Decoded<Bytes> {
    d.u64()?;
    d.opaque(1024)
}

fn decode_args(number: u32, d: &mut Dec) -> Decoded<Args> {
    Ok(match number {
        op::ACCESS => Args::Access(d.u32()?),
        op::CLOSE => {
            d.u32()?;
            Args::Close(Stateid::decode(d)?)
        }
        op::COMMIT => Args::Commit {
            offset: d.u64()?,
            count: d.u32()?,
        },
        op::CREATE => Args::Create {
            what: create_type(d)?,
            name: name(d)?,
            attrs: RawAttrs::decode(d)?,
        },
        op::GETATTR => Args::GetAttr(d.bitmap()?),
        op::GETFH => Args::GetFh,
        op::LINK => Args::Link(name(d)?),
        op::LOCK => Args::Lock {
            kind: d.u32()?,
            reclaim: d.bool()?,
            range: range(d)?,
            locker: locker(d)?,
        },
        op::LOCKT => Args::LockT {
            kind: d.u32()?,
            range: range(d)?,
            owner: owner(d)?,
        },
        op::LOCKU => {
            d.u32()?;
            d.u32()?;
            Args::LockU {
                stateid: Stateid::decode(d)?,
                range: range(d)?,
            }
        }
        op::LOOKUP => Args::Lookup(name(d)?),
        op::LOOKUPP => Args::LookupP,
        op::VERIFY | op::NVERIFY => Args::Verify {
            attrs: RawAttrs::decode(d)?,
            negate: number == op::NVERIFY,
        },
        op::OPEN => Args::Open(open(d)?),
        op::OPEN_DOWNGRADE => {
            let stateid = Stateid::decode(d)?;
            d.u32()?;
            Args::OpenDowngrade {
                stateid,
                access: d.u32()?,
                deny: d.u32()?,
            }
        }
        op::PUTFH => Args::PutFh(d.opaque(128)?),
        op::PUTROOTFH | op::PUTPUBFH => Args::PutRootFh,
        op::READ => Args::Read {
            stateid: Stateid::decode(d)?,
            offset: d.u64()?,
            count: d.u32()?,
        },
        op::READDIR => {
            let cookie = d.u64()?;
            let verifier = d.u64()?;
            d.u32()?; // dircount is a hint
            Args::ReadDir {
                cookie,
                verifier,
                maxcount: d.u32()?,
                attrs: d.bitmap()?,
            }
        }
        op::READLINK => Args::ReadLink,
        op::REMOVE => Args::Remove(name(d)?),
        op::RENAME => Args::Rename(name(d)?, name(d)?),
        op::RESTOREFH => Args::RestoreFh,
        op::SAVEFH => Args::SaveFh,
        op::SECINFO => Args::SecInfo(name(d)?),
        op::SECINFO_NO_NAME => Args::SecInfoNoName(d.u32()?),
        op::SETATTR => Args::SetAttr {
            stateid: Stateid::decode(d)?,
            attrs: RawAttrs::decode(d)?,
        },
        op::WRITE => Args::Write {
            stateid: Stateid::decode(d)?,
            offset: d.u64()?,
            stable: d.u32()?,
            data: d.payload(64 << 20)?,
        },
        op::BIND_CONN_TO_SESSION => {
            let session = d.fixed()?;
            let direction = d.u32()?;
            d.bool()?;
            Args::BindConn { session, direction }
        }
        op::EXCHANGE_ID => Args::ExchangeId(exchange_id(d)?),
        op::CREATE_SESSION => Args::CreateSession(create_session(d)?),
        op::DESTROY_SESSION => Args::DestroySession(d.fixed()?),
        op::FREE_STATEID => Args::FreeStateid(Stateid::decode(d)?),
        op::SEQUENCE => Args::Sequence(Sequence {
            session: d.fixed()?,
            seqid: d.u32()?,
            slot: d.u32()?,
            highest_slot: d.u32()?,
            cache: d.bool()?,
        }),
        op::TEST_STATEID => Args::TestStateid(d.array(4096, Stateid::decode)?),
        op::DESTROY_CLIENTID => Args::DestroyClientid(d.u64()?),
        op::RECLAIM_COMPLETE => Args::ReclaimComplete(d.bool()?),
        op::DELEGPURGE
        | op::DELEGRETURN
        | op::OPENATTR
        | op::BACKCHANNEL_CTL
        | op::GET_DIR_DELEGATION
        | op::GETDEVICEINFO
        | op::GETDEVICELIST
        | op::LAYOUTCOMMIT
        | op::LAYOUTGET
        | op::LAYOUTRETURN
        | op::SET_SSV
        | op::WANT_DELEGATION => Args::Unserved,
        _ => Args::Illegal,
    })
}

fn create_type(d: &mut Dec) -> Decoded<CreateType> {
    Ok(match d.u32()? {
        ftype::DIR => CreateType::Dir,
        ftype::LNK => CreateType::Link(name(d)?),
        kind @ (ftype::BLK | ftype::CHR) => CreateType::Special(kind, (d.u32()?, d.u32()?)),
        kind @ (ftype::SOCK | ftype::FIFO) => CreateType::Special(kind, (0, 0)),
        _ => CreateType::Bad,
    })
}

fn locker(d: &mut Dec) -> Decoded<Locker> {
    Ok(if d.bool()? {
        d.u32()?;
        let open = Stateid::decode(d)?;
        d.u32()?;
        Locker::New {
            open,
            owner: owner(d)?,
        }
    } else {
        let stateid = Stateid::decode(d)?;
        d.u32()?;
        Locker::Known(stateid)
    })
}

fn open(d: &mut Dec) -> Decoded<Open> {
    d.u32()?; // seqid, unused in 4.1
    let access = d.u32()?;
    let deny = d.u32()?;
    let owner = owner(d)?;
    let how = match d.u32()? {
        0 => HowOpen::NoCreate,
        1 => match d.u32()? {
            0 => HowOpen::Unchecked(RawAttrs::decode(d)?),
            1 => HowOpen::Guarded(RawAttrs::decode(d)?),
            2 => HowOpen::Exclusive(d.fixed()?, None),
            3 => HowOpen::Exclusive(d.fixed()?, Some(RawAttrs::decode(d)?)),
            _ => return Err(BadXdr),
        },
        _ => return Err(BadXdr),
    };
    let claim = match d.u32()? {
        0 => Claim::Null(name(d)?),
        1 => Claim::Previous(d.u32()?),
        2 => {
            Stateid::decode(d)?;
            name(d)?;
            Claim::Delegation
        }
        3 => {
            name(d)?;
            Claim::Delegation
        }
        4 => Claim::Fh,
        5 => {
            Stateid::decode(d)?;
            Claim::Delegation
        }
        6 => Claim::Delegation,
        _ => return Err(BadXdr),
    };
    Ok(Open {
        access,
        deny,
        owner,
        how,
        claim,
    })
}

fn exchange_id(d: &mut Dec) -> Decoded<ExchangeId> {
    let verifier = d.fixed()?;
    let owner = d.opaque(1024)?;
    let flags = d.u32()?;
    let protect = d.u32()?;
    if protect == 0 {
        // nfs_impl_id4: domain, name, date
        d.array(1, |d| {
            d.opaque(1024)?;
            d.opaque(1024)?;
            d.u64()?;
            d.u32()
        })?;
    }
    Ok(ExchangeId {
        verifier,
        owner,
        flags,
        protect,
    })
}

fn create_session(d: &mut Dec) -> Decoded<CreateSession> {
    let args = CreateSession {
        clientid: d.u64()?,
        sequence: d.u32()?,
        flags: d.u32()?,
        fore: ChannelAttrs::decode(d)?,
        back: ChannelAttrs::decode(d)?,
        cb_program: d.u32()?,
    };
    d.array(8, |d| match d.u32()? {
        0 => Ok(()),
        1 => {
            d.u32()?; // stamp
            d.opaque(255)?;
            d.u32()?;
            d.u32()?;
            d.array(16, Dec::u32).map(drop)
        }
        _ => Err(BadXdr),
    })?;
    Ok(args)
}
