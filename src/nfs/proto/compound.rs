//! The request side of COMPOUND (RFC 8881 §16.2): operations in the order they
//! will run.
//!
//! A [`Compound`] begins with a SEQUENCE whose slot is filled in when it is
//! sent, so that the same compound can be sent again on another slot. One
//! operation may carry bulk data (WRITE); they are not copied but sent from
//! where they lie.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::attrs::{AttrSet, NewAttributes};
use super::ops::{Claim, Create, LockType, Locker, Make, Op, WANT_NO_DELEG};
use super::types::{FileHandle, SessionId, Stable, StateId, Verifier};
use crate::rpc::auth::Credential;
use crate::rpc::call::{self, Call, Procedure};
use crate::xdr::Encoder;

/// What SEQUENCE says about the slot a compound is sent on (RFC 8881 §18.46).
#[derive(Clone, Copy, Debug)]
pub struct SlotUse {
    /// The session.
    pub session: SessionId,
    /// The sequence id of this use of the slot.
    pub seqid: u32,
    /// The slot.
    pub slot: u32,
    /// The highest slot in use now.
    pub highest: u32,
    /// The session can keep a reply for a replay.
    pub keeps: bool,
}

/// What makes a compound that must not run twice the same as another, and where things lie
/// in its message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPart {
    /// What is between [`Compound::in_front`] and [`Compound::then`], without the owner of
    /// an OPEN by name.
    bytes: Bytes,
    /// Index of the last operation in front.
    pub front: usize,
    /// Index of the last operation that must succeed.
    pub essential: usize,
    /// The owner of an OPEN by name.
    pub owner: Option<u64>,
    /// What that OPEN is to allow.
    pub access: u32,
    /// Where the number of operations is.
    pub counts_at: usize,
    /// Where SEQUENCE ends.
    pub sequence_ends: usize,
}

impl OwnPart {
    /// Whether both do the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// An OPEN by name in a compound.
#[derive(Clone, Copy, Debug)]
struct NamedOpen {
    /// Where client id and owner are.
    at: usize,
    owner: u64,
    access: u32,
}

/// Length of client id and owner of an OPEN.
const OWNER_LEN: usize = 8 + 4 + 8;

/// A request under construction.
#[derive(Debug)]
pub struct Compound {
    head: Encoder,
    /// Set once bulk data were added: what follows them.
    tail: Option<(SmallVec<[Bytes; 4]>, Encoder)>,
    ops: SmallVec<[Op; 16]>,
    /// Index of the last operation that must succeed; see [`Compound::then`].
    essential: usize,
    /// Index of the last operation that serves something else; see
    /// [`Compound::in_front`].
    front: usize,
    /// [`Compound::then`] was called.
    optional: bool,
    /// Operations the session allows.
    most: usize,
    /// Where operations go that are only welcome and find no room.
    left_out: Encoder,
    /// Ask the server to keep the reply for a replay.
    cached: bool,
    counts_at: usize,
    sequence_at: Option<usize>,
    /// Where what is the caller's own begins and, once it has, ends.
    own_at: usize,
    own_ends: Option<usize>,
    /// See [`Compound::outgrown`].
    outgrown: bool,
    opens: Option<NamedOpen>,
    /// A handle in it that the server has not given.
    awaits: Option<FileHandle>,
    /// The objects it names, if anybody wants to know.
    names: Option<SmallVec<[FileHandle; 2]>>,
}

/// Length of an encoded SEQUENCE.
const SEQUENCE_LEN: usize = 4 + 16 + 4 + 4 + 4 + 4;

impl Compound {
    /// A compound that runs in a session: SEQUENCE is its first operation.
    pub fn in_session(cred: &Credential, machine_name: &str) -> Self {
        let mut compound = Self::bare(cred, machine_name);
        compound.op(Op::Sequence);
        compound.sequence_at = Some(compound.head.len());
        compound.head.fixed(&[0; SEQUENCE_LEN - 4]);
        compound.own_at = compound.head.len();
        compound
    }

