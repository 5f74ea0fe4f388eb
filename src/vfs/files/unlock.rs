//! Letting file locks go: by F_UNLCK, by close(2), and with the handle. The rules are in
//! [`lock`](super::lock).

use std::sync::Arc;

use super::Files;
use super::handle::OpenHandle;
use crate::nfs::state::locks::LockState;
use crate::nfs::state::ranges::Span;
use crate::rpc::caller;
use crate::vfs::inode::Inode;
use crate::vfs::locks::locktable::Closed;
use crate::vfs::types::{Errno, VfsResult};
use crate::wal::Table;

/// A handle through which was locked is being released, until this is dropped.
#[derive(Debug)]
pub(in crate::vfs) struct Releasing(Option<Arc<OpenHandle>>);

impl Drop for Releasing {
    fn drop(&mut self) {
        if let Some(file) = self.0.as_ref().and_then(|handle| handle.inode.opened()) {
            let mut inner = file.lock();
            inner.end_release();
            drop(inner);
            file.notify_waiters();
        }
    }
}

impl Files {
    /// A handle is about to be released.
    pub(in crate::vfs) fn begins_release(&self, fh: u64) -> Releasing {
        let handle = self.handles.get(&fh).map(|handle| Arc::clone(&handle));
        let locked = handle.filter(|handle| handle.locking.was_used());
        if let Some(handle) = &locked {
            self.file_state(&handle.inode).lock().begin_release();
        }
        Releasing(locked)
    }

    /// F_UNLCK: what was written under the lock is stable before it goes. A
    /// write error does not keep it: fsync and close tell of that.
    pub(in crate::vfs) async fn unlock(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        owner: u64,
        span: Span,
    ) -> VfsResult<()> {
        let inode = &handle.inode;
        let lock = self.file_state(inode).lock().locks().state(owner);
        let Some(lock) = lock else {
            return Ok(());
        };
        self.let_go(&handle.inode, &lock, span, true).await
    }

    /// LOCKU. What was written under the lock is stable before it. The owner of a lost
    /// lock who knows of it (`forgive`) may lock again once it has unlocked everything.
    pub(super) async fn let_go(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        lock: &Arc<LockState>,
        span: Span,
        forgive: bool,
    ) -> VfsResult<()> {
        self.before_unlock(inode).await;
        let turn = lock.turn().await;
        if forgive && span == Span::ALL {
            turn.forgive();
        }
        let result = match turn.touches(span) {
            true => self.client.unlock(&turn, span).await,
            false => Ok(()),
        };
        drop(turn);
        self.line.lock().wake(inode.ino);
        result.map_err(|error| self.failed_lock(&error, inode))
    }

    /// Lets go of the locks of owners that are gone, who use their opens no more.
    /// Everything written is stable already.
    pub(super) async fn drop_locks(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        locks: Vec<Arc<LockState>>,
    ) {
        if locks.is_empty() {
            return;
        }
        self.clear(inode, &locks).await;
        for lock in locks {
            self.wal.remove(Table::Owner, lock.owner());
            let open = Arc::clone(&lock.open);
            self.leave_with(inode, &open, Some(lock)).await;
        }
    }

    /// Unlocks all of these.
    async fn clear(self: &Arc<Self>, inode: &Arc<Inode>, locks: &[Arc<LockState>]) {
        self.before_unlock_at_close(inode).await;
        for lock in locks {
            let turn = lock.turn().await;
            if turn.touches(Span::ALL)
                && let Err(error) = self.client.unlock(&turn, Span::ALL).await
            {
                tracing::warn!(ino = inode.ino, "unlocking at close: {error}");
            }
        }
        self.line.lock().wake(inode.ino);
    }

    /// FLUSH by `owner`: a process that closes a descriptor loses its POSIX
    /// locks on the file, through whichever descriptor it has taken them; also one that is
    /// killed meanwhile.
    pub(in crate::vfs) async fn closed_by(self: &Arc<Self>, inode: &Arc<Inode>, owner: u64) {
        let closed = {
            let mut inner = self.file_state(inode).lock();
            if inner.locks().is_empty() {
                return;
            }
            inner.locks_mut().closed_by(owner)
        };
        match closed {
            None => {}
            Some(Closed::Gone(lock)) => caller::apart(self.drop_locks(inode, vec![lock])).await,
            Some(Closed::InUse(lock)) => caller::apart(self.clear(inode, &[lock])).await,
        }
    }

    /// RELEASE: what was locked through the handle goes with it, and nothing is locked
    /// through it any more.
    pub(in crate::vfs) async fn released(self: &Arc<Self>, handle: &OpenHandle, fh: u64) {
        let locks = {
            let mut inner = self.file_state(&handle.inode).lock();
            match inner.end_locking(&handle.locking, fh) {
                Some(locks) => locks,
                None => return,
            }
        };
        caller::apart(self.drop_locks(&handle.inode, locks)).await;
    }

    /// EIO for a handle whose lock was lost: what it reads or writes would not
    /// be protected.
    pub(in crate::vfs) fn check_locks(&self, handle: &OpenHandle, fh: u64) -> VfsResult<()> {
        if handle.locking.was_used() && self.file_state(&handle.inode).lock().locks().is_lost(fh) {
            // No cause: the log has told of it when the lock was lost.
            return Err(Errno(libc::EIO).into());
        }
        Ok(())
    }
}
