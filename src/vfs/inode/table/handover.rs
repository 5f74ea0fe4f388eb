//! Inodes written down for another process, and made of that again.
//!
//! An inode is written down if the kernel holds it, or if something that is written down refers to
//! it: an open handle, a hidden name, an inode that was found in it. Those refer to it by its place
//! among all of them ([`InodeRef`]): a number may mean two inodes, one of which is in the
//! table.
//!
//! Names are not among it, but for the one that each inode was found by: an open of it has to find
//! that still leading there; and with it whether the kernel believes it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Inode, InodeTable, Known, Place};
use crate::nfs::proto::types::FileHandle;
use crate::vfs::inode::attr::handover::AttrRecord;
use crate::vfs::inode::attr::{AttrState, Timeouts};
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::inode::eviction_queue::EvictionQueue;
use crate::vfs::inode::kernel_dentry::{Apart, Beliefs, KernelDentry};
use crate::vfs::types::{ByNumber, FileKind, Ino, ROOT_INO};
use crate::wal::{Numbers, Wal};

/// What was handed over contradicts itself, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vfs) struct Contradiction(pub(in crate::vfs) &'static str);

/// An inode, by its place among those that are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::vfs) struct InodeRef(u32);

impl InodeRef {
    pub(super) fn at(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode, and what the table has of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct InodeRecord {
    pub(super) ino: Ino,
    pub(super) generation: u64,
    pub(super) handle: FileHandle,
    /// Lookups that the kernel has not given back; with 0 the table does not have it.
    pub(super) lookups: u64,
    pub(super) attr: AttrRecord,
    pub(super) stale: bool,
    pub(super) place: Option<PlaceRecord>,
    pub(super) beliefs: Beliefs,
    /// The kernel has yet to be told that what it has of it is old.
    pub(super) untold: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PlaceRecord {
    pub(super) dir: InodeRef,
    pub(super) name: Bytes,
}

/// All inodes, in the order in which the kernel was told of them, the root before them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct InodeRecords {
    /// Promises from here on have numbers that were never given out.
    #[serde(default)]
    pub(super) next_promise: u64,
    pub(super) root_fsid: (u64, u64),
    pub(super) root_fileid: u64,
    pub(super) inodes: Vec<InodeRecord>,
}

impl InodeRecords {
    /// Of these the kernel is still to be told something, too.
    pub(in crate::vfs) fn add_untold(&mut self, untold: &[Ino]) {
        for inode in &mut self.inodes {
            inode.untold |= untold.contains(&inode.ino);
        }
    }

    /// How many the kernel holds, and how many there are besides.
    pub(in crate::vfs) fn count(&self) -> (usize, usize) {
        let held = self.inodes.iter().filter(|inode| inode.lookups > 0);
        let held = held.count();
        (held, self.inodes.len() - held)
    }
}

/// Inodes as they are collected to be written down.
#[derive(Debug, Default)]
pub(in crate::vfs) struct Collected {
    all: Vec<(Arc<Inode>, u64)>,
    refs: HashMap<*const Inode, InodeRef>,
}

impl Collected {
    /// The inode is written down, if it was not already.
    pub(in crate::vfs) fn refer(&mut self, inode: &Arc<Inode>) -> InodeRef {
        self.collect(inode, 0)
    }

    fn collect(&mut self, inode: &Arc<Inode>, lookups: u64) -> InodeRef {
        let next = InodeRef::at(self.all.len());
        let known = *self.refs.entry(Arc::as_ptr(inode)).or_insert(next);
        if known == next {
            self.all.push((Arc::clone(inode), lookups));
        }
        known
    }
}

/// The inodes that were written down.
pub(in crate::vfs) struct Restored(Vec<Arc<Inode>>);

impl Restored {
    /// See [`Collected::refer`].
    pub(in crate::vfs) fn get(&self, which: InodeRef) -> Result<&Arc<Inode>, Contradiction> {
        let inode = self.0.get(which.index());
        inode.ok_or(Contradiction("an inode is referred to that is not there"))
    }
}

impl InodeTable {
    /// The inodes that the kernel holds, for others to be added.
    pub(in crate::vfs) fn collect(&self) -> Collected {
        let mut collected = Collected::default();
        collected.refer(&self.root);
        for ino in self.told.all() {
            if let Some(known) = self.inodes.get(&ino) {
                collected.collect(&known.inode, known.lookups.get());
            }
        }
        let mut others: Vec<(Arc<Inode>, u64)> = self
            .inodes
            .iter()
            .filter(|known| !collected.refs.contains_key(&Arc::as_ptr(&known.inode)))
            .map(|known| (Arc::clone(&known.inode), known.lookups.get()))
            .collect();
        // The same in whichever process.
        others.sort_unstable_by_key(|(inode, _)| inode.ino);
        for (inode, lookups) in others {
            collected.collect(&inode, lookups);
        }
        collected
    }

    /// Writes them down, and those that they were found in. `ticks` is now, and `is_untold` says
    /// of whom the kernel is still to be told something.
    pub(in crate::vfs) fn records(
        &self,
        mut collected: Collected,
        ticks: u32,
        is_untold: impl Fn(Ino) -> bool,
    ) -> InodeRecords {
        let mut inodes = Vec::with_capacity(collected.all.len());
        while let Some((inode, lookups)) = collected.all.get(inodes.len()).cloned() {
            let place = inode.place();
            let beliefs = inode.beliefs(place.as_ref(), ticks);
            let attr = inode.attr.lock().record();
            inodes.push(InodeRecord {
                ino: inode.ino,
                generation: inode.generation,
                handle: inode.handle.settled(),
                lookups,
                attr,
                stale: inode.is_stale(),
                place: place.map(|place| PlaceRecord {
                    dir: collected.refer(&place.dir),
                    name: Bytes::copy_from_slice(&place.name),
                }),
                beliefs,
                // After its attributes, by which it was seen.
                untold: is_untold(inode.ino),
            });
        }
        InodeRecords {
            next_promise: self.promised.next(),
            root_fsid: self.root_fsid,
            root_fileid: self.root_fileid,
            inodes,
        }
    }

    /// The table of another process at `now`, and all inodes that it has written down. Gives as
    /// well of whom the kernel is still to be told something.
    pub(in crate::vfs) fn of_records(
        records: InodeRecords,
        now: Instant,
        timeouts: Timeouts,
        wal: Wal,
    ) -> Result<(Self, Restored, Vec<Ino>), Contradiction> {
        let InodeRecords {
            next_promise,
            root_fsid,
            root_fileid,
            inodes: records,
        } = records;
        let mut places = Vec::with_capacity(records.len());
        let (mut all, mut untold) = (Vec::with_capacity(records.len()), Vec::new());
        let (inodes, told) = (ByNumber::default(), EvictionQueue::default());
        #[expect(
            clippy::mutable_key_type,
            reason = "handles in the table are given, and do not change any more"
        )]
        let mut elsewhere = HashMap::new();
        let longest = timeouts.dir_max.max(timeouts.reg_max);
        for record in records {
            let (lookups, beliefs) = (record.lookups, record.beliefs.at_most(longest));
            if record.untold {
                untold.push(record.ino);
            }
            places.push((record.place.clone(), beliefs));
            let inode = Arc::new(Inode::of_record(record, now, &timeouts));
            all.push(Arc::clone(&inode));
            if lookups == 0 || inode.ino == ROOT_INO {
                continue;
            }
            if inode.kind != FileKind::Directory {
                told.push(inode.ino);
            }
            // What is promised still is put there when it is given.
            let may_be_elsewhere = inode.is_elsewhere() || inode.was_promised();
            if may_be_elsewhere && inode.handle.is_given() {
                elsewhere.insert(inode.handle.settled(), inode.ino);
            }
            let lookups = wal.count(lookups);
            if (inodes.insert(inode.ino, Known { inode, lookups })).is_some() {
                return Err(Contradiction("two inodes have one number"));
            }
        }
        let root = all.first().filter(|root| root.ino == ROOT_INO);
        let root = Arc::clone(root.ok_or(Contradiction("the root is not the first inode"))?);
        let restored = Restored(all);
        for ((place, beliefs), inode) in places.into_iter().zip(&restored.0) {
            let place = match place {
                Some(PlaceRecord { dir, name }) => Some(Place {
                    dir: Arc::clone(restored.get(dir)?),
                    name: Name::from(&name[..]),
                }),
                None => None,
            };
            inode.believe(place.as_ref(), beliefs);
            *inode.place.lock() = place;
        }
        let promised = Numbers::new(wal.clone(), super::PROMISES, 0);
        promised.begin_at(next_promise);
        let table = Self {
            count: AtomicUsize::new(inodes.len()),
            inodes,
            told,
            promised,
            elsewhere_count: AtomicUsize::new(elsewhere.len()),
            elsewhere: Mutex::new(elsewhere),
            root,
            root_fsid,
            root_fileid,
            timeouts,
            began: now,
            wal,
        };
        table.log_all();
        Ok((table, restored, untold))
    }

    /// The other inodes that the kernel holds and that were found in the same directory under names
    /// which begin with this one. Looks at all inodes.
    pub(in crate::vfs) fn found_beside(&self, place: &Place) -> Vec<Arc<Inode>> {
        let beside = |inode: &Inode| {
            let found = inode.place.lock();
            found.as_ref().is_some_and(|found| {
                Arc::ptr_eq(&found.dir, &place.dir) && found.name.starts_with(&place.name)
            })
        };
        let held = self.inodes.iter().filter(|known| beside(&known.inode));
        held.map(|known| Arc::clone(&known.inode)).collect()
    }
}

impl Inode {
    /// The inode of a record, found nowhere yet.
    fn of_record(record: InodeRecord, now: Instant, timeouts: &Timeouts) -> Self {
        Self {
            ino: record.ino,
            generation: record.generation,
            handle: record.handle,
            kind: record.attr.stat.kind,
            attr: Mutex::new(AttrState::of_record(record.attr, now, timeouts)),
            file: OnceLock::new(),
            names: OnceLock::new(),
            link: OnceLock::new(),
            stale: AtomicBool::new(record.stale),
            place: Mutex::new(None),
            belief: KernelDentry::default(),
            apart: Apart::default(),
        }
    }
}
