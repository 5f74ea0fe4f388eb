//! Inodes: what the kernel has a number for.
//!
//! The number is the server's fileid, so that `st_ino` is the same on every
//! host. The root is 1 for FUSE; a file that happens to have fileid 0 or 1, or
//! that lies in another file system of the server, is mapped out of the way: a mount has
//! one `st_dev`, so that programs would take two objects of one number for one.
//!
//! The table owns an inode as long as the kernel holds lookups of it, which
//! FORGET gives back; directories' names and open handles may hold it longer.
//!
//! A fileid may come back under another file handle while the kernel still holds
//! the file that had it first, and replies about the two may arrive in any order.
//! The kernel takes a number that changes its meaning for the end of the old
//! file: everything that has it open gets EIO from then on. So the second file has
//! a number out of the way as long as the first is held (`elsewhere`), and is
//! still shown under its fileid.
//!
//! What the kernel holds is in the write-ahead log: an inode from before the kernel is told of
//! it until it has given back its last lookup. The log is written with the inode's shard
//! locked ([`logged`]).
//!
//! Locks: `elsewhere` first, then a shard of the table, then an inode's; never
//! two inodes' at once, never across an await.

pub(in crate::vfs) mod handover;
pub(in crate::vfs) mod logged;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dashmap::mapref::entry::{Entry as Slot, VacantEntry};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::FileState;
use super::attr::{AttrState, Timeouts, kind_of};
use super::dentry_cache::{Name, Names};
use super::eviction_queue::EvictionQueue;
use super::kernel_dentry::{Apart, KernelDentry, ticks_since};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::{FileHandle, Promise};
use crate::vfs::types::{ByNumber, FileKind, Ino, ROOT_INO};
use crate::wal::{Count, Numbers, Wal};

/// An object of the file system.
#[derive(Debug)]
pub(in crate::vfs) struct Inode {
    /// Its number for the kernel.
    pub ino: Ino,
    /// Tells apart objects that had the number one after the other: made from the handle,
    /// so that a handle of the kernel's means the same object after it was forgotten.
    pub generation: u64,
    /// Its name for the server.
    pub handle: FileHandle,
    /// What it is; never changes.
    pub kind: FileKind,
    /// What is known of it.
    pub attr: Mutex<AttrState>,
    /// What a regular file needs once it was opened.
    file: OnceLock<Box<FileState>>,
    /// What is known of the names in a directory.
    names: OnceLock<Box<Mutex<Names>>>,
    /// The text of a symbolic link; it never changes.
    pub link: OnceLock<Box<Bytes>>,
    /// The server said STALE: no name may lead here any more.
    stale: AtomicBool,
    /// The name it was found by last.
    place: Mutex<Option<Place>>,
    /// The name that the kernel was told of last.
    pub(super) belief: KernelDentry,
    pub(super) apart: Apart,
}

/// Where an object was found.
#[derive(Clone, Debug)]
pub(in crate::vfs) struct Place {
    /// The directory.
    pub dir: Arc<Inode>,
    /// The name in it.
    pub name: Name,
}

/// What [`Inode::found_at`] was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) enum FoundAt {
    /// Nothing new.
    Known,
    /// Its first name.
    First,
    /// Another name than the one before.
    Another,
}

impl Inode {
    /// The object was found by this name: an open of a file has to find it still
    /// leading there, and what lies beside it is asked for together with it.
    pub(in crate::vfs) fn found_at(
        &self,
        dir: &Arc<Inode>,
        name: impl AsRef<[u8]> + Into<Name>,
    ) -> FoundAt {
        let mut place = self.place.lock();
        let known = place
            .as_ref()
            .is_some_and(|place| Arc::ptr_eq(&place.dir, dir) && *place.name == *name.as_ref());
        if known {
            return FoundAt::Known;
        }
        let (dir, name) = (Arc::clone(dir), name.into());
        match place.replace(Place { dir, name }) {
            Some(_) => FoundAt::Another,
            None => FoundAt::First,
        }
    }

    /// What is known of the names in this directory.
    pub(in crate::vfs) fn names(&self) -> &Mutex<Names> {
        self.names.get_or_init(Box::default)
    }

    /// The same, if anything is.
    pub(super) fn known_names(&self) -> Option<&Mutex<Names>> {
        self.names.get().map(AsRef::as_ref)
    }

