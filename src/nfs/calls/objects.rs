//! One object: GETATTR, SETATTR, ACCESS, READLINK, and the file system's space.

use std::sync::Arc;

use bytes::Bytes;

use super::super::client::Client;
use super::super::proto::attrs::{self, Attributes, FsAttributes, NewAttributes};
use super::super::proto::ops::Op;
use super::super::proto::reply::NfsError;
use super::super::proto::types::{FileHandle, StateId};
use super::super::recovery::state_is_gone;
use super::super::session::slots::Class;
use super::super::state::OpenState;
use super::names::{Moved, change_before};
use crate::rpc::auth::Credential;

impl Client {
    /// GETATTR of everything `stat(2)` shows.
    pub async fn get_attrs(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
    ) -> Result<Attributes, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(handle).get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.attrs()
    }

    /// SETATTR. A new size is set under `open`, if the caller has the file
    /// open for writing; else under the anonymous stateid. Returns how the
    /// object moved.
    pub async fn set_attrs(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
        open: Option<&Arc<OpenState>>,
        new: &NewAttributes,
    ) -> Result<Moved, NfsError> {
        for _ in 0..STATE_RETRIES {
            let (stateid, token) = open.map_or((StateId::ANONYMOUS, 0), |open| open.for_io());
            let mut reply = self
                .call(cred, Class::Metadata, |c| {
                    c.once()
                        .put(handle)
                        .get_attrs(attrs::CHANGE_ONLY)
                        .set_attrs(stateid, new)
                        .then()
                        .get_attrs(self.object());
                })
                .await?;
            let before = change_before(&mut reply)?;
            match reply.attrs_set() {
                Ok(()) => {
                    return Ok(Moved {
                        before,
                        after: reply.attrs().ok(),
                    });
                }
                Err(NfsError::Status(op, status)) if state_is_gone(status) => match open {
                    Some(open) => self.renew_state(open, token, status).await?,
                    None => return Err(NfsError::Status(op, status)),
                },
                Err(error) => return Err(error),
            }
        }
        Err(NfsError::StateLost)
    }

    /// ACCESS: what of `wanted` (ACCESS4_*) the server grants.
    pub async fn access(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
        wanted: u32,
    ) -> Result<u32, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(handle).access(wanted);
            })
            .await?;
        reply.ok(Op::PutFh)?.access()
    }

    /// READLINK.
    pub async fn read_link(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
    ) -> Result<Bytes, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(handle).read_link();
            })
            .await?;
        reply.ok(Op::PutFh)?.link_text()
    }

    /// The space of the file system.
    pub async fn space(self: &Arc<Self>, cred: &Credential) -> Result<Box<FsAttributes>, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(&self.fs().root)
                    .get_attrs(self.supported(attrs::SPACE));
            })
            .await?;
        Ok(reply.ok(Op::PutFh)?.attrs()?.fs.unwrap_or_default())
    }
}

/// How often an operation is repeated because its state was replaced meanwhile.
/// A server that never accepts a state it has just given out ends here.
pub(super) const STATE_RETRIES: usize = 8;
