//! flush, fsync, release.
//!
//! close(2) is FLUSH: there every write is made stable and errors are told.
//! RELEASE comes later and nobody waits for it.

use std::sync::Arc;

use crate::vfs::Vfs;
use crate::vfs::types::Errno;

impl Vfs {
    /// FLUSH, at every close(2): all writes of the file become stable, its new
    /// attributes are the server's, the
    /// process's POSIX locks on it go, and a write error that this handle has
    /// not told of is told.
    pub async fn flush(self: &Arc<Self>, fh: u64, lock_owner: u64) -> Result<(), Errno> {
        let handle = self.files.used_handle(fh)?;
        self.files.before_publishing(&handle.inode).await;
        self.files.closed_by(&handle.inode, lock_owner).await;
        let inner = self.files.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        *handle.told_at_close.lock() = errors.sample();
        match errors.peek(&handle.seen.lock()) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// FSYNC: as FLUSH. Data and metadata are not told apart: the server is
    /// asked for both.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        let handle = self.files.used_handle(fh)?;
        self.files.before_publishing(&handle.inode).await;
        self.files.check_locks(&handle, fh)?;
        self.files.tell_error(&handle)
    }

    /// RELEASE: the handle is gone. What FLUSH did not see (writes of a shared
    /// mapping) is written first. From the call on, not only from the first poll, who is
    /// refused a lock by what was locked through the handle waits for it: close(2) has
    /// returned already.
    pub fn release(
        self: &Arc<Self>,
        fh: u64,
    ) -> impl Future<Output = Result<(), Errno>> + Send + use<> {
        let vfs = Arc::clone(self);
        let releasing = vfs.files.begins_release(fh);
        async move {
            let released = vfs.end_handle(fh).await;
            drop(releasing);
            released
        }
    }

    async fn end_handle(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        let Some(handle) = self.files.take_handle(fh) else {
            return Err(Errno(libc::EBADF));
        };
        // From here on, not only once the CLOSE was answered: whoever removes
        // its directory next has to wait for the hidden name.
        let _closing = self.files.closing_hidden(&handle.inode);
        self.files.before_release(&handle.inode).await;
        if let Some(used) = handle.ahead.beginning_used() {
            let file = self.files.file_state(&handle.inode);
            file.lock().inline_used(used);
        }
        if let Some(Errno(errno)) = self.files.untold_error(&handle) {
            let why = std::io::Error::from_raw_os_error(errno);
            tracing::error!(
                ino = handle.inode.ino,
                "data written through a mapping after the last close were lost, and nobody \
                 was left to be told: {why}"
            );
        }
        self.files.released(&handle, fh).await;
        self.files.leave(&handle.inode, &handle.open).await;
        Ok(())
    }
}
