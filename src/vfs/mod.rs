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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::namespace::kernel_dentry::DentryState;

use self::dirs::handle::DirHandle;
use self::file::ahead::Ahead;
use self::file::readahead_memory::ReadMemory;
use self::files::handle::OpenHandle;
use self::files::kept_open::Kept;
use self::files::silly::Silly;
use self::files::window::Window;
use self::inode::attr::{Seen, Timeouts};
use self::inode::change_tracker::Verdict;
use self::inode::dentry_cache::{Dentry, DentryCache, DentryTarget, Name};
use self::inode::{Inode, InodeTable};
use self::locks::lockline::Line;
use self::namespace::access::AccessCache;
use self::namespace::access_pattern::AccessPattern;
use self::namespace::reopen_guard::ReopenGuard;
use self::ops::attr::SpaceCache;
use self::types::{Entry, Errno, FileKind, Ino, KernelCache};
use self::writeback::WritebackConfig;
use crate::nfs::calls::{DirChange, PrePost};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::FileType;
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;
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
    inodes: InodeTable,
    names: DentryCache,
    files: DashMap<u64, Arc<OpenHandle>>,
    dirs: DashMap<u64, Arc<DirHandle>>,
    next_fh: AtomicU64,
    /// The mount is at its end: files are closed under those who still use them.
    ending: AtomicBool,
    /// When the mount began.
    began: Instant,
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
    access: AccessCache,
    space: SpaceCache,
    reopen_guard: ReopenGuard,
    kept: Kept,
    abandoned: Arc<Abandoned>,
    walk: AccessPattern,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs")
            .field("inodes", &self.inodes.len())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