    /// A compound outside of a session, for the operations that make or end
    /// one.
    pub fn bare(cred: &Credential, machine_name: &str) -> Self {
        let mut head = call::begin(Procedure::Compound, cred, machine_name);
        head.u32(0).u32(1); // empty tag, minor version 1
        let counts_at = head.len();
        head.u32(0);
        Self {
            head,
            tail: None,
            ops: SmallVec::new(),
            essential: 0,
            front: 0,
            optional: false,
            most: usize::MAX,
            left_out: Encoder::default(),
            cached: false,
            counts_at,
            sequence_at: None,
            own_at: 0,
            own_ends: None,
            outgrown: false,
            opens: None,
            awaits: None,
            names: None,
        }
    }

    /// Number of operations so far.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// No operation yet.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The operations, in order: what the reply is checked against.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Index of the last operation that must succeed.
    pub fn essential(&self) -> usize {
        self.essential
    }

    /// What was added so far only shares the round trip with what follows: if one
    /// of it fails, that is for the caller to look at, and is not waited out.
    pub fn in_front(&mut self) -> &mut Self {
        self.front = self.ops.len().saturating_sub(1);
        self.own_at = self.head.len();
        self
    }

    /// Whether the operation with this index is one that stands
    /// [in front](Compound::in_front). SEQUENCE is none.
    pub fn is_in_front(&self, index: usize) -> bool {
        (1..=self.front).contains(&index)
    }

    /// Keeps the handles that are put, for [`Compound::named`].
    pub fn keep_names(&mut self) -> &mut Self {
        self.names.get_or_insert_default();
        self
    }

    /// The objects that it names, if they were [kept](Compound::keep_names).
    pub fn named(&self) -> &[FileHandle] {
        self.names.as_deref().unwrap_or_default()
    }

    /// A handle in it that the server has not given: it is not to be sent, but to be built anew
    /// once that is decided.
    pub fn awaits(&self) -> Option<&FileHandle> {
        self.awaits.as_ref()
    }

    /// Leaves out operations that are only welcome where there would be more
    /// than `most` in all.
    pub fn at_most(&mut self, most: usize) -> &mut Self {
        self.most = most;
        self
    }

    /// Marks the compound as one that must not run twice: the server keeps its
    /// reply (sa_cachethis), and a replay after a lost reply returns that.
    pub fn once(&mut self) -> &mut Self {
        self.cached = true;
        self
    }

    /// What follows is only welcome, not needed: a failure in it does not make
    /// the compound fail, and above all does not make it run again.
    pub fn then(&mut self) -> &mut Self {
        self.optional = true;
        self.own_ends.get_or_insert(self.head.len());
        self
    }

    /// The server that it would be sent to does not take it as it is: it is not sent.
    pub fn outgrown(&mut self) -> &mut Self {
        self.outgrown = true;
        self
    }

    /// See [`Compound::outgrown`].
    pub fn is_outgrown(&self) -> bool {
        self.outgrown
    }

    /// The most operations that the session takes.
    pub fn most(&self) -> usize {
        self.most
    }

    /// See [`Compound::once`].
    pub fn is_once(&self) -> bool {
        self.cached
    }

    /// What makes it the same as another. `None` for one with data, which may be written
    /// twice, and for one that is in no session.
    pub fn own_part(&self) -> Option<OwnPart> {
        let sequence_ends = self.sequence_at? + SEQUENCE_LEN - 4;
        if self.ops.contains(&Op::Write) {
            return None;
        }
        let ends = self.own_ends.unwrap_or(self.head.len());
        let mut bytes = self.head.as_slice().get(self.own_at..ends)?.to_vec();
        if let Some(open) = self.opens {
            let at = open.at.checked_sub(self.own_at)?;
            bytes.get_mut(at..at + OWNER_LEN)?.fill(0);
        }
        Some(OwnPart {
            bytes: bytes.into(),
            front: self.front,
            essential: self.essential,
            owner: self.opens.map(|open| open.owner),
            access: self.opens.map_or(0, |open| open.access),
            counts_at: self.counts_at,
            sequence_ends,
        })
    }

