//! OPEN and CLOSE.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::client::Client;
use super::super::close;
use super::super::proto::attrs::{
    AttrSet, Attributes, CHANGE_ONLY, NewAttributes, NewTime, number as n,
};
use super::super::proto::compound::Compound;
use super::super::proto::ops::{Claim, Create, Op, PRESERVE_UNLINKED};
use super::super::proto::reply::{NfsError, ReadResult, Reply};
use super::super::proto::status::{Status, state_is_gone};
use super::super::proto::types::{FileHandle, NfsTime, StateId};
use super::super::reopen::renew_state;
use super::super::session::slots::Class;
use super::super::state::OpenState;
use super::names::{DirChange, LOOKS, change_before, saved_after};
use crate::rpc::auth::Credential;
use crate::rpc::caller;

/// Operations of a compound with an OPEN in it, SEQUENCE among them, at most.
const OPEN_OPS: usize = 10;

/// How `create` treats a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowToOpen {
    /// Open it as it is.
    Existing,
    /// Open it and cut it to nothing (O_TRUNC).
    Truncate,
    /// Fail (O_EXCL).
    Exclusive,
}

/// A file that was opened by name.
#[derive(Debug)]
pub struct OpenedFile {
    /// The open.
    pub open: Arc<OpenState>,
    /// The file's attributes.
    pub attrs: Attributes,
    /// How the directory moved.
    pub dir: DirChange,
    /// The server promises to keep the file's data until the last CLOSE even
    /// if its name is removed.
    pub preserves_unlinked: bool,
    /// The file was not there before.
    pub is_new: bool,
}

/// A READ of a file's beginning that goes along with its OPEN.
#[derive(Clone, Copy, Debug)]
pub struct InlineRead {
    /// Bytes.
    pub count: u32,
    /// Not if this is still the file's change attribute: its data are known.
    pub unless: Option<u64>,
}

/// A file that was opened by its handle.
#[derive(Debug)]
pub struct OpenedHandle {
    /// The file's attributes.
    pub attrs: Attributes,
    /// See [`OpenedFile::preserves_unlinked`].
    pub preserves_unlinked: bool,
    /// What was read along, after `attrs` were taken; `None` if nothing was,
    /// for whatever reason.
    pub data: Option<ReadResult>,
}

/// A file that was found and opened by its name, in one request.
#[derive(Debug)]
pub struct FoundOpen {
    /// The open.
    pub open: Arc<OpenState>,
    /// The file's attributes.
    pub attrs: Attributes,
    /// The directory's, from before.
    pub dir: Attributes,
    /// See [`OpenedFile::preserves_unlinked`].
    pub preserves_unlinked: bool,
}

