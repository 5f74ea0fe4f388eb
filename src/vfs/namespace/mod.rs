//! What is believed of names and attributes, and what the kernel is told of it.
//!
//! [`Namespace`] owns the inode table, the cache of names, and what is remembered beside them: what
//! the server allows whom, what threads walk through, which names an open is on its way
//! through. It asks the server about names and attributes, takes in what replies say about
//! them, and tells the kernel what is old. Of data and of open files it knows only what an inode
//! tells.
//!
//! | concern | file |
//! |---|---|
//! | what replies say of attributes, and what errors mean | [`attributes`] |
//! | looking names up, and what our own changes make of them | [`names`] |
//! | a directory's changes that are under way | [`changing`] |
//! | what the kernel is answered for an inode | [`entry`] |
//! | what is asked for together | [`access_pattern`], `keyed_mutex` |
//! | what the server allows whom | [`access`] |
//! | what is private to this host, and not made yet (`writeback`) | [`promised`] |
//! | opens that ask nobody | `nocto` |
//! | names that an open is on its way through | `reopen_guard` |
//! | what the kernel is told and waits for, believes, and is asked to forget | `invalidation`, [`kernel_dentry`], `eviction` |
//! | the space of a file system | `space` |
//! | inodes for another process | `handover` |
//!
//! Locks: those of inodes ([`inode`](crate::vfs::inode)), and under any of them that of the kernel's
//! queue ([`KernelCache`]). The caches of [`access`], `reopen_guard` and `space` have locks with which
//! no other is taken. No lock is held across an await.

pub(in crate::vfs) mod access;
pub(in crate::vfs) mod access_pattern;
pub(in crate::vfs) mod attributes;
pub(in crate::vfs) mod changing;
pub(in crate::vfs) mod entry;
mod eviction;
mod handover;
mod invalidation;
pub(in crate::vfs) mod kernel_dentry;
mod keyed_mutex;
pub(in crate::vfs) mod names;
mod nocto;
pub(in crate::vfs) mod promised;
mod reopen_guard;
mod space;

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use self::access::AccessCache;
use self::access_pattern::AccessPattern;
use self::handover::Inherited;
use self::reopen_guard::ReopenGuard;
use self::space::SpaceCache;
use crate::nfs::Client;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::FileHandle;
use crate::telemetry::Metrics;
use crate::vfs::inode::attr::Timeouts;
use crate::vfs::inode::dentry_cache::DentryCache;
use crate::vfs::inode::{Inode, InodeTable};
use crate::vfs::types::{Errno, Ino, KernelCache, MissingNames, VfsResult};

/// How names and attributes are believed.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct NamespaceConfig {
    /// How long attributes are believed.
    pub(in crate::vfs) timeouts: Timeouts,
    /// Names remembered; with 0 none are, and the kernel is told to believe none either.
    pub(in crate::vfs) max_names: u64,
    /// Which missing names are among them.
    pub(in crate::vfs) missing_names: MissingNames,
    /// Inodes that the kernel may hold before it is asked to forget some.
    pub(in crate::vfs) max_inodes: usize,
    /// Whether the server is asked who may search a directory.
    pub(in crate::vfs) asks_who_searches: bool,
    /// Whether each open asks the server.
    pub(in crate::vfs) close_to_open: bool,
}

/// See the module.
pub(in crate::vfs) struct Namespace {
    client: Arc<Client>,
    config: NamespaceConfig,
    inodes: InodeTable,
    names: DentryCache,
    access: AccessCache,
    space: SpaceCache,
    reopen_guard: ReopenGuard,
    walk: AccessPattern,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    inherited: Inherited,
    metrics: Arc<Metrics>,
}

impl Namespace {
    /// What `client` has found at its root. `sent` is when the request left that found it.
    pub(in crate::vfs) fn new(
        client: Arc<Client>,
        config: NamespaceConfig,
        sent: Instant,
        metrics: Arc<Metrics>,
    ) -> Self {
        let fs = client.fs();
        let wal = client.wal().clone();
        let inodes = InodeTable::new(fs.root.clone(), &fs.root_attrs, sent, config.timeouts, wal);
        Self::of(client, config, inodes, Inherited::default(), metrics)
    }

    /// Whom to tell that the kernel's caches are old.
    pub(in crate::vfs) fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        // The second of two is ignored; there is only one kernel.
        let kernel = self.kernel.get_or_init(|| kernel);
        self.inherited.tell(&**kernel);
    }

    /// Number of inodes that the kernel holds, the root not counted.
    pub(in crate::vfs) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// The inode with this number, if the kernel holds it.
    pub(in crate::vfs) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inodes.get(ino)
    }

    /// The same for an operation on it.
    ///
    /// # Errors
    /// ESTALE: the kernel has forgotten it.
    pub(in crate::vfs) fn inode(&self, ino: Ino) -> VfsResult<Arc<Inode>> {
        Ok(self.inodes.get(ino).ok_or_else(|| {
            tracing::debug!(ino, "the kernel names an inode that is not known here");
            Errno(libc::ESTALE)
        })?)
    }

    /// The inode with this handle, if the kernel holds it.
    pub(in crate::vfs) fn find(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
    ) -> Option<Arc<Inode>> {
        self.inodes.find(handle, attrs)
    }

    /// The inode with this number, which the kernel holds or a name here leads to. Looks at all
    /// names.
    pub(in crate::vfs) fn find_number(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inodes.get(ino).or_else(|| self.names.find(ino))
    }

    /// The number for an object with these attributes.
    pub(in crate::vfs) fn ino_of(&self, attrs: &Attributes) -> Ino {
        self.inodes.ino_of(attrs)
    }

    /// See [`InodeTable::look_up_again`].
    pub(in crate::vfs) fn look_up_again(&self, inode: &Arc<Inode>) -> bool {
        self.inodes.look_up_again(inode)
    }

    /// See [`InodeTable::look_up_listed`].
    pub(in crate::vfs) fn look_up_listed(&self, inode: &Arc<Inode>) -> bool {
        self.inodes.look_up_listed(inode)
    }

    /// See [`InodeTable::log_place`].
    pub(in crate::vfs) fn log_place(&self, inode: &Inode) {
        self.inodes.log_place(inode);
    }

    /// FORGET.
    pub(in crate::vfs) fn forget(&self, ino: Ino, nlookup: u64) {
        self.inodes.forget(ino, nlookup);
        self.metrics.gauges.inodes.set(self.inodes.len() as u64);
    }
}