    fn out(&mut self) -> &mut Encoder {
        match &mut self.tail {
            Some((_, tail)) => tail,
            None => &mut self.head,
        }
    }

    fn op(&mut self, op: Op) -> &mut Encoder {
        if !self.optional {
            self.essential = self.ops.len();
        } else if self.ops.len() >= self.most {
            return &mut self.left_out;
        }
        self.ops.push(op);
        let out = self.out();
        out.u32(op as u32);
        out
    }

    /// Ends the request. Several calls give the same request on other slots.
    pub fn finish(&self, slot: Option<SlotUse>) -> Call {
        let mut head = self.head.as_slice().to_vec();
        let mut patch = |at: usize, data: &[u8]| head[at..at + data.len()].copy_from_slice(data);
        patch(self.counts_at, &(self.ops.len() as u32).to_be_bytes());
        if let (Some(at), Some(slot)) = (self.sequence_at, slot) {
            patch(at, &slot.session);
            patch(at + 16, &slot.seqid.to_be_bytes());
            patch(at + 20, &slot.slot.to_be_bytes());
            patch(at + 24, &slot.highest.to_be_bytes());
            patch(at + 28, &u32::from(self.cached && slot.keeps).to_be_bytes());
        }
        let mut rest = SmallVec::new();
        if let Some((data, tail)) = &self.tail {
            rest.extend(data.iter().cloned());
            rest.push(Bytes::copy_from_slice(tail.as_slice()));
        }
        Call { head, rest }
    }

    /// The SEQUENCE of this compound and nothing else, under the same slot, sequence id
    /// and credential: it uses the slot up, or tells what became of the compound
    /// (RFC 8881 §2.10.6.1.3, §18.46.3). For one that is in a session.
    pub fn alone(&self, slot: SlotUse) -> Call {
        let Call { mut head, .. } = self.finish(Some(slot));
        head[self.counts_at..self.counts_at + 4].copy_from_slice(&1_u32.to_be_bytes());
        head.truncate(self.sequence_at.unwrap_or(head.len()) + SEQUENCE_LEN - 4);
        Call {
            head,
            rest: SmallVec::new(),
        }
    }

    /// PUTROOTFH (§18.21).
    pub fn put_root(&mut self) -> &mut Self {
        self.op(Op::PutRootFh);
        self
    }

    /// PUTFH (§18.19).
    pub fn put(&mut self, handle: &FileHandle) -> &mut Self {
        if !handle.is_given() && self.awaits.is_none() {
            self.awaits = Some(handle.clone());
        }
        if let Some(names) = &mut self.names {
            names.push(handle.clone());
        }
        self.op(Op::PutFh).opaque(handle.as_bytes());
        self
    }

    /// GETFH (§18.8).
    pub fn get_handle(&mut self) -> &mut Self {
        self.op(Op::GetFh);
        self
    }

    /// SAVEFH (§18.28).
    pub fn save(&mut self) -> &mut Self {
        self.op(Op::SaveFh);
        self
    }

    /// RESTOREFH (§18.27).
    pub fn restore(&mut self) -> &mut Self {
        self.op(Op::RestoreFh);
        self
    }

    /// LOOKUP (§18.13).
    pub fn lookup(&mut self, name: &[u8]) -> &mut Self {
        self.op(Op::Lookup).opaque(name);
        self
    }

    /// LOOKUPP (§18.14).
    pub fn lookup_parent(&mut self) -> &mut Self {
        self.op(Op::LookupP);
        self
    }

    /// GETATTR (§18.7).
    pub fn get_attrs(&mut self, set: AttrSet) -> &mut Self {
        set.encode(self.op(Op::GetAttr));
        self
    }

    /// NVERIFY (§18.15): stops here if the object has this change attribute.
    pub fn differs_from(&mut self, change: u64) -> &mut Self {
        let out = self.op(Op::NVerify);
        super::attrs::CHANGE_ONLY.encode(out);
        out.opaque(&change.to_be_bytes());
        self
    }

