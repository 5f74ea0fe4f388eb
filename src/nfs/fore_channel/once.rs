//! Compounds that must not run twice, over the death of the process that has sent them.
//!
//! The reply cache of a slot makes a compound run once as long as somebody knows its slot
//! (RFC 8881 §2.10.6). So a record of it is put into the write-ahead log before it is sent, and
//! again with the reply before its slot is used anew; it goes when the kernel's request was
//! answered. The process that takes over finds out what became of those without a reply
//! ([`settle`](super::settle)). When the kernel sends the request again, the operation runs from
//! its beginning, and a compound that is the same as one of the records is not sent: it gets the
//! reply that there is.
//!
//! What makes two compounds the same is their *own part* ([`OwnPart`]): neither the slot, nor
//! CLOSEs in front, nor what stands behind [`Compound::then`], nor the owner of an OPEN by
//! name, which is another one in each run.
//!
//! The lock here is held for moments; nothing but the log is locked inside it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::proto::compound::{Compound, OwnPart, SlotUse};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::{FileHandle, SessionId, StateId};
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::wal::{Survived, Table, Unreadable, Wal};

/// The use of a slot that a compound was sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OnSlot {
    pub(super) session: SessionId,
    pub(super) slot: u32,
    pub(super) seqid: u32,
}

/// A compound that must not run twice.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SentRecord {
    /// The kernel's request that it is about.
    unique: u64,
    /// Where its reply is kept. `None`: nobody can tell any more what became of it.
    pub(super) at: Option<OnSlot>,
    ops: Vec<u32>,
    own: OwnPart,
    cred: Credential,
    /// The message as it was sent.
    pub(super) call: Bytes,
    /// A sending before this one may have run.
    redone: bool,
    reply: Option<Bytes>,
}

/// What a reply says of the compound.
enum Verdict {
    /// It ran.
    Answered,
    /// It was refused, and had no effect by this sending.
    Refused,
    /// It had no effect, and is to be sent again.
    DidNotRun,
    /// It ran, and what came of it is not known.
    NotTold,
}

impl SentRecord {
    pub(super) fn ops(&self) -> Vec<Op> {
        self.ops
            .iter()
            .filter_map(|&number| Op::of(number))
            .collect()
    }

    /// The message with SEQUENCE in it and nothing else.
    pub(super) fn alone(&self) -> Vec<u8> {
        let mut head = self.call.to_vec();
        let at = self.own.counts_at;
        head[at..at + 4].copy_from_slice(&1_u32.to_be_bytes());
        head.truncate(self.own.sequence_ends);
        head
    }

    fn judge(&self, reply: &Reply) -> Verdict {
        let essential = self.own.essential;
        match (reply.failed_at(), reply.status()) {
            (Some(at), _) if at > essential => Verdict::Answered,
            (Some(_), Status::RETRY_UNCACHED_REP) => Verdict::NotTold,
            (Some(at), _) if at <= self.own.front => Verdict::DidNotRun,
            (Some(_), Status::DELAY | Status::GRACE | Status::STALE_CLIENTID) => Verdict::DidNotRun,
            (Some(_), _) => Verdict::Refused,
            (None, _) => Verdict::Answered,
        }
    }

    /// The reply belongs to the operation's next run, too. A refusal does only if it may be the
    /// work of an earlier sending: the operation has perhaps gone on from it, sent the same again,
    /// and that is what its next run is to find.
    fn is_final(&self, reply: &Reply) -> bool {
        match self.judge(reply) {
            Verdict::Answered => true,
            Verdict::Refused => self.redone,
            Verdict::DidNotRun | Verdict::NotTold => false,
        }
    }

    /// What is known by this reply, which is `body`. `None`: that it had no effect.
    pub(super) fn settled_by(&self, reply: &Reply, body: Bytes) -> Option<Settled> {
        match self.judge(reply) {
            Verdict::NotTold => Some(Settled::Unknown),
            _ if self.is_final(reply) => Some(Settled::Reply(body)),
            // This sending had none; of one before it nobody knows.
            _ => self.redone.then_some(Settled::Unknown),
        }
    }

