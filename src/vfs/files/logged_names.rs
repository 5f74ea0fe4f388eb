//! Changes of names that were answered and that the server does not know (`writeback`), in the
//! write-ahead log: whoever goes on for a daemon that is killed has them in its own
//! [queue](super::name_writeback), in their order, before it answers anybody.
//!
//! | record | from before | until |
//! |---|---|---|
//! | a change | it is answered | the server has answered it, and nobody was told anything by that |
//! | what a new object has become | its handle is believed here | every change that may name it as a promise is done |
//! | a change of whose request the kernel is to hear yet | the record of the change goes | that request was answered |
//! | an error that fsync of a directory is to tell | the refused change goes | it was told |
//!
//! What may have been sent says so before it is sent, and a new file what it was to be
//! [known by](crate::nfs::calls::Mark). Such a change may have run when the daemon died. It is sent again
//! as one whose reply was lost with its session is, and is known again as that is: a request is one that
//! may run twice ([`accepted_name`](super::accepted_name)).
//!
//! A promise has a number in the log. Whoever reads the log finds by it the handle that was given,
//! promises it anew if the change that makes the object is there, and otherwise knows that nobody was told
//! of the object yet: then the kernel asks for it again.
//!
//! Locks: the records of changes are put under the queue's lock, so that they have its order, and name as
//! a promise only what was one then. The requests have a lock under which the log's is taken; those of
//! new objects one under which the queue's is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Files;
use super::accepted_name::{Accepted, PromisedFile, What};
use super::logged_change::{LoggedChange, LoggedWhat, Made};
use crate::nfs::calls::{FileMade, Mark};
use crate::nfs::proto::types::{FileHandle, Promises, StateId};
use crate::nfs::state::OpenState;
use crate::rpc::caller;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::inode::table::handover::{Contradiction, InodeRef, Restored};
use crate::vfs::inode::table::logged::{LoggedInodes, LoggedObject};
use crate::vfs::types::{ErrorRecord, Ino, SetAttr, Timestamp, VfsError};
use crate::vfs::writeback::name_queue::{Number, Queued};
use crate::wal::{Survived, Table, Unreadable};

/// What the server has made of a promise.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LoggedMade {
    handle: FileHandle,
    /// Of a new file, the owner of its open, and its stateid, which is `None` if it was closed along, with all
    /// that was written by it.
    open: Option<(u64, Option<StateId>)>,
}

/// What a request has come to that the kernel is to hear yet.
pub(super) type AcceptedBefore = Option<Arc<Inode>>;

/// The changes of a daemon that was killed. `O` is how an object is known.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::vfs) struct NamesOnTheirWay<O> {
    changes: Vec<LoggedChange<O>>,
    /// Requests that were accepted, and what they have made.
    requests: Vec<(u64, Option<O>)>,
    /// By directories.
    errors: Vec<(Ino, ErrorRecord)>,
}

impl<O> Default for NamesOnTheirWay<O> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            requests: Vec::new(),
            errors: Vec::new(),
        }
    }
}

/// The same as it is read.
#[derive(Debug, Default)]
pub(in crate::vfs) struct LoggedNames {
    names: NamesOnTheirWay<LoggedObject>,
    made: BTreeMap<u64, LoggedMade>,
    requests: Vec<(u64, Ino)>,
}

/// Writing.
impl Files {
    /// The change is in the queue, whose lock is held, or is another one now.
    pub(super) fn log_change(&self, number: Number, accepted: &Accepted) {
        if self.wal.is_on() {
            let record = LoggedChange::of(accepted, None);
            self.wal.put(Table::Change, number, &record);
        }
    }

    /// The change is about to be sent.
    pub(super) fn log_sending(&self, queued: &Queued<Accepted>, mark: Option<Mark>) {
        if self.wal.is_on() {
            let record = LoggedChange::of(&queued.change, Some(mark));
            self.wal.put(Table::Change, queued.number, &record);
        }
    }

    /// A request of the kernel's is about to be answered by what is accepted for it.
    pub(super) fn log_request(&self) -> u64 {
        let request = caller::request().unique;
        if self.wal.is_on() && request != 0 {
            self.names.requests.lock().insert(request);
            return request;
        }
        0
    }

    /// The server has answered the change, or it will never be sent.
    pub(super) fn change_ended(&self, number: Number, ended: &Ended) {
        if let Some(dir) = ended.tells_in {
            self.count_telling(dir, false);
        }
        if !self.wal.is_on() {
            return;
        }
        {
            let requests = self.names.requests.lock();
            if requests.contains(&ended.request) {
                self.wal.put(Table::Ahead, ended.request, &ended.made);
            }
        }
        self.wal.remove(Table::Change, number);
    }

    /// The kernel has its answer to this request.
    pub(super) fn forget_request(&self, unique: u64) {
        let mut requests = self.names.requests.lock();
        if requests.remove(&unique) {
            self.wal.remove(Table::Ahead, unique);
        }
    }

    /// The server has made what was promised as this inode, which is about to be believed.
    pub(super) fn log_made(&self, inode: &Inode, handle: &FileHandle) {
        self.put_made(inode, handle, None);
    }

