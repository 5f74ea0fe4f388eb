//! Open files: OPEN, CLOSE and what lies between.
//!
//! Handles of one file opened by one identity share one open at the server
//! ([`SharedOpen`]); its access grows with each of them, and it is closed when the
//! last handle is released and what was locked with it is unlocked. Between the last release and the CLOSE the open is
//! out of the table already, so a new handle starts a new one.
//!
//! close(2) is FLUSH: there every write is made stable and errors are told.
//! RELEASE comes later and nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::nfs::NfsError;
use crate::nfs::calls::{HowToOpen, PrePost};
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::proto::reply::ReadResult;
use crate::nfs::proto::status::Status;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::Vfs;
use crate::vfs::file::ahead::Ahead;
use crate::vfs::file::inline_read::FileVersion;
use crate::vfs::file::pages::FileAt;
use crate::vfs::file::state::{HandleLocking, Left};
use crate::vfs::files::handle::OpenHandle;
use crate::vfs::files::kept_open::KeptOpen;
use crate::vfs::inode::FileState;
use crate::vfs::inode::attr;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::inode::{Inode, Place};
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Entry, Errno, FileKind, Ino, Opened};

/// OPEN has found a directory, a link or a device by the name.
fn is_no_file(error: &NfsError) -> bool {
    matches!(
        error.status(),
        Some(Status::ISDIR | Status::SYMLINK | Status::WRONG_TYPE)
    )
}

pub(in crate::vfs) fn access_of(flags: i32) -> u32 {
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => ACCESS_WRITE,
        libc::O_RDWR => ACCESS_READ | ACCESS_WRITE,
        _ => ACCESS_READ,
    }
}

