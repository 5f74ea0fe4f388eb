//! Inodes: what the kernel has a number for.
//!
//! The number is the server's fileid, so that `st_ino` is the same on every
//! host. The root is 1 for FUSE; a file that happens to have fileid 0 or 1, or
//! that lies in another file system of the server, is mapped out of the way.
//!
//! The table owns an inode as long as the kernel holds lookups of it, which
//! FORGET gives back; the name cache and open handles may hold it longer. If a
//! fileid comes back under another file handle, the old file is gone and the
//! number means a new one: the new inode takes over the number with the next
//! generation, and with the lookups still owed.
//!
//! Locks: a shard of the table first, then an inode's; never two inodes' at
//! once, never across an await.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::attr::{AttrState, Timeouts, kind_of};
use super::open::FileState;
use super::types::{FileKind, Ino, ROOT_INO};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::FileHandle;

/// An object of the file system.
#[derive(Debug)]
pub struct Inode {
    /// Its number for the kernel.
    pub ino: Ino,
    /// Tells apart objects that had the number one after the other.
    pub generation: u64,
    /// Its name for the server.
    pub handle: FileHandle,
    /// What it is; never changes.
    pub kind: FileKind,
    /// What is known of it.
    pub attr: Mutex<AttrState>,
    /// What a regular file needs once it was opened.
    file: OnceLock<Box<FileState>>,
    /// The text of a symbolic link; it never changes.
    pub link: OnceLock<Bytes>,
    /// The server said STALE: no name may lead here any more.
    stale: AtomicBool,
    /// For a regular file: the name it was found by last.
    place: Mutex<Option<Place>>,
}

/// Where an object was found.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub dir: Arc<Inode>,
    /// The name in it.
    pub name: Box<[u8]>,
}

impl Inode {
    /// The file was found by this name, which an open has to find still leading
    /// to it.
    pub fn found_at(&self, dir: &Arc<Inode>, name: &[u8]) {
        if self.kind != FileKind::Regular {
            return;
        }
        let mut place = self.place.lock();
        let known = place
            .as_ref()
            .is_some_and(|place| Arc::ptr_eq(&place.dir, dir) && *place.name == *name);
        if !known {
            let (dir, name) = (Arc::clone(dir), name.into());
            *place = Some(Place { dir, name });
        }
    }

    /// The name may lead elsewhere, by our own doing.
    pub fn not_found(&self) {
        *self.place.lock() = None;
    }

    /// See [`Inode::found_at`].
    pub fn place(&self) -> Option<Place> {
        self.place.lock().clone()
    }

    /// The state of an open file, made at its first use.
    pub fn file(&self, make: impl FnOnce() -> FileState) -> &FileState {
        self.file.get_or_init(|| Box::new(make()))
    }

    /// The state of an open file, if it ever was opened.
    pub fn opened(&self) -> Option<&FileState> {
        self.file.get().map(AsRef::as_ref)
    }

    /// The server does not know the object any more.
    pub fn mark_stale(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    /// See [`Inode::mark_stale`].
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    /// Lookups that the kernel has not given back.
    lookups: u64,
}

/// All inodes that the kernel knows.
#[derive(Debug)]
pub struct InodeTable {
    inodes: DashMap<Ino, Known>,
    /// Entries of `inodes`, without asking every shard.
    count: AtomicUsize,
    root: Arc<Inode>,
    root_fsid: (u64, u64),
    root_fileid: u64,
    timeouts: Timeouts,
}

impl InodeTable {
    /// A table with the root in it, which is never forgotten.
    pub fn new(handle: FileHandle, attrs: &Attributes, sent: Instant, timeouts: Timeouts) -> Self {
        let root = Arc::new(Inode {
            ino: ROOT_INO,
            generation: 0,
            handle,
            kind: kind_of(attrs.kind),
            attr: Mutex::new(AttrState::new(attrs.fileid, attrs, sent, &timeouts)),
            file: OnceLock::new(),
            link: OnceLock::new(),
            stale: AtomicBool::new(false),
            place: Mutex::new(None),
        });
        Self {
            inodes: DashMap::new(),
            count: AtomicUsize::new(0),
            root,
            root_fsid: attrs.fsid,
            root_fileid: attrs.fileid,
            timeouts,
        }
    }

