//! fchmod(2) of a file that the server has yet to make (`writeback`), before anything is written
//! to it, as rsync does. The request that makes the file gives it this mode from the beginning, so its
//! data are protected by it from the first byte on, and nobody waits for that.

use std::sync::Arc;

use super::Files;
use super::accepted_name::What;
use crate::vfs::inode::Inode;

impl Files {
    /// The mode that was set of a promised file is the one that it will be made with. False: something
    /// else was set, or the request that makes the file may be on its way.
    pub(super) fn makes_with_mode(&self, inode: &Arc<Inode>) -> bool {
        if !inode.handle.is_undecided() {
            return false;
        }
        let Some(place) = inode.place() else {
            return false;
        };
        let mut queue = self.names.queue.lock();
        let makes = queue.find_waiting(place.dir.ino, |accepted| accepted.makes(inode));
        let Some(queued) = makes else {
            return false;
        };
        let What::File(file) = &mut queued.change.what else {
            return false;
        };
        let mut inner = self.file_state(inode).lock();
        // Data that were written before it have been there without it.
        if !inner.writeback().is_idle() {
            return false;
        }
        let Some(mode) = inner.deferred_mut().take_mode() else {
            return false;
        };
        file.mode = mode & 0o7777;
        self.log_change(queued.number, &queued.change);
        self.log_deferred(inode, &inner);
        true
    }
}