    /// The reply without SEQUENCE and what stood in front.
    fn answer(&self) -> Option<Reply> {
        let mut reply = Reply::parse(self.reply.clone()?, &self.ops()).ok()?;
        if !self.is_final(&reply) {
            return None;
        }
        reply.skip_sequence().ok()?;
        for at in 1..=self.own.front {
            match Op::of(self.ops[at])? {
                Op::PutFh => drop(reply.ok(Op::PutFh).ok()?),
                op => drop(reply.stateid(op).ok()?),
            }
        }
        reply.set_kept(self.own.owner);
        if self.redone {
            reply.set_redone();
        }
        Some(reply)
    }

    /// There is no reply to be given to anybody, and it may have run.
    fn may_have_run(&self) -> bool {
        let Some(body) = &self.reply else {
            return self.redone || self.at.is_some();
        };
        let reply = Reply::parse(body.clone(), &self.ops());
        let had_none = |reply| {
            let verdict = self.judge(&reply);
            matches!(verdict, Verdict::DidNotRun | Verdict::Refused)
        };
        self.redone || !reply.is_ok_and(had_none)
    }

    /// What it has opened, if it did.
    fn opened(&self) -> Option<UnusedOpen> {
        let owner = self.own.owner?;
        let mut reply = self.answer()?;
        let mut stateid = None;
        for op in self.ops().into_iter().skip(1 + self.own.front) {
            match op {
                Op::GetAttr => drop(reply.attrs().ok()?),
                Op::Open => stateid = Some(reply.open().ok()?.stateid),
                Op::GetFh => {
                    return Some(UnusedOpen {
                        handle: reply.handle().ok()?,
                        stateid: stateid?,
                        owner,
                        access: self.own.access,
                        cred: self.cred.clone(),
                    });
                }
                op => drop(reply.ok(op).ok()?),
            }
        }
        None
    }
}

/// A file that is open at the server, and that nobody here has.
#[derive(Debug)]
pub(in crate::nfs) struct UnusedOpen {
    pub(in crate::nfs) handle: FileHandle,
    pub(in crate::nfs) stateid: StateId,
    pub(in crate::nfs) owner: u64,
    pub(in crate::nfs) access: u32,
    pub(in crate::nfs) cred: Credential,
}

/// What a process that was killed has left of requests that were not answered.
#[derive(Clone, Debug, Default)]
pub struct Unanswered {
    sent: Vec<(u64, SentRecord)>,
    given_up: HashSet<u64>,
}

