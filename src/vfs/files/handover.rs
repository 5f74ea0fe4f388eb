//! Open files, written down for another process when nothing of them is on its way.
//!
//! What the server has of them goes with the client, by the numbers of its owners
//! ([`TakenOver`]). A handle whose open is not there any more, or whose lock, is dead: EIO.
//! An open that no handle needs is closed.
//!
//! Not among it: who waits for a lock, which the kernel asks for again; what was read ahead;
//! opens that are kept, which are closed before. Hidden names are made anew with a number
//! of this process's ([`Silly`](super::silly::Silly)), so that none comes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Files;
use super::handle::OpenHandle;
use super::logged::OnTheirWay;
use crate::nfs::handover::TakenOver;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::vfs::file::ahead::Ahead;
use crate::vfs::file::pages::FileAt;
use crate::vfs::file::state::HandleLocking;
use crate::vfs::file::state::handover::{FileRecord, Found};
use crate::vfs::inode::Inode;
use crate::vfs::inode::table::handover::{Collected, Contradiction, InodeRef, Restored};
use crate::vfs::locks::locktable::{LockTable, OwnerRecord};
use crate::vfs::writeback::errseq::Seen;

/// All open files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct FilesState {
    pub(super) next_fh: u64,
    pub(super) files: Vec<(InodeRef, FileRecord<InodeRef>)>,
    pub(super) handles: Vec<HandleRecord>,
}

/// See [`OpenHandle`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HandleRecord {
    pub(super) fh: u64,
    pub(super) inode: InodeRef,
    /// The owner of its open.
    pub(super) open: u64,
    pub(super) access: u32,
    pub(super) seen: Seen,
    pub(super) told_by_write: Seen,
    pub(super) told_at_close: Seen,
    pub(super) reads_pages: bool,
    pub(super) locked: bool,
}

impl FilesState {
    /// How many handles there are, owners of locks, and hidden names.
    pub(in crate::vfs) fn count(&self) -> (usize, usize, usize) {
        let files = || self.files.iter().map(|(_, file)| file);
        let owners = files().map(|file| file.owners.len()).sum();
        let hidden = files().filter(|file| file.silly.is_some()).count();
        (self.handles.len(), owners, hidden)
    }

    /// The handles that cannot be used any more, because the client has lost what they need.
    fn dead(&self, taken: &TakenOver) -> BTreeSet<u64> {
        let handles = self.handles.iter();
        let unopened = handles.filter(|handle| !taken.opens.contains_key(&handle.open));
        let mut dead: BTreeSet<u64> = unopened.map(|handle| handle.fh).collect();
        let owners = self.files.iter().flat_map(|(_, file)| &file.owners);
        let lost = |owner: &&OwnerRecord| owner.matters && !taken.locks.contains_key(&owner.lock);
        dead.extend(owners.filter(lost).flat_map(|owner| &owner.handles));
        dead
    }
}

/// What there is of the server's for one file.
#[derive(Default)]
struct OfFile {
    /// By open owner: how many need it.
    users: BTreeMap<u64, usize>,
    locks: LockTable,
    retired: Vec<Arc<LockState>>,
}

impl Files {
    /// What another process is to know.
    pub(in crate::vfs) fn hand_over(&self, inodes: &mut Collected) -> FilesState {
        let mut files: BTreeMap<InodeRef, Arc<Inode>> = BTreeMap::new();
        let mut handles = Vec::with_capacity(self.handles.len());
        let open = self.handles.iter();
        let mut open: Vec<_> = open
            .map(|open| (*open.key(), Arc::clone(open.value())))
            .collect();
        open.sort_unstable_by_key(|(fh, _)| *fh);
        for (fh, handle) in open {
            let inode = inodes.refer(&handle.inode);
            files.insert(inode, Arc::clone(&handle.inode));
            handles.push(HandleRecord {
                fh,
                inode,
                open: handle.open.owner(),
                access: handle.access,
                seen: handle.seen.lock().clone(),
                told_by_write: handle.told_by_write.lock().clone(),
                told_at_close: handle.told_at_close.lock().clone(),
                reads_pages: handle.reads_pages,
                locked: handle.locking.was_used(),
            });
        }
        for file in self.silly.ours.files() {
            files.insert(inodes.refer(&file), file);
        }
        let files = files.into_iter().map(|(number, inode)| {
            let inner = self.file_state(&inode).lock();
            let foreign = inode.attr.lock().foreign();
            (number, inner.record(foreign, |dir| inodes.refer(dir)))
        });
        FilesState {
            files: files.collect(),
            handles,
            // Last: whatever is above is below it.
            next_fh: self.fhs.next(),
        }
    }

