//! Which names the kernel believes, and until when.
//!
//! The kernel looks a name up again although what it was told of it is still good for
//! one of three reasons only: the name is about to be made by a call that must fail if
//! it is there (LOOKUP_EXCL: mkdir, mknod, symlink, link, O_EXCL), it is about to be
//! replaced (LOOKUP_RENAME_TARGET), or a walk has ended with ESTALE and is made anew
//! (LOOKUP_REVAL). Each means: ask the server. FUSE does not say which it is, or
//! that it is one of them; but what the kernel was told, this side knows.
//!
//! Of each inode one name is kept so, the one that the kernel was told of last: names of
//! files with several are told to be asked for each time. It is looked for where
//! the name leads by what is known here; where nothing is, the server is asked anyway.
//!
//! An open(2) of a file that is found by two names at the same time is another matter: it says
//! which file, not by which name, and a name that the kernel still believes may lead
//! elsewhere by now, while the other does not. As long as the kernel may believe the name
//! of before, such an open has to find out ([`Namespace::may_mean_another_name`]).
//!
//! What is not believed any more: what this side has told the kernel to forget
//! ([`KernelCache::inval_entry`](crate::vfs::types::KernelCache)), what it has removed or
//! moved at the kernel's own request, and names of inodes that the kernel has given back
//! (FORGET comes with the end of the last name). Should the kernel forget in another way, the
//! next lookup costs a round trip that it need not; nothing worse.

use std::sync::Arc;
use std::time::Duration;

use super::Namespace;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::inode::{FoundAt, Inode};
use crate::vfs::types::{FileKind, Ino};

/// How a name stands before anybody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DentryState {
    /// The kernel believes it: should it ask for it, it wants to know of the server. With what
    /// the name leads to.
    Believed(FileKind),
    /// It is remembered to lead to something, and the kernel does not believe that (any more).
    Leads,
    /// It is not.
    Open,
}

impl Namespace {
    pub(super) fn ticks(&self) -> u32 {
        self.inodes.ticks()
    }

    /// See [`InodeTable::tells`](crate::vfs::inode::InodeTable::tells).
    pub(in crate::vfs) fn tells(&self, parent: Ino, name: &[u8], ino: Ino, ttl: Duration) {
        self.inodes.tells(parent, name, ino, ttl);
    }

    /// How the name stands before anybody is asked.
    pub(in crate::vfs) fn dentry_state(&self, parent: Ino, name: &[u8]) -> DentryState {
        let dir = self.inodes.get(parent);
        let Some(inode) = dir.and_then(|dir| self.remembered_inode(&dir, name)) else {
            return DentryState::Open;
        };
        let believed = self.is_told(parent, name, &inode)
            && (self.inodes.get(inode.ino)).is_some_and(|held| Arc::ptr_eq(&held, &inode));
        match believed {
            true => DentryState::Believed(inode.kind),
            false => DentryState::Leads,
        }
    }

    /// The kernel believes that this name leads to the inode.
    pub(in crate::vfs) fn is_told(&self, parent: Ino, name: &[u8], inode: &Inode) -> bool {
        inode.is_told_name(parent, name, self.ticks())
    }

    /// The object was found by this name: an open of a file has to find it still leading
    /// there, see [`Inode::found_at`].
    pub(in crate::vfs) fn found_at(
        &self,
        inode: &Inode,
        dir: &Arc<Inode>,
        name: impl AsRef<[u8]> + Into<Name> + Clone,
    ) {
        match inode.found_at(dir, name.clone()) {
            FoundAt::Known => return,
            FoundAt::First => {}
            FoundAt::Another => inode.told_another_name(dir.ino, name.as_ref(), self.ticks()),
        }
        self.inodes.log_place(inode);
    }

    /// An open of the inode may be one of a name that the kernel believes to lead there,
    /// and that is not the one it was found by.
    pub(in crate::vfs) fn may_mean_another_name(&self, inode: &Inode) -> bool {
        inode.may_have_another_name(self.ticks())
    }

    /// The name does not lead to the inode any more. What another host (`foreign`) has made
    /// of it the kernel hears when this host does; of this host's own changes it knows.
    pub(super) fn leads_elsewhere(&self, parent: Ino, name: &[u8], inode: &Inode, foreign: bool) {
        match self.kernel.get() {
            Some(kernel) if foreign && self.is_told(parent, name, inode) => {
                kernel.inval_entry(parent, name);
            }
            _ if foreign => {}
            _ => inode.lost_name(parent, name),
        }
    }

    /// Has the kernel forget a name.
    pub(in crate::vfs) fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let dir = self.inodes.get(parent);
        if let Some(inode) = dir.and_then(|dir| self.remembered_inode(&dir, name)) {
            inode.forget_name(self.ticks());
        }
        kernel.inval_entry(parent, name);
    }
}
