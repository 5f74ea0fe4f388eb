//! Objects that the kernel asks for by number: what a handle names
//! (name_to_handle_at(2), a file system that is exported again).
//!
//! A handle is the number and the generation of an inode. As long as the kernel holds the
//! inode it does not ask. After that the number means the object whenever a name leads to
//! it in the name cache, also one that was looked up since; of a file of several names only
//! while the kernel holds it. Otherwise the handle is stale: the server's own names for
//! objects are too long for the kernel's handles, and an object cannot be found by its
//! number.
//!
//! Of a directory the kernel also asks for the one that it lies in, and then looks for the
//! name in there.

use std::sync::Arc;

use tokio::time::Instant;

use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::types::{Errno, FileKind, Ino, Lookup, ROOT_INO, VfsResult};

const STALE: Errno = Errno(libc::ESTALE);

impl Vfs {
    /// The object with this number, counted as looked up: no round trip, or one if its
    /// attributes are too old.
    ///
    /// # Errors
    /// ESTALE: it is not known any more.
    pub async fn lookup_itself(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> VfsResult<Lookup> {
        let known = self.namespace.find_number(ino);
        let inode = known.filter(|inode| !inode.is_stale()).ok_or(STALE)?;
        let ttl = inode.attr.lock().ttl(Instant::now());
        if ttl.is_zero() && !inode.is_changing() {
            self.namespace.refresh(cred, &inode).await?;
        }
        if inode.is_stale() || !self.namespace.look_up_again(&inode) {
            return Err(STALE.into());
        }
        Ok(Lookup::Found(self.namespace.entry_without_name(&inode)))
    }

    /// The directory that a directory lies in, counted as looked up: one round trip.
    ///
    /// # Errors
    /// ESTALE: the directory is not known any more, or nothing lies above it.
    pub async fn lookup_parent(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> VfsResult<Lookup> {
        let dir = self.namespace.inode(ino)?;
        if dir.kind != FileKind::Directory || ino == ROOT_INO {
            return Err(STALE.into());
        }
        let sent = Instant::now();
        let found = self.client.lookup_parent(cred, &dir.handle).await;
        let (handle, attrs) = found.map_err(|error| match self.namespace.failed(&error, &dir) {
            error if error.is(libc::ENOENT) => error.told_as(libc::ESTALE),
            error => error,
        })?;
        let above = self.namespace.known(&handle, &attrs, sent);
        Ok(Lookup::Found(self.namespace.entry_without_name(&above)))
    }
}
