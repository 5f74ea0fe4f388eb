//! One open(2), from its OPEN to its RELEASE, and what it was told of write errors.
//!
//! A handle's own fields do not change, are atomic, or have locks inside which no other is taken.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::Files;
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::proto::reply::ReadResult;
use crate::nfs::state::OpenState;
use crate::rpc::caller;
use crate::telemetry::Cache;
use crate::vfs::file::ahead::Ahead;
use crate::vfs::file::inline_read::FileVersion;
use crate::vfs::file::pages::FileAt;
use crate::vfs::file::state::HandleLocking;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Opened, VfsError, VfsResult};
use crate::vfs::writeback::errseq::Seen;

/// One open(2).
#[derive(Debug)]
pub(in crate::vfs) struct OpenHandle {
    /// Its number, by which the kernel calls it.
    pub(super) number: u64,
    /// What it is open on.
    pub(in crate::vfs) inode: Arc<Inode>,
    /// Its open at the server, which it may share.
    pub(in crate::vfs) open: Arc<OpenState>,
    /// What this handle may do (OPEN4_SHARE_ACCESS_*).
    pub(in crate::vfs) access: u32,
    /// Write errors that this handle has told of.
    pub(super) seen: Mutex<Seen>,
    /// Those that a write(2) was told of. It may be the rest of one, whose beginning was
    /// accepted: then the kernel tells its caller how much that was, and no error. So
    /// fsync tells of it all the same.
    pub(super) told_by_write: Mutex<Seen>,
    /// Those that a close(2) was told of, which leaves them to be told again.
    pub(super) told_at_close: Mutex<Seen>,
    /// What is read ahead for it.
    pub(super) ahead: Arc<Ahead>,
    /// What is read through it comes from the kernel's pages, which ask nobody.
    pub(super) reads_pages: bool,
    /// Whether it was, and may be, locked through.
    pub(super) locking: HandleLocking,
    /// The kernel was told to drop its pages, and has not used the handle yet.
    pub(super) drops_pages: AtomicBool,
    /// The file as its open has seen it.
    pub(super) opened_at: FileAt,
}

/// What an open with these flags (`O_*`) may do (OPEN4_SHARE_ACCESS_*).
pub(in crate::vfs) fn access_of(flags: i32) -> u32 {
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => ACCESS_WRITE,
        libc::O_RDWR => ACCESS_READ | ACCESS_WRITE,
        _ => ACCESS_READ,
    }
}

impl Files {
    /// A handle on `open`, with what was read along with it.
    pub(in crate::vfs) fn opened(
        &self,
        inode: &Arc<Inode>,
        open: Arc<OpenState>,
        (access, flags): (u32, i32),
        came: Option<(ReadResult, FileVersion)>,
    ) -> Opened {
        let state = self.file_state(inode);
        let mut inner = state.lock();
        let (seen, keep_cache, seems_longer, beginning) = {
            let attr = inode.attr.lock();
            let (change, moves) = (attr.change(), inner.moves(attr.foreign()));
            let seen = FileAt { change, moves };
            let keep = inner.open_pages(seen, |pages| attr.explains(pages));
            let beginning = self.beginning(inner.version(attr.foreign()), came);
            (seen, keep, attr.may_seem_longer(), beginning)
        };
        // The kernel writes out of its pages, and cuts those when it learns
        // of a smaller size, be it by another process and in the middle of
        // a write(2): zeros would be written instead of the data. It spares
        // a write beyond the end that it knows; one that is within, because
        // that end is too far, must not go through pages. Nor must a read where nothing
        // may be believed.
        let direct_io = flags & libc::O_DIRECT != 0
            || access & ACCESS_WRITE != 0 && seems_longer
            || !self.believes_data();
        let comes = beginning.is_some();
        let fh = self.new_fh();
        let handle = Arc::new(OpenHandle {
            number: fh,
            inode: Arc::clone(inode),
            open,
            access,
            seen: Mutex::new(inner.writeback().errors().sample()),
            told_by_write: Mutex::new(inner.writeback().errors().sample()),
            told_at_close: Mutex::new(inner.writeback().errors().sample()),
            ahead: Arc::new(Ahead::new(self.config.read_ahead, beginning)),
            reads_pages: access & ACCESS_READ != 0 && !direct_io,
            locking: HandleLocking::default(),
            drops_pages: AtomicBool::new(!keep_cache),
            opened_at: seen,
        });
        if comes {
            inner.reads_ahead(&handle.ahead);
        }
        drop(inner);
        self.log_handle(fh, &handle, caller::request().unique);
        self.handles.insert(fh, handle);
        self.metrics.gauges.open_files.inc();
        self.metrics.cache(Cache::Page, keep_cache);
        Opened {
            fh,
            keep_cache,
            direct_io,
        }
    }

    /// The write error that close(2) of this handle has to tell of, which leaves it to be told
    /// again: another descriptor may be open.
    pub(in crate::vfs) fn tell_error_at_close(&self, handle: &OpenHandle) -> VfsResult<()> {
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        *handle.told_at_close.lock() = errors.sample();
        match errors.peek(&handle.seen.lock()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Nobody is left to be told of a write error that neither a call nor a close of this handle
    /// has told of: it is logged.
    pub(in crate::vfs) fn log_untold_error(&self, handle: &OpenHandle) {
        if let Some(error) = self.untold_error(handle) {
            tracing::error!(
                ino = handle.inode.ino,
                "data written through a mapping after the last close, or before it with writeback, \
                 were lost, and nobody was left to be told: {error}"
            );
        }
    }

    fn untold_error(&self, handle: &OpenHandle) -> Option<VfsError> {
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        errors
            .peek(&handle.seen.lock())
            .and_then(|_| errors.peek(&handle.told_at_close.lock()))
    }

    /// The write error that fsync(2) by this handle has to tell of, if there is one.
    pub(in crate::vfs) fn tell_error(&self, handle: &OpenHandle) -> VfsResult<()> {
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        *handle.told_by_write.lock() = errors.sample();
        match errors.check(&mut handle.seen.lock()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The same of write(2), which leaves it to be told by fsync.
    pub(in crate::vfs) fn tell_write_error(&self, handle: &OpenHandle) -> VfsResult<()> {
        let inner = self.file_state(&handle.inode).lock();
        match inner
            .writeback()
            .errors()
            .check(&mut handle.told_by_write.lock())
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
