//! OPEN and CLOSE.

use std::sync::Arc;

use super::super::client::Client;
use super::super::close;
use super::super::proto::attrs::{Attributes, CHANGE_ONLY, NewAttributes};
use super::super::proto::compound::Compound;
use super::super::proto::ops::{Claim, Create, Op, PRESERVE_UNLINKED};
use super::super::proto::reply::{NfsError, ReadResult, Reply};
use super::super::proto::status::{Status, state_is_gone};
use super::super::proto::types::{FileHandle, StateId};
use super::super::reopen::renew_state;
use super::super::state::OpenState;
use super::data::change_of;
use super::names::LOOKS;
use crate::rpc::auth::Credential;
use crate::rpc::caller;

/// Operations of a compound with an OPEN in it, SEQUENCE among them, at most.
pub(super) const OPEN_OPS: usize = 10;

/// A READ of a file that goes along with its OPEN, of its beginning as a rule.
#[derive(Clone, Copy, Debug)]
pub struct InlineRead {
    /// Of the first byte.
    pub offset: u64,
    /// Bytes.
    pub count: u32,
    /// Not if this is still the file's change attribute: its data are known.
    pub unless: Option<u64>,
    /// The change attribute is asked for once more, behind the READ.
    pub looks: bool,
}

/// What goes behind an OPEN by handle, in its compound.
#[derive(Clone, Copy, Debug)]
pub enum BehindOpen {
    /// Nothing but the file's attributes.
    Nothing,
    /// The file is cut to nothing.
    Truncate,
    /// Some of the file is read. The compound is not kept for a replay: a
    /// second OPEN of the same owner only moves the stateid.
    Read(InlineRead),
}

/// An OPEN of a file by its handle (CLAIM_FH).
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// What the result is merged into.
    pub open: &'a Arc<OpenState>,
    /// What the open is to allow (OPEN4_SHARE_ACCESS_*).
    pub access: u32,
    /// A directory and a name in it that must lead to the file.
    pub name: Option<(&'a FileHandle, &'a [u8])>,
    /// What else is done in the compound.
    pub behind: BehindOpen,
}

impl<'a> OpenRequest<'a> {
    /// An OPEN that allows so much, and nothing else.
    pub fn of(open: &'a Arc<OpenState>, access: u32) -> Self {
        Self {
            open,
            access,
            name: None,
            behind: BehindOpen::Nothing,
        }
    }
}

/// A file that was opened by its handle.
#[derive(Debug)]
pub struct OpenedHandle {
    /// The file's attributes.
    pub attrs: Attributes,
    /// See [`OpenedFile::preserves_unlinked`](super::OpenedFile::preserves_unlinked).
    pub preserves_unlinked: bool,
    /// What was read along, after `attrs` were taken; `None` if nothing was,
    /// for whatever reason.
    pub data: Option<ReadResult>,
    /// The change attribute behind `data`, if it was asked for and told.
    pub change_behind: Option<u64>,
}

/// What O_TRUNC makes of a file.
const EMPTY: NewAttributes = NewAttributes::of_size(0);

/// What a LOOKUP in front of an OPEN has found. `None`: there is nothing by that name.
fn found(reply: &mut Reply) -> Result<Option<FileHandle>, NfsError> {
    match reply.ok(Op::PutFh).and_then(|reply| reply.ok(Op::Lookup)) {
        Ok(reply) => reply.handle().map(Some),
        Err(NfsError::Status(
            Op::PutFh | Op::Lookup,
            // Or not for this user, who may have the file by other means (a descriptor
            // passed on, or /proc): whether it was by name, the second walk shows.
            Status::NOENT | Status::STALE | Status::NOTDIR | Status::ACCESS,
        )) => Ok(None),
        Err(error) => Err(error),
    }
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
    /// See [`OpenedFile::preserves_unlinked`](super::OpenedFile::preserves_unlinked).
    pub preserves_unlinked: bool,
}

impl Client {
    /// OPEN of a file by its handle. `None` if the request has a name that does not lead
    /// to the file (any more); the caller has to close the open then. One round trip;
    /// two, if there is a name and the file is cut.
    ///
    /// # Errors
    /// The server's, of the lookup, the OPEN or the truncation.
    pub async fn open_by_handle(
        self: &Arc<Self>,
        request: OpenRequest<'_>,
    ) -> Result<Option<OpenedHandle>, NfsError> {
        self.close_queue.room_to_open().await;
        match (request.behind, request.name) {
            (BehindOpen::Nothing, _) => self.open_and_read(&request, None).await,
            (BehindOpen::Read(inline), _) => self.open_and_read(&request, Some(inline)).await,
            (BehindOpen::Truncate, None) => self.open_and_truncate(&request).await,
            (BehindOpen::Truncate, Some(_)) => self.open_then_truncate(&request).await,
        }
    }

