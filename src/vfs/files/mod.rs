//! Open files, and what is on its way to them.
//!
//! [`Files`] owns the table of open handles, the write window, the memory for read-ahead, and the
//! shells around the plain machines of a file: what those ask for is sent here, and what is
//! answered is given back to them. It keeps an open file that loses its name, holds its locks
//! at the server, and asks for the attributes of files whose pages may be read. Of names it knows
//! what the [`namespace`](crate::vfs::namespace) tells.
//!
//! | concern | file |
//! |---|---|
//! | **what is waited for before a request goes** | [`barrier`] |
//! | one open(2), and what it was told of write errors | [`handle`] |
//! | opens at the server, which handles share | `opens`, [`kept_open`] |
//! | opens that it learns of later | `late_open` |
//! | taking data in, and when there is room | [`accept`], `window` |
//! | sending data: the shell of the write-back | [`mod@write`], `unanswered` |
//! | changes of names that are answered before the server knows (`writeback`) | `name_writeback`, `send_names` |
//! | sending changes of attributes that waited | [`deferred_setattr`] |
//! | changes of names that are ahead of the server: one, and which go together | `accepted_name` |
//! | attributes that are ahead of the server, of directories and of files | `directory_setattr`, `file_setattr` |
//! | whose attributes a user may set, as the server has confirmed it | `confirmed_rights` |
//! | opening what is ahead of the server | `open_promised` |
//! | set-id rights that a write or a cut takes | `privileges` |
//! | reading, reading ahead, and what comes with an OPEN | `read`, `inline_read` |
//! | reading from the disk of this host, and what is put there | `disk_read` |
//! | small files of a directory that are put on that disk, many with a request | [`warm`] |
//! | attributes of open files, before they are too old | `revalidate` |
//! | file locks: asking, waiting, letting go | [`lock`], `unlock` |
//! | silly rename | [`silly`], `hidden` |
//! | open files for another process | [`handover`] |
//! | the same should this one be killed | [`logged`] |
//! | and of changes of names that are ahead of the server | `logged_names`, `logged_change` |
//!
//! Locks, in this order: the line for file locks, a file's state
//! ([`file`](crate::vfs::file)), then what that comes before (attributes, names), and under a
//! file's lock the window's. The list of files with waiting changes, the kept opens, the hidden
//! names and the memory for read-ahead have locks with which no other is taken. None is held
//! across an await.

pub(in crate::vfs) mod accept;
mod accepted_name;
mod barrier;
mod confirmed_rights;
pub(in crate::vfs) mod deferred_setattr;
mod directory_setattr;
pub(in crate::vfs) mod disk_read;
mod file_setattr;
pub(in crate::vfs) mod handle;
pub(in crate::vfs) mod handover;
mod hidden;
mod inline_read;
pub(in crate::vfs) mod kept_open;
pub(in crate::vfs) mod late_errors;
mod late_open;
pub(in crate::vfs) mod lock;
pub(in crate::vfs) mod logged;
mod logged_change;
pub(in crate::vfs) mod logged_names;
mod name_writeback;
mod open_promised;
mod opens;
mod privileges;
mod promised_mode;
mod read;
mod request_room;
mod revalidate;
mod send_names;
pub(in crate::vfs) mod silly;
mod unanswered;
mod unlock;
mod warm;
mod window;
mod write;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::confirmed_rights::ConfirmedRights;
use self::handle::OpenHandle;
use self::kept_open::Kept;
use self::late_errors::LateErrors;
use self::logged::Inherited;
use self::name_writeback::NameWriteback;
use self::silly::Silly;
use self::window::Window;
use crate::disk_cache::DiskCache;
use crate::nfs::Client;
use crate::nfs::calls::IN_FRONT;
use crate::rpc::caller::Abandoned;
use crate::telemetry::Metrics;
use crate::vfs::file::ahead::Ahead;
use crate::vfs::file::inline_read::Budget;
use crate::vfs::file::readahead_memory::ReadMemory;
use crate::vfs::inode::{FileState, Inode};
use crate::vfs::locks::lockline::Line;
use crate::vfs::namespace::Namespace;
use crate::vfs::types::{ByNumber, Errno, VfsResult};
use crate::vfs::writeback::WritebackConfig;
use crate::wal::{Numbers, Table, Wal};

/// WRITEs of one file without a reply. Enough to fill the window of one file
/// at 1 MiB each over a round trip of some milliseconds.
const WRITES_IN_FLIGHT: usize = 16;

