//! Opens at the server, which handles share.
//!
//! Handles of one file opened by one identity share one open at the server; its access
//! grows with each of them, and it is closed when the
//! last handle is released and what was locked with it is unlocked. Between the last release and the CLOSE the open is
//! out of the file's state already, so a new handle starts a new one.

use std::sync::Arc;

use super::Files;
use crate::nfs::calls::OpenedFile;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::file::state::Left;
use crate::vfs::inode::Inode;

impl Files {
    /// The file was opened by its name: `open` has one user.
    pub(super) fn opened_by_name(&self, inode: &Inode, open: &Arc<OpenState>, preserved: bool) {
        let mut inner = self.file_state(inode).lock();
        inner.set_preserved(preserved);
        inner.add_open(open);
    }

    /// The open of this file and identity, with one more user. Waits while the
    /// file loses a name: with the last one it would be gone.
    pub(in crate::vfs) async fn join(
        &self,
        inode: &Arc<Inode>,
        cred: &Arc<Credential>,
    ) -> Arc<OpenState> {
        let make = || {
            self.client
                .prepare_open(inode.handle.clone(), Arc::clone(cred))
        };
        self.file_state(inode)
            .when(|inner| inner.join(cred, make))
            .await
    }

    /// One user less; the last one closes, whether or not the caller still waits.
    pub(in crate::vfs) async fn leave(self: &Arc<Self>, inode: &Arc<Inode>, open: &Arc<OpenState>) {
        self.leave_with(inode, open, None).await;
    }

    /// The same of an owner of locks, which have all been given up. What the server
    /// keeps of them is freed with the next handle, or by the CLOSE.
    pub(super) async fn leave_with(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        open: &Arc<OpenState>,
        lock: Option<Arc<LockState>>,
    ) {
        caller::apart(self.left_by_one(inode, open, lock)).await;
    }

    async fn left_by_one(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        open: &Arc<OpenState>,
        lock: Option<Arc<LockState>>,
    ) {
        let left = self.file_state(inode).lock().leave(open, lock);
        let Some(Left {
            closes,
            silly,
            retired,
        }) = left
        else {
            return;
        };
        if !closes {
            for lock in retired {
                if let Err(error) = self.client.free_lock(&lock).await {
                    tracing::debug!(ino = inode.ino, "{error}");
                }
            }
        }
        if closes {
            self.client.close_soon(open);
        }
        if let Some(silly) = silly {
            self.remove_silly(inode, silly).await;
        }
    }

    /// The file was opened by its name, and made if it was not there: `file.open` has one
    /// user. Its maker's changes of attributes may wait, if it is new.
    pub(in crate::vfs) fn created(&self, inode: &Inode, file: &OpenedFile) {
        let mut inner = self.file_state(inode).lock();
        inner.set_preserved(file.preserves_unlinked);
        match file.is_new && !inner.is_open() {
            true => inner.deferred_mut().made(file.attrs.uid),
            false => inner.deferred_mut().publish(),
        }
        inner.add_open(&file.open);
    }

    /// Whether the server keeps the file until its last CLOSE, as an OPEN has said.
    pub(in crate::vfs) fn set_preserved(&self, inode: &Inode, preserved: bool) {
        self.file_state(inode).lock().set_preserved(preserved);
    }
}
