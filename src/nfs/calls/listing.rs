//! READDIR.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::{self, Attributes};
use super::super::proto::ops::Op;
use super::super::proto::reply::{DirResult, NfsError};
use super::super::proto::types::{FileHandle, Verifier};
use super::super::session::establish::OVERHEAD;
use super::super::session::slots::Class;
use crate::rpc::auth::Credential;

impl Client {
    /// READDIR of one page with attributes and handles, and the directory's
    /// own attributes from before it. A `cookie` of 0 starts the listing. The
    /// page is of `at_most` bytes, if that is less than the session allows.
    pub async fn read_dir(
        self: &Arc<Self>,
        cred: &Credential,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        at_most: u32,
    ) -> Result<(Attributes, DirResult), NfsError> {
        let maxcount = self.rsize().saturating_sub(OVERHEAD).clamp(4096, at_most);
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(dir).get_attrs(self.object()).read_dir(
                    cookie,
                    verifier,
                    maxcount,
                    self.supported(attrs::ENTRY),
                );
            })
            .await?;
        reply.ok(Op::PutFh)?;
        let attrs = reply.attrs()?;
        Ok((attrs, self.listed(reply.dir()?)))
    }

    /// Counts what was no name in a page, and says it the first time.
    pub(super) fn listed(&self, page: DirResult) -> DirResult {
        if page.left_out > 0 {
            if self.metrics.names_left_out.get() == 0 {
                tracing::warn!(
                    "the server lists names that cannot be names (empty, or with \"/\" or NUL \
                     in them): they are left out"
                );
            }
            self.metrics.names_left_out.add(page.left_out);
        }
        page
    }
}
