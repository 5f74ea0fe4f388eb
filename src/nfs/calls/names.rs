//! Names: LOOKUP, CREATE, REMOVE, RENAME, LINK.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::{self, Attributes, NewAttributes};
use super::super::proto::ops::{Make, Op};
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::{ChangeInfo, FileHandle};
use super::super::session::slots::Class;
use crate::rpc::auth::Credential;
use crate::rpc::caller;

/// A name that was looked up.
#[derive(Clone, Debug)]
pub struct Found {
    /// The object, or `None` if there is no such name.
    pub object: Option<(FileHandle, Attributes)>,
    /// The directory, from before the lookup.
    pub dir: Attributes,
}

/// How an object moved when we changed it: its change attribute taken just
/// before, in the same compound, and its attributes just after. If nobody else
/// was seen to have changed it up to `before`, what is known of it stays true.
#[derive(Clone, Debug, Default)]
pub struct PrePost {
    /// The change attribute before; `None` if not known.
    pub before: Option<u64>,
    /// The attributes after; `None` if they could not be had.
    pub after: Option<Attributes>,
}

/// How a directory moved when we changed one of its names.
#[derive(Clone, Debug, Default)]
pub struct DirChange {
    /// As the attributes around the change show it.
    pub seen: PrePost,
    /// The change attribute just before and just after, if the server vouches
    /// for that nothing lies between (change_info4, RFC 8881 §3.3.5). EFS is not
    /// known to, nfs-ganesha does not.
    pub atomic: Option<(u64, u64)>,
}

/// What RENAME came to.
#[derive(Clone, Debug, Default)]
pub struct Renamed {
    /// How the directory moved that the object has left.
    pub left: DirChange,
    /// The one it has come to.
    pub entered: DirChange,
    /// What the new name leads to after it, if the server has said.
    pub leads_to: Option<FileHandle>,
    /// How many names what was moved has, if the server has said. Of a file with several
    /// the old name may be one still: a rename between two names of one file moves
    /// nothing (RFC 8881 §18.26.3).
    pub links: Option<u32>,
}

impl DirChange {
    pub(super) fn new(info: ChangeInfo, before: Option<u64>, after: Option<Attributes>) -> Self {
        Self {
            seen: PrePost { before, after },
            atomic: info.atomic.then_some((info.before, info.after)),
        }
    }
}

/// An object that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The new object.
    pub handle: FileHandle,
    /// Its attributes.
    pub attrs: Attributes,
    /// How the directory moved.
    pub dir: DirChange,
}

/// So often is a name looked up whose object is gone before its attributes are
/// taken: each time somebody has replaced it meanwhile.
pub(super) const LOOKS: u32 = 8;

impl Client {
    /// LOOKUP of one name. That its object is gone before the attributes are
    /// taken does not mean that the name is: most likely another one has
    /// replaced it, so the name is looked up again. STALE if that happens
    /// [`LOOKS`] times in a row.
    pub async fn lookup(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Found, NfsError> {
        for _ in 0..LOOKS {
            if let Some(found) = self.look(cred, dir, name).await? {
                return Ok(found);
            }
        }
        Err(NfsError::Status(Op::Lookup, Status::STALE))
    }

    /// LOOKUP, once. `None` if the object was gone when it had been found.
    async fn look(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Option<Found>, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(dir)
                    .get_attrs(self.object())
                    .lookup(name)
                    .get_handle()
                    .get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        let dir = reply.attrs()?;
        let object = match reply.ok(Op::Lookup) {
            Ok(_) => reply.handle().and_then(|fh| Ok(Some((fh, reply.attrs()?)))),
            Err(NfsError::Status(Op::Lookup, Status::NOENT)) => Ok(None),
            Err(error) => Err(error),
        };
        match object {
            Ok(object) => Ok(Some(Found { object, dir })),
            // The directory has just shown that it is there.
            Err(NfsError::Status(_, Status::STALE)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// LOOKUPP: the directory that a directory lies in. NOENT for the server's root.
    pub async fn lookup_parent(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
    ) -> Result<(FileHandle, Attributes), NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(dir)
                    .lookup_parent()
                    .get_handle()
                    .get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.ok(Op::LookupP)?;
        Ok((reply.handle()?, reply.attrs()?))
    }

    /// CREATE: anything but a regular file.
    pub async fn make(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
        make: Make<'_>,
        new: &NewAttributes,
    ) -> Result<Made, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(dir)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .save()
                    .create(make, name, new)
                    .get_handle()
                    .get_attrs(self.object())
                    .then()
                    .restore()
                    .get_attrs(self.object());
            })
            .await?;
        let before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        match reply.created() {
            Ok(info) => Ok(Made {
                handle: reply.handle()?,
                attrs: reply.attrs()?,
                dir: DirChange::new(info, before, saved_after(&mut reply)),
            }),
            Err(error) => Err(error),
        }
    }

