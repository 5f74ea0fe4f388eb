//! What a file system means here: inodes and names, open files and what is on
//! its way to them, and what may be believed without asking the server.
//!
//! One file a concern; to find an operation, take its name:
//!
//! | operation | file |
//! |---|---|
//! | lookup, forget, mknod, mkdir, symlink, link | `ops::lookup` |
//! | lookup of what a handle names | `ops::export` |
//! | unlink, rmdir, rename | `ops::unlink` |
//! | silly rename: names of files that are open here | `files::silly`, `files::hidden` |
//! | getattr, setattr, readlink, statfs | `ops::attr`, `files::deferred_setattr` |
//! | access | `namespace::access` |
//! | open, create, flush, fsync, release | `ops::open`, `file::state` |
//! | read | `files::read`, `file::readahead`, `file::readahead_memory`, `file::inline_read`, `files::revalidate` |
//! | write | `files::write`, [`writeback`], `files::window`, `writeback::errseq` |
//! | getlk, setlk (fcntl, flock) | `files::lock`, `locks::locktable`, `locks::lockline` |
//! | opendir, readdir, readdirplus, releasedir | `dirs::handle` |
//! | what is cached | `inode::attr`, `file::pages`, `inode`, `inode::dentry_cache`, `inode::change_tracker` |
//! | what is asked for together | `namespace::access_pattern`, `namespace::keyed_mutex` |
//! | what the kernel is asked to forget, is told, and believes | `namespace::eviction`, `namespace::invalidation`, `namespace::kernel_dentry` |
//! | names that an open is on its way through | `namespace::reopen_guard`, `files::kept_open` |
//! | writes whose tasks have died | `files::unanswered` |
//!
//! Ownership and order of locks: the inode table's shards, then the line for file locks
//! (`files::lock`), then an inode's
//! `FileState` lock, then its `inode::attr`, its `names`, a lock state's or the
//! window's, and under any of them the lock of the kernel's queue
//! ([`types::KernelCache`]). No two inodes are locked at once and nothing is locked across an await; what
//! has to be waited for is waited for by `Notify`, with the condition checked
//! again after each wake-up.
//!
//! Operations run in tasks that are never aborted; who was interrupted is
//! answered by the layer above, and the operation ends by itself at the next request
//! that it would make ([`crate::rpc::caller`]). What it must undo then, and what it
//! does for others, it does *apart* from its caller.

pub mod dirs;
pub mod file;
pub mod files;
pub mod inode;
mod locks;
pub mod namespace;
pub mod ops;
pub mod types;
pub mod writeback;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::namespace::kernel_dentry::DentryState;
use self::namespace::{Namespace, NamespaceConfig};

use self::dirs::handle::DirHandle;
use self::file::ahead::Ahead;
use self::file::readahead_memory::ReadMemory;
use self::files::handle::OpenHandle;
use self::files::kept_open::Kept;
use self::files::silly::Silly;
use self::files::window::Window;
use self::inode::Inode;
use self::inode::attr::Timeouts;
use self::locks::lockline::Line;
use self::writeback::WritebackConfig;
use crate::nfs::Client;
use crate::rpc::caller::Abandoned;
use crate::telemetry::Metrics;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct VfsConfig {
    /// How long attributes are believed.
    pub timeouts: Timeouts,
    /// Bytes that may be on their way to the server or not yet committed; 0
    /// makes every write wait until it is stable.
    pub write_window: usize,
    /// Bytes read ahead for one sequential reader.
    pub read_ahead: u64,
    /// Names remembered, found ones and missing ones. With 0 the kernel is told
    /// to believe none either.
    pub max_names: u64,
    /// Which missing names are among them.
    pub missing_names: types::MissingNames,
    /// Inodes that the kernel may hold before it is asked to forget some.
    pub max_inodes: usize,
    /// The kernel does not look who may search a directory (`nodefault_permissions`): a
    /// name is answered as the server allows its caller, each time.
    pub asks_who_searches: bool,
}

