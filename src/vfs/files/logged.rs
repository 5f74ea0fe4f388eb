//! Open files in the write-ahead log, for the case that this daemon is killed.
//!
//! Whoever goes on is asked again for every request that was not answered: so a record goes
//! when the operation that ends its object has done all the rest, and what has been done
//! twice by then is the same as once:
//!
//! | record | from before | until |
//! |---|---|---|
//! | a handle | the open is answered | RELEASE has given up everything of it |
//! | an owner of locks | LOCK is asked for | LOCKU was answered, at close too |
//! | data | write(2) is answered | they are stable, or their loss is on record |
//! | a loss of data | they are dropped | the mount's end |
//! | a change of attributes that waits | it is answered | the server has answered it |
//! | a hidden name | its maker is answered | it was removed |
//! | which file's name a request hides | it is hidden | that request was answered |
//! | where data were appended | they are accepted | write(2) was answered |
//!
//! Data that the log has no room for are accepted as synchronous ones: their caller is answered when
//! the server has them, and asks again if nobody answers.
//!
//! The log is written under the lock of the file, so that its records have the order of the changes; where
//! a hidden name is being moved, by who moves it, as nobody else may meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::handle::OpenHandle;
use super::handover::{FilesState, HandleRecord};
use super::logged_names::{AcceptedBefore, LoggedNames, NamesOnTheirWay};
use super::write::now;
use super::{FHS, Files};
use crate::nfs::handover::ClientState;
use crate::nfs::proto::ops::ACCESS_READ;
use crate::nfs::state::OpenState;
use crate::rpc::{buffers, caller};
use crate::vfs::file::deferred_setattr::Change;
use crate::vfs::file::origin::Origin;
use crate::vfs::file::state::handover::{FileRecord, SillyRecord};
use crate::vfs::inode::table::handover::{Contradiction, InodeRef, Restored};
use crate::vfs::inode::table::logged::{LoggedInodes, LoggedObject};
use crate::vfs::inode::{FileInner, Inode, SillyName};
use crate::vfs::locks::locktable::OwnerRecord;
use crate::vfs::types::{Errno, Ino, Opened, Timestamp};
use crate::vfs::writeback::WriteTicket;
use crate::vfs::writeback::errseq::{ErrSeqRecord, Seen};
use crate::wal::{Numbers, Place, Survived, Table, Unreadable};

/// See [`OpenHandle`].
#[derive(Serialize, Deserialize)]
struct LoggedHandle {
    ino: Ino,
    /// The kernel's request that is answered with it; 0: it was answered long ago.
    request: u64,
    open: u64,
    access: u32,
    seen: Seen,
    told_by_write: Seen,
    told_at_close: Seen,
    reads_pages: bool,
}

/// Data on their way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LoggedWrite {
    ino: Ino,
    /// The owner of the open that they are sent with.
    open: u64,
    /// See [`OpenState::fence`].
    fence: u32,
    offset: u64,
    data: Place,
    /// What is shown as the time of the write, as long as the server has yet to make the file.
    at: Option<Timestamp>,
}

/// What a daemon that was killed had of open files, beside their state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::vfs) struct OnTheirWay {
    writes: Vec<(InodeRef, LoggedWrite, Vec<u8>)>,
    changes: Vec<(InodeRef, Change)>,
    appends: Vec<(u64, u64)>,
    opens: Vec<(u64, u64)>,
    victims: Vec<(u64, InodeRef)>,
    names: NamesOnTheirWay<InodeRef>,
}

impl OnTheirWay {
    /// Opens that files are to be made with.
    pub(super) fn opens_to_come(&self) -> impl Iterator<Item = u64> {
        self.names.opens()
    }
}

impl Files {
    /// A copy of what is to be written, in the log if there is one with room for it.
    pub(in crate::vfs) fn copy(&self, data: &[u8]) -> Bytes {
        self.wal.copy(data).unwrap_or_else(|| buffers::copy(data))
    }

    /// These data do not survive this process: nobody may be answered before they are stable.
    pub(in crate::vfs) fn would_be_lost(&self, data: &Bytes) -> bool {
        self.wal.is_on() && self.wal.place_of(data).is_none()
    }

    pub(super) fn log_handle(&self, fh: u64, handle: &OpenHandle, request: u64) {
        if !self.wal.is_on() {
            return;
        }
        let record = LoggedHandle {
            ino: handle.inode.ino,
            request,
            open: handle.open.owner(),
            access: handle.access,
            seen: handle.seen.lock().clone(),
            told_by_write: handle.told_by_write.lock().clone(),
            told_at_close: handle.told_at_close.lock().clone(),
            reads_pages: handle.reads_pages,
        };
        self.wal.put(Table::Handle, fh, &record);
    }