    /// The name may lead elsewhere, by our own doing.
    pub(in crate::vfs) fn not_found(&self) {
        *self.place.lock() = None;
    }

    /// A name of the object was removed by us, or given to another.
    pub(in crate::vfs) fn lost_a_name(&self) {
        self.not_found();
        let mut attr = self.attr.lock();
        attr.unlinked();
        if attr.stat().nlink > 0 {
            attr.names_changed(Instant::now());
        }
    }

    /// See [`Inode::found_at`].
    pub(in crate::vfs) fn place(&self) -> Option<Place> {
        self.place.lock().clone()
    }

    /// It was found by this name last.
    pub(in crate::vfs) fn is_found_at(&self, dir: Ino, name: &[u8]) -> bool {
        let place = self.place.lock();
        let is_it = |place: &Place| place.dir.ino == dir && *place.name == *name;
        place.as_ref().is_some_and(is_it)
    }

    /// Another file had its number when it was found.
    pub(in crate::vfs) fn is_elsewhere(&self) -> bool {
        self.ino != ROOT_INO && self.ino != self.attr.lock().stat().ino
    }

    /// The state of an open file, made at its first use.
    pub(in crate::vfs) fn file(&self, make: impl FnOnce() -> FileState) -> &FileState {
        self.file.get_or_init(|| Box::new(make()))
    }

    /// The state of an open file, if it ever was opened.
    pub(in crate::vfs) fn opened(&self) -> Option<&FileState> {
        self.file.get().map(AsRef::as_ref)
    }

    /// The server does not know the object any more.
    pub(in crate::vfs) fn mark_stale(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    /// See [`Inode::mark_stale`].
    pub(in crate::vfs) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The inode of an object with this handle.
    fn is_still(&self, handle: &FileHandle) -> bool {
        self.handle == *handle && !self.is_stale()
    }

    /// It was in the tree before the server had made it.
    pub(in crate::vfs) fn was_promised(&self) -> bool {
        self.ino & OTHER_RANGES == PROMISED
    }

    /// A file that can be reached by several names.
    fn has_other_names(&self) -> bool {
        self.kind != FileKind::Directory && self.attr.lock().stat().nlink > 1
    }
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    /// Lookups that the kernel has not given back.
    lookups: Count,
}

/// All inodes that the kernel knows.
#[derive(Debug)]
pub(in crate::vfs) struct InodeTable {
    inodes: ByNumber<Known>,
    /// Entries of `inodes`, without asking every shard.
    count: AtomicUsize,
    /// Those of them that the kernel may be asked to forget.
    told: EvictionQueue,
    /// Held files whose own number another one had when they were found, and
    /// the numbers they have instead.
    elsewhere: Mutex<HashMap<FileHandle, Ino>>,
    /// Entries of `elsewhere`, changed with the shard of the file's own number
    /// locked.
    elsewhere_count: AtomicUsize,
    /// Objects that were promised before the server has made them.
    promised: Numbers,
    root: Arc<Inode>,
    root_fsid: (u64, u64),
    root_fileid: u64,
    timeouts: Timeouts,
    /// When the table was made; what the kernel believes is counted from then on.
    began: Instant,
    wal: Wal,
}

impl InodeTable {
    /// A table with the root in it, which is never forgotten.
    pub(in crate::vfs) fn new(
        handle: FileHandle,
        attrs: &Attributes,
        sent: Instant,
        timeouts: Timeouts,
        wal: Wal,
    ) -> Self {
        // readdir(3) leaves out what has no number (the pseudo file systems of some
        // servers), and no other object is shown as 1.
        let shown = if attrs.fileid == 0 {
            ROOT_INO
        } else {
            attrs.fileid
        };
        let root = Arc::new(Inode {
            ino: ROOT_INO,
            // The kernel's own number for it.
            generation: 0,
            handle,
            kind: kind_of(attrs.kind),
            attr: Mutex::new(AttrState::new(shown, attrs, sent, &timeouts)),
            file: OnceLock::new(),
            names: OnceLock::new(),
            link: OnceLock::new(),
            stale: AtomicBool::new(false),
            place: Mutex::new(None),
            belief: KernelDentry::default(),
            apart: Apart::default(),
        });
        let table = Self {
            inodes: ByNumber::default(),
            count: AtomicUsize::new(0),
            told: EvictionQueue::default(),
            elsewhere: Mutex::default(),
            elsewhere_count: AtomicUsize::new(0),
            promised: Numbers::new(wal.clone(), PROMISES, 0),
            root,
            root_fsid: attrs.fsid,
            root_fileid: attrs.fileid,
            timeouts,
            began: Instant::now(),
            wal,
        };
        table.log_root();
        table
    }