    /// The same of a file.
    pub(super) fn log_file_made(&self, file: &PromisedFile, made: &FileMade) {
        let open = (file.open.owner(), made.stateid_left());
        self.put_made(&file.inode, &made.handle, Some(open));
    }

    fn put_made(&self, inode: &Inode, handle: &FileHandle, open: Option<(u64, Option<StateId>)>) {
        if self.wal.is_on()
            && let Some(number) = inode.handle.promise_number()
        {
            let handle = handle.settled();
            let made = LoggedMade { handle, open };
            self.wal.put(Table::Made, number, &made);
        }
    }

    /// What was made is believed, and the records of it say so: those that name it as a promise are
    /// of changes that were accepted before.
    pub(super) fn log_believed(&self, inode: &Inode) {
        if self.wal.is_on() {
            self.namespace.log_place(inode);
            let accepted = self.names.queue.lock().accepted();
            let mut made = self.names.made.lock();
            made.push_back((accepted, inode.ino));
        }
    }

    /// Forgets what was made for changes that are done.
    pub(super) fn forget_made(&self) {
        if !self.wal.is_on() {
            return;
        }
        let mut made = self.names.made.lock();
        while let Some(&(accepted, number)) = made.front()
            && self.names.queue.lock().settled(accepted)
        {
            made.pop_front();
            self.wal.remove(Table::Made, number);
        }
    }

    /// fsync of the directory is to tell this error.
    pub(super) fn log_refused(&self, dir: Ino, error: &VfsError) {
        self.wal.put(Table::Refused, dir, &error.record());
    }

    /// It was told.
    pub(super) fn log_told(&self, dir: Ino) {
        self.wal.remove(Table::Refused, dir);
    }
}

/// What is left of a change when it is done.
pub(super) struct Ended {
    request: u64,
    /// The inode that it has made; 0: none.
    made: Ino,
    /// The directory, if others are told something by it.
    tells_in: Option<Ino>,
}

impl Ended {
    /// Of this change.
    pub(super) fn of(change: &Accepted) -> Self {
        let made = match &change.what {
            What::File(file) => file.inode.ino,
            What::Directory { inode, .. } | What::Symlink { inode, .. } => inode.ino,
            _ => 0,
        };
        Self {
            request: change.request,
            made,
            tells_in: change.tells().then_some(change.dir.ino),
        }
    }
}

impl LoggedNames {
    /// Reads what a daemon that was killed has left.
    pub(in crate::vfs) fn read(survived: &Survived) -> Result<Self, Unreadable> {
        let made: Vec<(u64, LoggedMade)> = survived.table(Table::Made)?;
        let changes: Vec<(Number, LoggedChange<LoggedObject>)> = survived.table(Table::Change)?;
        Ok(Self {
            names: NamesOnTheirWay {
                changes: changes.into_iter().map(|(_, change)| change).collect(),
                requests: Vec::new(),
                errors: survived.table(Table::Refused)?,
            },
            made: made.into_iter().collect(),
            requests: survived.table(Table::Ahead)?,
        })
    }

    /// What became of its promises.
    pub(in crate::vfs) fn promises(&self) -> Promises {
        let mut promises = Promises::default();
        for change in &self.names.changes {
            if let Some(number) = change.makes().and_then(LoggedObject::promise_number) {
                promises.stand(number);
            }
        }
        for (number, made) in &self.made {
            promises.kept(*number, made.handle.clone());
        }
        promises
    }

    /// The opens that files were made with, as far as nothing else tells of them.
    pub(in crate::vfs) fn opened(&self) -> HashMap<u64, StateId> {
        let opens = self.made.values().filter_map(|made| made.open);
        opens
            .filter_map(|(owner, stateid)| Some((owner, stateid?)))
            .collect()
    }

    /// Owners of opens that were closed along with the making of their files: what was written by them is
    /// there.
    pub(super) fn closed_along(&self) -> HashSet<u64> {
        let opens = self.made.values().filter_map(|made| made.open);
        let closed = opens.filter(|(_, stateid)| stateid.is_none());
        closed.map(|(owner, _)| owner).collect()
    }

    /// What is to be done to which of these inodes.
    pub(super) fn known_as(self, inodes: &mut LoggedInodes) -> NamesOnTheirWay<InodeRef> {
        let mut names = NamesOnTheirWay {
            changes: Vec::new(),
            requests: (self.requests.into_iter())
                .map(|(unique, made)| (unique, inodes.held(made)))
                .collect(),
            errors: self.names.errors,
        };
        for change in self.names.changes {
            // It was made before its change was forgotten.
            let is_made = change.makes().is_some_and(|object| {
                let number = object.promise_number();
                number.is_none_or(|number| self.made.contains_key(&number))
            });
            let change = change.known_as(|object| inodes.object(object));
            if change.request != 0 {
                names
                    .requests
                    .push((change.request, change.makes().copied()));
            }
            if !is_made {
                names.changes.push(change);
            }
        }
        names
    }
}

