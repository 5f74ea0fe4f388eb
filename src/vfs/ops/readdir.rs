//! opendir, readdir, readdirplus, releasedir.

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::types::{DirSink, Errno, FileKind, Ino, Opened, VfsResult};

impl Vfs {
    /// Opens a directory, for thread `by`. The kernel has checked the permission; what
    /// the server lists it lists for the caller, and names that are known are shown to
    /// the user who has listed them. One round trip to confirm those, or for the first page;
    /// see `access_pattern`.
    ///
    /// # Errors
    /// ESTALE: it was removed. What else the server has against it is for who lists it.
    pub async fn opendir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        by: u32,
    ) -> VfsResult<Opened> {
        let dir = self.namespace.inode(ino)?;
        if dir.kind != FileKind::Directory {
            return Err(Errno(libc::ENOTDIR).into());
        }
        self.namespace.may_list(cred, &dir).await?;
        self.dirs.open(cred, &dir, by).await
    }

    /// Closes a directory.
    pub async fn releasedir(self: &Arc<Self>, fh: u64) -> VfsResult<()> {
        self.dirs.close(fh)
    }

    /// READDIR from `offset` on, until `sink` is full: one round trip for each
    /// page of about rsize bytes. With `plus` each name counts as looked up.
    pub async fn readdir(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> VfsResult<()> {
        self.dirs.read(fh, offset, plus, sink).await
    }
}