    /// VERIFY (§18.31): stops here unless the object has this fileid.
    pub fn is_still(&mut self, fileid: u64) -> &mut Self {
        let out = self.op(Op::Verify);
        super::attrs::FILEID_ONLY.encode(out);
        out.opaque(&fileid.to_be_bytes());
        self
    }

    /// SETATTR (§18.30).
    pub fn set_attrs(&mut self, stateid: StateId, attrs: &NewAttributes) -> &mut Self {
        let out = self.op(Op::SetAttr);
        stateid.encode(out);
        attrs.encode(out);
        self
    }

    /// ACCESS (§18.1).
    pub fn access(&mut self, wanted: u32) -> &mut Self {
        self.op(Op::Access).u32(wanted);
        self
    }

    /// READLINK (§18.24).
    pub fn read_link(&mut self) -> &mut Self {
        self.op(Op::ReadLink);
        self
    }

    /// CREATE (§18.4).
    pub fn create(&mut self, make: Make<'_>, name: &[u8], attrs: &NewAttributes) -> &mut Self {
        let out = self.op(Op::Create);
        match make {
            Make::Block(major, minor) => out.u32(3).u32(major).u32(minor),
            Make::Char(major, minor) => out.u32(4).u32(major).u32(minor),
            Make::Symlink(target) => out.u32(5).opaque(target),
            Make::Directory => out.u32(2),
            Make::Socket => out.u32(6),
            Make::Fifo => out.u32(7),
        };
        out.opaque(name);
        attrs.encode(out);
        self
    }

    /// REMOVE (§18.25).
    pub fn remove(&mut self, name: &[u8]) -> &mut Self {
        self.op(Op::Remove).opaque(name);
        self
    }

    /// RENAME (§18.26): from the saved directory to the current one.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> &mut Self {
        self.op(Op::Rename).opaque(from).opaque(to);
        self
    }

    /// LINK (§18.9): the saved object gets a name in the current directory.
    pub fn link(&mut self, name: &[u8]) -> &mut Self {
        self.op(Op::Link).opaque(name);
        self
    }

    /// OPEN (§18.16). Nothing is denied to others, and no delegation wanted.
    pub fn open(
        &mut self,
        owner: (u64, &[u8]),
        access: u32,
        create: &Create<'_>,
        claim: Claim<'_>,
    ) -> &mut Self {
        if let (Claim::Name(_), Ok(number)) = (claim, owner.1.try_into()) {
            self.opens = Some(NamedOpen {
                // Operation, seqid, access and deny go before it.
                at: self.head.len() + 16,
                owner: u64::from_be_bytes(number),
                access,
            });
        }
        let out = self.op(Op::Open);
        let want = match claim {
            Claim::Previous => 0,
            Claim::Name(_) | Claim::Handle => WANT_NO_DELEG,
        };
        out.u32(0).u32(access | want).u32(0); // seqid (unused), access, deny none
        out.u64(owner.0).opaque(owner.1);
        match create {
            Create::No => {
                out.u32(0);
            }
            Create::Unchecked(attrs) => {
                out.u32(1).u32(0);
                attrs.encode(out);
            }
            Create::Exclusive(verifier, attrs) => {
                out.u32(1).u32(3).fixed(verifier);
                attrs.encode(out);
            }
        }
        match claim {
            Claim::Name(name) => out.u32(0).opaque(name),
            Claim::Previous => out.u32(1).u32(0),
            Claim::Handle => out.u32(4),
        };
        self
    }

    /// CLOSE (§18.2).
    pub fn close(&mut self, stateid: StateId) -> &mut Self {
        let out = self.op(Op::Close);
        out.u32(0);
        stateid.encode(out);
        self
    }

    /// READ (§18.22).
    pub fn read(&mut self, stateid: StateId, offset: u64, count: u32) -> &mut Self {
        let out = self.op(Op::Read);
        stateid.encode(out);
        out.u64(offset).u32(count);
        self
    }

