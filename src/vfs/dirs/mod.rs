//! Open directories, and how they are listed.
//!
//! A directory is asked for when it is opened: who opens it is told what others have
//! done before (close-to-open), its attributes are as new as its listing, and a
//! directory that is not there any more is ESTALE, upon which the kernel walks to it once
//! more; of an error that comes later it would tell the program.
//!
//! A directory whose names are all known ([`dentry_cache`](crate::vfs::inode::dentry_cache)) is
//! listed from there, after the server has confirmed that they are still those.
//! Else the first page of the server's listing comes with the opening,
//! the others as they are wanted, and if it
//! was not too long and the directory has not moved meanwhile, its names are
//! known from then on. Of a long one nothing is kept but a page, and what it
//! takes to go on.
//!
//! Offsets are 1 after ".", 2 after "..", then one more for each name ([`listing`]). Once half
//! of a page has been given out, the next one is asked for.
//!
//! Hidden names of this mount keep their positions and are not shown (`files::hidden`).
//!
//! [`Dirs`] owns the table of handles. A handle's listing is under a lock of its own, with which
//! no other is taken, but those of attributes when it is written down for another process (`handover`). One reader at a time: a permit is held while a page is fetched; the kernel
//! takes turns too, but only for one descriptor.

mod fetch;
mod handle;
pub(in crate::vfs) mod handover;
mod listing;
pub(in crate::vfs) mod logged;
mod offer;
mod read;

use std::sync::Arc;

use self::handle::DirHandle;
use crate::nfs::Client;
use crate::rpc::auth::Credential;
use crate::telemetry::Metrics;
use crate::vfs::files::Files;
use crate::vfs::inode::Inode;
use crate::vfs::namespace::Namespace;
use crate::vfs::types::{ByNumber, Errno, Opened, VfsResult};
use crate::wal::Wal;

/// See the module.
pub(in crate::vfs) struct Dirs {
    client: Arc<Client>,
    namespace: Arc<Namespace>,
    files: Arc<Files>,
    handles: ByNumber<Arc<DirHandle>>,
    metrics: Arc<Metrics>,
    wal: Wal,
}

impl Dirs {
    /// No directory is open yet.
    pub(in crate::vfs) fn new(
        client: Arc<Client>,
        namespace: Arc<Namespace>,
        files: Arc<Files>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            wal: client.wal().clone(),
            client,
            namespace,
            files,
            handles: ByNumber::default(),
            metrics,
        })
    }

    /// Opens a directory, for thread `by`: one round trip to confirm names that are known, or
    /// for the first page.
    ///
    /// # Errors
    /// ESTALE: it was removed. What else the server has against it is for who lists it.
    pub(in crate::vfs) async fn open(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> VfsResult<Opened> {
        let fh = self.files.new_fh();
        let handle = Arc::new(DirHandle::new(fh, dir, cred, by));
        let edits = Box::pin(self.begin(&handle)).await?;
        self.namespace.nothing_to_tell(dir.ino).await;
        let keep_cache = dir.names().lock().begin_listing(edits);
        tracing::debug!(fh, ino = dir.ino, ?edits, keep_cache, "a listing begins");
        self.log_dir(&handle);
        self.handles.insert(fh, handle);
        self.metrics.gauges.open_dirs.inc();
        Ok(Opened {
            fh,
            keep_cache,
            direct_io: false,
        })
    }

    /// Closes a directory.
    ///
    /// # Errors
    /// EBADF: it is not open.
    pub(in crate::vfs) fn close(&self, fh: u64) -> VfsResult<()> {
        match self.handles.remove(&fh) {
            Some((_, handle)) => {
                handle.dir.names().lock().end_listing();
                self.metrics.gauges.open_dirs.dec();
                self.log_closed(&handle);
                Ok(())
            }
            None => Err(Errno(libc::EBADF).into()),
        }
    }
}
