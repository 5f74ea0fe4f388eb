//! Many directories or names in one compound: for walking and removing whole
//! trees, where a round trip for each would take hours.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs;
use super::super::proto::ops::Op;
use super::super::proto::reply::{DirResult, NfsError};
use super::super::proto::status::Status;
use super::super::proto::types::{FileHandle, Verifier};
use super::super::session::establish::OVERHEAD;
use super::super::session::slots::Class;
use crate::rpc::auth::Credential;

/// Operations that a REMOVE compound is made of besides the REMOVEs.
const AROUND_REMOVES: usize = 2;

/// Where a listing goes on: cookie and verifier of the last entry seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListFrom {
    /// 0 for the beginning.
    pub cookie: u64,
    /// As the last page returned it.
    pub verifier: Verifier,
}

impl Client {
    /// Directories that fit into one [`list_many`](Self::list_many).
    pub async fn lists_at_once(&self) -> Result<usize, NfsError> {
        let session = self.session().await?;
        Ok(((session.attrs.max_ops as usize).saturating_sub(1) / 2).max(1))
    }

    /// Names that fit into one [`remove_many`](Self::remove_many).
    pub async fn removes_at_once(&self) -> Result<usize, NfsError> {
        let session = self.session().await?;
        Ok((session.attrs.max_ops as usize)
            .saturating_sub(AROUND_REMOVES)
            .max(1))
    }

    /// READDIR of one page of each of `dirs`, with attributes and handles.
    /// A compound ends at its first failure: what comes after that is `None`,
    /// to be asked again. The first result is always there.
    pub async fn list_many(
        self: &Arc<Self>,
        cred: &Credential,
        dirs: &[(FileHandle, ListFrom)],
    ) -> Result<Vec<Option<Result<DirResult, NfsError>>>, NfsError> {
        let room = self.rsize().saturating_sub(OVERHEAD);
        let each = (room / u32::try_from(dirs.len().max(1)).unwrap_or(u32::MAX)).max(4096);
        let mut reply = self
            .call(cred, Class::Bulk, |c| {
                for (dir, from) in dirs {
                    c.put(dir).read_dir(
                        from.cookie,
                        from.verifier,
                        each,
                        self.supported(attrs::ENTRY),
                    );
                }
            })
            .await?;
        let mut results = Vec::with_capacity(dirs.len());
        for _ in dirs {
            let result = match reply.ok(Op::PutFh) {
                Ok(_) => reply.dir().map(|page| self.listed(page)),
                Err(error) => Err(error),
            };
            let failed = result.is_err();
            results.push(Some(result));
            if failed {
                break;
            }
        }
        results.resize_with(dirs.len(), || None);
        Ok(results)
    }

    /// REMOVE of `names` in `dir`, in order. What is not there any more counts
    /// as removed. Returns how many were, and why the next one was not; those
    /// behind that were not tried.
    pub async fn remove_many(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        names: &[impl AsRef<[u8]> + Sync],
    ) -> Result<(usize, Option<NfsError>), NfsError> {
        let mut done = 0;
        while done < names.len() {
            let mut reply = self
                .call(cred, Class::Bulk, |c| {
                    c.once().put(dir);
                    for name in &names[done..] {
                        c.remove(name.as_ref());
                    }
                })
                .await?;
            reply.ok(Op::PutFh)?;
            let before = done;
            while done < names.len() {
                match reply.change(Op::Remove) {
                    Ok(_) => done += 1,
                    // By somebody else, or by an earlier sending of this.
                    Err(NfsError::Status(_, Status::NOENT)) => {
                        done += 1;
                        break;
                    }
                    // After a name that was gone the rest is sent again.
                    Err(error) => return Ok((done, Some(error))),
                }
            }
            if done == before {
                return Err(NfsError::Unfit("no room for a REMOVE"));
            }
        }
        Ok((done, None))
    }
}
