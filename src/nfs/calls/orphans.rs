//! Opens that the server may have made for callers that do not wait any more.
//!
//! An OPEN whose reply was lost with its connection, and whose caller has been answered,
//! is not sent again (`nfs::fore_channel`), and the server need not say whether it
//! was executed. If it was, there is an open at the server, or a newer stateid of one,
//! that nobody here knows, and a removed file would be kept by it for the life of the
//! mount. The same owner opens again, whereupon the server tells the stateid
//! (RFC 8881 §9.7: an open of the same owner is merged into the one there is).

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::ops::{ACCESS_READ, Claim, Create, Op};
use super::super::proto::reply::NfsError;
use super::super::proto::types::FileHandle;
use super::super::session::slots::Class;
use super::super::state::OpenState;
use crate::rpc::auth::Credential;
use crate::rpc::caller;

impl Client {
    /// Learns the stateid of an open after an OPEN that may have been executed. What
    /// fails here leaves things as they were.
    pub(super) async fn learn_open(self: &Arc<Self>, open: &Arc<OpenState>, error: &NfsError) {
        if error.abandoned() != Some(true) {
            return;
        }
        if let Err(error) = caller::apart(self.open_again(open, ACCESS_READ)).await {
            tracing::debug!("after an abandoned OPEN: {error}");
        }
    }

    /// OPEN of what may be open at the server under a stateid that nobody knows.
    pub(in super::super) async fn open_again(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        access: u32,
    ) -> Result<(), NfsError> {
        let mut reply = self
            .call(&open.cred, Class::Metadata, |c| {
                let owner = open.owner.to_be_bytes();
                let owner = self.open_owner(&owner);
                c.put(&open.handle).once();
                c.open(owner, access, &Create::No, Claim::Handle);
            })
            .await?;
        let opened = reply.ok(Op::PutFh)?.open()?;
        open.opened(opened.stateid, access);
        Ok(())
    }

    /// Closes what an OPEN of this name by a new `owner` may have left at the server.
    pub(super) async fn close_orphan(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        (dir, name): (&FileHandle, &[u8]),
        owner: u64,
        error: &NfsError,
    ) {
        if error.abandoned() != Some(true) {
            return;
        }
        let closed = caller::apart(async {
            let mut reply = self
                .call(cred, Class::Metadata, |c| {
                    let owner = owner.to_be_bytes();
                    let owner = self.open_owner(&owner);
                    c.put(dir).once();
                    c.open(owner, ACCESS_READ, &Create::No, Claim::Name(name))
                        .get_handle();
                })
                .await?;
            let opened = reply.ok(Op::PutFh)?.open()?;
            let handle = reply.handle()?;
            let cred = Arc::clone(cred);
            let open = self
                .opens
                .adopt(handle, cred, owner, opened.stateid, ACCESS_READ);
            self.close(&open).await
        });
        if let Err(error) = closed.await {
            tracing::debug!("after an abandoned OPEN: {error}");
        }
    }
}
