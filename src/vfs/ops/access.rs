//! access(2), and who may search a directory.

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::types::{Ino, VfsResult};

impl Vfs {
    /// ACCESS: one round trip, or none. `mask` is that of access(2).
    ///
    /// # Errors
    /// EACCES, and whatever the server answers.
    pub async fn access(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        mask: u32,
    ) -> VfsResult<()> {
        let inode = self.namespace.inode(ino)?;
        self.files.before_access(&inode).await;
        self.namespace.access(cred, &inode, mask).await
    }

    /// Whether names in this directory may be answered to this user from what is known.
    pub fn may_search(&self, who: impl FnOnce() -> Arc<Credential>, dir: Ino) -> bool {
        self.namespace.may_search(who, dir)
    }

    /// Asks whether this user may search the directory, if that is not known and the
    /// kernel does not look.
    ///
    /// # Errors
    /// EACCES, and whatever the server answers.
    pub async fn search(self: &Arc<Self>, cred: &Arc<Credential>, dir: Ino) -> VfsResult<()> {
        match self.namespace.asks_who_searches() {
            true => self.access(cred, dir, libc::X_OK as u32).await,
            false => Ok(()),
        }
    }
}
