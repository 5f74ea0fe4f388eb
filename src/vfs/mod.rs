//! What a file system means here: inodes and names, open files and what is on
//! its way to them, and what may be believed without asking the server.
//!
//! The rooms, from the top; an arrow may only point down, and a room's state is private to it:
//!
//! ```text
//! ops ─► dirs ─► files ─► namespace ─► inode ─► file ─┬─► locks ─────┬─► types
//!                                                     └─► writeback ─┘
//! ```
//!
//! | room | what it owns |
//! |---|---|
//! | [`handover`] | nothing: how another process goes on with a mount; beside `ops`, and written down room by room |
//! | `ops` | nothing: the operations, which are all that [`Vfs`] does |
//! | `dirs` | open directories and their listings |
//! | `files` | open files: handles, the write window, read-ahead, file locks, silly rename; and the barriers that say what an operation waits for |
//! | `namespace` | what is believed of names and attributes, and what the kernel is told of it |
//! | `inode` | inodes and their table, attributes, names of directories |
//! | `file` | the state of one file that was opened here, which knows no inode |
//! | `locks` | who has file locks here and who waits for them: plain state machines |
//! | `writeback` | the data of one file on their way: a plain state machine |
//! | [`types`] | what callers hand in and get back |
//!
//! To find an operation:
//!
//! | operation | file of `ops` | and below |
//! |---|---|---|
//! | lookup, forget | `lookup` | `namespace::names`, `namespace::access_pattern`, `files::kept_open` |
//! | lookup of what a handle names | `export` | `namespace::entry` |
//! | mknod, mkdir, symlink, link | `make` | `namespace::names` |
//! | unlink, rmdir | `unlink` | `files::silly`, `files::hidden`, `namespace::reopen_guard` |
//! | rename | `rename` | the same |
//! | getattr, setattr, readlink | `attr` | `namespace::attributes`, `files::deferred_setattr`, `files::directory_setattr`, `files::privileges` |
//! | access | `access` | `namespace::access` |
//! | open, create | `open` | `files::opens`, `files::handle`, `files::inline_read`; with `nocto` `namespace::nocto`, `files::late_open` |
//! | flush, fsync, release | `close` | `files::barrier`, `files::unlock` |
//! | read | `read` | `files::disk_read`, `files::read`, `file::ahead`, `file::readahead`, `files::revalidate` |
//! | write | `write` | `files::accept`, `files::write`, `writeback`, `files::unanswered` |
//! | getlk, setlk (fcntl, flock) | `lock` | `files::lock`, `files::unlock`, `locks` |
//! | opendir, readdir, readdirplus, releasedir | `readdir` | `dirs::read`, `dirs::fetch`, `dirs::listing` |
//! | what `efs-fuse warm` asks | `warm` | `files::warm` |
//! | statfs | `statfs` | `namespace::space` |
//! | what the kernel was told, and is being told | `kernel` | `namespace::invalidation`, `namespace::kernel_dentry`, `namespace::eviction` |
//!
//! Order of locks: the inode table's shards, then the line for file locks
//! (`locks`), then a file's (`file`), then that of its inode's attributes, then that of its names; a
//! lock state's or the window's under a file's, and under any of them that of the kernel's queue
//! ([`types::KernelCache`]). Each room says which lock owns what. No two inodes are locked at once
//! and nothing is locked across an await; what
//! has to be waited for is waited for by `Notify`, with the condition checked
//! again after each wake-up.
//!
//! Operations run in tasks that are never aborted; who was interrupted is
//! answered by the layer above, and the operation ends by itself at the next request
//! that it would make ([`crate::rpc::caller`]). What it must undo then, and what it
//! does for others, it does *apart* from its caller.

mod dirs;
mod file;
mod files;
pub mod handover;
mod inode;
mod locks;
mod namespace;
mod ops;
pub mod types;
mod writeback;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::dirs::Dirs;
pub use self::files::late_errors::LateError;
use self::files::{Files, FilesConfig};
pub use self::inode::attr::{Timeouts, kind_of};
pub use self::namespace::kernel_dentry::DentryState;
use self::namespace::{Namespace, NamespaceConfig};
use crate::disk_cache::DiskCache;
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
    /// This host's changes are answered before the server knows of them (`writeback`), and stay back
    /// for so long at most.
    pub writeback: Option<Duration>,
    /// Each open asks the server. Without (`nocto`), one for reading asks nothing while what is
    /// known of the file may be believed.
    pub close_to_open: bool,
}

