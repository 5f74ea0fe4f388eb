//! Offering one name of a listing to who reads it.

use std::sync::Arc;
use std::time::Duration;

use super::Dirs;
use super::listing::{Item, Next};
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Dentry, DentryTarget, Name};
use crate::vfs::types::{DirEntry, DirSink, Ino};

/// The kernel has yet to drop what it has of this file, before it hears of its size.
pub(super) struct Telling(pub(super) Ino);

impl Dirs {
    /// A hidden name of this mount.
    pub(super) fn is_out_of_sight(&self, dir: &Inode, item: &Next) -> bool {
        match item {
            Next::Known(name, _) => self.files.is_hidden(dir, name),
            Next::Listed(item) => self.files.is_hidden(dir, &item.name),
            Next::End => false,
        }
    }

    /// Offers a name that the server has listed.
    pub(super) fn offer(
        &self,
        dir: &Arc<Inode>,
        item: &Item,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        let entry = DirEntry {
            ino: item.ino,
            offset,
            kind: item.kind,
            name: &item.name,
        };
        let inode = match &item.inode {
            Some(inode) if plus && self.namespace.look_up_listed(inode) => inode,
            _ => return Ok(sink.add(&entry)),
        };
        // Read before a change of ours, it may be a name that we have removed: the kernel
        // is to ask for it, and learns no more than which it was.
        let late = dir.attr.lock().overtook(item.sent);
        let taken = self.offer_plus(dir, inode, &entry, late, sink)?;
        if taken && !late {
            let target = DentryTarget::Inode(Arc::clone(inode));
            let name = Arc::clone(&item.name);
            self.namespace
                .put_name(dir, name, target, Some((item.dir_change, item.sent)));
        }
        Ok(taken)
    }

    /// Offers a name that was known.
    pub(super) fn offer_known(
        &self,
        dir: &Arc<Inode>,
        name: &Name,
        inode: &Arc<Inode>,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        // It may lead elsewhere since the listing was begun, or nowhere.
        let (inode, late) = match dir.names().lock().get(name) {
            Dentry::Positive(now) => (now, false),
            Dentry::Negative => return Ok(true),
            Dentry::NotListed | Dentry::Unknown => (Arc::clone(inode), true),
        };
        let entry = DirEntry {
            ino: inode.attr.lock().stat().ino,
            offset,
            kind: inode.kind,
            name,
        };
        if plus && !inode.is_stale() && self.namespace.look_up_again(&inode) {
            if !late {
                self.namespace.found_at(&inode, dir, Arc::clone(name));
            }
            self.offer_plus(dir, &inode, &entry, late, sink)
        } else {
            Ok(sink.add(&entry))
        }
    }

    /// Offers a name whose inode has been counted as looked up; if it is `late`, for
    /// the kernel to ask for before it believes anything of it.
    fn offer_plus(
        &self,
        dir: &Arc<Inode>,
        inode: &Arc<Inode>,
        entry: &DirEntry<'_>,
        late: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        let mut plus = self.namespace.entry(inode, dir);
        if self.namespace.is_telling(inode.ino) {
            self.namespace.forget(inode.ino, 1);
            return Err(Telling(inode.ino));
        }
        if late {
            (plus.entry_ttl, plus.attr_ttl) = (Duration::ZERO, Duration::ZERO);
        }
        let taken = sink.add_plus(entry, &plus);
        if !taken {
            self.namespace.forget(inode.ino, 1);
        }
        Ok(taken)
    }
}
