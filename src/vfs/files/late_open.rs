//! Opens that the server learns of when something needs it (`nocto`).
//!
//! A handle that was given out without asking
//! ([`namespace::nocto`](crate::vfs::namespace)) shares an open like any other; but as long as no
//! OPEN was sent for that, it has no stateid, and allows nothing. It stands in the log and is
//! handed over as what it is, recovery has nothing to reclaim of it, and its close sends
//! nothing.
//!
//! The first READ brings the OPEN along, in one round trip, with the file's attributes: what
//! another host has changed since is found out by it. (A READ with the anonymous stateid would
//! cost as much, and leave a descriptor that a later chmod makes unreadable, or that a
//! server which keeps open files after their removal does not keep.) A lock asks for the open that it
//! needs anyway (`lock`). If the server refuses the OPEN, the read is told: EACCES if the file may
//! not be read any more, ESTALE if another host has removed it. This host leaves a file that
//! is open so a hidden name, also where the server keeps what it knows to be open; and before it
//! changes who may read the file, the server learns of each open.

use std::sync::Arc;

use tokio::time::Instant;

use super::Files;
use super::handle::OpenHandle;
use crate::nfs::calls::{BehindOpen, InlineRead, OpenRequest};
use crate::nfs::proto::ops::ACCESS_READ;
use crate::nfs::proto::reply::ReadResult;
use crate::nfs::state::OpenState;
use crate::vfs::file::inline_read::SMALL;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, VfsResult};

impl Files {
    /// Has the server learn of a handle's open that something is about to be read with, if it does
    /// not know of it; gives what was read along, if anything was, and the change attribute behind that.
    ///
    /// # Errors
    /// What the server says to the OPEN: EACCES, ESTALE. EIO if the open is lost.
    pub(super) async fn open_late(
        self: &Arc<Self>,
        handle: &OpenHandle,
        offset: u64,
        count: u32,
    ) -> VfsResult<Option<(ReadResult, Option<u64>)>> {
        let (inode, open) = (&handle.inode, &handle.open);
        let wanted = handle.access & ACCESS_READ;
        if wanted & !open.access() == 0 {
            return Ok(None);
        }
        // Reading ahead may go on when the handle is released already: so this is a user of
        // the open by itself, and nothing stays open at the server that nobody closes.
        if !self.file_state(inode).lock().use_again(open) {
            return Err(Errno(libc::EIO).into());
        }
        let most = SMALL.min(self.client.rsize().saturating_sub(1024));
        let behind = match count <= most {
            true => BehindOpen::Read(InlineRead {
                offset,
                count,
                unless: None,
                looks: self.reads_look(),
            }),
            false => BehindOpen::Nothing,
        };
        let opened = self.send_late_open(inode, open, behind).await;
        self.leave(inode, open).await;
        opened
    }

    /// Permissions are about to change: who has the file open may read it all the same, so the
    /// server learns of it before. If it refuses that, the first READ tells.
    pub(in crate::vfs) async fn before_permissions(self: &Arc<Self>, inode: &Arc<Inode>) {
        let Some(file) = inode.opened() else { return };
        if self.namespace.asks_at_open() {
            return;
        }
        let unread = file.lock().use_unread();
        for open in unread {
            let opened = self.send_late_open(inode, &open, BehindOpen::Nothing).await;
            self.leave(inode, &open).await;
            if let Err(error) = opened {
                tracing::debug!(ino = inode.ino, "a late OPEN: {error}");
            }
        }
    }

    async fn send_late_open(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        open: &Arc<OpenState>,
        behind: BehindOpen,
    ) -> VfsResult<Option<(ReadResult, Option<u64>)>> {
        let request = OpenRequest {
            behind,
            ..OpenRequest::of(open, ACCESS_READ)
        };
        let sent = Instant::now();
        let opened = self.client.open_by_handle(request).await;
        let opened = opened.map_err(|error| self.namespace.failed(&error, inode))?;
        // `None` is for a name that leads elsewhere, and there is none.
        Ok(opened.and_then(|opened| {
            self.set_preserved(inode, opened.preserves_unlinked);
            self.namespace.learn_at_open(inode, &opened.attrs, sent);
            self.namespace
                .opened_to_read(&open.cred, inode, &opened.attrs);
            opened.data.map(|data| (data, opened.change_behind))
        }))
    }
}