    /// Ticks since the table was made ([`ticks_since`]).
    pub(in crate::vfs) fn ticks(&self) -> u32 {
        ticks_since(self.began)
    }

    /// The kernel is about to be told that this name leads to `ino`, for so long. If that is not
    /// the only name that it believes, or not the one that the inode was found by, the log has it
    /// before the kernel does.
    pub(in crate::vfs) fn tells(&self, parent: Ino, name: &[u8], ino: Ino, ttl: Duration) {
        let Some(inode) = self.get(ino) else {
            return;
        };
        let is_another = inode.tell_name(parent, name, self.ticks(), ttl);
        if self.wal.is_on() && (is_another || !inode.is_found_at(parent, name)) {
            self.log_place(&inode);
        }
    }

    /// The root.
    pub(in crate::vfs) fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The file system that the root lies in.
    pub(in crate::vfs) fn root_fsid(&self) -> (u64, u64) {
        self.root_fsid
    }

    /// How long attributes are believed.
    pub(in crate::vfs) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The inode with this number.
    pub(in crate::vfs) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        if ino == ROOT_INO {
            return Some(Arc::clone(&self.root));
        }
        self.inodes.get(&ino).map(|known| Arc::clone(&known.inode))
    }

    /// Number of inodes the kernel holds, the root not counted.
    pub(in crate::vfs) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The number for an object with these attributes.
    pub(in crate::vfs) fn ino_of(&self, attrs: &Attributes) -> Ino {
        if attrs.fsid != self.root_fsid {
            // Another file system below the root has numbers of its own. They
            // are spread over a range that fileids hardly reach.
            let mixed = (attrs.fsid.0 ^ attrs.fsid.1.rotate_left(32))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ attrs.fileid;
            return mixed | 1 << 62;
        }
        match attrs.fileid {
            root if root == self.root_fileid => ROOT_INO,
            taken @ 0..=1 => taken | 1 << 63,
            fileid => fileid,
        }
    }

    /// The inode for an object that a reply named, counted as one lookup, and
    /// whether it was made just now (its attributes are the reply's then).
    /// `kept` says who has kept an inode of that number that the kernel has
    /// forgotten.
    pub(in crate::vfs) fn look_up(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
        kept: impl FnOnce(Ino) -> Option<Arc<Inode>>,
    ) -> (Arc<Inode>, bool) {
        let ino = self.ino_of(attrs);
        if ino == ROOT_INO {
            return (Arc::clone(&self.root), false);
        }
        match self.inodes.entry(ino) {
            Slot::Occupied(mut slot) if slot.get().inode.handle == *handle => {
                return (slot.get_mut().looked_up(&self.wal), false);
            }
            Slot::Vacant(slot) if self.elsewhere_count.load(Ordering::Relaxed) == 0 => {
                return self.take_up(slot, kept(ino), handle, attrs, sent);
            }
            _ => {}
        }
        let mut elsewhere = self.elsewhere.lock();
        if let Some(other) = elsewhere.get(handle)
            && let Slot::Occupied(mut slot) = self.inodes.entry(*other)
            && slot.get().inode.handle == *handle
        {
            return (slot.get_mut().looked_up(&self.wal), false);
        }
        let own = match self.inodes.entry(ino) {
            Slot::Occupied(mut slot) if slot.get().inode.handle == *handle => {
                return (slot.get_mut().looked_up(&self.wal), false);
            }
            Slot::Vacant(slot) => return self.take_up(slot, kept(ino), handle, attrs, sent),
            Slot::Occupied(slot) => {
                self.elsewhere_count.fetch_add(1, Ordering::Relaxed);
                slot
            }
        };
        drop(own);
        for way in 1.. {
            let other = out_of_the_way(ino, way);
            if let Slot::Vacant(slot) = self.inodes.entry(other) {
                elsewhere.insert(handle.clone(), other);
                return (self.insert(slot, ino, handle, attrs, sent), true);
            }
        }
        unreachable!("the numbers are more than the inodes")
    }