/// Names longer than this are refused here, as the server would
/// (NAME_MAX of the kernel's VFS).
const NAME_MAX: usize = 255;

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
        let fs = client.fs();
        let inodes = InodeTable::new(fs.root.clone(), &fs.root_attrs, sent, config.timeouts);
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
        let vfs = Arc::new(Self {
            inodes,
            names: DentryCache::new(config.max_names, config.missing_names),
            files: DashMap::new(),
            dirs: DashMap::new(),
            next_fh: AtomicU64::new(1),
            ending: AtomicBool::new(false),
            began: Instant::now(),
            restarts: AtomicU64::new(0),
            window: Window::new(config.write_window),
            writeback,
            read_memory: ReadMemory::new(READ_AHEAD_CHUNKS),
            silly: Silly::default(),
            line: Mutex::default(),
            changed: Mutex::default(),
            inline_reads: file::inline_read::Budget::default(),
            access: AccessCache::default(),
            space: SpaceCache::default(),
            reopen_guard: ReopenGuard::default(),
            kept: Kept::default(),
            abandoned: Arc::default(),
            walk: AccessPattern::default(),
            kernel: OnceLock::new(),
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

    /// Whom to tell that the kernel's caches are old.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        // The second of two is ignored; there is only one kernel.
        let _ = self.kernel.set(kernel);
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

    fn inode(&self, ino: Ino) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(ino).ok_or(Errno(libc::ESTALE))
    }

    fn new_fh(&self) -> u64 {
        self.next_fh.fetch_add(1, Ordering::Relaxed)
    }

    /// What an error of the server is to the caller. An object that the server
    /// does not know any more is not looked for by name again.
    fn failed(&self, error: &NfsError, inode: &Inode) -> Errno {
        let errno = error.errno();
        match errno {
            // It may have been done.
            libc::EINTR if error.abandoned() == Some(true) => {
                inode.attr.lock().expire();
                if inode.kind == FileKind::Directory {
                    inode.names().lock().doubt();
                }
            }
            libc::ESTALE if !inode.is_stale() => {
                inode.mark_stale();
                self.names.stranger_was_here();
            }
            libc::EIO => {
                tracing::warn!(ino = inode.ino, "{error}");
                self.metrics.set_last_error(error.to_string());
            }
            _ => {}
        }
        Errno(errno)
    }

    /// Takes in what a request sent at `sent` learned about `inode`.
    fn learn(&self, inode: &Arc<Inode>, attrs: &Attributes, sent: Instant) -> Seen {
        let timeouts = self.inodes.timeouts();
        let now = Instant::now();
        let mut seen = self.with_attr_told(inode, |attr| attr.learn(attrs, sent, now, timeouts));
        if inode.kind == FileKind::Directory {
            // Late attributes are left alone; but names that were seen with them may be
            // newer than those known.
            let heard = inode.names().lock().observed(attrs.change, sent, now);
            if seen != Seen::Late || heard != Verdict::Same {
                seen = said(heard);
            }
            self.heed(inode, seen);
        }
        if self.is_removed(attrs) {
            inode.mark_stale();
        }
        seen
    }

    /// Attributes of a directory that was removed and that the server still has something
    /// to say about (nfs-ganesha does, for a while): it holds nothing, and answers
    /// ENOENT where others answer ESTALE.
    fn is_removed(&self, attrs: &Attributes) -> bool {
        attrs.kind == Some(FileType::Directory) && self.says_removed(attrs.nlink)
    }

    /// The same of a directory's number of links.
    fn says_removed(&self, nlink: u32) -> bool {
        // Else the server does not count links at all.
        nlink == 0 && self.inodes.root().attr.lock().stat().nlink > 0
    }

    /// Whether a directory in which something was not found is there itself: one round
    /// trip. ENOENT for a path is only the truth if it is.
    async fn is_gone(self: &Arc<Self>, cred: &Arc<Credential>, dir: &Arc<Inode>) -> bool {
        let sent = Instant::now();
        match self.client.get_attrs(cred, &dir.handle).await {
            Ok(attrs) => {
                self.learn(dir, &attrs, sent);
                self.is_removed(&attrs)
            }
            Err(error) => self.failed(&error, dir) == Errno(libc::ESTALE),
        }
    }

    /// What a change in these directories, which ended with `errno`, is to the caller: after
    /// ESTALE the kernel walks to the directory once more.
    async fn blamed(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dirs: &[&Arc<Inode>],
        errno: Errno,
    ) -> Errno {
        if errno.0 == libc::ENOENT {
            for dir in dirs {
                if Box::pin(self.is_gone(cred, dir)).await {
                    return Errno(libc::ESTALE);
                }
            }
        }
        errno
    }

    /// Takes in what a change of ours, sent at `sent`, came to.
    fn moved(&self, inode: &Arc<Inode>, moved: &PrePost, sent: Instant) {
        if inode.kind == FileKind::Directory {
            let moved = DirChange {
                seen: moved.clone(),
                atomic: None,
            };
            return self.dir_moved(inode, &moved, sent);
        }
        let (now, timeouts) = (Instant::now(), self.inodes.timeouts());
        self.with_attr_told(inode, |attr| attr.moved(moved, sent, now, timeouts));
    }

    /// The same of a directory.
    fn dir_moved(&self, dir: &Arc<Inode>, moved: &DirChange, sent: Instant) {
        let (now, timeouts) = (Instant::now(), self.inodes.timeouts());
        dir.attr.lock().moved(&moved.seen, sent, now, timeouts);
        let heard = dir.names().lock().moved(moved, sent, now);
        self.heed(dir, said(heard));
    }

    /// A change of ours in this directory, or of it, is about to be sent, and is
    /// under way until the result is dropped.
    fn changing(&self, dir: &Arc<Inode>) -> Option<Changing<'_>> {
        (dir.kind == FileKind::Directory).then(|| Changing {
            vfs: self,
            number: dir.names().lock().tracker.begin(),
            dir: Arc::clone(dir),
        })
    }

    /// The server contradicts what is known of the directory's names: they are
    /// asked for again.
    fn doubt(&self, dir: &Arc<Inode>) {
        dir.attr.lock().expire();
        dir.names().lock().doubt();
    }

    /// How long a name in this directory may be believed.
    fn names_ttl(&self, dir: &Inode) -> Duration {
        if !self.names.is_on() {
            return dir.attr.lock().ttl(Instant::now());
        }
        let timeout = dir.attr.lock().timeout();
        let timeouts = self.inodes.timeouts();
        let longest = timeouts.dir_max.max(timeouts.dir_min);
        let mut names = dir.names().lock();
        names.good_for(Instant::now(), timeout, longest)
    }

    /// A name was seen to lead there by a request sent then, while the directory
    /// was at that change. With `None`, it leads there by our own change, which
    /// has been taken in.
    fn put_name(
        &self,
        dir: &Arc<Inode>,
        name: impl AsRef<[u8]> + Into<Name>,
        target: DentryTarget,
        seen: Option<(u64, Instant)>,
    ) {
        if !self.names.is_on() {
            return;
        }
        {
            let mut names = dir.names().lock();
            if !names.tracker.takes(seen) {
                return;
            }
            if let Dentry::Positive(before) = names.get(name.as_ref())
                && !matches!(&target, DentryTarget::Inode(now) if Arc::ptr_eq(now, &before))
            {
                self.leads_elsewhere(dir.ino, name.as_ref(), &before, seen.is_some());
            }
            match target {
                DentryTarget::Negative if self.names.has_missing() => {
                    names.put(name.into(), target)
                }
                DentryTarget::Negative => names.remove(name.as_ref()),
                DentryTarget::Inode(_) => names.put(name.into(), target),
            }
        }
        self.names.used(dir);
    }

    /// The answer for a name that leads to `inode`, which has been counted as
    /// looked up. `dir` says how long the name may be believed.
    fn entry(&self, inode: &Arc<Inode>, dir: &Inode) -> Entry {
        self.trim();
        let mut entry_ttl = self.names_ttl(dir);
        let (stat, mut attr_ttl) = inode.known_stat();
        if inode.kind == FileKind::Regular && stat.nlink > 1 {
            // An open has to find the very name that it was asked for still leading
            // there, so that has to be known.
            entry_ttl = Duration::ZERO;
        }
        if self.config.asks_who_searches {
            // What the kernel believes it gives to everybody.
            entry_ttl = Duration::ZERO;
        }
        if inode.is_elsewhere() {
            // The kernel takes st_ino from the entry until it asks for it.
            attr_ttl = Duration::ZERO;
        }
        Entry {
            ino: inode.ino,
            generation: inode.generation,
            stat,
            attr_ttl,
            entry_ttl,
        }
    }

    fn check_name(name: &[u8]) -> Result<(), Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        Ok(())
    }
}

/// A change of a directory's names that is under way.
struct Changing<'a> {
    vfs: &'a Vfs,
    dir: Arc<Inode>,
    number: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let heard = self.dir.names().lock().ended(self.number);
        self.vfs.reopen_guard.change_ended();
        self.vfs.heed(&self.dir, said(heard));
    }
}

fn said(heard: Verdict) -> Seen {
    match heard {
        Verdict::Same | Verdict::Unsure => Seen::Same,
        Verdict::Foreign => Seen::Foreign,
    }
}
