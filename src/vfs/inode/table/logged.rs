//! Inodes in the write-ahead log, for the case that this daemon is killed.
//!
//! A record has what the kernel cannot be asked for, and what an open needs to find the
//! file again: its handle and where it was found. The attributes are those of the time when the
//! kernel was told of it first: whoever takes over asks for them before it believes anything
//! of them, and finds by the change attribute that they have moved since, if they have. Then it
//! has the kernel drop what it has of the inode, as it must: what the daemon before had yet
//! to tell it, nobody knows.
//!
//! How often the kernel was told of an inode is a count beside the log.
//!
//! What is promised (`writeback`) has the number of its promise in the place of its handle, until that is
//! given. The number is that of the inode, which nothing else ever has.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::handover::{InodeRecord, InodeRecords, InodeRef, PlaceRecord};
use super::{Inode, InodeTable, Known, OTHER_RANGES, PROMISED, PROMISES, generation_of};
use crate::nfs::proto::types::{FileHandle, Promises};
use crate::vfs::inode::attr::handover::{AttrRecord, LoggedAttr};
use crate::vfs::inode::kernel_dentry::Beliefs;
use crate::vfs::types::{FileKind, Ino, ROOT_INO};
use crate::wal::{Count, Numbers, Survived, Table, Unreadable};

/// What the log has of the root.
#[derive(Serialize, Deserialize)]
struct LoggedRoot {
    fsid: (u64, u64),
    fileid: u64,
    handle: FileHandle,
    attr: AttrRecord,
}

/// What the log has of an inode that the kernel holds. `C` is the count of its lookups.
#[derive(Serialize, Deserialize)]
struct LoggedInode<C> {
    handle: FileHandle,
    lookups: C,
    attr: LoggedAttr,
    place: Option<(Ino, Bytes)>,
    /// Until when the kernel may believe another name than that one, by [`clock`](crate::wal::clock).
    other_until: Option<Duration>,
}

/// An object that a record of the log refers to by number and handle: the kernel may have
/// forgotten it since, and another may have its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct LoggedObject {
    ino: Ino,
    handle: FileHandle,
    kind: FileKind,
}

impl LoggedObject {
    /// This one.
    pub(in crate::vfs) fn of(object: &Inode) -> Self {
        Self {
            ino: object.ino,
            handle: object.handle.clone(),
            kind: object.kind,
        }
    }

    /// The number of the promise that the record was put before the end of.
    pub(in crate::vfs) fn promise_number(&self) -> Option<u64> {
        self.handle.promise_number()
    }
}

impl InodeTable {
    pub(super) fn log_root(&self) {
        if self.wal.is_on() {
            let root = LoggedRoot {
                fsid: self.root_fsid,
                fileid: self.root_fileid,
                handle: self.root.handle.clone(),
                attr: self.root.attr.lock().record(),
            };
            self.wal.put(Table::Root, 0, &root);
        }
    }

    /// The kernel is about to be told of the inode, whose shard is locked; or it was found
    /// elsewhere.
    pub(super) fn log(&self, inode: &Inode, lookups: &Count) {
        if !self.wal.is_on() {
            return;
        }
        let place = inode.place();
        let beliefs = inode.beliefs(place.as_ref(), self.ticks());
        let attr = inode.attr.lock().logged(inode.ino);
        let record = LoggedInode {
            handle: inode.handle.clone(),
            lookups,
            attr,
            place: place.map(|place| (place.dir.ino, Bytes::copy_from_slice(&place.name))),
            other_until: beliefs.other_until(),
        };
        self.wal.put(Table::Inode, inode.ino, &record);
    }

    /// The kernel has given back the last lookup of the inode, whose shard is locked.
    pub(super) fn log_forgotten(&self, known: &Known) {
        self.wal.remove(Table::Inode, known.inode.ino);
        self.wal.free(&known.lookups);
    }

    /// The inode was found by another name, or by none any more; or the kernel may believe
    /// another one than that, for longer than the log has it.
    pub(in crate::vfs) fn log_place(&self, inode: &Inode) {
        if !self.wal.is_on() {
            return;
        }
        // The shard is locked: of two places the log has the later one.
        if let Some(known) = self.inodes.get_mut(&inode.ino)
            && std::ptr::eq(&raw const *known.inode, inode)
        {
            self.log(inode, &known.lookups);
        }
    }

    /// All of them, of a mount that was taken over.
    pub(super) fn log_all(&self) {
        if self.wal.is_on() {
            self.log_root();
            for known in &self.inodes {
                self.log(&known.inode, &known.lookups);
            }
        }
    }
}

