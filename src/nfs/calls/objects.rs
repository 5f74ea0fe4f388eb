//! One object: GETATTR, SETATTR, ACCESS, READLINK, and the file system's space.

use std::sync::Arc;

use bytes::Bytes;

use super::super::client::Client;
use super::super::proto::attrs::{self, Attributes, FsAttributes, NewAttributes};
use super::super::proto::compound::Compound;
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::state_is_gone;
use super::super::proto::types::{FileHandle, StateId};
use super::super::reopen::renew_state;
use super::super::session::slots::Class;
use super::super::state::{OpenState, STATE_RETRIES};
use super::names::{PrePost, change_before};
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

    /// Objects that one compound can ask something of, each with a PUTFH.
    fn at_once(&self) -> usize {
        let operations = self.session_info().max_ops as usize;
        (operations.saturating_sub(1) / 2).max(1)
    }

    /// Asks the same of several objects: one round trip for the first seven (with the
    /// 16 operations of EFS), of which the first must succeed. The others come as far
    /// as they were answered: what is behind an error, or beyond the limit, is left
    /// out.
    async fn of_each<T>(
        self: &Arc<Self>,
        cred: &Credential,
        handles: &[&FileHandle],
        ask: impl Fn(&mut Compound) + Send + Sync,
        answer: impl Fn(&mut Reply) -> Result<T, NfsError> + Send,
    ) -> Result<Vec<T>, NfsError> {
        let handles = &handles[..handles.len().min(self.at_once())];
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                for (index, handle) in handles.iter().enumerate() {
                    if index == 1 {
                        c.then();
                    }
                    ask(c.put(handle));
                }
            })
            .await?;
        let mut next = || answer(reply.ok(Op::PutFh)?);
        let mut all = vec![next()?];
        all.extend((1..handles.len()).map_while(|_| next().ok()));
        Ok(all)
    }

    /// GETATTR of several objects, as far as one round trip takes it: the first, and
    /// those after it that were answered.
    pub async fn get_attrs_of(
        self: &Arc<Self>,
        cred: &Credential,
        handles: &[&FileHandle],
    ) -> Result<Vec<Attributes>, NfsError> {
        let ask = |c: &mut Compound| {
            c.get_attrs(self.object());
        };
        self.of_each(cred, handles, ask, Reply::attrs).await
    }

    /// READLINK of several links, in the same way.
    pub async fn read_links(
        self: &Arc<Self>,
        cred: &Credential,
        handles: &[&FileHandle],
    ) -> Result<Vec<Bytes>, NfsError> {
        let ask = |c: &mut Compound| {
            c.read_link();
        };
        self.of_each(cred, handles, ask, Reply::link_text).await
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
    ) -> Result<PrePost, NfsError> {
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
                    return Ok(PrePost {
                        before,
                        after: reply.attrs().ok(),
                    });
                }
                Err(NfsError::Status(op, status)) if state_is_gone(status) => match open {
                    Some(open) => renew_state(self, open, token, status).await?,
                    None => return Err(NfsError::Status(op, status)),
                },
                Err(error) => return Err(error),
            }
        }
        Err(NfsError::StateLost)
    }

    /// ACCESS: what of `wanted` (ACCESS4_*) the server grants, and the attributes
    /// that go with the answer.
    pub async fn access(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
        wanted: u32,
    ) -> Result<(u32, Option<Attributes>), NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(handle).access(wanted).then().get_attrs(self.object());
            })
            .await?;
        let granted = reply.ok(Op::PutFh)?.access()?;
        Ok((granted, reply.attrs().ok()))
    }

    /// The space of the file system that an object lies in.
    pub async fn space(
        self: &Arc<Self>,
        cred: &Credential,
        handle: &FileHandle,
    ) -> Result<Box<FsAttributes>, NfsError> {
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(handle).get_attrs(self.supported(attrs::SPACE));
            })
            .await?;
        Ok(reply.ok(Op::PutFh)?.attrs()?.fs.unwrap_or_default())
    }
}
