//! Asks the kernel to forget.
//!
//! The kernel keeps every inode that it has been told of until it is short of
//! memory, and an inode that the kernel holds must be held here. A walk over a
//! million files would so cost us their memory for good. Beyond a bound the
//! kernel is asked to let go of the names that it was told of first; it gives
//! their inodes back by FORGET, unless they are in use. Whoever comes back to
//! one of them looks it up again.
//!
//! Directories are not asked for: somebody may be in them. Files that are open
//! are left alone.

use super::Namespace;
use crate::vfs::inode::BACKLOG;

/// This many inodes are asked for when one has come in, to get below the bound again.
const AT_ONCE: usize = 2;

impl Namespace {
    /// Called for each inode that the kernel is told of.
    pub(super) fn trim(&self) {
        let (known, told) = (self.inodes.len(), self.inodes.told());
        self.metrics.gauges.inodes.set(known as u64);
        if known <= self.config.max_inodes {
            told.tidy(known, |ino| self.inodes.get(ino).is_some());
            return;
        }
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        if kernel.backlog() > BACKLOG {
            return;
        }
        for ino in told.first(AT_ONCE) {
            // Else it was forgotten already.
            let Some(inode) = self.inodes.get(ino) else {
                continue;
            };
            if inode.opened().is_some_and(|file| file.lock().is_open()) {
                told.push(ino);
            } else if let Some(place) = inode.place() {
                self.forget_entry(place.dir.ino, &place.name);
            }
        }
    }
}