    /// This one of the kernel's owners has locks, or asks for one.
    pub(super) fn log_owner(&self, inode: &Inode, inner: &FileInner, owner: u64) {
        if self.wal.is_on()
            && let Some(record) = inner.locks().record(owner)
        {
            self.wal
                .put(Table::Owner, record.lock, &(inode.ino, record));
        }
    }

    pub(super) fn log_owners(&self, inode: &Inode, inner: &FileInner) {
        if self.wal.is_on() {
            for record in inner.locks().records() {
                self.wal
                    .put(Table::Owner, record.lock, &(inode.ino, record));
            }
        }
    }

    /// Data were lost, and not everybody was told.
    pub(super) fn log_errors(&self, inode: &Inode, inner: &FileInner) {
        let errors = inner.writeback().errors();
        if self.wal.is_on() && errors.has_any() {
            self.wal
                .put(Table::Errors, inode.ino, &errors.record_of_all());
        }
    }

    /// Changes of attributes wait, or do not any more.
    pub(super) fn log_deferred(&self, inode: &Inode, inner: &FileInner) {
        if self.wal.is_on() {
            match inner.deferred().all() {
                Some(all) => self.wal.put(Table::Deferred, inode.ino, &all),
                None => self.wal.remove(Table::Deferred, inode.ino),
            }
        }
    }

    pub(super) fn log_silly(&self, inode: &Inode, silly: &SillyName) {
        if self.wal.is_on() {
            let record = SillyRecord::of(silly, |dir| LoggedObject::of(dir));
            self.wal.put(Table::Silly, inode.ino, &record);
        }
    }

    /// Where the file is kept out of sight from now on.
    pub(super) fn set_silly(&self, inode: &Arc<Inode>, silly: SillyName) {
        let mut inner = self.file_state(inode).lock();
        self.log_silly(inode, &silly);
        inner.set_silly(Some(silly));
    }

    /// Data were accepted, which nobody is answered for yet.
    pub(super) fn log_write(
        &self,
        inode: &Inode,
        inner: &mut FileInner,
        open: &Arc<OpenState>,
        (offset, data): (u64, &Bytes),
        (write, at): (WriteTicket, Option<Timestamp>),
    ) {
        let Some(place) = self.wal.place_of(data) else {
            return;
        };
        let key = self.logged_writes.give();
        let record = LoggedWrite {
            ino: inode.ino,
            open: open.owner(),
            fence: open.fence(),
            offset,
            data: place,
            at,
        };
        self.wal.put(Table::Write, key, &record);
        inner.logged(write, key, data.clone());
    }

    /// This request's data are appended here: should they be accepted again for a request that
    /// nobody has answered, they go to the same place.
    pub(super) fn log_append(&self, offset: u64) {
        let request = caller::request();
        if self.wal.is_on() && request.unique != 0 {
            self.wal.put(Table::Append, request.unique, &offset);
        }
    }

    /// Where a process that was killed has appended the data of this request.
    pub(in crate::vfs) fn appended_at(&self) -> Option<u64> {
        let request = caller::request();
        if !request.resent {
            return None;
        }
        self.on_their_way.lock().appends.remove(&request.unique)
    }

    /// What a process that was killed has opened for this request, and did not answer with: that is
    /// the answer. The file was counted as looked up then, if it was to be.
    pub(in crate::vfs) fn opened_before(&self, flags: i32) -> Option<(Arc<Inode>, Opened)> {
        let request = caller::request();
        if !request.resent {
            return None;
        }
        let fh = self.on_their_way.lock().opens.remove(&request.unique)?;
        let handle = self.handle(fh).ok()?;
        let reads = handle.access & ACCESS_READ != 0;
        let opened = Opened {
            fh,
            keep_cache: false,
            direct_io: flags & libc::O_DIRECT != 0 || reads && !handle.reads_pages,
        };
        Some((Arc::clone(&handle.inode), opened))
    }

    /// This request is about to hide the name of a file. Should it come again when the name is
    /// hidden, nothing but this tells of which file it was.
    pub(super) fn log_victim(&self, inode: &Inode) {
        let request = caller::request();
        if self.wal.is_on() && request.unique != 0 {
            self.wal.put(Table::Victim, request.unique, &inode.ino);
        }
    }

    /// The file whose name a process that was killed has hidden for this request, or was about to.
    pub(super) fn victim_before(&self) -> Option<Arc<Inode>> {
        let request = caller::request();
        if !request.resent {
            return None;
        }
        let inherited = self.on_their_way.lock();
        inherited.victims.get(&request.unique).map(Arc::clone)
    }