impl Client {
    /// OPEN of a file by its handle (CLAIM_FH), merged into `open`. With
    /// `truncate` the file is cut to nothing in the same compound. With `name`
    /// (a directory and a name in it), `None` if that does not lead to the file
    /// (any more); the caller has to close `open` then. With both, the file is cut
    /// in a second round trip.
    ///
    /// With `along` the beginning of the file is read in the same compound,
    /// which is not kept for a replay: a second OPEN of the same owner only
    /// moves the stateid.
    pub async fn open_handle(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        access: u32,
        truncate: bool,
        name: Option<(&FileHandle, &[u8])>,
        inline: Option<InlineRead>,
    ) -> Result<Option<OpenedHandle>, NfsError> {
        let empty = NewAttributes {
            size: Some(0),
            ..NewAttributes::default()
        };
        if truncate && name.is_some() {
            // Which file it is has to be known before anything of it is lost.
            let opened = self.open_handle(open, access, false, name, None);
            let Some(opened) = Box::pin(opened).await? else {
                return Ok(None);
            };
            let moved = self.set_attrs(&open.cred, &open.handle, Some(open), &empty);
            return Ok(Some(OpenedHandle {
                attrs: match moved.await?.after {
                    Some(attrs) => attrs,
                    None => self.get_attrs(&open.cred, &open.handle).await?,
                },
                ..opened
            }));
        }
        self.close_queue.room_to_open().await;
        let inline = inline.filter(|_| !truncate).and_then(|inline| {
            let stateid = self.features.stateid()?;
            (inline.unless.is_none() || self.features.has_nverify()).then_some((inline, stateid))
        });
        let front = self.close_queue.close_along(&open.cred, OPEN_OPS);
        let opened = self
            .close_queue
            .call_behind(front, &open.cred, |c| {
                if let Some((dir, name)) = name {
                    c.put(dir).lookup(name).get_handle();
                }
                c.put(&open.handle).open(
                    self.open_owner(&open.owner.to_be_bytes()),
                    access,
                    &Create::No,
                    Claim::Handle,
                );
                if truncate {
                    c.once().set_attrs(StateId::CURRENT, &empty);
                }
                c.then().get_attrs(self.object());
                if let Some((inline, stateid)) = inline {
                    if let Some(change) = inline.unless {
                        c.differs_from(change);
                    }
                    c.read(stateid, 0, inline.count);
                }
            })
            .await;
        let mut reply = match opened {
            Ok(reply) => reply,
            Err(error) => {
                self.learn_open(open, &error).await;
                return Err(error);
            }
        };
        let mut leads_here = true;
        if name.is_some() {
            let found = match reply.ok(Op::PutFh).and_then(|reply| reply.ok(Op::Lookup)) {
                Ok(reply) => reply.handle()?,
                Err(NfsError::Status(
                    Op::PutFh | Op::Lookup,
                    // Or not for this user, who may have the file by other means (a descriptor
                    // passed on, or /proc): whether it was by name, the second walk shows.
                    Status::NOENT | Status::STALE | Status::NOTDIR | Status::ACCESS,
                )) => return Ok(None),
                Err(error) => return Err(error),
            };
            leads_here = found == open.handle;
        }
        reply.ok(Op::PutFh)?;
        let opened = reply.open()?;
        let token = open.for_io().1;
        if !open.opened(opened.stateid, access) {
            renew_state(self, open, token, Status::BAD_STATEID).await?;
        }
        if !leads_here {
            return Ok(None);
        }
        let preserves_unlinked = opened.flags & PRESERVE_UNLINKED != 0;
        let found = |attrs, data| {
            Ok(Some(OpenedHandle {
                attrs,
                preserves_unlinked,
                data,
            }))
        };
        if truncate {
            match reply.attrs_set() {
                Ok(()) => {}
                // A server without the current stateid (RFC 8881 §16.2.3.1.2).
                Err(NfsError::Status(_, Status::BAD_STATEID)) => {
                    let moved = self
                        .set_attrs(&open.cred, &open.handle, Some(open), &empty)
                        .await?;
                    if let Some(attrs) = moved.after {
                        return found(attrs, None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match reply.attrs() {
            Ok(attrs) => {
                let data = inline
                    .and_then(|(inline, stateid)| self.read_inline(&mut reply, inline, stateid));
                found(attrs, data)
            }
            Err(_) => found(self.get_attrs(&open.cred, &open.handle).await?, None),
        }
    }

    /// The data that came along with an OPEN, which stands whatever became of
    /// them.
    fn read_inline(
        &self,
        reply: &mut Reply,
        inline: InlineRead,
        stateid: StateId,
    ) -> Option<ReadResult> {
        if inline.unless.is_some() {
            match reply.ok(Op::NVerify) {
                Ok(_) => {}
                Err(NfsError::Status(_, Status::SAME | Status::DELAY | Status::OK)) => {
                    return None;
                }
                Err(error) => {
                    tracing::debug!("{error}: not asked again");
                    self.features.refused_nverify();
                    return None;
                }
            }
        }
        match reply.read() {
            Ok(read) if read.data.len() <= inline.count as usize => {
                self.metrics.bytes_read(read.data.len() as u64);
                Some(read)
            }
            Err(NfsError::Status(_, status))
                if state_is_gone(status) || status == Status::INVAL =>
            {
                tracing::debug!("READ in the compound of its OPEN: {status}");
                self.features.refused(stateid);
                None
            }
            _ => None,
        }
    }

    /// OPEN of a name, creating it (O_CREAT). An exclusive create sets in the
    /// same compound what the server could not set at creation: the times, in
    /// which it may have kept the verifier, and the mode.
    pub async fn create(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        name: &[u8],
        access: u32,
        mode: u32,
        how: HowToOpen,
    ) -> Result<OpenedFile, NfsError> {
        self.close_queue.room_to_open().await;
        let owner = self.opens.next_owner();
        let owner_bytes = owner.to_be_bytes();
        let at_creation = NewAttributes {
            mode: Some(mode),
            size: (how == HowToOpen::Truncate).then_some(0),
            ..NewAttributes::default()
        };
        let plan = (how == HowToOpen::Exclusive)
            .then(|| Exclusive::plan(mode, self.fs().exclcreat))
            .transpose()?;
        let front = self.close_queue.close_along(cred, OPEN_OPS);
        let opened = self
            .close_queue
            .call_behind(front, cred, |c: &mut Compound| {
                let create = match &plan {
                    Some(plan) => Create::Exclusive(plan.verifier, &plan.at_creation),
                    None => Create::Unchecked(&at_creation),
                };
                c.once()
                    .put(dir)
                    .get_attrs(CHANGE_ONLY)
                    .save()
                    .open(
                        self.open_owner(&owner_bytes),
                        access,
                        &create,
                        Claim::Name(name),
                    )
                    .get_handle()
                    .then();
                if let Some(plan) = &plan {
                    c.set_attrs(StateId::ANONYMOUS, &plan.afterwards);
                }
                c.get_attrs(self.object())
                    .restore()
                    .get_attrs(self.object());
            })
            .await;
        let mut reply = match opened {
            Ok(reply) => reply,
            Err(error) => {
                self.close_orphan(cred, (dir, name), owner, &error).await;
                return Err(error);
            }
        };
        let before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        let opened = match (reply.open(), &plan) {
            // Ours, on a server that has the verifier in the times, which were set
            // since.
            (Err(error @ NfsError::Status(_, Status::EXIST)), Some(plan)) if reply.redone() => {
                let ours = self.open_marked(cred, (dir, name), owner, access, plan.mark);
                return ours.await?.ok_or(error);
            }
            (opened, _) => opened?,
        };
        let handle = reply.handle()?;
        let open = self
            .opens
            .adopt(handle, Arc::clone(cred), owner, opened.stateid, access);
        let finish = async {
            if let Some(plan) = &plan
                && let Err(error) = reply.attrs_set()
            {
                tracing::debug!("attributes after an exclusive create: {error}, once more");
                self.set_attrs(cred, &open.handle, None, &plan.afterwards)
                    .await?;
            }
            let attrs = match reply.attrs() {
                Ok(attrs) => attrs,
                Err(_) => self.get_attrs(cred, &open.handle).await?,
            };
            let after = saved_after(&mut reply);
            Ok::<_, NfsError>((attrs, DirChange::new(opened.change, before, after)))
        };
        match finish.await {
            Ok((attrs, dir)) => Ok(OpenedFile {
                open,
                attrs,
                dir,
                preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
                // Of a file that exists no mode is set.
                is_new: plan.is_some() || opened.set.has(n::MODE),
            }),
            Err(error) => {
                let _ = caller::apart(self.close(&open)).await;
                Err(error)
            }
        }
    }

    /// OPEN of the file that a name leads to at this moment, which nobody can take away
    /// before it is open. `None` if the name leads to no file, or to none that this user
    /// may open: a LOOKUP tells more.
    pub async fn open_name(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        name: &[u8],
        access: u32,
    ) -> Result<Option<FoundOpen>, NfsError> {
        let mut attempts = 0;
        loop {
            match self.try_open_name(cred, dir, name, access).await {
                // The directory has just shown that it is there: another file has
                // taken the name while the server was at it.
                Err(NfsError::Status(op, Status::STALE)) if op != Op::PutFh && attempts < LOOKS => {
                    attempts += 1;
                }
                Err(NfsError::Status(Op::Open, why)) => {
                    tracing::debug!("not opened by its name: {why}");
                    return Ok(None);
                }
                result => return result.map(Some),
            }
        }
    }

    async fn try_open_name(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        name: &[u8],
        access: u32,
    ) -> Result<FoundOpen, NfsError> {
        self.close_queue.room_to_open().await;
        let owner = self.opens.next_owner();
        let owner_bytes = owner.to_be_bytes();
        let front = self.close_queue.close_along(cred, OPEN_OPS);
        let opened = self
            .close_queue
            .call_behind(front, cred, |c| {
                c.put(dir)
                    .get_attrs(self.object())
                    .once()
                    .open(
                        self.open_owner(&owner_bytes),
                        access,
                        &Create::No,
                        Claim::Name(name),
                    )
                    .get_handle()
                    .then()
                    .get_attrs(self.object());
            })
            .await;
        let mut reply = match opened {
            Ok(reply) => reply,
            Err(error) => {
                self.close_orphan(cred, (dir, name), owner, &error).await;
                return Err(error);
            }
        };
        reply.ok(Op::PutFh)?;
        let dir = reply.attrs()?;
        let opened = reply.open()?;
        let handle = reply.handle()?;
        let open = self
            .opens
            .adopt(handle, Arc::clone(cred), owner, opened.stateid, access);
        match reply.attrs() {
            Ok(attrs) => Ok(FoundOpen {
                open,
                attrs,
                dir,
                preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
            }),
            Err(error) => {
                let _ = caller::apart(self.close(&open)).await;
                Err(error)
            }
        }
    }

    /// OPEN of a file that an exclusive create of ours has made, which is known by the
    /// time of access that it was given; `None` if the name leads to another.
    async fn open_marked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        (dir, name): (&FileHandle, &[u8]),
        owner: u64,
        access: u32,
        mark: NfsTime,
    ) -> Result<Option<OpenedFile>, NfsError> {
        let found = self.lookup(cred, dir, name).await?;
        let Some((handle, attrs)) = found.object else {
            return Ok(None);
        };
        if !attrs.present.has(n::TIME_ACCESS) || attrs.atime != mark {
            return Ok(None);
        }
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once().put(&handle).open(
                    self.open_owner(&owner.to_be_bytes()),
                    access,
                    &Create::No,
                    Claim::Handle,
                );
            })
            .await?;
        let opened = reply.ok(Op::PutFh)?.open()?;
        let open = self
            .opens
            .adopt(handle, Arc::clone(cred), owner, opened.stateid, access);
        Ok(Some(OpenedFile {
            open,
            attrs,
            dir: DirChange::default(),
            preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
            // It was made a while ago; others may know it by now.
            is_new: false,
        }))
    }

    /// CLOSE. The open is gone locally whatever the server says; what it says
    /// is for the log.
    pub async fn close(self: &Arc<Self>, open: &Arc<OpenState>) -> Result<(), NfsError> {
        match self.opens.close_here(open) {
            Some(stateid) => close::close(&self.fore, open, stateid).await,
            None => Ok(()),
        }
    }

    /// CLOSE, soon, together with others. The open is gone locally at once.
    /// For an open that nothing is written with any more.
    pub fn close_soon(&self, open: &Arc<OpenState>) {
        if let Some(stateid) = self.opens.close_here(open) {
            self.close_queue.close_soon(open, stateid);
        }
    }

    /// Sends every CLOSE that still waits, and waits for all of them.
    pub async fn closes_sent(&self) {
        self.close_queue.sent_all().await;
    }

    /// A new open of `handle`, not yet known to the server.
    pub fn prepare_open(&self, handle: FileHandle, cred: Arc<Credential>) -> Arc<OpenState> {
        self.opens.prepare(handle, cred)
    }
}

/// What an exclusive create sets when.
struct Exclusive {
    verifier: [u8; 8],
    at_creation: NewAttributes,
    afterwards: NewAttributes,
    /// The time of access that the file gets, which is like no other: should it be
    /// asked later whose the file is, this says so.
    mark: NfsTime,
}

impl Exclusive {
    /// `allowed` is suppattr_exclcreat (RFC 8881 §5.8.1.14): what may be set
    /// together with the verifier. The times are set afterwards in any case,
    /// because a server may keep the verifier in them.
    fn plan(mode: u32, allowed: AttrSet) -> Result<Self, NfsError> {
        let mut verifier = [0; 8];
        getrandom::fill(&mut verifier)
            .map_err(|_| NfsError::Unfit("no random numbers for an exclusive create"))?;
        let with_mode = allowed.has(n::MODE);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mark = NfsTime {
            sec: now.map_or(0, |now| now.as_secs().cast_signed()),
            // In microseconds: not every server keeps more.
            nsec: u32::from_ne_bytes([verifier[0], verifier[1], verifier[2], 0]) % 1_000_000 * 1000,
        };
        Ok(Self {
            verifier,
            mark,
            at_creation: NewAttributes {
                mode: with_mode.then_some(mode),
                ..NewAttributes::default()
            },
            afterwards: NewAttributes {
                mode: (!with_mode).then_some(mode),
                atime: Some(NewTime::At(mark)),
                mtime: Some(NewTime::Server),
                ..NewAttributes::default()
            },
        })
    }
}