impl VfsConfig {
    fn names(&self) -> NamespaceConfig {
        NamespaceConfig {
            timeouts: self.timeouts,
            max_names: self.max_names,
            missing_names: self.missing_names,
            max_inodes: self.max_inodes,
            asks_who_searches: self.asks_who_searches,
            close_to_open: self.close_to_open,
        }
    }

    fn data(&self) -> FilesConfig {
        FilesConfig {
            write_window: self.write_window,
            read_ahead: self.read_ahead,
            reg_max: self.timeouts.reg_max,
            writeback: self.writeback,
        }
    }
}

/// A mounted file system: who calls it names objects by number and handles by what
/// open(2) and opendir(3) gave. The operations are in `ops`.
pub struct Vfs {
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    namespace: Arc<Namespace>,
    files: Arc<Files>,
    dirs: Arc<Dirs>,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs")
            .field("inodes", &self.namespace.len())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

impl Vfs {
    /// A file system on what `client` has found at its root. `sent` is when
    /// the request left that found it.
    pub fn new(
        client: Arc<Client>,
        config: VfsConfig,
        sent: Instant,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (of, to) = (|| Arc::clone(&client), || Arc::clone(&metrics));
        let namespace = Arc::new(Namespace::new(of(), config.names(), sent, to()));
        let files = Files::new(of(), config.data(), Arc::clone(&namespace), to());
        let dirs = Dirs::new(of(), Arc::clone(&namespace), Arc::clone(&files), to());
        Self::of(client, metrics, namespace, files, dirs)
    }

    fn of(
        client: Arc<Client>,
        metrics: Arc<Metrics>,
        namespace: Arc<Namespace>,
        files: Arc<Files>,
        dirs: Arc<Dirs>,
    ) -> Arc<Self> {
        dirs.log_hashes();
        let weak = Arc::downgrade(&files);
        client.on_restart(move || {
            if let Some(files) = weak.upgrade() {
                files.server_restarted();
            }
        });
        let weak = Arc::downgrade(&files);
        client.on_waiting(move || {
            if let Some(files) = weak.upgrade() {
                files.hurry_all_names();
            }
        });
        Arc::new(Self {
            namespace,
            files,
            dirs,
            metrics,
            client,
        })
    }

    /// What is read of files is kept on a disk of this host from here on. To be said once, before
    /// anything is read.
    pub fn set_disk_cache(&self, disk: Arc<DiskCache>) {
        self.files.set_disk_cache(disk);
    }

    /// Changes that go on without their callers.
    pub fn abandoned(&self) -> &Arc<Abandoned> {
        self.files.abandoned()
    }

    /// The client below.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Bytes accepted and not yet safe at the server, and the limit.
    pub fn write_window(&self) -> (usize, usize) {
        self.files.write_window()
    }

    /// How many errors have come when whoever had asked was answered already, and the last of
    /// them, the oldest first.
    pub fn late_errors(&self) -> (u64, Vec<LateError>) {
        self.files.late_errors()
    }

    /// Waits until everything that was accepted so far, of whichever file, is stable at the server
    /// or has failed ([`Vfs::late_errors`]). What the kernel has not written back it knows nothing
    /// of: syncfs(2) comes first.
    pub async fn sync(&self) {
        self.files.sync_all().await;
    }

    /// Bytes that are read ahead for all handles together, here or on their way, and the
    /// most of them.
    pub fn read_ahead_bytes(&self) -> (u64, u64) {
        self.files.read_ahead_bytes()
    }

    /// Begins to ask for the attributes of open files, for the life of the mount.
    pub fn revalidate_open_files(self: &Arc<Self>) {
        self.files.revalidate_open_files();
    }

    /// Asks for the attributes of every file whose pages may be read and whose attributes
    /// are too old.
    pub async fn revalidate_due(self: &Arc<Self>) {
        self.files.revalidate_due().await;
    }

    /// Waits until everything written has reached the server and every open is
    /// closed. For the end of a mount, when the kernel has let go of it.
    pub async fn settled(self: &Arc<Self>) {
        // A RELEASE that the end of the connection overtook never comes.
        for fh in self.files.begin_end() {
            // EBADF: one that did come was faster.
            let _ = self.release(fh).await;
        }
        self.files.close_kept().await;
        loop {
            self.files.before_end().await;
            self.client.closes_sent().await;
            if self.files.are_at_rest() && self.client.opens() == 0 {
                return;
            }
            // RELEASE is at work in tasks of its own.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