/// Less than this is a fragment of a page, bytes: such go several in one request, as a
/// client that works in pages would send them. Larger ones that somebody waits for go at the
/// same time instead, as long as there are places: the server works on them at the same time, too.
const FRAGMENT: usize = 4096;

/// The number of objects asked about together: EFS takes 16 operations in a compound, and five are around them.
const FRAGMENTS: usize = 11;

/// How long a small write waits to be joined by the next one, or by the close
/// that lets it go as the one and only, stable WRITE.
const LINGER: Duration = Duration::from_millis(5);

/// How long it waits while its writer goes on. What another host sees of an open file is as old
/// anyway as its attribute cache allows (3 s at least, by default), and what is not
/// synced may be lost; a stream of small writes is one request a second.
const MAX_LINGER: Duration = Duration::from_secs(1);

/// How long data are held for the server that it has and that nobody syncs.
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// What all handles of a mount may have read ahead: 64 MiB, eight times the largest
/// window of one.
const READ_AHEAD_CHUNKS: usize = 64;

/// The key of the numbers of handles in the write-ahead log.
pub(in crate::vfs) const FHS: u64 = 1;

/// How much is held of data, and how long they are believed.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct FilesConfig {
    /// Bytes that may be on their way to the server or not yet committed; 0
    /// makes every write wait until it is stable.
    pub(in crate::vfs) write_window: usize,
    /// Bytes read ahead for one sequential reader.
    pub(in crate::vfs) read_ahead: u64,
    /// How long attributes of files are believed at most (`acregmax`).
    pub(in crate::vfs) reg_max: Duration,
    /// Changes are answered before the server knows of them (`writeback`), and stay back for so long at
    /// most.
    pub(in crate::vfs) writeback: Option<Duration>,
}

/// See the module.
pub(in crate::vfs) struct Files {
    client: Arc<Client>,
    config: FilesConfig,
    namespace: Arc<Namespace>,
    handles: ByNumber<Arc<OpenHandle>>,
    fhs: Numbers,
    /// Handles that could not be taken over from another process.
    dead: OnceLock<BTreeSet<u64>>,
    /// Of a process that was killed.
    on_their_way: Mutex<Inherited>,
    /// Numbers of records of data.
    logged_writes: Numbers,
    wal: Wal,
    /// The mount is at its end: files are closed under those who still use them.
    ending: AtomicBool,
    /// Restarts of the server.
    restarts: AtomicU64,
    window: Window,
    writeback: Arc<WritebackConfig>,
    read_memory: ReadMemory<Ahead>,
    silly: Silly,
    /// Who waits for a file lock.
    line: Mutex<Line<Arc<Inode>>>,
    /// See [`deferred_setattr`]: files with changes that wait.
    changed: Mutex<Vec<Arc<Inode>>>,
    /// See [`inline_read`](crate::vfs::file::inline_read).
    inline_reads: Budget,
    /// See [`disk_read`].
    disk: OnceLock<Arc<DiskCache>>,
    /// Numbers readers of the disk that are no handles yet.
    readers: AtomicU64,
    /// Who warms the disk takes turns.
    warming: Semaphore,
    kept: Kept,
    names: NameWriteback,
    rights: ConfirmedRights,
    late: LateErrors,
    abandoned: Arc<Abandoned>,
    metrics: Arc<Metrics>,
}

impl Files {
    /// No file is open yet.
    pub(in crate::vfs) fn new(
        client: Arc<Client>,
        config: FilesConfig,
        namespace: Arc<Namespace>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let writeback = Arc::new(WritebackConfig {
            wsize: client.wsize() as usize,
            max_in_flight: WRITES_IN_FLIGHT,
            fragment: FRAGMENT,
            fragments: FRAGMENTS,
            in_front: IN_FRONT,
            linger: LINGER,
            // Who may believe nothing is not made to wait for others' writes either (nfs(5):
            // `noac` is for both).
            max_linger: match config.reg_max.is_zero() {
                true => LINGER,
                false => config.writeback.unwrap_or(MAX_LINGER),
            },
            commit_after: COMMIT_AFTER,
            // One file may not take the whole window, so that others get
            // through while it is being copied.
            file_limit: (config.write_window - config.write_window / 4).max(1 << 20),
        });
        Arc::new(Self {
            handles: ByNumber::default(),
            fhs: Numbers::new(client.wal().clone(), FHS, 1),
            on_their_way: Mutex::default(),
            logged_writes: Numbers::new(Wal::off(), 0, 1),
            wal: client.wal().clone(),
            dead: OnceLock::new(),
            ending: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            window: Window::new(config.write_window),
            writeback,
            read_memory: ReadMemory::new(READ_AHEAD_CHUNKS),
            silly: Silly::default(),
            line: Mutex::default(),
            changed: Mutex::default(),
            inline_reads: Budget::default(),
            disk: OnceLock::new(),
            readers: AtomicU64::new(0),
            warming: Semaphore::new(warm::CALLERS),
            kept: Kept::default(),
            names: NameWriteback::new(config.writeback),
            rights: ConfirmedRights::default(),
            late: LateErrors::default(),
            abandoned: Arc::default(),
            namespace,
            metrics,
            client,
            config,
        })
    }