    /// REMOVE of a file or an empty directory.
    pub async fn remove(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<DirChange, NfsError> {
        self.remove_closed(cred, dir, name, None).await
    }

    /// The same where the name leads to `file`, whose CLOSE may still wait.
    pub async fn remove_closed(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
        file: Option<&FileHandle>,
    ) -> Result<DirChange, NfsError> {
        let front = self.close_queue.close_in_front(file, cred, 4).await;
        let mut reply = self
            .close_queue
            .call_behind(front, cred, |c| {
                c.once()
                    .put(dir)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .remove(name)
                    .then()
                    .get_attrs(self.object());
            })
            .await?;
        let before = change_before(&mut reply)?;
        match reply.change(Op::Remove) {
            Ok(info) => Ok(DirChange::new(info, before, reply.attrs().ok())),
            Err(error) => Err(error),
        }
    }

    /// RENAME of `object` where one of the names is known to this mount alone (a
    /// hidden one): if the reply was lost, where they lead tells what became of it. `None`: an
    /// earlier sending has moved it. What has its old name since nobody has told: nothing, or
    /// something of another host's, which this sending was refused for.
    pub async fn rename_hidden(
        self: &Arc<Self>,
        cred: &Credential,
        from: (&FileHandle, &[u8]),
        to: (&FileHandle, &[u8]),
        object: &FileHandle,
    ) -> Result<Option<Renamed>, NfsError> {
        let renamed = self.rename(cred, from, to, None).await;
        self.done_before(cred, to, object, renamed).await
    }

    /// What became of a RENAME of `object` that may have been executed before it was refused.
    async fn done_before(
        self: &Arc<Self>,
        cred: &Credential,
        to: (&FileHandle, &[u8]),
        object: &FileHandle,
        renamed: Result<Renamed, NfsError>,
    ) -> Result<Option<Renamed>, NfsError> {
        let second = [
            Status::NOENT,
            Status::EXIST,
            Status::NOTDIR,
            Status::ISDIR,
            Status::NOTEMPTY,
            Status::NOT_SAME,
        ];
        match renamed {
            Err(error) if second.iter().any(|status| doubtful(&error, *status)) => {
                let done = self.leads_to(cred, to, object).await?;
                done.then_some(None).ok_or(error)
            }
            renamed => renamed.map(Some),
        }
    }

    /// The same within one directory, from a name that anybody may have given to another
    /// object meanwhile: LOOKUP and VERIFY in front of RENAME see to it that nothing is moved but
    /// the object, whose fileid this is.
    ///
    /// # Errors
    /// NOT_SAME: the name leads to another object, which was left alone.
    pub async fn hide_name(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        (name, hidden): (&[u8], &[u8]),
        (object, fileid): (&FileHandle, u64),
    ) -> Result<Option<Renamed>, NfsError> {
        if !self.features.has_verify() {
            return self
                .rename_hidden(cred, (dir, name), (dir, hidden), object)
                .await;
        }
        let renamed = self
            .rename_verified(cred, dir, (name, hidden), fileid)
            .await;
        match renamed {
            Err(NfsError::Status(Op::Verify, status)) if status != Status::NOT_SAME => {
                tracing::debug!("the server lacks VERIFY ({status}), names are hidden without");
                self.features.refused_verify();
                self.rename_hidden(cred, (dir, name), (dir, hidden), object)
                    .await
            }
            renamed => match self.done_before(cred, (dir, hidden), object, renamed).await {
                // Nor is its word taken for it against the handle: the name might never be hidden.
                Err(NfsError::Status(Op::Verify, _))
                    if self.leads_to(cred, (dir, name), object).await? =>
                {
                    self.rename_hidden(cred, (dir, name), (dir, hidden), object)
                        .await
                }
                renamed => renamed,
            },
        }
    }

    async fn rename_verified(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        (name, hidden): (&[u8], &[u8]),
        fileid: u64,
    ) -> Result<Renamed, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(dir)
                    .lookup(name)
                    .is_still(fileid)
                    .put(dir)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .save()
                    .rename(name, hidden)
                    .then()
                    .get_attrs(self.object())
                    .put(dir)
                    .lookup(hidden)
                    .get_handle()
                    .get_attrs(attrs::LINKS_ONLY);
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.ok(Op::Lookup)?;
        reply.ok(Op::Verify)?;
        let before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        let (left, entered) = reply.renamed()?;
        let after = reply.attrs().ok();
        Ok(Renamed {
            left: DirChange::new(left, before, after.clone()),
            entered: DirChange::new(entered, before, after),
            leads_to: named(&mut reply),
            links: reply.attrs().ok().map(|attrs| attrs.nlink),
        })
    }

