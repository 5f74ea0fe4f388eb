//! Changes of ours in a directory that are under way: as long as one is, its change attribute may
//! move without anybody else's doing.

use std::sync::Arc;

use super::Namespace;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::Seen;
use crate::vfs::inode::change_tracker::Verdict;
use crate::vfs::types::FileKind;

impl Namespace {
    /// A change of ours in this directory, or of it, is about to be sent, and is
    /// under way until the result is dropped.
    pub(in crate::vfs) fn changing(&self, dir: &Arc<Inode>) -> Option<Changing<'_>> {
        (dir.kind == FileKind::Directory).then(|| Changing {
            namespace: self,
            number: dir.names().lock().tracker.begin(),
            dir: Arc::clone(dir),
        })
    }
}

/// A change of a directory's names that is under way.
pub(in crate::vfs) struct Changing<'a> {
    namespace: &'a Namespace,
    dir: Arc<Inode>,
    number: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let heard = self.dir.names().lock().ended(self.number);
        self.namespace.reopen_guard.change_ended();
        self.namespace.heed(&self.dir, said(heard));
    }
}

/// What a verdict on a directory's names makes of what was cached of it.
pub(super) fn said(heard: Verdict) -> Seen {
    match heard {
        Verdict::Same | Verdict::Unsure => Seen::Same,
        Verdict::Foreign => Seen::Foreign,
    }
}