impl Unanswered {
    /// Reads it from the log of that process.
    ///
    /// # Errors
    /// A record is not what it should be.
    pub fn read(log: &Survived) -> Result<Self, Unreadable> {
        let given_up: Vec<(u64, ())> = log.table(Table::GivenUp)?;
        Ok(Self {
            sent: log.table(Table::Sent)?,
            given_up: given_up.into_iter().map(|(unique, ())| unique).collect(),
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Once {
    wal: Wal,
    /// There is a log, or what another process has left.
    active: AtomicBool,
    next: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: HashMap<u64, OfRequest>,
    /// Of the process before this one, and not yet used.
    before: BTreeMap<u64, SentRecord>,
    given_up: HashSet<u64>,
}

/// The records of one request of the kernel's.
#[derive(Debug, Default)]
struct OfRequest {
    serials: Vec<u64>,
    /// Compounds under way.
    running: usize,
    /// The kernel was answered.
    over: bool,
}

/// What there is for a compound that is about to be sent.
pub(super) enum Begun {
    /// The reply to the same compound.
    Known(Reply),
    /// Nothing; its record, if it is one that needs it.
    New(Option<Recording>),
}

impl Once {
    pub(super) fn new(wal: Wal) -> Arc<Self> {
        Arc::new(Self {
            active: AtomicBool::new(wal.is_on()),
            wal,
            next: AtomicU64::new(1),
            inner: Mutex::default(),
        })
    }

    pub(super) fn is_on(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Takes in what another process has left. This log has all of it from here on.
    pub(super) fn take_in(&self, left: Unanswered) {
        let Unanswered { sent, given_up } = left;
        for unique in &given_up {
            self.wal.put(Table::GivenUp, *unique, &());
        }
        for (serial, record) in &sent {
            self.wal.put(Table::Sent, *serial, record);
        }
        let last = sent.iter().map(|(serial, _)| *serial).max();
        self.next
            .fetch_max(last.map_or(1, |last| last + 1), Ordering::Relaxed);
        self.active
            .fetch_or(!sent.is_empty() || !given_up.is_empty(), Ordering::Relaxed);
        let mut inner = self.inner.lock();
        inner.before = sent.into_iter().collect();
        inner.given_up = given_up;
    }

    /// A compound of this task's operation is about to be sent for the first time.
    pub(super) fn begin(self: &Arc<Self>, compound: &Compound, cred: &Credential) -> Begun {
        let request = caller::request();
        if request.unique == 0 || !compound.is_once() {
            return Begun::New(None);
        }
        let Some(own) = compound.own_part() else {
            return Begun::New(None);
        };
        let mut inner = self.inner.lock();
        let same = inner.before.iter().find(|(_, record)| {
            request.resent
                && record.unique == request.unique
                && record.cred == *cred
                && record.own.is_same(&own)
        });
        let known = same.map(|(serial, _)| *serial);
        let record = known.and_then(|serial| inner.before.remove(&serial));
        let serial = known.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        let of_request = inner.requests.entry(request.unique).or_default();
        of_request.serials.push(serial);
        if let Some(reply) = record.as_ref().and_then(SentRecord::answer) {
            return Begun::Known(reply);
        }
        of_request.running += 1;
        drop(inner);
        Begun::New(Some(Recording {
            once: Arc::clone(self),
            serial,
            record: Mutex::new(SentRecord {
                unique: request.unique,
                at: None,
                ops: Vec::new(),
                own,
                cred: cred.clone(),
                call: Bytes::new(),
                redone: record.is_some_and(|record| record.may_have_run()),
                reply: None,
            }),
        }))
    }

    /// The kernel's request was answered: nobody asks for its outcomes any more. What it has
    /// opened without using it.
    pub(super) fn answered(&self, unique: u64) -> Vec<UnusedOpen> {
        if !self.is_on() {
            return Vec::new();
        }
        let mut inner = self.inner.lock();
        let unused = inner
            .before
            .extract_if(.., |_, record| record.unique == unique);
        let unused: Vec<_> = unused.collect();
        if let Some(of_request) = inner.requests.get_mut(&unique) {
            of_request.over = true;
            self.tidy(&mut inner, unique);
        }
        drop(inner);
        self.drop_unused(unused)
    }

    /// The kernel is about to be answered although the operation has not ended.
    pub(super) fn given_up(&self, unique: u64) {
        if !self.is_on() {
            return;
        }
        let inner = self.inner.lock();
        if inner.requests.contains_key(&unique) {
            self.wal.put(Table::GivenUp, unique, &());
        }
    }

    /// All requests that the kernel had to send again have come and were answered.
    pub(super) fn through(&self) -> Vec<UnusedOpen> {
        if !self.is_on() {
            return Vec::new();
        }
        let mut inner = self.inner.lock();
        let unused = std::mem::take(&mut inner.before).into_iter().collect();
        let given_up = std::mem::take(&mut inner.given_up);
        drop(inner);
        let opens = self.drop_unused(unused);
        for unique in given_up {
            self.wal.remove(Table::GivenUp, unique);
        }
        opens
    }

    fn drop_unused(&self, unused: Vec<(u64, SentRecord)>) -> Vec<UnusedOpen> {
        let drop_one = |(serial, record): (u64, SentRecord)| {
            self.wal.remove(Table::Sent, serial);
            record.opened()
        };
        unused.into_iter().filter_map(drop_one).collect()
    }

    /// Removes the records of a request that is over and has nothing under way.
    fn tidy(&self, inner: &mut Inner, unique: u64) {
        let done = |of: &OfRequest| of.over && of.running == 0;
        if inner.requests.get(&unique).is_some_and(done)
            && let Some(of_request) = inner.requests.remove(&unique)
        {
            for serial in of_request.serials {
                self.wal.remove(Table::Sent, serial);
            }
            // Last: without it a record above would be sent again by the next process.
            self.wal.remove(Table::GivenUp, unique);
        }
    }

    /// A compound whose reply may be had from its slot, and whether nobody waits for it.
    pub(super) fn unsettled(&self) -> Option<(u64, SentRecord, bool)> {
        let inner = self.inner.lock();
        let mut before = inner.before.iter();
        let (serial, record) =
            before.find(|(_, record)| record.reply.is_none() && record.at.is_some())?;
        let given_up = inner.given_up.contains(&record.unique);
        Some((*serial, record.clone(), given_up))
    }

    /// What became of it. `None`: it had no effect.
    pub(super) fn settled(&self, serial: u64, reply: Option<Settled>) {
        let mut inner = self.inner.lock();
        let Some(settled) = reply else {
            inner.before.remove(&serial);
            self.wal.remove(Table::Sent, serial);
            return;
        };
        let Some(record) = inner.before.get_mut(&serial) else {
            return;
        };
        match settled {
            Settled::Reply(reply) => record.reply = Some(reply),
            Settled::Unknown => (record.at, record.redone) = (None, true),
        }
        self.wal.put(Table::Sent, serial, record);
    }
}

/// What is known of a compound that may have run.
pub(super) enum Settled {
    Reply(Bytes),
    Unknown,
}

/// The record of a compound while it is sent.
pub(super) struct Recording {
    once: Arc<Once>,
    serial: u64,
    record: Mutex<SentRecord>,
}

impl Recording {
    /// See [`Reply::redone`].
    pub(super) fn redone(&self) -> bool {
        self.record.lock().redone
    }

    /// The compound is about to be sent on this slot.
    pub(super) fn sending(&self, compound: &Compound, slot: &SlotUse) {
        let Some(own) = compound.own_part() else {
            return;
        };
        let mut record = self.record.lock();
        record.at = Some(OnSlot {
            session: slot.session,
            slot: slot.slot,
            seqid: slot.seqid,
        });
        record.ops = compound.ops().iter().map(|op| *op as u32).collect();
        record.own = own;
        record.call = Bytes::from(compound.finish(Some(*slot)).head);
        record.reply = None;
        self.put(&record);
    }

    /// Its reply is in; the slot has not been given back.
    pub(super) fn replied(&self, body: Bytes) {
        let mut record = self.record.lock();
        record.reply = Some(body);
        // What had no effect is nothing that the next run must know of.
        match record.may_have_run() {
            true => self.put(&record),
            false => self.once.wal.remove(Table::Sent, self.serial),
        }
    }

    /// The slot was left without a reply.
    pub(super) fn left(&self, may_have_run: bool) {
        let mut record = self.record.lock();
        record.redone |= may_have_run;
        (record.at, record.reply) = (None, None);
        match record.redone {
            true => self.put(&record),
            false => self.once.wal.remove(Table::Sent, self.serial),
        }
    }

    fn put(&self, record: &SentRecord) {
        self.once.wal.put(Table::Sent, self.serial, record);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let unique = self.record.get_mut().unique;
        let mut inner = self.once.inner.lock();
        if let Some(of_request) = inner.requests.get_mut(&unique) {
            of_request.running -= 1;
        }
        self.once.tidy(&mut inner, unique);
    }
}

/// What became of an exchange on an old slot; an error says that it must be asked again.
pub(super) type Asked = Result<Option<Settled>, NfsError>;