    /// The name that this request has given to the file in a process that was killed.
    pub(in crate::vfs) fn hidden_before(&self, victim: &Inode) -> Option<SillyName> {
        self.victim_before()
            .filter(|before| before.ino == victim.ino)?;
        let mark = format!("{:016x}", self.client.mark()?);
        let inner = victim.opened()?.lock();
        let silly = inner.silly()?;
        let is_marked = silly
            .name
            .windows(mark.len())
            .any(|part| part == mark.as_bytes());
        is_marked.then(|| silly.clone())
    }

    /// A file with a hidden name was taken over.
    pub(super) fn hidden_inherited(&self, inode: &Arc<Inode>) {
        self.on_their_way.lock().hidden.push(Arc::clone(inode));
    }

    /// The kernel has its answer to this request.
    pub(in crate::vfs) fn request_answered(&self, unique: u64) {
        self.wal.remove(Table::Victim, unique);
        self.wal.remove(Table::Append, unique);
        self.forget_request(unique);
    }

    /// Takes in what was on its way when another process was killed; nothing of it is sent yet.
    pub(in crate::vfs) fn take_over_what_was_on_its_way(
        self: &Arc<Self>,
        on: OnTheirWay,
        inodes: &Restored,
        mut opens: BTreeMap<u64, Arc<OpenState>>,
    ) -> Result<(), Contradiction> {
        self.accept_names_again(on.names, inodes, &mut opens)?;
        for (unique, fh) in &on.opens {
            if let Ok(handle) = self.handle(*fh) {
                self.log_handle(*fh, &handle, *unique);
            }
        }
        {
            let mut inherited = self.on_their_way.lock();
            inherited.appends = on.appends.iter().copied().collect();
            inherited.opens = on.opens.into_iter().collect();
        }
        for (unique, inode) in on.victims {
            let inode = inodes.get(inode)?;
            self.wal.put(Table::Victim, unique, &inode.ino);
            let mut inherited = self.on_their_way.lock();
            inherited.victims.insert(unique, Arc::clone(inode));
        }
        for (unique, offset) in on.appends {
            self.wal.put(Table::Append, unique, &offset);
        }
        for (file, write, data) in on.writes {
            let inode = inodes.get(file)?;
            self.accept_again(inode, &write, &data, opens.get(&write.open));
        }
        for (file, change) in on.changes {
            let inode = inodes.get(file)?;
            let mut inner = self.file_state(inode).lock();
            if inode.handle.is_undecided() {
                let mut attr = inode.attr.lock();
                attr.overlay(&change.set, change.ctime);
            }
            inner.deferred_mut().take_over(change);
            self.log_deferred(inode, &inner);
            drop(inner);
            self.on_their_way.lock().changed.push(Arc::clone(inode));
        }
        Ok(())
    }

    fn accept_again(
        &self,
        inode: &Arc<Inode>,
        write: &LoggedWrite,
        data: &[u8],
        open: Option<&Arc<OpenState>>,
    ) {
        let data = self.copy(data);
        let end = write.offset.saturating_add(data.len() as u64);
        // Somebody else may have had the lock since, or the file is not open any more.
        let open = open.filter(|open| open.fence() == write.fence);
        self.with_writeback(inode, |inner| {
            let Some(open) = open else {
                tracing::error!(
                    ino = inode.ino,
                    "data that were written before the daemon was killed are lost: what they \
                     were written under is"
                );
                let lost = Errno(libc::EIO).into();
                inner.writeback_mut().errors_mut().record(lost);
                return;
            };
            let origin = Origin::new(open, None);
            let ticket =
                inner
                    .writeback_mut()
                    .accept(now(), origin, write.offset, data.clone(), false);
            let of = (ticket, write.at);
            self.log_write(inode, inner, open, (write.offset, &data), of);
            inner.count_write();
            let mut attr = inode.attr.lock();
            attr.grow(end);
            if let Some(at) = write.at.filter(|_| inode.handle.is_undecided()) {
                attr.touch(at, Instant::now());
            }
        });
        let mut inherited = self.on_their_way.lock();
        if !inherited
            .written
            .iter()
            .any(|known| Arc::ptr_eq(known, inode))
        {
            inherited.written.push(Arc::clone(inode));
        }
    }

    /// The size of a file that is being written is this host's; it has yet to ask for it.
    async fn know_size(self: &Arc<Self>, inode: &Arc<Inode>) {
        let cred = {
            let inner = self.file_state(inode).lock();
            inner.any_cred()
        };
        if let Some(cred) = cred
            && let Err(error) = self.namespace.refresh(&cred, inode).await
        {
            tracing::warn!(
                ino = inode.ino,
                "the size of a file that is being written is not known: {error}"
            );
        }
    }

