//! The reply side of COMPOUND: results, checked against the operations that
//! were asked for before anything of them is decoded.

use bytes::Bytes;
use smallvec::SmallVec;

use super::attrs::Attributes;
use super::ops::Op;
use super::status::Status;
use super::types::{ChangeInfo, FileHandle, SessionId, Stable, StateId, Verifier};
use crate::rpc::RpcError;
use crate::xdr::{DecodeError, Decoder};

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NfsError {
    /// The server says so.
    #[error("{op}: {status}", op = .0.name(), status = .1)]
    Status(Op, Status),
    /// The compound as a whole was refused; no operation has a result.
    #[error("compound: {0}")]
    Compound(Status),
    /// The reply does not decode, or answers something else.
    #[error("{op}: bad reply: {what}", op = .0.name(), what = .1)]
    Garbled(Op, DecodeError),
    /// No reply from NFS at all.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The state (an open, a lock) is lost for good.
    #[error("the server has forgotten the state of this file")]
    StateLost,
    /// The session cannot carry the request: its limits are too small.
    #[error("{0}")]
    Unfit(&'static str),
    /// The session that has come meanwhile does not carry the request as it was made; in another one it
    /// may have been executed.
    #[error("the session that has come meanwhile takes less in a request")]
    Outgrown {
        /// It may have been executed.
        may_have_run: bool,
    },
}

impl NfsError {
    /// The status, if a server's status is what it is.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status(_, status) | Self::Compound(status) => Some(*status),
            _ => None,
        }
    }

    /// The request was not made, or not made again, because its caller has been
    /// answered; `Some(true)`: it may have been executed.
    pub fn abandoned(&self) -> Option<bool> {
        match self {
            Self::Rpc(RpcError::Abandoned { sent }) => Some(*sent),
            _ => None,
        }
    }
}

/// The results of a compound, taken in order.
#[derive(Debug)]
pub struct Reply {
    dec: Decoder,
    /// The status of the last operation that ran.
    status: Status,
    ops: SmallVec<[Op; 16]>,
    results: usize,
    next: usize,
    /// An earlier sending of the same compound may have run.
    redone: bool,
    kept: Option<Kept>,
}

/// A reply that was had before the compound was sent.
#[derive(Clone, Copy, Debug)]
struct Kept {
    owner: Option<u64>,
}

/// What OPEN returned.
#[derive(Clone, Debug)]
pub struct OpenResult {
    /// The state.
    pub stateid: StateId,
    /// How the directory moved.
    pub change: ChangeInfo,
    /// OPEN4_RESULT_* flags.
    pub flags: u32,
    /// Attributes set at creation.
    pub set: super::attrs::AttrSet,
}

/// Who is in the way of a lock (LOCK4denied).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// First byte.
    pub offset: u64,
    /// Bytes; all ones to the end of the file.
    pub length: u64,
    /// It is exclusive.
    pub write: bool,
}

impl Denied {
    fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        let denied = Self {
            offset: dec.u64("offset")?,
            length: dec.u64("length")?,
            write: matches!(dec.u32("locktype")?, 2 | 4),
        };
        dec.u64("clientid")?;
        dec.opaque("lock owner", 1024)?;
        Ok(denied)
    }
}

/// What READ returned.
#[derive(Clone, Debug)]
pub struct ReadResult {
    /// The end of the file was reached.
    pub eof: bool,
    /// The data, a slice of the received record.
    pub data: Bytes,
}

/// What WRITE returned.
#[derive(Clone, Copy, Debug)]
pub struct WriteResult {
    /// Bytes written, from the front.
    pub count: u32,
    /// How safe they are.
    pub committed: Stable,
    /// Moves when the server may have lost unstable data.
    pub verifier: Verifier,
}

/// One entry of READDIR.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Where the listing goes on after it.
    pub cookie: u64,
    /// The name.
    pub name: Bytes,
    /// What was asked for.
    pub attrs: Attributes,
}

