//! Putting the small files of a directory on this host's disk, many with a request.

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::types::{Errno, FileKind, Ino, VfsResult, WarmFrom, Warmed};

impl Vfs {
    /// Puts the small files of the next part of a directory on the disk, as far as the server lets
    /// this caller read them; says which. Their names take at most `room` bytes, with
    /// [`WarmedFile::OVERHEAD`](crate::vfs::types::WarmedFile::OVERHEAD) each. See `files::warm`.
    ///
    /// # Errors
    /// ENOTTY: there is no cache on a disk. ENOTDIR. The server's, of the listing.
    pub async fn warm(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        from: WarmFrom,
        room: usize,
    ) -> VfsResult<Warmed> {
        let dir = self.namespace.inode(ino)?;
        if dir.kind != FileKind::Directory {
            return Err(Errno(libc::ENOTDIR).into());
        }
        self.files.warm(cred, &dir, from, room).await
    }
}