impl Vfs {
    pub(in crate::vfs) fn file_state<'a>(&self, inode: &'a Inode) -> &'a FileState {
        inode.file(|| FileState::new(&self.writeback, inode.attr.lock().foreign()))
    }

    pub(in crate::vfs) fn handle(&self, fh: u64) -> Result<Arc<OpenHandle>, Errno> {
        self.files
            .get(&fh)
            .map(|handle| Arc::clone(&handle))
            .ok_or_else(|| self.no_handle())
    }

    /// What there is to say of a handle that is not there. After the end of the mount
    /// (SIGTERM while files are in use) it is closed, but its descriptor is not: its
    /// process is told what it will be told next, by the kernel.
    fn no_handle(&self) -> Errno {
        match self.ending.load(Ordering::Relaxed) {
            true => Errno(libc::ENOTCONN),
            false => Errno(libc::EBADF),
        }
    }

    /// The handle, which the kernel uses: what its open had it drop is dropped.
    pub(in crate::vfs) fn used_handle(&self, fh: u64) -> Result<Arc<OpenHandle>, Errno> {
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

    /// OPEN by handle: one round trip, in which the file's attributes come
    /// along, so that the kernel's pages are kept exactly if the file has not
    /// moved (close-to-open); and a small file's data, if they will be wanted.
    ///
    /// ESTALE if the name that the file was found by leads elsewhere now.
    pub async fn open(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
    ) -> Result<Opened, Errno> {
        self.open_checked(cred, ino, flags, true).await
    }

    /// The same for a file that this very open has found by asking for its name,
    /// or was not found by name at all: whatever that leads to by now. If it was opened
    /// when it was found ([`lookup_to_open`](Self::lookup_to_open)), that is this open.
    pub async fn open_found(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
        tid: u32,
    ) -> Result<Opened, Errno> {
        let kept = self.take_kept(cred, ino, tid);
        let cuts = flags & libc::O_TRUNC != 0;
        let opened = match &kept {
            Some(kept) if !cuts && kept.allows(access_of(flags)) => {
                self.open_kept(kept, flags).await
            }
            _ => {
                let opened = self.open_checked(cred, ino, flags, false).await;
                if let Some(kept) = kept {
                    self.leave(&kept.inode, &kept.open).await;
                }
                opened
            }
        };
        self.namespace.walk_is_done(ino);
        opened
    }

    /// A handle on an open that was kept for it.
    async fn open_kept(self: &Arc<Self>, kept: &KeptOpen, flags: i32) -> Result<Opened, Errno> {
        let inode = &kept.inode;
        self.publish(inode).await;
        self.namespace.learn_at_open(inode, &kept.attrs, kept.sent);
        self.namespace.nothing_to_tell(inode.ino).await;
        let open = Arc::clone(&kept.open);
        Ok(self.opened(inode, open, (access_of(flags), flags), None))
    }

    /// The file was opened by its name: `open` has one user.
    pub(in crate::vfs) fn opened_by_name(
        &self,
        inode: &Inode,
        open: &Arc<OpenState>,
        preserved: bool,
    ) {
        let mut inner = self.file_state(inode).lock();
        inner.set_preserved(preserved);
        inner.add_open(open);
    }

    async fn open_checked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
        check: bool,
    ) -> Result<Opened, Errno> {
        let inode = self.namespace.inode(ino)?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::ENXIO)),
        }
        if check && self.namespace.may_mean_another_name(&inode) {
            // Upon which the kernel asks for the name.
            return Err(Errno(libc::ESTALE));
        }
        let access = access_of(flags);
        // O_TRUNC with O_RDONLY is left undefined by POSIX; Linux truncates if
        // the caller may write.
        let truncate = flags & libc::O_TRUNC != 0;
        let share = if truncate {
            access | ACCESS_WRITE
        } else {
            access
        };
        if truncate {
            self.drain(&inode).await;
        }
        self.publish(&inode).await;
        let open = self.join(&inode, cred).await;
        let reads = share & ACCESS_READ != 0 && flags & libc::O_DIRECT == 0 && !truncate;
        let inline = reads.then(|| self.inline_read(&inode)).flatten();
        let sent = Instant::now();
        // A name is believed for a while, but what is opened is what it leads
        // to now: another host may have put a new file there.
        let place = inode.place().filter(|_| check);
        let name = place
            .as_ref()
            .map(|place| (&place.dir.handle, &*place.name));
        let asked = inline.map(|(inline, _)| inline);
        let opened = self
            .client
            .open_handle(&open, share, truncate, name, asked)
            .await;
        match opened {
            Ok(None) => {
                self.leave(&inode, &open).await;
                self.namespace.stranger_was_here();
                // The place stays: who else has walked here by that name is to be
                // told the same.
                if let Some(Place { dir, name }) = place {
                    self.namespace.forget_entry(dir.ino, &name);
                    self.namespace.doubt(&dir);
                }
                // Upon which the kernel looks the name up, and opens that.
                Err(Errno(libc::ESTALE))
            }
            Ok(Some(opened)) => {
                let file = self.file_state(&inode);
                file.lock().set_preserved(opened.preserves_unlinked);
                let mut came = None;
                if truncate {
                    let own = PrePost {
                        before: None,
                        after: Some(opened.attrs),
                    };
                    self.namespace.moved(&inode, &own, sent);
                    self.was_cut(&inode, own.after.as_ref());
                } else {
                    let seen = self.namespace.learn_at_open(&inode, &opened.attrs, sent);
                    self.namespace.nothing_to_tell(inode.ino).await;
                    let moved_on = u64::from(seen == attr::Seen::Foreign);
                    came = opened
                        .data
                        .zip(inline)
                        .map(|(data, (_, version))| (data, version.moved_on(moved_on)));
                }
                Ok(self.opened(&inode, open, (access, flags), came))
            }
            Err(error) => {
                let errno = self.namespace.failed(&error, &inode);
                self.leave(&inode, &open).await;
                Err(errno)
            }
        }
    }

    /// OPEN with creation: one round trip.
    pub async fn create(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened), Errno> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        let exclusive = flags & libc::O_EXCL != 0;
        let how = if exclusive {
            HowToOpen::Exclusive
        } else if flags & libc::O_TRUNC != 0 {
            HowToOpen::Truncate
        } else {
            HowToOpen::Existing
        };
        let access = access_of(flags);
        let _changing = self.namespace.changing(&dir);
        let sent = Instant::now();
        let file = self
            .client
            .create(cred, &dir.handle, name, access, mode & 0o7777, how)
            .await;
        let file = match file {
            Ok(file) => file,
            // The server tells what it is that is there; open(2) that something is.
            Err(error) if exclusive && is_no_file(&error) => {
                let errno = Errno(libc::EEXIST);
                self.namespace.heed_refusal(errno, &dir, name);
                return Err(errno);
            }
            Err(error) => return Err(self.namespace.refused_in(cred, &error, &dir, name).await),
        };
        let inode = self.namespace.known(&file.open.handle, &file.attrs, sent);
        self.namespace.found_at(&inode, &dir, name);
        let target = DentryTarget::Inode(Arc::clone(&inode));
        self.namespace.named(&dir, name, &file.dir, target, sent);
        self.namespace.nothing_to_tell(inode.ino).await;
        let state = self.file_state(&inode);
        {
            let mut inner = state.lock();
            inner.set_preserved(file.preserves_unlinked);
            match file.is_new && !inner.is_open() {
                true => inner.deferred_mut().made(file.attrs.uid),
                false => inner.deferred_mut().publish(),
            }
            inner.add_open(&file.open);
        }
        let entry = self.namespace.entry(&inode, &dir);
        let opened = self.opened(&inode, file.open, (access, flags), None);
        Ok((entry, opened))
    }

    /// A handle on `open`, with what was read along with it.
    fn opened(
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
        let handle = Arc::new(OpenHandle {
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
        let fh = self.new_fh();
        self.files.insert(fh, handle);
        self.metrics.gauges.open_files.inc();
        self.metrics
            .cache(crate::telemetry::Cache::Page, keep_cache);
        Opened {
            fh,
            keep_cache,
            direct_io,
        }
    }

    /// The open of this file and identity, with one more user. Waits while the
    /// file loses a name: with the last one it would be gone.
    async fn join(&self, inode: &Arc<Inode>, cred: &Arc<Credential>) -> Arc<OpenState> {
        let make = || {
            self.client
                .prepare_open(inode.handle.clone(), Arc::clone(cred))
        };
        self.file_state(inode)
            .when(|inner| inner.join(cred, make))
            .await
    }

    /// One user less; the last one closes, whether or not the caller still waits.
    pub(in crate::vfs) async fn leave(self: &Arc<Self>, inode: &Arc<Inode>, open: &Arc<OpenState>) {
        self.leave_with(inode, open, None).await;
    }

    /// The same of an owner of locks, which have all been given up. What the server
    /// keeps of them is freed with the next handle, or by the CLOSE.
    pub(in crate::vfs) async fn leave_with(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        open: &Arc<OpenState>,
        lock: Option<Arc<LockState>>,
    ) {
        caller::apart(self.left_by_one(inode, open, lock)).await;
    }

    async fn left_by_one(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        open: &Arc<OpenState>,
        lock: Option<Arc<LockState>>,
    ) {
        let left = self.file_state(inode).lock().leave(open, lock);
        let Some(Left {
            closes,
            silly,
            retired,
        }) = left
        else {
            return;
        };
        if !closes {
            for lock in retired {
                if let Err(error) = self.client.free_lock(&lock).await {
                    tracing::debug!(ino = inode.ino, "{error}");
                }
            }
        }
        if closes {
            self.client.close_soon(open);
        }
        if let Some(silly) = silly {
            self.remove_silly(inode, silly).await;
        }
    }

    /// FLUSH, at every close(2): all writes of the file become stable, its new
    /// attributes are the server's, the
    /// process's POSIX locks on it go, and a write error that this handle has
    /// not told of is told.
    pub async fn flush(self: &Arc<Self>, fh: u64, lock_owner: u64) -> Result<(), Errno> {
        let handle = self.used_handle(fh)?;
        self.drain(&handle.inode).await;
        self.publish(&handle.inode).await;
        self.closed_by(&handle.inode, lock_owner).await;
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        *handle.told_at_close.lock() = errors.sample();
        match errors.peek(&handle.seen.lock()) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// FSYNC: as FLUSH. Data and metadata are not told apart: the server is
    /// asked for both.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        let handle = self.used_handle(fh)?;
        self.drain(&handle.inode).await;
        self.publish(&handle.inode).await;
        self.check_locks(&handle, fh)?;
        self.tell_error(&handle)
    }

    /// RELEASE: the handle is gone. What FLUSH did not see (writes of a shared
    /// mapping) is written first. From the call on, not only from the first poll, who is
    /// refused a lock by what was locked through the handle waits for it: close(2) has
    /// returned already.
    pub fn release(
        self: &Arc<Self>,
        fh: u64,
    ) -> impl Future<Output = Result<(), Errno>> + Send + use<> {
        let vfs = Arc::clone(self);
        let releasing = vfs.begins_release(fh);
        async move {
            let released = vfs.end_handle(fh).await;
            drop(releasing);
            released
        }
    }

    async fn end_handle(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        let Some((_, handle)) = self.files.remove(&fh) else {
            return Err(Errno(libc::EBADF));
        };
        self.metrics.gauges.open_files.dec();
        // From here on, not only once the CLOSE was answered: whoever removes
        // its directory next has to wait for the hidden name.
        let _closing = self.closing_hidden(&handle.inode);
        self.drain(&handle.inode).await;
        self.send_changes(&handle.inode).await;
        if let Some(used) = handle.ahead.beginning_used() {
            let file = self.file_state(&handle.inode);
            file.lock().inline_used(used);
        }
        if let Some(Errno(errno)) = self.untold_error(&handle) {
            let why = std::io::Error::from_raw_os_error(errno);
            tracing::error!(
                ino = handle.inode.ino,
                "data written through a mapping after the last close were lost, and nobody \
                 was left to be told: {why}"
            );
        }
        self.released(&handle, fh).await;
        self.leave(&handle.inode, &handle.open).await;
        Ok(())
    }

    /// A write error that neither a call nor a close of this handle has told of.
    fn untold_error(&self, handle: &OpenHandle) -> Option<Errno> {
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        errors
            .peek(&handle.seen.lock())
            .and_then(|_| errors.peek(&handle.told_at_close.lock()))
    }

    /// The write error that fsync(2) by this handle has to tell of, if there is one.
    pub(in crate::vfs) fn tell_error(&self, handle: &OpenHandle) -> Result<(), Errno> {
        let inner = self.file_state(&handle.inode).lock();
        let errors = inner.writeback().errors();
        *handle.told_by_write.lock() = errors.sample();
        match errors.check(&mut handle.seen.lock()) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// The same of write(2), which leaves it to be told by fsync.
    pub(in crate::vfs) fn tell_write_error(&self, handle: &OpenHandle) -> Result<(), Errno> {
        let inner = self.file_state(&handle.inode).lock();
        match inner
            .writeback()
            .errors()
            .check(&mut handle.told_by_write.lock())
        {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }
}