/// A mounted file system.
pub struct Vfs {
    client: Arc<Client>,
    config: VfsConfig,
    namespace: Arc<Namespace>,
    files: DashMap<u64, Arc<OpenHandle>>,
    dirs: DashMap<u64, Arc<DirHandle>>,
    next_fh: AtomicU64,
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
    /// See [`inline_read`].
    inline_reads: file::inline_read::Budget,
    kept: Kept,
    abandoned: Arc<Abandoned>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs")
            .field("inodes", &self.namespace.len())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

/// WRITEs of one file without a reply. Enough to fill the window of one file
/// at 1 MiB each over a round trip of some milliseconds.
const WRITES_IN_FLIGHT: usize = 16;

/// Less than this is a fragment of a page, bytes: such go several in one request, as a
/// client that works in pages would send them. Larger ones go at the same time instead:
/// the server works on them at the same time, too.
const FRAGMENT: usize = 4096;

/// The number of objects asked about together: EFS takes 16 operations in a compound, and five are around them.
const FRAGMENTS: usize = 11;

/// How long a small write waits to be joined by the next one, or by the close
/// that lets it go as the one and only, stable WRITE.
const LINGER: Duration = Duration::from_millis(5);

/// How long data are held for the server that it has and that nobody syncs.
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// What all handles of a mount may have read ahead: 64 MiB, eight times the largest
/// window of one.
const READ_AHEAD_CHUNKS: usize = 64;

impl Vfs {
    /// A file system on what `client` has found at its root. `sent` is when
    /// the request left that found it.
    pub fn new(
        client: Arc<Client>,
        config: VfsConfig,
        sent: Instant,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let writeback = Arc::new(WritebackConfig {
            wsize: client.wsize() as usize,
            max_in_flight: WRITES_IN_FLIGHT,
            fragment: FRAGMENT,
            fragments: FRAGMENTS,
            linger: LINGER,
            commit_after: COMMIT_AFTER,
            // One file may not take the whole window, so that others get
            // through while it is being copied.
            file_limit: (config.write_window - config.write_window / 4).max(1 << 20),
        });
        let believes = NamespaceConfig {
            timeouts: config.timeouts,
            max_names: config.max_names,
            missing_names: config.missing_names,
            max_inodes: config.max_inodes,
            asks_who_searches: config.asks_who_searches,
        };
        let namespace = Namespace::new(Arc::clone(&client), believes, sent, Arc::clone(&metrics));
        let vfs = Arc::new(Self {
            namespace: Arc::new(namespace),
            files: DashMap::new(),
            dirs: DashMap::new(),
            next_fh: AtomicU64::new(1),
            ending: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            window: Window::new(config.write_window),
            writeback,
            read_memory: ReadMemory::new(READ_AHEAD_CHUNKS),
            silly: Silly::default(),
            line: Mutex::default(),
            changed: Mutex::default(),
            inline_reads: file::inline_read::Budget::default(),
            kept: Kept::default(),
            abandoned: Arc::default(),
            metrics,
            client,
            config,
        });
        let weak = Arc::downgrade(&vfs);
        vfs.client.on_restart(move || {
            if let Some(vfs) = weak.upgrade() {
                vfs.server_restarted();
            }
        });
        vfs
    }

    /// Changes that go on without their callers.
    pub fn abandoned(&self) -> &Arc<Abandoned> {
        &self.abandoned
    }

    /// The client below.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Bytes accepted and not yet safe at the server, and the limit.
    pub fn write_window(&self) -> (usize, usize) {
        (self.window.used(), self.config.write_window)
    }

    /// Waits until everything written has reached the server and every open is
    /// closed. For the end of a mount, when the kernel has let go of it.
    pub async fn settled(self: &Arc<Self>) {
        self.ending.store(true, Ordering::Relaxed);
        // A RELEASE that the end of the connection overtook never comes.
        let left: Vec<u64> = self.files.iter().map(|file| *file.key()).collect();
        for fh in left {
            // EBADF: one that did come was faster.
            let _ = self.release(fh).await;
        }
        self.close_kept().await;
        loop {
            for inode in self.window.busy() {
                self.drain(&inode).await;
            }
            self.client.closes_sent().await;
            if self.window.used() == 0 && self.files.is_empty() && self.client.opens() == 0 {
                return;
            }
            // RELEASE is at work in tasks of its own.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn new_fh(&self) -> u64 {
        self.next_fh.fetch_add(1, Ordering::Relaxed)
    }
}
