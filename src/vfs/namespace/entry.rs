//! What the kernel is answered for an inode: its attributes and the name that it was found by, and
//! how long it may believe them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Namespace;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Entry, FileKind};

impl Namespace {
    /// How long a name in this directory may be believed.
    pub(super) fn names_ttl(&self, dir: &Inode) -> Duration {
        if !self.names.is_on() {
            return dir.attr.lock().ttl(Instant::now());
        }
        let timeout = dir.attr.lock().timeout();
        let timeouts = self.inodes.timeouts();
        let longest = timeouts.dir_max.max(timeouts.dir_min);
        let mut names = dir.names().lock();
        names.good_for(Instant::now(), timeout, longest)
    }

    /// The answer for a name that leads to `inode`, which has been counted as
    /// looked up. `dir` says how long the name may be believed.
    pub(in crate::vfs) fn entry(&self, inode: &Arc<Inode>, dir: &Inode) -> Entry {
        self.trim();
        let mut entry_ttl = self.names_ttl(dir);
        let (stat, mut attr_ttl) = inode.known_stat();
        if inode.kind == FileKind::Regular && stat.nlink > 1 {
            // An open has to find the very name that it was asked for still leading
            // there, so that has to be known.
            entry_ttl = Duration::ZERO;
        }
        if self.config.asks_who_searches {
            // What the kernel believes it gives to everybody.
            entry_ttl = Duration::ZERO;
        }
        if inode.is_elsewhere() {
            // The kernel takes st_ino from the entry until it asks for it.
            attr_ttl = Duration::ZERO;
        }
        Entry {
            ino: inode.ino,
            generation: inode.generation,
            stat,
            attr_ttl,
            entry_ttl,
        }
    }

    /// An object that was not found by a name.
    pub(in crate::vfs) fn entry_without_name(&self, inode: &Arc<Inode>) -> Entry {
        self.trim();
        let (stat, attr_ttl) = inode.known_stat();
        // The kernel takes st_ino from the entry until it asks for it.
        let shown = inode.ino == stat.ino;
        Entry {
            ino: inode.ino,
            generation: inode.generation,
            stat,
            attr_ttl: if shown { attr_ttl } else { Duration::ZERO },
            entry_ttl: Duration::ZERO,
        }
    }
}
