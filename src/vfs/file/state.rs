//! What is known of a file that is, or was, open here.
//!
//! Everything that belongs together is in [`FileInner`], under one lock, which is taken before
//! that of the inode's attributes and never held across an await. Who waits for something of it
//! waits on the file's progress and looks again ([`FileState::when`]).

pub(in crate::vfs) mod handover;
mod logged_writes;
mod opens;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use self::logged_writes::LoggedWrites;
use super::ahead::Ahead;
use super::deferred_setattr::DeferredSetattr;
use super::disk_view::DiskView;
use super::inline_read::{FileVersion, UNREAD};
use super::origin::Origin;
use super::pages::{FileAt, LateCut, Moves, Pages};
use super::silly_name::SillyName;
use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;
use crate::vfs::locks::locktable::LockTable;
use crate::vfs::types::Stat;
use crate::vfs::writeback::{WriteTicket, Writeback, WritebackConfig};
use crate::wal::Wal;

/// What a regular file needs once it was opened. `D` is how a directory is known, see
/// [`SillyName`].
#[derive(Debug)]
pub(in crate::vfs) struct FileState<D> {
    /// Owned by this lock: the opens, what is being written, and what the
    /// kernel's pages belong to.
    inner: Mutex<FileInner<D>>,
    /// Something has changed that somebody may wait for.
    progress: Notify,
}

/// What the lock of a file's state owns.
#[derive(Debug)]
pub(in crate::vfs) struct FileInner<D> {
    opens: Vec<SharedOpen>,
    writeback: Writeback<Origin>,
    /// What the write-ahead log has of the data in `writeback`.
    logged: LoggedWrites,
    pages: Pages,
    /// Which version of the file may be read from this host's disk, if that is known.
    disk: Option<DiskView>,
    /// Whether pages are to be dropped a second time (see `revalidate`).
    late_cut: LateCut,
    /// Foreign changes after which nothing is believed any more of what lies beside the
    /// file (see `lock`).
    beside: Moves,
    /// Counts what made pages old although no foreign change was seen.
    losses: Moves,
    /// Counts what made data old that were read ahead, but no pages: new sizes,
    /// restarts of the server.
    cuts: Moves,
    /// Counts the writes of this host.
    writes: u64,
    /// The kernel has read pages since it last dropped them, and nothing was
    /// written since.
    filled: bool,
    /// Times in a row that what came along with an OPEN was not wanted.
    unread: u8,
    /// What handles have read ahead: what is written, by whichever handle,
    /// makes that old.
    readers: Vec<Weak<Ahead>>,
    /// The server keeps a removed file until its last CLOSE.
    preserved: bool,
    /// Where the file is kept out of sight after its last name was removed.
    silly: Option<SillyName<D>>,
    /// RENAMEs onto this file under way: if they fail, it gets its name back,
    /// so it is not removed meanwhile.
    replacing: usize,
    /// The open of a file that is not made yet, and how many of its users are being released.
    closing: Option<(Arc<OpenState>, usize)>,
    /// A hidden name is being made; it is `silly` then, or could not be made.
    hiding: bool,
    /// Handles through which was locked and whose RELEASE is under way, and how many of
    /// those have ended.
    releasing: usize,
    releases: u64,
    /// REMOVEs and RENAMEs under way that take a name from the file because
    /// nobody has it open: opens wait.
    removing: usize,
    /// Attribute changes that the server does not know yet.
    deferred: DeferredSetattr,
    /// Who of this host has locks.
    locks: LockTable,
    /// Lock states of owners that are gone, which the server keeps until the
    /// open they were made with is closed.
    retired: Vec<Arc<LockState>>,
}

/// An open at the server, and how many need it.
#[derive(Debug)]
struct SharedOpen {
    open: Arc<OpenState>,
    /// Handles, OPENs on their way, owners of locks, and truncations by path.
    users: usize,
}

impl SharedOpen {
    /// An open with its first user.
    fn new(open: &Arc<OpenState>) -> Self {
        Self {
            open: Arc::clone(open),
            users: 1,
        }
    }
}

/// Whether a handle was, and may be, locked through. Changed under the file's lock; that it
/// was not is read without.
#[derive(Debug, Default)]
pub(in crate::vfs) struct HandleLocking {
    /// It was locked through once.
    locked: AtomicBool,
    /// It is not to be locked through any more.
    released: AtomicBool,
}

