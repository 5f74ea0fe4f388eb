//! What is known of inodes, written down for another process: see
//! [`handover`](crate::vfs::inode::table::handover).
//!
//! What is remembered beside them is not among it: names, what the server allows whom, what
//! threads walk through. It is asked for again.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::access::AccessCache;
use super::access_pattern::AccessPattern;
use super::reopen_guard::ReopenGuard;
use super::space::SpaceCache;
use super::{Namespace, NamespaceConfig};
use crate::nfs::Client;
use crate::telemetry::Metrics;
use crate::vfs::inode::dentry_cache::DentryCache;
use crate::vfs::inode::table::handover::{Collected, Contradiction, InodeRecords, Restored};
use crate::vfs::inode::{Inode, InodeTable, Place};
use crate::vfs::types::{Ino, KernelCache};

/// What the process before has left.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Of these inodes the kernel is still to be told that what it has is old.
    untold: Mutex<Vec<Ino>>,
    /// The kernel may believe what it was told before that.
    until: Option<Instant>,
}

impl Inherited {
    /// There is a kernel to be told.
    pub(super) fn tell(&self, kernel: &dyn KernelCache) {
        for ino in std::mem::take(&mut *self.untold.lock()) {
            kernel.inval_inode(ino);
        }
    }
}

impl Namespace {
    /// The inodes that the kernel holds, to which others may be added.
    pub(in crate::vfs) fn collect(&self) -> Collected {
        self.inodes.collect()
    }

    /// What another process is to know of them.
    pub(in crate::vfs) fn hand_over(&self, collected: Collected) -> InodeRecords {
        let kernel = self.kernel.get();
        let is_telling = |ino| kernel.is_some_and(|kernel| kernel.is_telling(ino));
        let mut records = self.inodes.records(collected, self.ticks(), is_telling);
        // Should this mount be handed over twice before there was a kernel to be told.
        records.add_untold(&self.inherited.untold.lock());
        records
    }

    /// What another process has known.
    pub(in crate::vfs) fn take_over(
        client: Arc<Client>,
        config: NamespaceConfig,
        records: InodeRecords,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Restored), Contradiction> {
        let now = Instant::now();
        let timeouts = config.timeouts;
        let (inodes, restored, untold) =
            InodeTable::of_records(records, now, timeouts, client.wal().clone())?;
        metrics.gauges.inodes.set(inodes.len() as u64);
        let longest = timeouts.reg_max.max(timeouts.reg_min);
        let inherited = Inherited {
            untold: Mutex::new(untold),
            until: Some(now + longest),
        };
        let namespace = Self::of(client, config, inodes, inherited, metrics);
        Ok((namespace, restored))
    }

    /// What is known of the namespace of `inodes`: nothing yet.
    pub(super) fn of(
        client: Arc<Client>,
        config: NamespaceConfig,
        inodes: InodeTable,
        inherited: Inherited,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            inodes,
            names: DentryCache::new(config.max_names, config.missing_names),
            access: AccessCache::default(),
            space: SpaceCache::default(),
            reopen_guard: ReopenGuard::default(),
            walk: AccessPattern::default(),
            kernel: OnceLock::new(),
            inherited,
            metrics,
            client,
            config,
        }
    }

    /// The inodes whose names begin with the one of `place`, in the same directory: as they are
    /// known, and as long as the kernel may believe what it was told by the process before, also
    /// those whose names are not known here.
    pub(in crate::vfs) fn beside(&self, place: &Place) -> Vec<Arc<Inode>> {
        let mut beside = place.dir.names().lock().beginning_with(&place.name);
        if self
            .inherited
            .until
            .is_some_and(|until| Instant::now() < until)
        {
            for other in self.inodes.found_beside(place) {
                if !beside.iter().any(|known| Arc::ptr_eq(known, &other)) {
                    beside.push(other);
                }
            }
        }
        beside
    }
}
