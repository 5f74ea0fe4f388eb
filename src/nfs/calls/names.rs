//! Names: LOOKUP, CREATE, REMOVE, RENAME, LINK.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::{self, Attributes, NewAttributes};
use super::super::proto::ops::{Make, Op};
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::{ChangeInfo, FileHandle, FileType};
use super::super::session::slots::Class;
use crate::rpc::auth::Credential;

/// A name that was looked up.
#[derive(Clone, Debug)]
pub struct Found {
    /// The object, or `None` if there is no such name.
    pub object: Option<(FileHandle, Attributes)>,
    /// The directory's change attribute, taken before the lookup.
    pub dir_change: u64,
}

/// An object that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The new object.
    pub handle: FileHandle,
    /// Its attributes.
    pub attrs: Attributes,
    /// The directory after it, if it could be had.
    pub dir: Option<Attributes>,
    /// How the directory moved.
    pub change: Option<ChangeInfo>,
}

/// A name that was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The directory after it, if it could be had.
    pub dir: Option<Attributes>,
    /// How the directory moved.
    pub change: Option<ChangeInfo>,
}

/// A name that was moved.
#[derive(Clone, Debug)]
pub struct Renamed {
    /// The directory it left, if it could be had.
    pub from: Option<Attributes>,
    /// The directory it came to, if it could be had.
    pub to: Option<Attributes>,
}

impl Client {
    /// LOOKUP of one name.
    pub async fn lookup(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Found, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(dir)
                    .get_attrs(attrs::CHANGE_ONLY)
                    .lookup(name)
                    .get_handle()
                    .get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        let dir_change = reply.attrs()?.change;
        let object = match reply.ok(Op::Lookup) {
            Ok(_) => Some((reply.handle()?, reply.attrs()?)),
            Err(NfsError::Status(Op::Lookup, Status::NOENT)) => None,
            Err(error) => return Err(error),
        };
        Ok(Found { object, dir_change })
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
                    .save()
                    .create(make, name, new)
                    .get_handle()
                    .get_attrs(self.object())
                    .then()
                    .restore()
                    .get_attrs(self.object());
            })
            .await?;
        reply.skip(&[Op::PutFh, Op::SaveFh])?;
        match reply.created() {
            Ok(change) => Ok(Made {
                handle: reply.handle()?,
                attrs: reply.attrs()?,
                dir: dir_after(&mut reply),
                change: Some(change),
            }),
            Err(NfsError::Status(op, Status::EXIST)) if reply.redone() => {
                // Ours, if it is what we were making.
                let found = self.lookup(cred, dir, name).await?;
                match found.object {
                    Some((handle, attrs)) if attrs.kind == Some(kind_of(make)) => Ok(Made {
                        handle,
                        attrs,
                        dir: None,
                        change: None,
                    }),
                    _ => Err(NfsError::Status(op, Status::EXIST)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// REMOVE of a file or an empty directory.
    pub async fn remove(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<Removed, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(dir)
                    .remove(name)
                    .then()
                    .get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        match reply.change(Op::Remove) {
            Ok(change) => Ok(Removed {
                change: Some(change),
                dir: reply.attrs().ok(),
            }),
            Err(NfsError::Status(_, Status::NOENT)) if reply.redone() => Ok(Removed {
                change: None,
                dir: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// RENAME, over whatever has the new name. `moved` is the object, if the
    /// caller knows it, for the redo rule: two requests then.
    pub async fn rename(
        self: &Arc<Self>,
        cred: &Credential,
        from: (&FileHandle, &[u8]),
        to: (&FileHandle, &[u8]),
        moved: Option<&FileHandle>,
    ) -> Result<Renamed, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(from.0)
                    .save()
                    .put(to.0)
                    .rename(from.1, to.1)
                    .then()
                    .get_attrs(self.object())
                    .restore()
                    .get_attrs(self.object());
            })
            .await?;
        reply.skip(&[Op::PutFh, Op::SaveFh, Op::PutFh])?;
        match reply.renamed() {
            Ok(_) => {
                let to = reply.attrs().ok();
                Ok(Renamed {
                    from: dir_after(&mut reply),
                    to,
                })
            }
            Err(NfsError::Status(op, Status::NOENT)) if reply.redone() => {
                let found = self.lookup(cred, to.0, to.1).await?;
                match (found.object, moved) {
                    (Some((handle, _)), Some(moved)) if handle == *moved => Ok(Renamed {
                        from: None,
                        to: None,
                    }),
                    _ => Err(NfsError::Status(op, Status::NOENT)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// LINK: one more name for an object. Returns its attributes after it, and
    /// those of the directory.
    pub async fn link(
        self: &Arc<Self>,
        cred: &Credential,
        object: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<(Attributes, Option<Attributes>), NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.once()
                    .put(object)
                    .save()
                    .put(dir)
                    .link(name)
                    .then()
                    .get_attrs(self.object())
                    .restore()
                    .get_attrs(self.object());
            })
            .await?;
        reply.skip(&[Op::PutFh, Op::SaveFh, Op::PutFh])?;
        match reply.change(Op::Link) {
            Ok(_) => {}
            Err(NfsError::Status(op, Status::EXIST)) if reply.redone() => {
                let found = self.lookup(cred, dir, name).await?;
                return match found.object {
                    Some((handle, attrs)) if handle == *object => Ok((attrs, None)),
                    _ => Err(NfsError::Status(op, Status::EXIST)),
                };
            }
            Err(error) => return Err(error),
        }
        let dir = reply.attrs().ok();
        let attrs = reply
            .ok(Op::RestoreFh)
            .map(|_| ())
            .and_then(|()| reply.attrs());
        match attrs {
            Ok(attrs) => Ok((attrs, dir)),
            Err(_) => Ok((self.get_attrs(cred, object).await?, dir)),
        }
    }
}

/// The attributes of the saved directory, at the end of a compound.
pub(super) fn dir_after(reply: &mut Reply) -> Option<Attributes> {
    reply.ok(Op::RestoreFh).ok()?;
    reply.attrs().ok()
}

fn kind_of(make: Make<'_>) -> FileType {
    match make {
        Make::Directory => FileType::Directory,
        Make::Symlink(_) => FileType::Symlink,
        Make::Fifo => FileType::Fifo,
        Make::Socket => FileType::Socket,
        Make::Block(..) => FileType::Block,
        Make::Char(..) => FileType::Char,
    }
}