    /// The root.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// How long attributes are believed.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The inode with this number.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        if ino == ROOT_INO {
            return Some(Arc::clone(&self.root));
        }
        self.inodes.get(&ino).map(|known| Arc::clone(&known.inode))
    }

    /// Number of inodes the kernel holds, the root not counted.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The kernel holds none but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number for an object with these attributes.
    pub fn ino_of(&self, attrs: &Attributes) -> Ino {
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
    /// whether it is new to the table (its attributes are the reply's then).
    pub fn look_up(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> (Arc<Inode>, bool) {
        let ino = self.ino_of(attrs);
        if ino == ROOT_INO {
            return (Arc::clone(&self.root), false);
        }
        match self.inodes.entry(ino) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                known.lookups += 1;
                if known.inode.handle == *handle {
                    return (Arc::clone(&known.inode), false);
                }
                known.inode =
                    self.make(ino, known.inode.generation + 1, handle.clone(), attrs, sent);
                (Arc::clone(&known.inode), true)
            }
            Slot::Vacant(slot) => {
                let inode = self.make(ino, 0, handle.clone(), attrs, sent);
                self.count.fetch_add(1, Ordering::Relaxed);
                slot.insert(Known {
                    inode: Arc::clone(&inode),
                    lookups: 1,
                });
                (inode, true)
            }
        }
    }

    /// Counts a lookup of an inode that somebody has kept. False if its number
    /// means another object by now.
    pub fn look_up_again(&self, inode: &Arc<Inode>) -> bool {
        if inode.ino == ROOT_INO {
            return true;
        }
        match self.inodes.entry(inode.ino) {
            Slot::Occupied(mut slot) => {
                let same = Arc::ptr_eq(&slot.get().inode, inode);
                if same {
                    slot.get_mut().lookups += 1;
                }
                same
            }
            Slot::Vacant(slot) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                slot.insert(Known {
                    inode: Arc::clone(inode),
                    lookups: 1,
                });
                true
            }
        }
    }

    /// The kernel gives lookups back.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        if let Slot::Occupied(mut slot) = self.inodes.entry(ino) {
            let known = slot.get_mut();
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                slot.remove();
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn make(
        &self,
        ino: Ino,
        generation: u64,
        handle: FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> Arc<Inode> {
        Arc::new(Inode {
            ino,
            generation,
            handle,
            kind: kind_of(attrs.kind),
            attr: Mutex::new(AttrState::new(ino, attrs, sent, &self.timeouts)),
            file: OnceLock::new(),
            link: OnceLock::new(),
            stale: AtomicBool::new(false),
            place: Mutex::new(None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs::proto::types::FileType;
    use crate::xdr::{Decoder, Encoder};
    use std::time::Duration;

    fn handle(name: &[u8]) -> FileHandle {
        let mut enc = Encoder::default();
        enc.opaque(name);
        FileHandle::decode(&mut Decoder::new(enc.into_vec().into())).unwrap()
    }

    fn attrs(fileid: u64) -> Attributes {
        Attributes {
            kind: Some(FileType::Directory),
            fileid,
            fsid: (1, 2),
            ..Attributes::default()
        }
    }

    fn table() -> InodeTable {
        let s = Duration::from_secs;
        let timeouts = Timeouts {
            reg_min: s(3),
            reg_max: s(60),
            dir_min: s(30),
            dir_max: s(60),
        };
        InodeTable::new(handle(b"root"), &attrs(128), Instant::now(), timeouts)
    }

    #[test]
    fn numbers_are_the_servers_but_for_the_root_and_what_would_collide_with_it() {
        let table = table();
        assert_eq!(table.ino_of(&attrs(4711)), 4711);
        assert_eq!(table.ino_of(&attrs(128)), ROOT_INO);
        assert_eq!(table.root().attr.lock().stat().ino, 128, "as st_ino");
        assert_eq!(table.ino_of(&attrs(1)), 1 << 63 | 1);
        let mut elsewhere = attrs(128);
        elsewhere.fsid = (9, 9);
        assert_ne!(table.ino_of(&elsewhere), ROOT_INO);
    }

    #[test]
    fn an_inode_lives_until_every_lookup_is_given_back() {
        let table = table();
        let now = Instant::now();
        let (a, new) = table.look_up(&handle(b"a"), &attrs(5), now);
        assert!(new);
        assert!(!table.look_up(&handle(b"a"), &attrs(5), now).1);
        table.forget(5, 1);
        assert!(table.get(5).is_some());
        table.forget(5, 1);
        assert!(table.get(5).is_none());
        assert!(table.look_up_again(&a));
        assert!(Arc::ptr_eq(&table.get(5).unwrap(), &a));
    }

    #[test]
    fn a_reused_fileid_is_a_new_generation_and_owes_the_old_lookups_too() {
        let table = table();
        let now = Instant::now();
        let (old, _) = table.look_up(&handle(b"a"), &attrs(5), now);
        let (new, _) = table.look_up(&handle(b"b"), &attrs(5), now);
        assert_eq!((old.generation, new.generation), (0, 1));
        assert!(!table.look_up_again(&old));
        table.forget(5, 1);
        assert!(table.get(5).is_some());
        table.forget(5, 1);
        assert!(table.is_empty());
    }
}
