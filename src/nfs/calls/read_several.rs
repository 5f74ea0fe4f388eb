//! Several small files read whole in one compound, for who reads many: without an open.
//!
//! A file is PUTFH, READ and GETATTR of the change attribute: with EFS's sixteen operations a compound
//! takes five. The READs name no open (the anonymous stateid, RFC 8881 §8.2.3). The server asks each
//! time whether the caller may read then (§18.22), by the identity that the request goes out with, since no
//! OPEN has been asked before. Servers differ in one thing from an OPEN: most let the owner of a file read it,
//! and who may execute it, whatever else the mode says, since a client has to be able to read what its user has
//! open already, or executes. So what comes this way is for no program; see `vfs::files::warm`.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::CHANGE_ONLY;
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, ReadResult, Reply};
use super::super::proto::status::{Status, state_is_gone};
use super::super::proto::types::{FileHandle, StateId};
use super::super::session::slots::Class;
use super::data::change_of;
use crate::rpc::auth::Credential;
use crate::xdr::DecodeError;

/// PUTFH, READ, GETATTR.
const OPS_EACH: usize = 3;
/// What their results take in a reply, besides the data: 8 bytes, 16 with the padding of the data,
/// and 28 of attributes.
const BYTES_EACH: u32 = 64;

/// A file's data from its beginning, and its change attribute behind the READ, if the server tells it.
pub type WholeRead = (ReadResult, Option<u64>);

impl Client {
    /// How many of files of these sizes go into one [`read_several`](Self::read_several): one, if
    /// there is any.
    pub fn reads_at_once(&self, sizes: impl Iterator<Item = u32>) -> usize {
        let operations = (self.session_info().max_ops as usize).saturating_sub(1);
        let mut room = self.rsize();
        let fitting = sizes.take_while(|size| {
            let left = room.checked_sub(size.saturating_add(BYTES_EACH));
            room = left.unwrap_or(0);
            left.is_some()
        });
        fitting.take(operations / OPS_EACH).count().max(1)
    }

    /// READ of the beginning of several files, of so many bytes each at most, without opens. One round
    /// trip. A compound ends at its first failure: those that come behind have no result, and are to be
    /// asked for again.
    ///
    /// # Errors
    /// Those of the first file, and [`NfsError::Unfit`] if the server reads nothing without an open.
    pub async fn read_several(
        self: &Arc<Self>,
        cred: &Credential,
        files: &[(FileHandle, u32)],
    ) -> Result<Vec<WholeRead>, NfsError> {
        if !self.features.has_anonymous_read() {
            return Err(NfsError::Unfit(
                "a server that reads nothing without an open",
            ));
        }
        let mut reply = self
            .call(cred, Class::Bulk, |c| {
                for (index, (file, count)) in files.iter().enumerate() {
                    if index == 1 {
                        c.then();
                    }
                    c.put(file)
                        .read(StateId::ANONYMOUS, 0, *count)
                        .get_attrs(CHANGE_ONLY);
                }
            })
            .await?;
        let mut results = Vec::with_capacity(files.len());
        for (_, count) in files {
            match read_whole(&mut reply, *count) {
                Ok(read) => {
                    self.metrics.bytes_read(read.0.data.len() as u64);
                    results.push(read);
                }
                Err(error) if results.is_empty() => {
                    self.learn_refusal(&error);
                    return Err(error);
                }
                Err(_) => break,
            }
        }
        Ok(results)
    }

    /// An error that is about the stateid, and not about the file, is one for good.
    fn learn_refusal(&self, error: &NfsError) {
        if let NfsError::Status(Op::Read, status) = error
            && (state_is_gone(*status) || *status == Status::INVAL)
        {
            tracing::debug!("READ without an open: {status}");
            self.features.refused(StateId::ANONYMOUS);
        }
    }
}

fn read_whole(reply: &mut Reply, count: u32) -> Result<WholeRead, NfsError> {
    let read = reply.ok(Op::PutFh)?.read()?;
    match read.data.len() > count as usize {
        true => Err(NfsError::Garbled(Op::Read, DecodeError::TooLong("data"))),
        false => Ok((read, change_of(reply))),
    }
}
