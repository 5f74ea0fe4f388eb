//! The two buffers a directory listing is written into.
//!
//! fuser keeps the buffer inside the reply object, so an entry is added in the
//! reply's cell. If the interrupt watcher has emptied the cell, the sink says
//! "full" and the listing ends.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::convert;
use super::dispatch::Pending;
use crate::vfs::types::{DirEntry, DirSink, Entry, Ino};

/// The node id of a READDIRPLUS entry that carries no attributes. No object
/// has it; see [`without_attributes`].
pub(super) const NO_NODE: Ino = Ino::MAX;

/// READDIR: names only.
pub(super) struct NameSink {
    pending: Arc<Pending<ReplyDirectory>>,
    /// At least one entry was taken.
    any: bool,
}

impl NameSink {
    pub(super) fn new(pending: &Arc<Pending<ReplyDirectory>>) -> Self {
        Self {
            pending: Arc::clone(pending),
            any: false,
        }
    }

    /// At least one entry was taken.
    pub(super) fn any(&self) -> bool {
        self.any
    }
}

impl DirSink for NameSink {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let kind = convert::file_type(entry.kind);
        let taken = self
            .pending
            .with(|reply| !reply.add(INodeNo(entry.ino), entry.offset, kind, name))
            .unwrap_or(false);
        self.any |= taken;
        taken
    }

    /// The name alone; there is no room for the attributes, and no lookup is
    /// counted.
    fn add_plus(&mut self, entry: &DirEntry<'_>, _plus: &Entry) -> bool {
        self.add(entry)
    }
}

/// READDIRPLUS: names with attributes, each of which is a lookup.
///
/// Dropping the sink gives back the lookups of entries the kernel was not
/// told of, by `forget`; [`delivered`](Self::delivered) says it was. `tell` hears of each
/// name that leads somewhere, and for how long the kernel is to believe that.
pub(super) struct PlusSink<F: Fn(Ino), T> {
    pending: Arc<Pending<ReplyDirectoryPlus>>,
    linked: Vec<Ino>,
    any: bool,
    forget: F,
    tell: T,
}

impl<F: Fn(Ino), T> PlusSink<F, T> {
    pub(super) fn new(pending: &Arc<Pending<ReplyDirectoryPlus>>, forget: F, tell: T) -> Self {
        Self {
            pending: Arc::clone(pending),
            linked: Vec::new(),
            any: false,
            forget,
            tell,
        }
    }

    /// At least one entry was taken.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// The kernel gets the buffer: the lookups are its own.
    pub(super) fn delivered(mut self) {
        self.linked.clear();
    }

    fn push(
        &mut self,
        entry: &DirEntry<'_>,
        ttl: Duration,
        attr: &FileAttr,
        generation: u64,
    ) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let taken = self
            .pending
            .with(|reply| {
                !reply.add(
                    attr.ino,
                    entry.offset,
                    name,
                    &ttl,
                    attr,
                    Generation(generation),
                )
            })
            .unwrap_or(false);
        self.any |= taken;
        taken
    }
}

impl<F, T> DirSink for PlusSink<F, T>
where
    F: Fn(Ino) + Send,
    T: Fn(&[u8], Ino, Duration) + Send,
{
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.push(entry, Duration::ZERO, &without_attributes(entry), 0)
    }

    fn add_plus(&mut self, entry: &DirEntry<'_>, plus: &Entry) -> bool {
        let attr = convert::attr(plus.ino, &plus.stat);
        let ttl = convert::joint_ttl(plus);
        let taken = self.push(entry, ttl, &attr, plus.generation);
        if taken {
            (self.tell)(entry.name, plus.ino, ttl);
            self.linked.push(plus.ino);
        }
        taken
    }
}

impl<F: Fn(Ino), T> Drop for PlusSink<F, T> {
    fn drop(&mut self) {
        for &ino in &self.linked {
            (self.forget)(ino);
        }
    }
}

/// An entry that READDIRPLUS shows without linking an inode to it.
///
/// FUSE has node id 0 for that, but fuser writes one number as node id and as
/// `d_ino`, and C libraries skip names whose `d_ino` is 0.
/// - "." and "..": the kernel links neither, so their own number is right.
/// - Others get [`NO_NODE`] and a size no file can have: the kernel shows the
///   name, refuses the attributes (`fuse_invalid_attr`) and at once forgets
///   [`NO_NODE`], which the adapter ignores.
fn without_attributes(entry: &DirEntry<'_>) -> FileAttr {
    let dots = matches!(entry.name, b"." | b"..");
    FileAttr {
        ino: INodeNo(if dots { entry.ino } else { NO_NODE }),
        size: if dots { 0 } else { u64::MAX },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: convert::file_type(entry.kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