/// The longest name that the kernel takes from a listing (FUSE_NAME_MAX); of a longer
/// one it makes an error of the whole.
const NAME_MAX: usize = 1024;

/// Something that can be the name of an entry of a directory. A server that sends
/// anything else (an empty one, "..", one with "/" or NUL in it) breaks RFC 8881
/// §18.23.4 or leads elsewhere.
pub fn is_name(name: &[u8]) -> bool {
    let harmful = |byte: &u8| matches!(byte, b'/' | 0);
    (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(harmful)
}

/// What READDIR returned.
#[derive(Clone, Debug)]
pub struct DirResult {
    /// To be sent with the next request.
    pub verifier: Verifier,
    /// In the server's order, without what is no name ([`is_name`]).
    pub entries: Vec<DirEntry>,
    /// Where the listing goes on after this page; `None` if the server sent nothing.
    pub last: Option<u64>,
    /// This many entries were no names.
    pub left_out: u64,
    /// There are no more.
    pub eof: bool,
}

impl Reply {
    /// Takes the envelope off a reply body: overall status and the number of
    /// results, which must be a prefix of what was asked for.
    pub fn parse(body: Bytes, ops: &[Op]) -> Result<Self, NfsError> {
        let first = ops.first().copied().unwrap_or(Op::Sequence);
        let garbled = |error| NfsError::Garbled(first, error);
        let mut dec = Decoder::new(body);
        let status = Status(dec.u32("status").map_err(garbled)?);
        dec.opaque("tag", 1024).map_err(garbled)?;
        let results = dec.count("results", 8).map_err(garbled)?;
        if results > ops.len() {
            return Err(garbled(DecodeError::TooLong("results")));
        }
        if results == 0 {
            return Err(NfsError::Compound(status));
        }
        if results < ops.len() && status == Status::OK {
            return Err(garbled(DecodeError::Short("results")));
        }
        Ok(Self {
            dec,
            status,
            ops: SmallVec::from_slice(ops),
            results,
            next: 0,
            redone: false,
            kept: None,
        })
    }

    /// How many operations have a result.
    pub fn results(&self) -> usize {
        self.results
    }

    /// The status of the last operation that ran.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Index of the operation that failed, if one did.
    pub fn failed_at(&self) -> Option<usize> {
        (self.status != Status::OK).then(|| self.results - 1)
    }

    /// An earlier sending of the same compound may have run, and its reply was
    /// lost: errors such as EXIST may be our own doing.
    pub fn redone(&self) -> bool {
        self.redone
    }

    /// Marks the reply as that of a compound that may have run before.
    pub fn set_redone(&mut self) {
        self.redone = true;
    }

    /// The compound was not sent: the reply is that of the same one, which another process has sent
    /// with nothing in front, as far as the results show.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// The open owner of the OPEN that was executed, of which `owner` is that of the
    /// compound.
    pub fn owner_or(&self, owner: u64) -> u64 {
        self.kept.and_then(|kept| kept.owner).unwrap_or(owner)
    }

    /// Marks the reply as one that was kept, with the owner of its OPEN.
    pub fn set_kept(&mut self, owner: Option<u64>) {
        self.kept = Some(Kept { owner });
    }

    /// The result of SEQUENCE: session, sequence id and slot.
    pub fn skip_sequence(&mut self) -> Result<(SessionId, u32, u32), NfsError> {
        self.ok(Op::Sequence)?;
        self.get(Op::Sequence, |dec| {
            let session = dec.fixed("sessionid")?;
            let (seqid, slot) = (dec.u32("sequenceid")?, dec.u32("slotid")?);
            dec.u32("highest_slotid")?;
            dec.u32("target_highest_slotid")?;
            dec.u32("status_flags")?;
            Ok((session, seqid, slot))
        })
    }

    /// Steps to the next result, which must be that of `op` and be OK.
    pub fn ok(&mut self, op: Op) -> Result<&mut Self, NfsError> {
        if self.next >= self.results {
            // An earlier operation failed or did not decode, and its error was
            // passed over.
            return Err(NfsError::Status(op, self.status));
        }
        debug_assert_eq!(self.ops[self.next], op, "results taken out of order");
        let number = self.get(op, |dec| dec.u32("resop"))?;
        let status = self.get(op, |dec| dec.u32("op status"))?;
        if number != op as u32 {
            self.next = self.results;
            return Err(NfsError::Garbled(op, DecodeError::Invalid("resop")));
        }
        self.next += 1;
        match Status(status) {
            Status::OK => Ok(self),
            status => {
                // Nothing follows a failure.
                self.next = self.results;
                Err(NfsError::Status(op, status))
            }
        }
    }

    /// Decodes a part of the result of `op`.
    pub fn get<T>(
        &mut self,
        op: Op,
        take: impl FnOnce(&mut Decoder) -> Result<T, DecodeError>,
    ) -> Result<T, NfsError> {
        take(&mut self.dec).map_err(|error| {
            // Where the next result begins is not known any more.
            self.next = self.results;
            NfsError::Garbled(op, error)
        })
    }

    /// The result of GETATTR.
    pub fn attrs(&mut self) -> Result<Attributes, NfsError> {
        self.ok(Op::GetAttr)?;
        self.get(Op::GetAttr, Attributes::decode)
    }

    /// The result of GETFH.
    pub fn handle(&mut self) -> Result<FileHandle, NfsError> {
        self.ok(Op::GetFh)?;
        self.get(Op::GetFh, FileHandle::decode)
    }

    /// The result of TEST_STATEID: a status for each.
    pub fn states_tested(&mut self) -> Result<Vec<Status>, NfsError> {
        self.ok(Op::TestStateId)?;
        self.get(Op::TestStateId, |dec| {
            let count = dec.count("status codes", 4)?;
            (0..count)
                .map(|_| dec.u32("status code").map(Status))
                .collect()
        })
    }

    /// The result of REMOVE or LINK, or the source half of RENAME's.
    pub fn change(&mut self, op: Op) -> Result<ChangeInfo, NfsError> {
        self.ok(op)?;
        self.get(op, ChangeInfo::decode)
    }

    /// The result of RENAME: how source and target directory moved.
    pub fn renamed(&mut self) -> Result<(ChangeInfo, ChangeInfo), NfsError> {
        let source = self.change(Op::Rename)?;
        Ok((source, self.get(Op::Rename, ChangeInfo::decode)?))
    }

    /// The result of CREATE.
    pub fn created(&mut self) -> Result<ChangeInfo, NfsError> {
        let change = self.change(Op::Create)?;
        self.get(Op::Create, super::attrs::AttrSet::decode)?;
        Ok(change)
    }

    /// The result of SETATTR. Its bitmap follows even a failure; that is why
    /// it is taken here and not skipped.
    pub fn attrs_set(&mut self) -> Result<(), NfsError> {
        self.ok(Op::SetAttr)?;
        self.get(Op::SetAttr, super::attrs::AttrSet::decode)?;
        Ok(())
    }

    /// The result of ACCESS: what was granted of what was asked.
    pub fn access(&mut self) -> Result<u32, NfsError> {
        self.ok(Op::Access)?;
        self.get(Op::Access, |dec| {
            dec.u32("supported")?;
            dec.u32("access")
        })
    }

    /// The result of READLINK.
    pub fn link_text(&mut self) -> Result<Bytes, NfsError> {
        self.ok(Op::ReadLink)?;
        self.get(Op::ReadLink, |dec| dec.opaque("link text", 65536))
    }

    /// The result of OPEN. A delegation, never asked for, is an error in the
    /// peer: we could not be told of its recall.
    pub fn open(&mut self) -> Result<OpenResult, NfsError> {
        self.ok(Op::Open)?;
        self.get(Op::Open, |dec| {
            let result = OpenResult {
                stateid: StateId::decode(dec)?,
                change: ChangeInfo::decode(dec)?,
                flags: dec.u32("rflags")?,
                set: super::attrs::AttrSet::decode(dec)?,
            };
            match dec.u32("delegation type")? {
                0 => {}
                3 => {
                    // OPEN_DELEGATE_NONE_EXT: why there is none.
                    let why = dec.u32("why_no_delegation")?;
                    if why == 1 || why == 2 {
                        dec.bool("will signal")?;
                    }
                }
                _ => return Err(DecodeError::Invalid("delegation type")),
            }
            Ok(result)
        })
    }

    /// The result of CLOSE, LOCK, LOCKU or OPEN_DOWNGRADE.
    pub fn stateid(&mut self, op: Op) -> Result<StateId, NfsError> {
        self.ok(op)?;
        self.get(op, StateId::decode)
    }

    /// The result of LOCK: the state, or who is in the way.
    pub fn locked(&mut self) -> Result<Result<StateId, Denied>, NfsError> {
        Ok(match self.granted(Op::Lock)? {
            true => Ok(self.get(Op::Lock, StateId::decode)?),
            false => Err(self.get(Op::Lock, Denied::decode)?),
        })
    }

    /// The result of LOCKT: who is in the way, if anybody.
    pub fn lock_tested(&mut self) -> Result<Option<Denied>, NfsError> {
        Ok(match self.granted(Op::LockT)? {
            true => None,
            false => Some(self.get(Op::LockT, Denied::decode)?),
        })
    }

    /// Steps to the next result as [`ok`](Self::ok) does; false if it is DENIED, the one
    /// failure with a body.
    fn granted(&mut self, op: Op) -> Result<bool, NfsError> {
        // Else DENIED is what the compound came to, and was passed over.
        let its_own = self.next < self.results;
        match self.ok(op) {
            Ok(_) => Ok(true),
            Err(NfsError::Status(_, Status::DENIED)) if its_own => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The result of READ.
    pub fn read(&mut self) -> Result<ReadResult, NfsError> {
        self.ok(Op::Read)?;
        self.get(Op::Read, |dec| {
            Ok(ReadResult {
                eof: dec.bool("eof")?,
                data: dec.opaque("data", usize::MAX)?,
            })
        })
    }

    /// The result of WRITE.
    pub fn written(&mut self) -> Result<WriteResult, NfsError> {
        self.ok(Op::Write)?;
        self.get(Op::Write, |dec| {
            Ok(WriteResult {
                count: dec.u32("count")?,
                committed: Stable::decode(dec)?,
                verifier: dec.fixed("write verifier")?,
            })
        })
    }

    /// The result of COMMIT.
    pub fn committed(&mut self) -> Result<Verifier, NfsError> {
        self.ok(Op::Commit)?;
        self.get(Op::Commit, |dec| dec.fixed("write verifier"))
    }

    /// The result of READDIR.
    pub fn dir(&mut self) -> Result<DirResult, NfsError> {
        self.ok(Op::ReadDir)?;
        self.get(Op::ReadDir, |dec| {
            let verifier = dec.fixed("cookie verifier")?;
            let (mut entries, mut last, mut left_out) = (Vec::new(), None, 0);
            while dec.bool("next entry")? {
                let entry = DirEntry {
                    cookie: dec.u64("cookie")?,
                    name: dec.opaque("entry name", 4096)?,
                    attrs: Attributes::decode(dec)?,
                };
                last = Some(entry.cookie);
                if is_name(&entry.name) {
                    entries.push(entry);
                } else if !matches!(&entry.name[..], b"." | b"..") {
                    left_out += 1;
                }
            }
            Ok(DirResult {
                verifier,
                entries,
                last,
                left_out,
                eof: dec.bool("eof")?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Bytes {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn an_empty_result_array_is_an_error_of_the_whole_compound() {
        let error = Reply::parse(words(&[10021, 0, 0]), &[Op::ExchangeId]).unwrap_err();
        assert_eq!(error, NfsError::Compound(Status::MINOR_VERS_MISMATCH));
    }

    #[test]
    fn what_is_no_name_is_left_out_of_a_page_and_counted() {
        let mut enc = crate::xdr::Encoder::default();
        enc.u32(0).opaque(b"").u32(1).u32(26).u32(0).fixed(&[9; 8]);
        for (cookie, name) in [&b"good"[..], b"..", b"a/b", b"", b"."].iter().enumerate() {
            enc.bool(true).u64(cookie as u64 + 3).opaque(name);
            // No attributes.
            enc.u32(0).opaque(b"");
        }
        enc.bool(false).bool(false);
        let mut reply = Reply::parse(enc.into_vec().into(), &[Op::ReadDir]).unwrap();
        let page = reply.dir().unwrap();
        let names: Vec<_> = page.entries.iter().map(|entry| &entry.name[..]).collect();
        assert_eq!(names, [b"good"]);
        assert_eq!((page.left_out, page.last, page.eof), (2, Some(7), false));
        assert!(!is_name(b"a\0") && !is_name(&[b'x'; 1025]) && is_name(&[b'x'; 255]));
    }

    #[test]
    fn results_stop_at_the_first_failure() {
        let ops = [Op::PutRootFh, Op::Lookup, Op::GetFh];
        let mut reply = Reply::parse(words(&[2, 0, 2, 24, 0, 15, 2]), &ops).unwrap();
        assert_eq!(reply.failed_at(), Some(1));
        reply.ok(Op::PutRootFh).unwrap();
        let error = NfsError::Status(Op::Lookup, Status::NOENT);
        assert_eq!(reply.ok(Op::Lookup).unwrap_err(), error);
        assert_eq!(
            reply.handle().unwrap_err(),
            NfsError::Status(Op::GetFh, Status::NOENT)
        );
    }

    #[test]
    fn a_result_of_another_operation_is_refused() {
        let mut reply = Reply::parse(words(&[0, 0, 1, 24, 0]), &[Op::PutFh]).unwrap();
        assert!(matches!(reply.ok(Op::PutFh), Err(NfsError::Garbled(..))));
    }

    #[test]
    fn nothing_is_taken_from_behind_a_result_that_does_not_decode() {
        let ops = [Op::GetFh, Op::RestoreFh];
        let body = words(&[0, 0, 2, 10, 0, u32::MAX, 31, 0]);
        let mut reply = Reply::parse(body, &ops).unwrap();
        assert!(reply.handle().is_err());
        assert!(reply.ok(Op::RestoreFh).is_err());
        let mut reply = Reply::parse(words(&[0, 0, 2, 24, 0, 31, 0]), &ops).unwrap();
        assert!(reply.ok(Op::GetFh).is_err());
        assert!(reply.ok(Op::RestoreFh).is_err());
    }

    #[test]
    fn more_results_than_operations_or_fewer_without_an_error_are_refused() {
        let two = words(&[0, 0, 2, 24, 0, 10, 0]);
        assert!(Reply::parse(two, &[Op::PutRootFh]).is_err());
        let one = words(&[0, 0, 1, 24, 0]);
        assert!(Reply::parse(one, &[Op::PutRootFh, Op::GetFh]).is_err());
        assert!(Reply::parse(words(&[0, 0, u32::MAX]), &[Op::PutRootFh]).is_err());
    }

    #[test]
    fn read_data_are_a_slice_of_the_record() {
        let mut body = words(&[0, 0, 1, 25, 0, 1, 3]).to_vec();
        body.extend(b"abc\0");
        let body = Bytes::from(body);
        let read = Reply::parse(body.clone(), &[Op::Read])
            .unwrap()
            .read()
            .unwrap();
        assert!(read.eof);
        assert_eq!(read.data, b"abc"[..]);
        assert_eq!(read.data.as_ptr(), body[28..].as_ptr());
    }
}