impl HandleLocking {
    /// It was locked through once.
    pub(in crate::vfs) fn was_used(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}

/// What there is to do when an open has lost a user.
#[derive(Debug)]
pub(in crate::vfs) struct Left<D> {
    /// It was the last one: the open is in the table no more, and is to be closed.
    pub(in crate::vfs) closes: bool,
    /// The hidden name, if it is to be removed now.
    pub(in crate::vfs) silly: Option<SillyName<D>>,
    /// Lock states that the server may free.
    pub(in crate::vfs) retired: Vec<Arc<LockState>>,
}

/// What is done with a name that a file is to lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) enum NameLoss {
    /// It is removed, and opens wait for that.
    Removed,
    /// It is hidden, so that the file has one.
    Hidden,
}

impl<D> FileState<D> {
    /// The state of a file that nobody has opened yet, of which so many foreign changes were
    /// seen.
    pub(in crate::vfs) fn new(config: &Arc<WritebackConfig>, foreign: Moves) -> Self {
        Self {
            inner: Mutex::new(FileInner {
                opens: Vec::new(),
                writeback: Writeback::new(Arc::clone(config)),
                logged: LoggedWrites::default(),
                pages: Pages::default(),
                disk: None,
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
                closing: None,
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

    /// Takes the file's lock.
    pub(in crate::vfs) fn lock(&self) -> MutexGuard<'_, FileInner<D>> {
        self.inner.lock()
    }

    /// Something has changed that somebody may wait for: a write or commit was answered, a
    /// name was taken, a handle released.
    pub(in crate::vfs) fn notify_waiters(&self) {
        self.progress.notify_waiters();
    }

    /// Completes at the next [`notify_waiters`](Self::notify_waiters) after it was enabled.
    pub(in crate::vfs) fn progress(&self) -> Notified<'_> {
        self.progress.notified()
    }

    /// What `look` finds, as soon as it finds something.
    pub(in crate::vfs) async fn when<T>(
        &self,
        mut look: impl FnMut(&mut FileInner<D>) -> Option<T>,
    ) -> T {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if let Some(found) = look(&mut self.inner.lock()) {
                return found;
            }
            progress.await;
        }
    }

    /// What was read of the file may be old.
    pub(in crate::vfs) fn lose_pages(&self) {
        let mut inner = self.inner.lock();
        inner.losses += 1;
        inner.pages.lost();
    }

    /// Something is on its way that changes the attributes.
    pub(in crate::vfs) fn is_changing(&self) -> bool {
        let inner = self.inner.lock();
        inner.writeback.end_offset().is_some() || !inner.deferred.is_empty()
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

/// What is on its way to the server.
impl<D> FileInner<D> {
    /// The data on their way.
    pub(in crate::vfs) fn writeback(&self) -> &Writeback<Origin> {
        &self.writeback
    }

    /// The same, to be changed: what it holds afterwards is to be accounted for in the window.
    pub(in crate::vfs) fn writeback_mut(&mut self) -> &mut Writeback<Origin> {
        &mut self.writeback
    }

    /// The log has these data, which were accepted as `write`, under `key`.
    pub(in crate::vfs) fn logged(&mut self, write: WriteTicket, key: u64, data: Bytes) {
        self.logged.add(write, key, data);
    }

    /// Something became of data on their way: the log need not have what is stable or was lost.
    #[inline]
    pub(in crate::vfs) fn settle_log(&mut self, wal: &Wal) {
        if !self.logged.is_empty() {
            self.logged.settle(&self.writeback, wal);
        }
    }

    /// This host has written to the file.
    pub(in crate::vfs) fn count_write(&mut self) {
        self.writes += 1;
        // The page of the end of the file is the kernel's only in part.
        self.filled = false;
    }

    /// The attributes as this host knows them: the server has not counted the blocks
    /// of what is on its way.
    pub(in crate::vfs) fn shown(&self, stat: &Stat) -> Stat {
        let mut stat = stat.clone();
        if self.writeback.end_offset().is_some() {
            stat.blocks = stat.blocks.max(stat.size.div_ceil(512));
        }
        stat
    }

    /// The changes of attributes on their way.
    pub(in crate::vfs) fn deferred(&self) -> &DeferredSetattr {
        &self.deferred
    }

    /// The same, to be changed.
    pub(in crate::vfs) fn deferred_mut(&mut self) -> &mut DeferredSetattr {
        &mut self.deferred
    }
}

/// What the kernel's pages, and what was read ahead, belong to. `foreign` counts the foreign
/// changes of the file, as its attributes have it, whose lock is held: whoever knows a new
/// change attribute finds the count moved.
impl<D> FileInner<D> {
    /// Pages read under another count are old.
    pub(in crate::vfs) fn moves(&self, foreign: Moves) -> Moves {
        self.losses + foreign
    }

    /// What was read ahead under another count is old.
    pub(in crate::vfs) fn epoch(&self, foreign: Moves) -> Moves {
        self.moves(foreign) + self.cuts
    }

    /// How the file stands.
    pub(in crate::vfs) fn version(&self, foreign: Moves) -> FileVersion {
        FileVersion {
            epoch: self.epoch(foreign),
            writes: self.writes,
        }
    }

    /// Which version of the file may be read from the disk of this host: that of the last open, as
    /// long as nobody is known to have changed it, and nothing of this host's is on its way.
    pub(in crate::vfs) fn disk_view(&self, change: u64, foreign: Moves) -> Option<&DiskView> {
        let now = self.version(foreign);
        self.disk
            .as_ref()
            .filter(|view| view.file == now && view.known.at.change == change)
            .filter(|_| self.writeback.is_idle())
    }

    /// The last view, whether it is good or not.
    pub(in crate::vfs) fn disk_view_mut(&mut self) -> &mut Option<DiskView> {
        &mut self.disk
    }

    /// What was read ahead is old, and pages are not: a new size, or a restart of the server.
    pub(in crate::vfs) fn cut(&mut self) {
        self.cuts += 1;
    }

    /// The kernel has pages that a thread of its own may have cut too late.
    pub(in crate::vfs) fn may_be_cut_late(&mut self, foreign: Moves) -> bool {
        self.late_cut.look(foreign) && self.filled
    }

    /// The file is opened while it is so: whether the kernel may keep its pages, because
    /// `explained` says that every move of it is our own.
    pub(in crate::vfs) fn open_pages(
        &mut self,
        file: FileAt,
        explained: impl FnOnce(u64) -> bool,
    ) -> bool {
        let keep = self.pages.open(file, explained);
        self.filled &= keep;
        keep
    }

    /// The kernel has come back with a handle whose open had the pages dropped.
    pub(in crate::vfs) fn pages_used(&mut self, opened: FileAt, foreign: Moves) {
        let moves = self.moves(foreign);
        self.pages.used(opened, moves);
    }

    /// The kernel has pages of the file as it is now.
    pub(in crate::vfs) fn has_pages_of(
        &self,
        file: FileAt,
        explained: impl FnOnce(u64) -> bool,
    ) -> bool {
        self.filled && self.pages.are_of(file, explained)
    }

    /// The kernel reads the file.
    pub(in crate::vfs) fn pages_read(&mut self) {
        self.filled = true;
        self.unread = 0;
    }

    /// What comes along with an OPEN was not wanted for some time.
    pub(in crate::vfs) fn is_unread(&self) -> bool {
        self.unread >= UNREAD
    }

    /// What came along with an OPEN was (not) wanted.
    pub(in crate::vfs) fn inline_used(&mut self, used: bool) {
        self.unread = match used {
            true => 0,
            false => self.unread.saturating_add(1),
        };
    }

    /// A handle begins to read ahead.
    pub(in crate::vfs) fn reads_ahead(&mut self, ahead: &Arc<Ahead>) {
        self.readers.retain(|reader| reader.strong_count() > 0);
        self.readers.push(Arc::downgrade(ahead));
    }

    /// What was read ahead, by handle.
    pub(in crate::vfs) fn readers(&self) -> SmallVec<[Arc<Ahead>; 4]> {
        self.readers.iter().filter_map(Weak::upgrade).collect()
    }

    /// These bytes go to who reads them through one handle: what others have read ahead of them,
    /// or are reading, may be older.
    #[inline]
    pub(in crate::vfs) fn handed_out(&self, own: &Arc<Ahead>, range: &Range<u64>) {
        let own = Arc::as_ptr(own);
        if let [only] = &self.readers[..]
            && only.as_ptr() == own
        {
            return;
        }
        for reader in &self.readers {
            if reader.as_ptr() != own
                && let Some(other) = reader.upgrade()
            {
                other.outdated(range.clone());
            }
        }
    }

    /// Nothing is believed any more of what lies beside the file, after so many foreign
    /// changes. Says after how many that was so before.
    pub(in crate::vfs) fn doubt_beside(&mut self, foreign: Moves) -> Moves {
        std::mem::replace(&mut self.beside, foreign)
    }
}

/// The locks on the file.
impl<D> FileInner<D> {
    /// Who of this host has locks.
    pub(in crate::vfs) fn locks(&self) -> &LockTable {
        &self.locks
    }

    /// The same, to be changed.
    pub(in crate::vfs) fn locks_mut(&mut self) -> &mut LockTable {
        &mut self.locks
    }

    /// A request about the locks of `owner`, through a handle, begins: to be ended by
    /// [`LockTable::end`]. An owner who is new is a user of its open from now on.
    /// `None` if the handle was released.
    pub(in crate::vfs) fn begin_lock(
        &mut self,
        handle: &HandleLocking,
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

    /// Nothing is locked through the handle any more. Gives out what was, if nobody else
    /// has it; `None` if nothing ever was.
    pub(in crate::vfs) fn end_locking(
        &mut self,
        handle: &HandleLocking,
        fh: u64,
    ) -> Option<Vec<Arc<LockState>>> {
        handle.released.store(true, Ordering::Relaxed);
        handle.was_used().then(|| self.locks.released(fh))
    }

    /// A handle through which was locked is about to be released.
    pub(in crate::vfs) fn begin_release(&mut self) {
        self.releasing += 1;
    }

    /// It was.
    pub(in crate::vfs) fn end_release(&mut self) {
        self.releasing -= 1;
        self.releases += 1;
    }

    /// How many such releases have ended.
    pub(in crate::vfs) fn releases(&self) -> u64 {
        self.releases
    }

    /// One is under way.
    pub(in crate::vfs) fn is_being_released(&self) -> bool {
        self.releasing > 0
    }
}

/// Names that are taken from the file.
impl<D> FileInner<D> {
    /// Begins to take a name from the file, to be ended as the result says. It is hidden
    /// if the file is open here, has no hidden name yet, and the server does not promise to keep
    /// it (or does not know of each open that it is to be kept for); also if it was being hidden for the same request by a process that was killed
    /// (`again`), although the file was closed since: what that has made is found in no other way.
    /// `None` while another is being hidden.
    pub(in crate::vfs) fn begin_loss(&mut self, again: bool) -> Option<NameLoss> {
        let preserved = self.preserved && self.is_known_to_be_open();
        if !(self.is_open() || again) || preserved || self.silly.is_some() {
            self.removing += 1;
            return Some(NameLoss::Removed);
        }
        let first = !std::mem::replace(&mut self.hiding, true);
        first.then_some(NameLoss::Hidden)
    }

    /// The name was taken, or could not be.
    pub(in crate::vfs) fn end_loss(&mut self, loss: NameLoss) {
        match loss {
            NameLoss::Removed => self.removing -= 1,
            NameLoss::Hidden => self.hiding = false,
        }
    }

    /// Where the file is kept out of sight.
    pub(in crate::vfs) fn silly(&self) -> Option<&SillyName<D>> {
        self.silly.as_ref()
    }

    /// Where the file is kept out of sight from now on; `None` if it is not any more.
    pub(in crate::vfs) fn set_silly(&mut self, silly: Option<SillyName<D>>) {
        self.silly = silly;
    }

    /// The hidden name, if it is to be removed now.
    pub(in crate::vfs) fn unneeded_name(&mut self) -> Option<SillyName<D>> {
        if self.is_open() || self.replacing > 0 {
            return None;
        }
        self.silly.take()
    }

    /// A RENAME onto the file, or of its hidden name, begins.
    pub(in crate::vfs) fn begin_replacing(&mut self) {
        self.replacing += 1;
    }

    /// It has come to its end.
    pub(in crate::vfs) fn end_replacing(&mut self) {
        self.replacing -= 1;
    }

    /// One is under way.
    pub(in crate::vfs) fn is_being_replaced(&self) -> bool {
        self.replacing > 0
    }
}