/// Where the inodes of a log are among the records that were made of it.
pub(in crate::vfs) struct LoggedInodes {
    records: InodeRecords,
    refs: HashMap<Ino, InodeRef>,
    /// Objects that the kernel does not hold.
    others: HashMap<Ino, Vec<InodeRef>>,
    promises: Promises,
}

impl LoggedInodes {
    /// The inodes of the log of a daemon that was killed, of whose promises this is known. One whose
    /// object nobody is going to make was not told to the kernel yet.
    pub(in crate::vfs) fn read(
        survived: &Survived,
        mut promises: Promises,
    ) -> Result<Self, Unreadable> {
        let root: LoggedRoot = survived.only(Table::Root)?;
        let mut inodes: Vec<(Ino, LoggedInode<Option<u32>>)> = survived.table(Table::Inode)?;
        for (ino, inode) in &inodes {
            if ino & OTHER_RANGES == PROMISED && inode.handle.is_given() {
                promises.kept(*ino, inode.handle.clone());
            }
        }
        inodes.retain_mut(|(_, inode)| match promises.find(&inode.handle) {
            Some(handle) => {
                inode.handle = handle;
                true
            }
            None => false,
        });
        let mut refs = HashMap::from([(ROOT_INO, InodeRef::at(0))]);
        for (at, (ino, _)) in inodes.iter().enumerate() {
            refs.insert(*ino, InodeRef::at(at + 1));
        }
        let mut records = vec![InodeRecord::held(ROOT_INO, 0, root.handle, 1, root.attr)];
        for (ino, inode) in inodes {
            let lookups = survived.count(inode.lookups)?;
            let place = inode.place.and_then(|(dir, name)| {
                let dir = *refs.get(&dir)?;
                Some(PlaceRecord { dir, name })
            });
            records.push(InodeRecord {
                beliefs: Beliefs::logged(place.is_some(), inode.other_until),
                place,
                ..InodeRecord::held(
                    ino,
                    generation_of(ino, &inode.handle),
                    inode.handle,
                    lookups,
                    inode.attr.of(ino),
                )
            });
        }
        Ok(Self {
            records: InodeRecords {
                next_promise: Numbers::survived(survived, PROMISES, 0)?,
                root_fsid: root.fsid,
                root_fileid: root.fileid,
                inodes: records,
            },
            refs,
            others: HashMap::new(),
            promises,
        })
    }

    /// What is known of the promises.
    pub(in crate::vfs) fn promises(&self) -> &Promises {
        &self.promises
    }

    /// The inode that the kernel holds under this number.
    pub(in crate::vfs) fn held(&self, ino: Ino) -> Option<InodeRef> {
        self.refs.get(&ino).copied()
    }

    /// The inode of this number that is known: that which the kernel holds, or another that a record
    /// [refers](Self::object) to.
    pub(in crate::vfs) fn of_number(&self, ino: Ino) -> Option<InodeRef> {
        let other = || self.others.get(&ino)?.first().copied();
        self.held(ino).or_else(other)
    }

    /// The object, which the kernel may have forgotten.
    pub(in crate::vfs) fn object(&mut self, object: LoggedObject) -> InodeRef {
        let LoggedObject { ino, handle, kind } = object;
        // What nobody is going to make no server knows.
        let handle = self
            .promises
            .find(&handle)
            .unwrap_or_else(FileHandle::unknown);
        let others = self.others.get(&ino).into_iter().flatten().copied();
        let is_it = |at: &InodeRef| self.records.inodes[at.index()].handle == handle;
        let known = self.held(ino).into_iter().chain(others).find(is_it);
        known.unwrap_or_else(|| {
            let at = InodeRef::at(self.records.inodes.len());
            let mut attr = self.records.inodes[0].attr.clone();
            attr.stat.kind = kind;
            attr.stat.ino = ino;
            let inode = InodeRecord::held(ino, 0, handle, 0, attr);
            self.records.inodes.push(inode);
            self.others.entry(ino).or_default().push(at);
            at
        })
    }

    /// The records, in the order of the references that were given out.
    pub(in crate::vfs) fn into_records(self) -> InodeRecords {
        self.records
    }
}

impl InodeRecord {
    fn held(ino: Ino, generation: u64, handle: FileHandle, lookups: u64, attr: AttrRecord) -> Self {
        Self {
            ino,
            generation,
            handle,
            lookups,
            attr,
            stale: false,
            place: None,
            beliefs: Beliefs::default(),
            untold: false,
        }
    }
}
