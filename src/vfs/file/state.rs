//! What is known of a file that is, or was, open here ([`FileState`]), and of each open(2) of
//! it ([`OpenHandle`]).
//!
//! Everything that belongs together is in [`FileInner`], under one lock, which is taken before
//! that of the inode's attributes and never held across an await. A handle's own fields are
//! atomic, or have locks inside which no other is taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::pages::{FileAt, LateCut, Moves, Pages};
use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;
use crate::rpc::caller::Caller;
use crate::vfs::Vfs;
use crate::vfs::files::deferred_setattr::DeferredSetattr;
use crate::vfs::files::read::Ahead;
use crate::vfs::files::silly::SillyName;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::AttrState;
use crate::vfs::locks::locktable::LockTable;
use crate::vfs::writeback::Writeback;
use crate::vfs::writeback::errseq::Seen;

/// Whose open a write is sent with.
#[derive(Clone, Debug)]
pub struct Origin {
    pub(in crate::vfs) open: Arc<OpenState>,
    /// The open's fence when the write was accepted: see [`OpenState::fence`].
    pub(in crate::vfs) fence: u32,
    /// Of a synchronous write: who waits for it. What was answered is sent whoever
    /// waits.
    pub(in crate::vfs) caller: Option<Arc<Caller>>,
}

impl Origin {
    pub(in crate::vfs) fn new(open: &Arc<OpenState>, caller: Option<Arc<Caller>>) -> Self {
        Self {
            open: Arc::clone(open),
            fence: open.fence(),
            caller,
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        let alike = match (&self.caller, &other.caller) {
            (None, None) => true,
            (Some(caller), Some(other)) => Arc::ptr_eq(caller, other),
            _ => false,
        };
        alike && Arc::ptr_eq(&self.open, &other.open) && self.fence == other.fence
    }
}

/// What a regular file needs once it was opened.
#[derive(Debug)]
pub struct FileState {
    /// Owned by this lock: the opens, what is being written, and what the
    /// kernel's pages belong to.
    pub(in crate::vfs) inner: Mutex<FileInner>,
    /// A write or commit was answered.
    pub(in crate::vfs) progress: Notify,
}

/// What the lock of a file's state owns.
#[derive(Debug)]
pub(in crate::vfs) struct FileInner {
    pub(in crate::vfs) opens: Vec<SharedOpen>,
    pub(in crate::vfs) writeback: Writeback<Origin>,
    pub(in crate::vfs) pages: Pages,
    /// Whether pages are to be dropped a second time (see `revalidate`).
    late_cut: LateCut,
    /// Foreign changes after which nothing is believed any more of what lies beside the
    /// file (see `lock`).
    pub(in crate::vfs) beside: Moves,
    /// Counts what made pages old although no foreign change was seen.
    losses: Moves,
    /// Counts what made data old that were read ahead, but no pages: new sizes,
    /// restarts of the server.
    pub(in crate::vfs) cuts: Moves,
    /// Counts the writes of this host.
    pub(in crate::vfs) writes: u64,
    /// The kernel has read pages since it last dropped them, and nothing was
    /// written since.
    pub(in crate::vfs) filled: bool,
    /// Times in a row that what came along with an OPEN was not wanted.
    pub(in crate::vfs) unread: u8,
    /// Handles that may have read ahead: what is written, by whichever handle,
    /// makes that old.
    readers: Vec<Weak<OpenHandle>>,
    /// The server keeps a removed file until its last CLOSE.
    pub(in crate::vfs) preserved: bool,
    /// Where the file is kept out of sight after its last name was removed.
    pub(in crate::vfs) silly: Option<SillyName>,
    /// RENAMEs onto this file under way: if they fail, it gets its name back,
    /// so it is not removed meanwhile.
    pub(in crate::vfs) replacing: usize,
    /// A hidden name is being made; it is `silly` then, or could not be made.
    pub(in crate::vfs) hiding: bool,
    /// Handles through which was locked and whose RELEASE is under way, and how many of
    /// those have ended.
    pub(in crate::vfs) releasing: usize,
    pub(in crate::vfs) releases: u64,
    /// REMOVEs and RENAMEs under way that take a name from the file because
    /// nobody has it open: opens wait.
    pub(in crate::vfs) removing: usize,
    /// Attribute changes that the server does not know yet.
    pub(in crate::vfs) deferred: DeferredSetattr,
    /// Who of this host has locks.
    pub(in crate::vfs) locks: LockTable,
    /// Lock states of owners that are gone, which the server keeps until the
    /// open they were made with is closed.
    pub(in crate::vfs) retired: Vec<Arc<LockState>>,
}

impl FileInner {
    /// Pages read under another count are old. Foreign changes are counted where
    /// they are seen, under the lock of the attributes: whoever knows a new change
    /// attribute finds the count moved.
    pub(in crate::vfs) fn moves(&self, attr: &AttrState) -> Moves {
        self.losses + attr.foreign()
    }

    /// The kernel has pages that a thread of its own may have cut too late.
    pub(in crate::vfs) fn may_be_cut_late(&mut self, foreign: Moves) -> bool {
        self.late_cut.look(foreign) && self.filled
    }

    /// What was read ahead under another count is old.
    pub(in crate::vfs) fn epoch(&self, attr: &AttrState) -> Moves {
        self.moves(attr) + self.cuts
    }