    /// WRITE (§18.32). One a compound; the data are not copied.
    ///
    /// # Panics
    /// If the compound has a WRITE already.
    pub fn write(
        &mut self,
        stateid: StateId,
        offset: u64,
        stable: Stable,
        data: &[Bytes],
    ) -> &mut Self {
        assert!(self.tail.is_none(), "a second WRITE in one compound");
        let len: usize = data.iter().map(Bytes::len).sum();
        let out = self.op(Op::Write);
        stateid.encode(out);
        out.u64(offset).u32(stable as u32).u32(len as u32);
        let mut tail = Encoder::default();
        tail.pad(len);
        self.tail = Some((data.iter().cloned().collect(), tail));
        self
    }

    /// WRITE of few bytes, which are copied: there may be any number of these.
    pub fn write_fragment(
        &mut self,
        stateid: StateId,
        offset: u64,
        stable: Stable,
        data: &[Bytes],
    ) -> &mut Self {
        let out = self.op(Op::Write);
        stateid.encode(out);
        out.u64(offset).u32(stable as u32);
        out.opaque(&data.concat());
        self
    }

    /// COMMIT (§18.3). A count of 0 means to the end of the file.
    pub fn commit(&mut self, offset: u64, count: u32) -> &mut Self {
        self.op(Op::Commit).u64(offset).u32(count);
        self
    }

    /// READDIR (§18.23). `dircount` is only a hint; we leave it at `maxcount`.
    pub fn read_dir(
        &mut self,
        cookie: u64,
        verifier: Verifier,
        maxcount: u32,
        attrs: AttrSet,
    ) -> &mut Self {
        let out = self.op(Op::ReadDir);
        out.u64(cookie).fixed(&verifier).u32(maxcount).u32(maxcount);
        attrs.encode(out);
        self
    }

    /// LOCK (§18.10). Sequence ids are not used in a session and are 0.
    pub fn lock(
        &mut self,
        kind: LockType,
        reclaim: bool,
        range: (u64, u64),
        locker: Locker,
    ) -> &mut Self {
        let out = self.op(Op::Lock);
        out.u32(kind as u32).bool(reclaim).u64(range.0).u64(range.1);
        match locker {
            Locker::New {
                open,
                client,
                owner,
            } => {
                out.bool(true).u32(0);
                open.encode(out);
                out.u32(0).u64(client).opaque(&owner.to_be_bytes());
            }
            Locker::Known(stateid) => {
                out.bool(false);
                stateid.encode(out);
                out.u32(0);
            }
        }
        self
    }

    /// LOCKT (§18.11). `owner` is client id and owner.
    pub fn lock_test(&mut self, kind: LockType, range: (u64, u64), owner: (u64, u64)) -> &mut Self {
        self.op(Op::LockT)
            .u32(kind as u32)
            .u64(range.0)
            .u64(range.1)
            .u64(owner.0)
            .opaque(&owner.1.to_be_bytes());
        self
    }

    /// LOCKU (§18.12).
    pub fn unlock(&mut self, stateid: StateId, range: (u64, u64)) -> &mut Self {
        // The type means nothing here.
        let out = self.op(Op::LockU).u32(LockType::Write as u32).u32(0);
        stateid.encode(out);
        out.u64(range.0).u64(range.1);
        self
    }

    /// FREE_STATEID (§18.38).
    pub fn free_state(&mut self, stateid: StateId) -> &mut Self {
        stateid.encode(self.op(Op::FreeStateId));
        self
    }

    /// TEST_STATEID (§18.48).
    pub fn test_states(&mut self, stateids: &[StateId]) -> &mut Self {
        let out = self.op(Op::TestStateId).u32(stateids.len() as u32);
        for stateid in stateids {
            stateid.encode(out);
        }
        self
    }

    /// An operation with arguments that the caller encodes, for the few that
    /// are used once.
    pub fn other(&mut self, op: Op, args: impl FnOnce(&mut Encoder)) -> &mut Self {
        args(self.op(op));
        self
    }
}

#[cfg(test)]
mod tests;