    /// Sends what was on its way when another process was killed. Before the kernel is answered
    /// again.
    pub(in crate::vfs) async fn go_on(self: &Arc<Self>) {
        self.hurry_all_names();
        let (written, changed, hidden) = {
            let mut inherited = self.on_their_way.lock();
            let written = std::mem::take(&mut inherited.written);
            let changed = std::mem::take(&mut inherited.changed);
            (written, changed, std::mem::take(&mut inherited.hidden))
        };
        for inode in &written {
            // Nobody else has written to what is to be made.
            if !inode.handle.is_undecided() {
                self.know_size(inode).await;
            }
        }
        for inode in written {
            self.pump(&inode);
        }
        for inode in changed {
            self.changes_wait(&inode);
        }
        // Their last handle may have been closed, and nothing else done about it.
        for inode in hidden {
            self.remove_unneeded(&inode).await;
        }
    }
}

/// What was taken over from a process that was killed and is still to be done.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    written: Vec<Arc<Inode>>,
    changed: Vec<Arc<Inode>>,
    /// By the requests.
    appends: HashMap<u64, u64>,
    opens: HashMap<u64, u64>,
    victims: HashMap<u64, Arc<Inode>>,
    pub(super) accepted: HashMap<u64, AcceptedBefore>,
    /// They have hidden names, which may be needed by nobody.
    hidden: Vec<Arc<Inode>>,
}

impl FilesState {
    /// The open files of a daemon that was killed, and what was on its way.
    pub(in crate::vfs) fn survived(
        survived: &Survived,
        names: LoggedNames,
        inodes: &mut LoggedInodes,
        client: &ClientState,
    ) -> Result<(Self, OnTheirWay), Unreadable> {
        let mut on = OnTheirWay {
            appends: survived.table(Table::Append)?,
            ..OnTheirWay::default()
        };
        let closed_along = names.closed_along();
        on.names = names.known_as(inodes);
        let mut files = BTreeMap::<Ino, OfFile>::new();
        for (_, (ino, owner)) in survived.table::<(Ino, OwnerRecord)>(Table::Owner)? {
            files.entry(ino).or_default().owners.push(owner);
        }
        for (ino, errors) in survived.table(Table::Errors)? {
            files.entry(ino).or_default().errors = errors;
        }
        for (ino, silly) in survived.table::<SillyRecord<LoggedObject>>(Table::Silly)? {
            let silly = silly.known_as(|dir| inodes.object(dir));
            files.entry(ino).or_default().silly = Some(silly);
        }
        let mut handles = Vec::new();
        for (fh, handle) in survived.table::<LoggedHandle>(Table::Handle)? {
            let Some(inode) = inodes.held(handle.ino) else {
                continue;
            };
            // It is being released, and its CLOSE was sent: RELEASE has nothing more to do but what
            // is done of itself.
            if !client.has_open(handle.open) {
                continue;
            }
            let owners = &files.entry(handle.ino).or_default().owners;
            let locked = owners.iter().any(|owner| owner.handles.contains(&fh));
            if handle.request != 0 {
                on.opens.push((handle.request, fh));
            }
            handles.push(HandleRecord {
                fh,
                inode,
                open: handle.open,
                access: handle.access,
                seen: handle.seen,
                told_by_write: handle.told_by_write,
                told_at_close: handle.told_at_close,
                reads_pages: handle.reads_pages,
                locked,
            });
        }
        for (_, write) in survived.table::<LoggedWrite>(Table::Write)? {
            if closed_along.contains(&write.open) {
                continue;
            }
            if let Some(inode) = inodes.of_number(write.ino) {
                let data = survived.data(write.data)?;
                on.writes.push((inode, write, data));
            }
        }
        for (ino, change) in survived.table(Table::Deferred)? {
            if let Some(inode) = inodes.of_number(ino) {
                on.changes.push((inode, change));
            }
        }
        for (unique, ino) in survived.table::<Ino>(Table::Victim)? {
            on.victims
                .extend(inodes.held(ino).map(|inode| (unique, inode)));
        }
        let files = files.into_iter().filter_map(|(ino, of)| {
            let record = FileRecord::survived(of.errors, of.silly, of.owners);
            Some((inodes.held(ino)?, record))
        });
        let state = Self {
            next_fh: Numbers::survived(survived, FHS, 1)?,
            files: files.collect(),
            handles,
        };
        Ok((state, on))
    }
}

/// What the log has of one file.
#[derive(Default)]
struct OfFile {
    errors: ErrSeqRecord,
    silly: Option<SillyRecord<InodeRef>>,
    owners: Vec<OwnerRecord>,
}
