//! OPEN and CLOSE.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::{
    AttrSet, Attributes, CHANGE_ONLY, NewAttributes, NewTime, number as n,
};
use super::super::proto::compound::Compound;
use super::super::proto::ops::{Claim, Create, Op, PRESERVE_UNLINKED};
use super::super::proto::reply::NfsError;
use super::super::proto::status::Status;
use super::super::proto::types::{FileHandle, StateId};
use super::super::session::slots::Class;
use super::super::state::OpenState;
use super::names::{Moved, change_before, saved_after};
use crate::rpc::auth::Credential;

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
    pub dir: Moved,
    /// The server promises to keep the file's data until the last CLOSE even
    /// if its name is removed.
    pub preserves_unlinked: bool,
}

impl Client {
    /// OPEN of a file by its handle (CLAIM_FH), merged into `open`. With
    /// `truncate` the file is cut to nothing in the same compound. With `name`
    /// (a directory and a name in it), `None` if that does not lead to the file
    /// (any more); the caller has to close `open` then.
    pub async fn open_handle(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        access: u32,
        truncate: bool,
        name: Option<(&FileHandle, &[u8])>,
    ) -> Result<Option<(Attributes, bool)>, NfsError> {
        let empty = NewAttributes {
            size: Some(0),
            ..NewAttributes::default()
        };
        let mut reply = self
            .call(&open.cred, Class::Metadata, |c| {
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
            })
            .await?;
        let mut leads_here = true;
        if name.is_some() {
            let found = match reply.ok(Op::PutFh).and_then(|reply| reply.ok(Op::Lookup)) {
                Ok(reply) => reply.handle()?,
                Err(NfsError::Status(
                    Op::PutFh | Op::Lookup,
                    Status::NOENT | Status::STALE | Status::NOTDIR,
                )) => return Ok(None),
                // Who has the file by other means (a descriptor passed on, or
                // /proc) need not be able to search its directory.
                Err(NfsError::Status(Op::Lookup, Status::ACCESS)) => {
                    return Box::pin(self.open_handle(open, access, truncate, None)).await;
                }
                Err(error) => return Err(error),
            };
            leads_here = found == open.handle;
        }
        reply.ok(Op::PutFh)?;
        let opened = reply.open()?;
        let token = open.for_io().1;
        if !open.opened(opened.stateid, access) {
            self.renew_state(open, token, Status::BAD_STATEID).await?;
        }
        if !leads_here {
            return Ok(None);
        }
        let preserves = opened.flags & PRESERVE_UNLINKED != 0;
        if truncate {
            match reply.attrs_set() {
                Ok(()) => {}
                // A server without the current stateid (RFC 8881 §16.2.3.1.2).
                Err(NfsError::Status(_, Status::BAD_STATEID)) => {
                    let moved = self
                        .set_attrs(&open.cred, &open.handle, Some(open), &empty)
                        .await?;
                    if let Some(attrs) = moved.after {
                        return Ok(Some((attrs, preserves)));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match reply.attrs() {
            Ok(attrs) => Ok(Some((attrs, preserves))),
            Err(_) => {
                let attrs = self.get_attrs(&open.cred, &open.handle).await?;
                Ok(Some((attrs, preserves)))
            }
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
        let mut reply = self
            .call(cred, Class::Metadata, |c: &mut Compound| {
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
            .await?;
        let before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        let opened = reply.open()?;
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
            Ok::<_, NfsError>((attrs, Moved { before, after }))
        };
        match finish.await {
            Ok((attrs, dir)) => Ok(OpenedFile {
                open,
                attrs,
                dir,
                preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
            }),
            Err(error) => {
                let _ = self.close(&open).await;
                Err(error)
            }
        }
    }

    /// CLOSE. The open is gone locally whatever the server says; what it says
    /// is for the log.
    pub async fn close(self: &Arc<Self>, open: &Arc<OpenState>) -> Result<(), NfsError> {
        self.opens.forget(open);
        let was_dead = open.is_dead();
        // Requests may still be on their way with it (reading ahead): they must
        // not open it again.
        open.lose();
        match open.exact() {
            Some(stateid) if !was_dead => self.send_close(open, stateid).await,
            _ => Ok(()),
        }
    }

    /// The CLOSE itself. `stateid` is what it was when this began.
    pub(in super::super) async fn send_close(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        stateid: StateId,
    ) -> Result<(), NfsError> {
        let mut reply = self
            .call(&open.cred, Class::Metadata, |c| {
                c.once()
                    .put(&open.handle)
                    .close(open.exact().unwrap_or(stateid));
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.stateid(Op::Close)?;
        Ok(())
    }

    /// A new open of `handle`, not yet known to the server.
    pub fn prepare_open(&self, handle: FileHandle, cred: Arc<Credential>) -> Arc<OpenState> {
        self.opens.prepare(handle, cred)
    }

    fn open_owner<'a>(&self, owner: &'a [u8]) -> (u64, &'a [u8]) {
        (self.client_id.lock().id, owner)
    }
}

/// What an exclusive create sets when.
struct Exclusive {
    verifier: [u8; 8],
    at_creation: NewAttributes,
    afterwards: NewAttributes,
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
        Ok(Self {
            verifier,
            at_creation: NewAttributes {
                mode: with_mode.then_some(mode),
                ..NewAttributes::default()
            },
            afterwards: NewAttributes {
                mode: (!with_mode).then_some(mode),
                atime: Some(NewTime::Server),
                mtime: Some(NewTime::Server),
                ..NewAttributes::default()
            },
        })
    }
}
