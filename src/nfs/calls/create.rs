//! OPEN that creates (O_CREAT), and whose file it is that an exclusive create finds.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::client::Client;
use super::super::proto::attrs::{
    AttrSet, Attributes, CHANGE_ONLY, NewAttributes, NewTime, number as n,
};
use super::super::proto::compound::Compound;
use super::super::proto::ops::{Claim, Create, Op, PRESERVE_UNLINKED};
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::{ChangeInfo, FileHandle, NfsTime, StateId};
use super::super::session::slots::Class;
use super::super::state::OpenState;
use super::names::{DirChange, change_before, saved_after};
use super::opens::OPEN_OPS;
use crate::rpc::auth::Credential;
use crate::rpc::caller;

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

impl Client {
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
        let plan = CreatePlan::new(mode, how, self.fs().exclcreat, self.mark())?;
        let front = self.close_queue.close_along(cred, OPEN_OPS);
        let opened = self
            .close_queue
            .call_behind(front, cred, |c| {
                self.add_create(c, (dir, name), owner, access, &plan);
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
            (Err(error @ NfsError::Status(_, Status::EXIST)), CreatePlan::Exclusive(plan))
                if reply.redone() =>
            {
                let ours = self.open_marked(cred, (dir, name), owner, access, plan.mark);
                return ours.await?.ok_or(error);
            }
            (opened, _) => opened?,
        };
        let handle = reply.handle()?;
        let owner = reply.owner_or(owner);
        let open = self
            .opens
            .adopt(handle, Arc::clone(cred), owner, opened.stateid, access);
        let finish = self.after_create(&open, &mut reply, &plan, (opened.change, before));
        match finish.await {
            Ok((attrs, dir)) => Ok(OpenedFile {
                open,
                attrs,
                dir,
                preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
                // Of a file that exists no mode is set.
                is_new: plan.is_exclusive() || opened.set.has(n::MODE),
            }),
            Err(error) => {
                let _ = caller::apart(self.close(&open)).await;
                Err(error)
            }
        }
    }

    /// The compound of a create.
    fn add_create(
        &self,
        c: &mut Compound,
        (dir, name): (&FileHandle, &[u8]),
        owner: u64,
        access: u32,
        plan: &CreatePlan,
    ) {
        c.once()
            .put(dir)
            .get_attrs(CHANGE_ONLY)
            .save()
            .open(
                self.open_owner(&owner.to_be_bytes()),
                access,
                &plan.create(),
                Claim::Name(name),
            )
            .get_handle()
            .then();
        if let CreatePlan::Exclusive(plan) = plan {
            c.set_attrs(StateId::ANONYMOUS, &plan.afterwards);
        }
        c.get_attrs(self.object())
            .restore()
            .get_attrs(self.object());
    }

    /// What stands behind the OPEN in a create: the file's attributes, and how the
    /// directory moved from `before`. What the server left out is asked for.
    async fn after_create(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        reply: &mut Reply,
        plan: &CreatePlan,
        (change, before): (ChangeInfo, Option<u64>),
    ) -> Result<(Attributes, DirChange), NfsError> {
        if let CreatePlan::Exclusive(plan) = plan
            && let Err(error) = reply.attrs_set()
        {
            tracing::debug!("attributes after an exclusive create: {error}, once more");
            self.set_attrs(&open.cred, &open.handle, None, &plan.afterwards)
                .await?;
        }
        let attrs = match reply.attrs() {
            Ok(attrs) => attrs,
            Err(_) => self.get_attrs(&open.cred, &open.handle).await?,
        };
        let after = saved_after(reply);
        Ok((attrs, DirChange::new(change, before, after)))
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
        if !attrs.present.has(n::TIME_ACCESS) || !is_mark(attrs.atime, mark) {
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
}

/// How long a request may be on its way from one process to the next, seconds.
const ON_ITS_WAY: i64 = 3600;

/// The time is the mark. When the operation runs again in another process, the first one has
/// set it some time before.
fn is_mark(time: NfsTime, mark: NfsTime) -> bool {
    let before = if caller::request().resent {
        ON_ITS_WAY
    } else {
        0
    };
    time.nsec == mark.nsec && (mark.sec.saturating_sub(before)..=mark.sec).contains(&time.sec)
}

/// How a file is created.
enum CreatePlan {
    /// A file that exists is opened; these attributes are for one that does not.
    Unchecked(NewAttributes),
    /// A file that exists is an error.
    Exclusive(Exclusive),
}

impl CreatePlan {
    fn new(
        mode: u32,
        how: HowToOpen,
        exclcreat: AttrSet,
        of_request: Option<u64>,
    ) -> Result<Self, NfsError> {
        if how == HowToOpen::Exclusive {
            return Exclusive::plan(mode, exclcreat, of_request).map(Self::Exclusive);
        }
        Ok(Self::Unchecked(NewAttributes {
            mode: Some(mode),
            size: (how == HowToOpen::Truncate).then_some(0),
            ..NewAttributes::default()
        }))
    }

    fn create(&self) -> Create<'_> {
        match self {
            Self::Unchecked(at_creation) => Create::Unchecked(at_creation),
            Self::Exclusive(plan) => Create::Exclusive(plan.verifier, &plan.at_creation),
        }
    }

    fn is_exclusive(&self) -> bool {
        matches!(self, Self::Exclusive(_))
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
    /// because a server may keep the verifier in them. The verifier is `of_request` where
    /// there is such a number, and drawn where there is none.
    fn plan(mode: u32, allowed: AttrSet, of_request: Option<u64>) -> Result<Self, NfsError> {
        let verifier = match of_request {
            Some(number) => number.to_be_bytes(),
            None => {
                let mut verifier = [0; 8];
                getrandom::fill(&mut verifier)
                    .map_err(|_| NfsError::Unfit("no random numbers for an exclusive create"))?;
                verifier
            }
        };
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