    /// OPEN, and a READ behind it as far as the server is not known to refuse that.
    async fn open_and_read(
        self: &Arc<Self>,
        request: &OpenRequest<'_>,
        inline: Option<InlineRead>,
    ) -> Result<Option<OpenedHandle>, NfsError> {
        let inline = inline.and_then(|inline| {
            let stateid = self.features.stateid()?;
            (inline.unless.is_none() || self.features.has_nverify()).then_some((inline, stateid))
        });
        let opened = self.send_open(request, |c| {
            c.then().get_attrs(self.object());
            if let Some((inline, stateid)) = inline {
                if let Some(change) = inline.unless {
                    c.differs_from(change);
                }
                c.read(stateid, inline.offset, inline.count);
                if inline.looks {
                    c.get_attrs(CHANGE_ONLY);
                }
            }
        });
        let Some((preserves_unlinked, mut reply)) = opened.await? else {
            return Ok(None);
        };
        let (attrs, data) = match reply.attrs() {
            Ok(attrs) => {
                let data = inline
                    .and_then(|(inline, stateid)| self.read_inline(&mut reply, inline, stateid));
                (attrs, data)
            }
            Err(_) => {
                let attrs = self.get_attrs(&request.open.cred, &request.open.handle);
                (attrs.await?, None)
            }
        };
        let looked = data.is_some() && inline.is_some_and(|(inline, _)| inline.looks);
        Ok(Some(OpenedHandle {
            attrs,
            preserves_unlinked,
            data,
            change_behind: looked.then(|| change_of(&mut reply)).flatten(),
        }))
    }

    /// OPEN, and SETATTR of the size behind it.
    async fn open_and_truncate(
        self: &Arc<Self>,
        request: &OpenRequest<'_>,
    ) -> Result<Option<OpenedHandle>, NfsError> {
        let open = request.open;
        let opened = self.send_open(request, |c| {
            c.once().set_attrs(StateId::CURRENT, &EMPTY);
            c.then().get_attrs(self.object());
        });
        let Some((preserves_unlinked, mut reply)) = opened.await? else {
            return Ok(None);
        };
        let after = match reply.attrs_set() {
            Ok(()) => reply.attrs().ok(),
            // A server without the current stateid (RFC 8881 §16.2.3.1.2).
            Err(NfsError::Status(_, Status::BAD_STATEID)) => {
                let moved = self.set_attrs(&open.cred, &open.handle, Some(open), &EMPTY);
                moved.await?.after.or_else(|| reply.attrs().ok())
            }
            Err(error) => return Err(error),
        };
        let attrs = match after {
            Some(attrs) => attrs,
            None => self.get_attrs(&open.cred, &open.handle).await?,
        };
        Ok(Some(OpenedHandle {
            attrs,
            preserves_unlinked,
            data: None,
            change_behind: None,
        }))
    }

    /// OPEN, and SETATTR of the size in a round trip of its own: which file the name
    /// leads to has to be known before anything of it is lost.
    async fn open_then_truncate(
        self: &Arc<Self>,
        request: &OpenRequest<'_>,
    ) -> Result<Option<OpenedHandle>, NfsError> {
        let open = request.open;
        let Some(opened) = self.open_and_read(request, None).await? else {
            return Ok(None);
        };
        let moved = self.set_attrs(&open.cred, &open.handle, Some(open), &EMPTY);
        let attrs = match moved.await?.after {
            Some(attrs) => attrs,
            None => self.get_attrs(&open.cred, &open.handle).await?,
        };
        Ok(Some(OpenedHandle { attrs, ..opened }))
    }

    /// Sends an OPEN by handle with what `behind` adds, and merges the result into the
    /// open. Whether the server keeps the data of a file without a name, and the rest of
    /// the reply; `None` if the name does not lead to the file.
    async fn send_open(
        self: &Arc<Self>,
        request: &OpenRequest<'_>,
        behind: impl Fn(&mut Compound) + Send + Sync,
    ) -> Result<Option<(bool, Reply)>, NfsError> {
        let OpenRequest {
            open, access, name, ..
        } = *request;
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
                behind(c);
            })
            .await;
        let mut reply = match opened {
            Ok(reply) => reply,
            Err(error) => {
                self.learn_open(open, &error).await;
                return Err(error);
            }
        };
        let leads_here = match name {
            None => true,
            Some(_) => match found(&mut reply)? {
                Some(handle) => handle == open.handle,
                None => return Ok(None),
            },
        };
        reply.ok(Op::PutFh)?;
        let opened = reply.open()?;
        let token = open.for_io().1;
        if !open.opened(opened.stateid, access) {
            renew_state(self, open, token, Status::BAD_STATEID).await?;
        }
        let preserves_unlinked = opened.flags & PRESERVE_UNLINKED != 0;
        Ok(leads_here.then_some((preserves_unlinked, reply)))
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
        let owner = reply.owner_or(owner);
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