    /// Whether a name leads to this object. Asked whoever waits.
    async fn leads_to(
        self: &Arc<Self>,
        cred: &Credential,
        (dir, name): (&FileHandle, &[u8]),
        object: &FileHandle,
    ) -> Result<bool, NfsError> {
        let found = caller::apart(self.lookup(cred, dir, name)).await?;
        Ok(found.object.is_some_and(|(handle, _)| handle == *object))
    }

    /// RENAME, over whatever has the new name: `file`, if that is known, whose CLOSE
    /// may still wait. What has been moved is asked for in the same compound: another host
    /// may have replaced what this one knew by the old name.
    pub async fn rename(
        self: &Arc<Self>,
        cred: &Credential,
        from: (&FileHandle, &[u8]),
        to: (&FileHandle, &[u8]),
        file: Option<&FileHandle>,
    ) -> Result<Renamed, NfsError> {
        let front = self.close_queue.close_in_front(file, cred, 13).await;
        let mut reply = self
            .close_queue
            .call_behind(front, cred, |c| {
                c.once()
                    .put(from.0)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .save()
                    .put(to.0)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .rename(from.1, to.1)
                    .then()
                    .get_attrs(self.object())
                    .restore()
                    .get_attrs(self.object())
                    .put(to.0)
                    .lookup(to.1)
                    .get_handle()
                    .get_attrs(attrs::LINKS_ONLY);
            })
            .await?;
        let from_before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        let to_before = change_before(&mut reply)?;
        match reply.renamed() {
            Ok((left, entered)) => {
                let to_after = reply.attrs().ok();
                let left = DirChange::new(left, from_before, saved_after(&mut reply));
                Ok(Renamed {
                    left,
                    entered: DirChange::new(entered, to_before, to_after),
                    leads_to: named(&mut reply),
                    links: reply.attrs().ok().map(|attrs| attrs.nlink),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// LINK of a name that is known to this mount alone (a hidden one): if the reply
    /// was lost, where it leads tells what became of it.
    pub async fn link_hidden(
        self: &Arc<Self>,
        cred: &Credential,
        object: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<(PrePost, DirChange), NfsError> {
        match self.link(cred, object, dir, name).await {
            Err(error) if doubtful(&error, Status::EXIST) => {
                match self.leads_to(cred, (dir, name), object).await? {
                    true => Ok(Default::default()),
                    false => Err(error),
                }
            }
            linked => linked,
        }
    }

    /// LINK: one more name for an object. Returns how that moved, with its attributes
    /// after it in any case, and how the directory did.
    pub async fn link(
        self: &Arc<Self>,
        cred: &Credential,
        object: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<(PrePost, DirChange), NfsError> {
        let moved = |before, after| PrePost {
            before,
            after: Some(after),
        };
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(object)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .save()
                    .put(dir)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .link(name)
                    .then()
                    .get_attrs(self.object())
                    .restore()
                    .get_attrs(self.object());
            })
            .await?;
        let object_before = change_before(&mut reply)?;
        reply.ok(Op::SaveFh)?;
        let before = change_before(&mut reply)?;
        let info = reply.change(Op::Link)?;
        let dir = DirChange::new(info, before, reply.attrs().ok());
        let attrs = reply
            .ok(Op::RestoreFh)
            .map(|_| ())
            .and_then(|()| reply.attrs());
        match attrs {
            Ok(attrs) => Ok((moved(object_before, attrs), dir)),
            // LINK has run. If its caller was killed, who undoes it must hear of that.
            Err(_) => {
                let attrs = caller::apart(self.get_attrs(cred, object)).await?;
                Ok((moved(None, attrs), dir))
            }
        }
    }
}

/// PUTFH, and the change attribute of what was put.
pub(super) fn change_before(reply: &mut Reply) -> Result<Option<u64>, NfsError> {
    reply.ok(Op::PutFh)?;
    Ok(Some(reply.attrs()?.change))
}

/// What PUTFH, LOOKUP and GETFH say a name leads to, if they were executed.
fn named(reply: &mut Reply) -> Option<FileHandle> {
    reply.ok(Op::PutFh).ok()?;
    reply.ok(Op::Lookup).ok()?;
    reply.handle().ok()
}

/// The attributes of the saved object, at the end of a compound.
pub(super) fn saved_after(reply: &mut Reply) -> Option<Attributes> {
    reply.ok(Op::RestoreFh).ok()?;
    reply.attrs().ok()
}

/// Whether a request on a name that only this mount knows may have been executed
/// although it says this: because its first reply was lost, or its caller did not wait.
fn doubtful(error: &NfsError, second: Status) -> bool {
    error.status() == Some(second) || error.abandoned() == Some(true)
}
