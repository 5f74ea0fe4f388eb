//! statfs.

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::types::{Ino, StatFs, VfsResult};

impl Vfs {
    /// The space of the file system that the object lies in: one round trip a second at
    /// most, for who asks about one object.
    pub async fn statfs(self: &Arc<Self>, cred: &Arc<Credential>, ino: Ino) -> VfsResult<StatFs> {
        let inode = self.namespace.inode(ino)?;
        self.namespace.space_of(cred, &inode).await
    }
}
