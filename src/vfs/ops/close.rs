//! flush, fsync, release.
//!
//! close(2) is FLUSH: there every write is made stable and errors are told.
//! RELEASE comes later and nobody waits for it.

use std::sync::Arc;

use crate::vfs::Vfs;
use crate::vfs::types::{Errno, Ino, VfsResult};

impl Vfs {
    /// FLUSH, at every close(2): all writes of the file become stable, its new
    /// attributes are the server's, the
    /// process's POSIX locks on it go, and a write error that this handle has
    /// not told of is told.
    pub async fn flush(self: &Arc<Self>, fh: u64, lock_owner: u64) -> VfsResult<()> {
        let handle = self.files.used_handle(fh)?;
        self.files.before_close(&handle).await;
        self.files.closed_by(&handle.inode, lock_owner).await;
        self.files.tell_error_at_close(&handle)
    }

    /// FSYNC: as FLUSH. Data and metadata are not told apart: the server is
    /// asked for both.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> VfsResult<()> {
        let handle = self.files.used_handle(fh)?;
        self.files.before_sync(&handle.inode).await;
        self.files.check_locks(&handle, fh)?;
        self.files.tell_error(&handle)
    }

    /// FSYNCDIR. Directories are changed at the server and nowhere else; with `writeback` all that
    /// was accepted is there, and stable, when this returns, and a change of this directory's
    /// names that was refused is told.
    pub async fn fsyncdir(self: &Arc<Self>, ino: Ino) -> VfsResult<()> {
        self.files.sync_directory(ino).await
    }

    /// RELEASE: the handle is gone. What FLUSH did not see (writes of a shared
    /// mapping) is written first. From the call on, not only from the first poll, who is
    /// refused a lock by what was locked through the handle waits for it: close(2) has
    /// returned already.
    pub fn release(
        self: &Arc<Self>,
        fh: u64,
    ) -> impl Future<Output = VfsResult<()>> + Send + use<> {
        let vfs = Arc::clone(self);
        let releasing = vfs.files.begins_release(fh);
        async move {
            let released = vfs.end_handle(fh).await;
            drop(releasing);
            released
        }
    }

    async fn end_handle(self: &Arc<Self>, fh: u64) -> VfsResult<()> {
        let Some(handle) = self.files.take_handle(fh) else {
            return Err(Errno(libc::EBADF).into());
        };
        self.files.begin_close(&handle).await;
        // From here on, not only once the CLOSE was answered: whoever removes
        // its directory next has to wait for the hidden name.
        let _closing = self.files.closing_hidden(&handle.inode);
        self.files.before_release(&handle.inode).await;
        self.files.count_inline_use(&handle);
        self.files.log_untold_error(&handle);
        self.files.released(&handle, fh).await;
        self.files.leave(&handle.inode, &handle.open).await;
        // Last: whoever goes on in our place is asked for the rest of it again.
        self.files.handle_ended(fh);
        Ok(())
    }
}