    /// Changes that go on without their callers.
    pub(in crate::vfs) fn abandoned(&self) -> &Arc<Abandoned> {
        &self.abandoned
    }

    /// Bytes accepted and not yet safe at the server, and the limit.
    pub(in crate::vfs) fn write_window(&self) -> (usize, usize) {
        (self.window.used(), self.config.write_window)
    }

    /// Every write waits until it is stable.
    pub(in crate::vfs) fn writes_are_synchronous(&self) -> bool {
        self.config.write_window == 0
    }

    /// A number for a handle, of a file or of a directory: no two have the same.
    pub(in crate::vfs) fn new_fh(&self) -> u64 {
        self.fhs.give()
    }

    /// Number of open handles.
    pub(in crate::vfs) fn len(&self) -> usize {
        self.handles.len()
    }

    /// No file is open.
    pub(in crate::vfs) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// The mount is at its end. Gives the numbers of the handles that are open still.
    pub(in crate::vfs) fn begin_end(&self) -> Vec<u64> {
        self.ending.store(true, Ordering::Relaxed);
        self.handles.iter().map(|file| *file.key()).collect()
    }

    /// Nothing is held for the server, and no file is open.
    pub(in crate::vfs) fn are_at_rest(&self) -> bool {
        self.window.used() == 0 && self.is_empty() && self.names_ahead() == 0
    }

    /// The handle, which is open no more.
    pub(in crate::vfs) fn take_handle(&self, fh: u64) -> Option<Arc<OpenHandle>> {
        let (_, handle) = self.handles.remove(&fh)?;
        self.metrics.gauges.open_files.dec();
        Some(handle)
    }

    /// Nothing of the handle is left to be done.
    pub(in crate::vfs) fn handle_ended(&self, fh: u64) {
        self.wal.remove(Table::Handle, fh);
    }

    /// The state of a file, made at its first use.
    pub(super) fn file_state<'a>(&self, inode: &'a Inode) -> &'a FileState {
        inode.file(|| FileState::new(&self.writeback, inode.attr.lock().foreign()))
    }

    /// The open handle with this number.
    ///
    /// # Errors
    /// EBADF, ENOTCONN at the end of the mount, or EIO if it could not be taken over.
    pub(in crate::vfs) fn handle(&self, fh: u64) -> VfsResult<Arc<OpenHandle>> {
        self.handles
            .get(&fh)
            .map(|handle| Arc::clone(&handle))
            .ok_or_else(|| self.no_handle(fh).into())
    }

    /// What there is to say of a handle that is not there. After the end of the mount
    /// (SIGTERM while files are in use) it is closed, but its descriptor is not: its
    /// process is told what it will be told next, by the kernel.
    #[cold]
    fn no_handle(&self, fh: u64) -> Errno {
        if self.dead.get().is_some_and(|dead| dead.contains(&fh)) {
            return Errno(libc::EIO);
        }
        match self.ending.load(Ordering::Relaxed) {
            true => Errno(libc::ENOTCONN),
            false => Errno(libc::EBADF),
        }
    }

    /// The handle, which the kernel uses: what its open had it drop is dropped.
    pub(in crate::vfs) fn used_handle(&self, fh: u64) -> VfsResult<Arc<OpenHandle>> {
        let handle = self.handle(fh)?;
        if handle.drops_pages.load(Ordering::Relaxed)
            && handle.drops_pages.swap(false, Ordering::Relaxed)
        {
            let mut inner = self.file_state(&handle.inode).lock();
            let foreign = handle.inode.attr.lock().foreign();
            inner.pages_used(handle.opened_at, foreign);
        }
        Ok(handle)
    }
}