impl<O> NamesOnTheirWay<O> {
    /// Opens by which files are to be made.
    pub(in crate::vfs) fn opens(&self) -> impl Iterator<Item = u64> {
        self.changes.iter().filter_map(|change| match &change.what {
            LoggedWhat::File(file) => Some(file.open),
            _ => None,
        })
    }
}

/// Going on.
impl Files {
    /// What a process that was killed has accepted for this request: that is the answer. The object that it
    /// has made, if it is one, was counted as looked up then.
    pub(in crate::vfs) fn accepted_before(&self) -> Option<AcceptedBefore> {
        let request = caller::request();
        if !request.resent {
            return None;
        }
        self.on_their_way.lock().accepted.remove(&request.unique)
    }

    /// Each request that the kernel had to send again has come: of the others nobody asks any more.
    pub(in crate::vfs) fn requests_are_through(&self) {
        let unclaimed = std::mem::take(&mut self.on_their_way.lock().accepted);
        for unique in unclaimed.into_keys() {
            self.forget_request(unique);
        }
    }

    /// Takes in the changes of a process that was killed; nothing of it is sent yet. `opens` has one more
    /// for each file that is to be made and whose open was closed when that process ended.
    pub(super) fn accept_names_again(
        self: &Arc<Self>,
        names: NamesOnTheirWay<InodeRef>,
        inodes: &Restored,
        opens: &mut BTreeMap<u64, Arc<OpenState>>,
    ) -> Result<(), Contradiction> {
        for (dir, error) in names.errors {
            let error = VfsError::from(error);
            self.log_refused(dir, &error);
            self.late.refuse(dir, error);
        }
        for (unique, made) in names.requests {
            let made = made.map(|made| inodes.get(made).map(Arc::clone));
            let made = made.transpose()?;
            let ino = made.as_ref().map_or(0, |made| made.ino);
            self.wal.put(Table::Ahead, unique, &ino);
            self.names.requests.lock().insert(unique);
            self.on_their_way.lock().accepted.insert(unique, made);
        }
        for change in names.changes {
            let accepted = self.accepted_again(change, inodes, opens)?;
            let (dir, links) = (Arc::clone(&accepted.dir), accepted.links());
            self.namespace.accepted_again(&dir, links);
            self.take_in(accepted);
        }
        Ok(())
    }

    fn accepted_again(
        &self,
        change: LoggedChange<InodeRef>,
        inodes: &Restored,
        opens: &mut BTreeMap<u64, Arc<OpenState>>,
    ) -> Result<Accepted, Contradiction> {
        let get = |object| inodes.get(object).map(Arc::clone);
        let promise_of = |made: Made<InodeRef>| {
            let inode = get(made.object)?;
            inode
                .attr
                .lock()
                .promised_again(made.atime, made.mtime, made.ctime);
            let promise = inode.handle.promise();
            promise
                .map(|promise| (inode, promise))
                .ok_or(Contradiction("what is to be made is there"))
        };
        let cred = Arc::new(change.cred);
        let what = match change.what {
            LoggedWhat::File(file) => {
                let (inode, promise) = promise_of(file.made)?;
                let open = opens.entry(file.open).or_insert_with(|| {
                    let handle = inode.handle.clone();
                    self.client.prepare_open(handle, Arc::clone(&cred))
                });
                let open = Arc::clone(open);
                {
                    // Nobody has it open any more: it is closed by the request that makes it.
                    let mut inner = self.file_state(&inode).lock();
                    if !inner.has_open(&open) {
                        inner.add_open(&open);
                        inner.begin_close(&open);
                    }
                }
                What::File(PromisedFile {
                    inode,
                    open,
                    access: file.access,
                    mode: file.mode,
                    verifier: file.verifier,
                    marks: file.marks.into(),
                    promise,
                })
            }
            LoggedWhat::Directory { made, mode } => {
                let (inode, promise) = promise_of(made)?;
                What::Directory {
                    inode,
                    mode,
                    promise,
                }
            }
            LoggedWhat::Symlink { made, text } => {
                let (inode, promise) = promise_of(made)?;
                let _ = inode.link.set(Box::new(text.clone()));
                What::Symlink {
                    inode,
                    text,
                    promise,
                }
            }
            LoggedWhat::Remove { victim } => What::Remove {
                victim: get(victim)?,
            },
            LoggedWhat::Rename {
                to,
                moved,
                replaced,
            } => What::Rename {
                to: Name::from(&to[..]),
                moved: get(moved)?,
                replaced: replaced.map(get).transpose()?,
            },
            LoggedWhat::Attributes(set) => {
                self.set_again(&get(change.dir)?, &set);
                What::Attributes(set)
            }
            LoggedWhat::AttributesOf(object, set) => {
                let object = get(object)?;
                self.client.shut_gate(&object.handle);
                self.set_again(&object, &set);
                What::AttributesOf(object, set)
            }
        };
        Ok(Accepted {
            dir: get(change.dir)?,
            cred,
            name: Name::from(&change.name[..]),
            what,
            again: change.sent,
            request: change.request,
        })
    }

    fn set_again(&self, object: &Arc<Inode>, set: &SetAttr) {
        let (ctime, now) = (Timestamp::now(), Instant::now());
        object.attr.lock().accept_set(set, ctime, now);
    }
}