    /// An inode, counted as one lookup, of an object that the server has yet to make. What its
    /// fileid will be nobody knows: the number that it is given here is the one that it is shown
    /// under until the kernel forgets it.
    pub(in crate::vfs) fn promise(
        &self,
        attrs: &Attributes,
        now: Instant,
    ) -> (Arc<Inode>, Promise) {
        loop {
            let ino = PROMISED | self.promised.give() & !OTHER_RANGES;
            if let Slot::Vacant(slot) = self.inodes.entry(ino) {
                let (handle, promise) = FileHandle::promised(ino);
                let inode = self.insert(slot, ino, &handle, attrs, now);
                inode.attr.lock().is_promised();
                return (inode, promise);
            }
        }
    }

    /// The server has made what was promised: replies that name it mean this inode from here on.
    pub(in crate::vfs) fn made(&self, inode: &Inode) {
        let mut elsewhere = self.elsewhere.lock();
        if self.inodes.contains_key(&inode.ino)
            && elsewhere
                .insert(inode.handle.settled(), inode.ino)
                .is_none()
        {
            self.elsewhere_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Under its own number: the inode that was kept, if it is the object still, or a new one.
    fn take_up(
        &self,
        slot: VacantEntry<'_, Ino, Known>,
        kept: Option<Arc<Inode>>,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> (Arc<Inode>, bool) {
        if let Some(kept) = kept.filter(|kept| kept.is_still(handle)) {
            self.enter(slot, &kept);
            return (kept, false);
        }
        let ino = *slot.key();
        (self.insert(slot, ino, handle, attrs, sent), true)
    }

    fn insert(
        &self,
        slot: VacantEntry<'_, Ino, Known>,
        shown: Ino,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> Arc<Inode> {
        let inode = self.make(*slot.key(), shown, handle, attrs, sent);
        self.enter(slot, &inode);
        inode
    }

    fn make(
        &self,
        ino: Ino,
        shown: Ino,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> Arc<Inode> {
        Arc::new(Inode {
            ino,
            generation: generation_of(ino, handle),
            handle: handle.clone(),
            kind: kind_of(attrs.kind),
            attr: Mutex::new(AttrState::new(shown, attrs, sent, &self.timeouts)),
            file: OnceLock::new(),
            names: OnceLock::new(),
            link: OnceLock::new(),
            stale: AtomicBool::new(false),
            place: Mutex::new(None),
            belief: KernelDentry::default(),
            apart: Apart::default(),
        })
    }

    fn enter(&self, slot: VacantEntry<'_, Ino, Known>, inode: &Arc<Inode>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if inode.kind != FileKind::Directory {
            self.told.push(inode.ino);
        }
        let lookups = self.wal.count(1);
        self.log(inode, &lookups);
        slot.insert(Known {
            inode: Arc::clone(inode),
            lookups,
        });
    }

    /// What the kernel was told of, but directories.
    pub(in crate::vfs) fn told(&self) -> &EvictionQueue {
        &self.told
    }

    /// As [`look_up`](Self::look_up), without counting it: the kernel is not
    /// told.
    pub(in crate::vfs) fn intern(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
        kept: impl FnOnce(Ino) -> Option<Arc<Inode>>,
    ) -> (Arc<Inode>, bool) {
        let ino = self.ino_of(attrs);
        if ino == ROOT_INO {
            return (Arc::clone(&self.root), false);
        }
        let known = self
            .find(handle, attrs)
            .or_else(|| kept(ino).filter(|kept| kept.is_still(handle)));
        match known {
            Some(inode) => (inode, false),
            None => (self.make(ino, ino, handle, attrs, sent), true),
        }
    }

    /// The inode with this handle, if the kernel holds it.
    pub(in crate::vfs) fn find(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
    ) -> Option<Arc<Inode>> {
        let matching = |ino| self.get(ino).filter(|inode| inode.handle == *handle);
        matching(self.ino_of(attrs)).or_else(|| {
            if self.elsewhere_count.load(Ordering::Relaxed) == 0 {
                return None;
            }
            let other = self.elsewhere.lock().get(handle).copied();
            other.and_then(matching)
        })
    }

    /// Counts a lookup of an inode that somebody has kept. False if its number
    /// means another object by now, or another inode may have stood for the
    /// object since the kernel forgot this one.
    pub(in crate::vfs) fn look_up_again(&self, inode: &Arc<Inode>) -> bool {
        self.count_again(inode, false)
    }

    /// The same for an inode that a reply has just named.
    pub(in crate::vfs) fn look_up_listed(&self, inode: &Arc<Inode>) -> bool {
        self.count_again(inode, true)
    }

    fn count_again(&self, inode: &Arc<Inode>, fresh: bool) -> bool {
        if inode.ino == ROOT_INO {
            return true;
        }
        if inode.was_promised() {
            return self.count_promised(inode);
        }
        match self.inodes.entry(inode.ino) {
            Slot::Occupied(mut slot) => {
                let same = Arc::ptr_eq(&slot.get().inode, inode);
                if same {
                    slot.get_mut().looked_up(&self.wal);
                }
                same
            }
            // It may be held under another number, or must not be held under
            // this one: the server's answer leads to the right one.
            Slot::Vacant(_)
                if inode.is_elsewhere() || self.elsewhere_count.load(Ordering::Relaxed) > 0 =>
            {
                false
            }
            Slot::Vacant(slot) => {
                if !fresh && inode.has_other_names() {
                    return false;
                }
                self.enter(slot, inode);
                true
            }
        }
    }

    /// The same of an object that was promised. Once the server has made it, and has all of it, it is
    /// found under its fileid as any other; until then it is nowhere but here.
    fn count_promised(&self, inode: &Arc<Inode>) -> bool {
        let mut elsewhere = self.elsewhere.lock();
        match self.inodes.entry(inode.ino) {
            Slot::Occupied(mut slot) => {
                slot.get_mut().looked_up(&self.wal);
                return Arc::ptr_eq(&slot.get().inode, inode);
            }
            Slot::Vacant(slot) if inode.handle.is_undecided() || inode.is_written() => {
                self.enter(slot, inode);
            }
            Slot::Vacant(_) => return false,
        }
        if inode.handle.is_given()
            && elsewhere
                .insert(inode.handle.settled(), inode.ino)
                .is_none()
        {
            self.elsewhere_count.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// The kernel gives lookups back.
    pub(in crate::vfs) fn forget(&self, ino: Ino, lookups: u64) {
        let Slot::Occupied(mut slot) = self.inodes.entry(ino) else {
            return;
        };
        let known = slot.get_mut();
        let left = known.lookups.get().saturating_sub(lookups);
        self.wal.set(&mut known.lookups, left);
        if left > 0 {
            return;
        }
        self.log_forgotten(known);
        let (_, known) = slot.remove_entry();
        self.count.fetch_sub(1, Ordering::Relaxed);
        if self.elsewhere_count.load(Ordering::Relaxed) > 0 {
            let mut elsewhere = self.elsewhere.lock();
            // Unless it was found again in between.
            if elsewhere.get(&known.inode.handle.settled()) == Some(&ino)
                && !self.inodes.contains_key(&ino)
            {
                elsewhere.remove(&known.inode.handle.settled());
                self.elsewhere_count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Known {
    fn looked_up(&mut self, wal: &Wal) -> Arc<Inode> {
        let lookups = self.lookups.get() + 1;
        wal.set(&mut self.lookups, lookups);
        Arc::clone(&self.inode)
    }
}

/// FNV-1a of an object's handle, finished so that the lower 32 bits, which are all that
/// the kernel keeps, are as good as all.
fn generation_of(ino: Ino, handle: &FileHandle) -> u64 {
    // It is told before the handle is given.
    let bytes: &[u8] = match ino & OTHER_RANGES {
        PROMISED => &[],
        _ => handle.as_bytes(),
    };
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3_u64)
    });
    (hash ^ hash >> 32).max(1)
}

/// The key of the numbers of promises in the log.
const PROMISES: u64 = 2;

/// The range of the numbers of objects that were promised.
const PROMISED: Ino = 1 << 61;

/// The bits that tell the ranges of numbers apart.
const OTHER_RANGES: Ino = 7 << 61;

/// Numbers for a file whose own is taken, spread over a range that fileids
/// hardly reach.
fn out_of_the_way(ino: Ino, way: u64) -> Ino {
    let mixed = (ino ^ way.rotate_right(16)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 2 | 3 << 62
}

#[cfg(test)]
mod tests;