    /// The handle begins to read ahead.
    pub(in crate::vfs) fn reads_ahead(&mut self, handle: &Arc<OpenHandle>) {
        self.readers.retain(|reader| reader.strong_count() > 0);
        self.readers.push(Arc::downgrade(handle));
    }

    /// Those that have read ahead.
    pub(in crate::vfs) fn readers(&self) -> SmallVec<[Arc<OpenHandle>; 4]> {
        self.readers.iter().filter_map(Weak::upgrade).collect()
    }

    /// The hidden name, if it is to be removed now.
    pub(in crate::vfs) fn unneeded_name(&mut self) -> Option<SillyName> {
        if self.is_open() || self.replacing > 0 {
            return None;
        }
        self.silly.take()
    }

    pub(in crate::vfs) fn is_open(&self) -> bool {
        !self.opens.is_empty()
    }

    /// A request about the locks of `owner`, through a handle, begins: to be ended by
    /// [`LockTable::end`]. An owner who is new is a user of its open from now on.
    /// `None` if the handle was released.
    pub(in crate::vfs) fn begin_lock(
        &mut self,
        handle: &OpenHandle,
        (fh, owner, pid): (u64, u64, u32),
        make: impl FnOnce() -> Arc<LockState>,
    ) -> Option<Arc<LockState>> {
        if handle.released.load(Ordering::Relaxed) {
            return None;
        }
        let is_new = self.locks.state(owner).is_none();
        let lock = self.locks.begin(owner, fh, pid, make);
        if is_new {
            let mut opens = self.opens.iter_mut();
            let shared = opens.find(|shared| Arc::ptr_eq(&shared.open, &lock.open))?;
            shared.users += 1;
        }
        handle.locked.store(true, Ordering::Relaxed);
        Some(lock)
    }
}

/// An open at the server, and how many need it.
#[derive(Debug)]
pub(in crate::vfs) struct SharedOpen {
    pub(in crate::vfs) open: Arc<OpenState>,
    /// Handles, OPENs on their way, owners of locks, and truncations by path.
    pub(in crate::vfs) users: usize,
}

impl FileState {
    pub(in crate::vfs) fn new(vfs: &Vfs, foreign: Moves) -> Self {
        Self {
            inner: Mutex::new(FileInner {
                opens: Vec::new(),
                writeback: Writeback::new(Arc::clone(&vfs.writeback)),
                pages: Pages::default(),
                late_cut: LateCut::since(foreign),
                beside: 0,
                losses: 0,
                cuts: 0,
                writes: 0,
                filled: false,
                unread: 0,
                readers: Vec::new(),
                preserved: false,
                silly: None,
                replacing: 0,
                removing: 0,
                hiding: false,
                releasing: 0,
                releases: 0,
                deferred: DeferredSetattr::default(),
                locks: LockTable::default(),
                retired: Vec::new(),
            }),
            progress: Notify::new(),
        }
    }

    /// What was read of the file may be old.
    pub(in crate::vfs) fn lose_pages(&self) {
        let mut inner = self.inner.lock();
        inner.losses += 1;
        inner.pages.lost();
    }

    /// This identity has the file open for writing.
    pub(in crate::vfs) fn is_written_by(&self, cred: &Credential) -> bool {
        let inner = self.inner.lock();
        let writes = |shared: &SharedOpen| shared.open.access() & ACCESS_WRITE != 0;
        let mut opens = inner.opens.iter();
        opens.any(|shared| *shared.open.cred == *cred && writes(shared))
    }

    /// An open of the file that allows writing, for SETATTR of the size. It has one more
    /// user, who is to leave.
    pub(in crate::vfs) fn join_writable(&self, cred: &Credential) -> Option<Arc<OpenState>> {
        let mut inner = self.inner.lock();
        let shared = inner.opens.iter_mut().find(|shared| {
            *shared.open.cred == *cred && shared.open.access() & ACCESS_WRITE != 0
        })?;
        shared.users += 1;
        Some(Arc::clone(&shared.open))
    }
}

/// One open(2).
#[derive(Debug)]
pub struct OpenHandle {
    pub(in crate::vfs) inode: Arc<Inode>,
    pub(in crate::vfs) open: Arc<OpenState>,
    /// What this handle may do (OPEN4_SHARE_ACCESS_*).
    pub(in crate::vfs) access: u32,
    /// Write errors that this handle has told of.
    pub(in crate::vfs) seen: Mutex<Seen>,
    /// Those that a write(2) was told of. It may be the rest of one, whose beginning was
    /// accepted: then the kernel tells its caller how much that was, and no error. So
    /// fsync tells of it all the same.
    pub(in crate::vfs) told_by_write: Mutex<Seen>,
    /// Those that a close(2) was told of, which leaves them to be told again.
    pub(in crate::vfs) told_at_close: Mutex<Seen>,
    pub(in crate::vfs) ahead: Ahead,
    /// What is read through it comes from the kernel's pages, which ask nobody.
    pub(in crate::vfs) reads_pages: bool,
    /// It was locked through once.
    pub(in crate::vfs) locked: AtomicBool,
    /// It is not to be locked through any more. Owned by the file's lock.
    pub(in crate::vfs) released: AtomicBool,
    /// The kernel was told to drop its pages, and has not used the handle yet.
    pub(in crate::vfs) drops_pages: AtomicBool,
    pub(in crate::vfs) opened_at: FileAt,
}