    /// Opens what was open in another process, before anybody asks for anything.
    pub(in crate::vfs) fn take_over(
        &self,
        state: FilesState,
        inodes: &Restored,
        mut taken: TakenOver,
        on: &OnTheirWay,
    ) -> Result<(), Contradiction> {
        self.fhs.begin_at(state.next_fh);
        let dead = state.dead(&taken);
        for fh in &dead {
            tracing::error!(
                "an open file (handle {fh}) could not be taken over: it gives EIO until it is closed"
            );
        }
        let mut of_files = self.server_state(&state, &dead, &taken);
        let users = of_files.values().flat_map(|file| file.users.keys());
        let needed: BTreeSet<u64> = users.copied().chain(on.opens_to_come()).collect();
        for (_, open) in taken
            .opens
            .extract_if(.., |owner, _| !needed.contains(owner))
        {
            tracing::info!("an open file that nobody has open any more is closed");
            self.client.close_soon(&open);
        }
        for (number, record) in state.files {
            let of_file = of_files.remove(&number).unwrap_or_default();
            self.restore_file(inodes.get(number)?, record, of_file, inodes, &taken)?;
        }
        if !of_files.is_empty() {
            return Err(Contradiction("a handle is of a file that is not open"));
        }
        for record in state.handles {
            let inode = inodes.get(record.inode)?;
            if let Some(open) = taken
                .opens
                .get(&record.open)
                .filter(|_| !dead.contains(&record.fh))
            {
                self.restore_handle(inode, Arc::clone(open), record);
            }
        }
        let _ = self.dead.set(dead);
        Ok(())
    }

    /// For each file what of the server's it needs.
    fn server_state(
        &self,
        state: &FilesState,
        dead: &BTreeSet<u64>,
        taken: &TakenOver,
    ) -> BTreeMap<InodeRef, OfFile> {
        let mut of_files: BTreeMap<InodeRef, OfFile> = BTreeMap::new();
        for handle in state.handles.iter().filter(|one| !dead.contains(&one.fh)) {
            let file = of_files.entry(handle.inode).or_default();
            *file.users.entry(handle.open).or_default() += 1;
        }
        let mut used = BTreeSet::new();
        for (number, record) in &state.files {
            let file = of_files.entry(*number).or_default();
            for owner in &record.owners {
                let Some(open) = taken.opens.get(&owner.open) else {
                    continue;
                };
                let lock = match taken.locks.get(&owner.lock) {
                    Some(lock) => Arc::clone(lock),
                    None if owner.matters => continue,
                    // Of no lock, the server knows nothing.
                    None => self.client.prepare_lock(open),
                };
                used.insert(owner.lock);
                let mut owner = owner.clone();
                owner.handles.retain(|handle| !dead.contains(handle));
                if owner.handles.is_empty() {
                    file.retired.push(lock);
                    continue;
                }
                *file.users.entry(owner.open).or_default() += 1;
                file.locks.take_in(owner, lock);
            }
        }
        // Of owners that are gone, and what nobody knows of: the server frees it with the open.
        let users = of_files.iter();
        let users = users.flat_map(|(number, file)| file.users.keys().map(|open| (*open, *number)));
        let users: BTreeMap<u64, InodeRef> = users.collect();
        for (_, lock) in taken.locks.iter().filter(|(lock, _)| !used.contains(lock)) {
            let file = users.get(&lock.open.owner());
            if let Some(file) = file.and_then(|number| of_files.get_mut(number)) {
                file.retired.push(Arc::clone(lock));
            }
        }
        of_files
    }

    fn restore_file(
        &self,
        inode: &Arc<Inode>,
        mut record: FileRecord<InodeRef>,
        of_file: OfFile,
        inodes: &Restored,
        taken: &TakenOver,
    ) -> Result<(), Contradiction> {
        let silly = record.silly.take();
        let silly = silly.map(|silly| silly.restored(|dir| inodes.get(dir).map(Arc::clone)));
        let silly = silly.transpose()?;
        if let Some(silly) = &silly {
            self.silly.ours.add(&silly.dir, &silly.name, inode);
            if let Some((was, name)) = &silly.was {
                self.silly.ours.add(was, name, inode);
            }
            inode.attr.lock().hide_name(true);
            self.hidden_inherited(inode);
            self.log_silly(inode, silly);
        }
        let opens = of_file.users.into_iter();
        let opens = opens.filter_map(|(owner, users)| {
            let open = taken.opens.get(&owner)?;
            Some((Arc::clone(open), users))
        });
        let found = Found {
            opens: opens.collect(),
            locks: of_file.locks,
            retired: of_file.retired,
            silly,
        };
        let mut inner = self.file_state(inode).lock();
        let foreign = inode.attr.lock().foreign();
        inner.restore(record, foreign, found);
        self.log_owners(inode, &inner);
        self.log_errors(inode, &inner);
        Ok(())
    }

    fn restore_handle(&self, inode: &Arc<Inode>, open: Arc<OpenState>, record: HandleRecord) {
        let inner = self.file_state(inode).lock();
        let opened_at = {
            let attr = inode.attr.lock();
            let (change, moves) = (attr.change(), inner.moves(attr.foreign()));
            FileAt { change, moves }
        };
        drop(inner);
        let handle = OpenHandle {
            number: record.fh,
            inode: Arc::clone(inode),
            open,
            access: record.access,
            seen: Mutex::new(record.seen),
            told_by_write: Mutex::new(record.told_by_write),
            told_at_close: Mutex::new(record.told_at_close),
            ahead: Arc::new(Ahead::new(self.config.read_ahead, None)),
            reads_pages: record.reads_pages,
            locking: HandleLocking::restored(record.locked),
            // Which pages there are the process before has known.
            drops_pages: AtomicBool::new(false),
            opened_at,
        };
        self.log_handle(record.fh, &handle, 0);
        self.handles.insert(record.fh, Arc::new(handle));
        self.metrics.gauges.open_files.inc();
    }
}
