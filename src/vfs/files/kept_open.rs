//! Files that a second walk has found, kept open for the open that it is for.
//!
//! An open that was refused because its name leads elsewhere by now walks once more
//! (`fuse::estale_retry`), and a second refusal goes to the program. Another host may replace the
//! file again between the LOOKUP of that walk and the OPEN of what it has found. So the
//! two are one request, an OPEN by name as any NFS client makes, and the open is kept
//! until the kernel's OPEN takes it over: within [`WHILE`], else it is closed.
//!
//! It is taken by the thread whose walk found it, and by nobody else: what came along
//! with it was asked for during that thread's open(2), and may be older than what another
//! has closed before this one's began (close-to-open). Of one thread only the last walk counts,
//! and the kernel is not to believe the name, so that its next open walks.
//!
//! Owned by its own lock, with which no other is taken. At most [`MOST`]; beyond that the
//! name is only looked up.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Files;
use super::handle::access_of;
use crate::nfs::calls::FoundOpen;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::state::OpenState;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::types::{Ino, Lookup, VfsResult};

/// Many times what the kernel takes from a lookup to the open that it was for.
const WHILE: Duration = Duration::from_secs(1);

/// As many walks as are waited for at once.
const MOST: usize = 64;

/// An open without a handle. It is a user of the file's opens.
#[derive(Clone, Debug)]
pub(in crate::vfs) struct KeptOpen {
    /// Whose walk it was (thread id).
    tid: u32,
    pub(in crate::vfs) inode: Arc<Inode>,
    pub(in crate::vfs) open: Arc<OpenState>,
    /// What came along with it, and when it was asked for.
    pub(in crate::vfs) attrs: Attributes,
    pub(in crate::vfs) sent: Instant,
}

impl KeptOpen {
    /// Whether it will do for `access` (OPEN4_SHARE_ACCESS_*).
    pub(in crate::vfs) fn allows(&self, access: u32) -> bool {
        self.open.access() & access == access
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::vfs) struct Kept(Mutex<Vec<KeptOpen>>);

impl Kept {
    fn has_room(&self) -> bool {
        self.0.lock().len() < MOST
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn take(&self, which: impl Fn(&KeptOpen) -> bool) -> Option<KeptOpen> {
        let mut kept = self.0.lock();
        let at = kept.iter().position(which)?;
        Some(kept.swap_remove(at))
    }
}

impl Files {
    /// Of one thread only the last walk counts: what the one before has found is closed.
    pub(in crate::vfs) async fn leave_older_walk(self: &Arc<Self>, tid: u32) {
        if let Some(older) = self.kept.take(|kept| kept.tid == tid) {
            self.leave(&older.inode, &older.open).await;
        }
    }

    /// One more open may be kept.
    pub(in crate::vfs) fn may_keep(&self) -> bool {
        self.kept.has_room()
    }

    /// OPEN by name. `None` if that leads to no file that may be opened so.
    pub(in crate::vfs) async fn find_open(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        flags: i32,
        tid: u32,
    ) -> VfsResult<Option<Lookup>> {
        let cuts = flags & libc::O_TRUNC != 0;
        let access = access_of(flags) | if cuts { ACCESS_WRITE } else { 0 };
        let known = self.namespace.remembered_inode(dir, name);
        let sent = Instant::now();
        let opened = self
            .client
            .open_name(
                cred,
                &dir.handle,
                name,
                access & (ACCESS_READ | ACCESS_WRITE),
            )
            .await;
        let FoundOpen {
            open,
            attrs,
            dir: dir_attrs,
            preserves_unlinked,
        } = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.namespace.failed(&error, dir)),
        };
        self.namespace.learn(dir, &dir_attrs, sent);
        let late = dir.attr.lock().overtook(sent);
        let inode = self.namespace.known(&open.handle, &attrs, sent);
        self.namespace.found_at(&inode, dir, name);
        if !late {
            if known.is_some_and(|known| !Arc::ptr_eq(&known, &inode)) {
                self.namespace.stranger_was_here();
            }
            let target = DentryTarget::Inode(Arc::clone(&inode));
            self.namespace
                .put_name(dir, name, target, Some((dir_attrs.change, sent)));
        }
        self.opened_by_name(&inode, &open, preserves_unlinked);
        self.keep(KeptOpen {
            tid,
            inode: Arc::clone(&inode),
            open,
            attrs,
            sent,
        });
        let mut entry = self.namespace.entry(&inode, dir);
        entry.entry_ttl = Duration::ZERO;
        Ok(Some(Lookup::Found(entry)))
    }

    /// Keeps an open, and closes it if it is not wanted.
    fn keep(self: &Arc<Self>, kept: KeptOpen) {
        let open = Arc::clone(&kept.open);
        self.kept.0.lock().push(kept);
        let files = Arc::clone(self);
        self.metrics.tasks.harmless("kept_open", async move {
            files.metrics.tasks.point("kept_open");
            tokio::time::sleep(WHILE).await;
            let kept = files.kept.take(|kept| Arc::ptr_eq(&kept.open, &open));
            if let Some(kept) = kept {
                files.leave(&kept.inode, &kept.open).await;
            }
        });
    }

    /// What was kept of this file for the thread that opens it now.
    pub(in crate::vfs) fn take_kept(
        &self,
        cred: &Credential,
        ino: Ino,
        tid: u32,
    ) -> Option<KeptOpen> {
        self.kept
            .take(|kept| kept.tid == tid && kept.inode.ino == ino && *kept.open.cred == *cred)
    }

    /// Closes what is kept: nobody will open it any more.
    pub(in crate::vfs) async fn close_kept(self: &Arc<Self>) {
        while let Some(kept) = self.kept.take(|_| true) {
            self.leave(&kept.inode, &kept.open).await;
        }
    }
}
