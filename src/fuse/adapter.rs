//! One short method per FUSE operation: who asks, is it cached, else a task.
//!
//! READ, WRITE, FLUSH, FSYNC and RELEASE carry no identity down: pages are read
//! and written by whichever process the kernel finds, so the vfs uses the
//! identity of the OPEN.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};
use tokio::runtime::Handle;

use super::answer;
use super::convert;
use super::dispatch::{Again, Dispatcher, FuseRequest, RequestLog, attempt, keep};
use super::estale_retry::{EstaleRetries, Refused};
use super::gate::Gate;
use super::identity::IdentityCache;
use super::intent::{self, Intents};
use super::interrupt::{InterruptWatcher, Soft, WaitMode};
use super::kernel::KernelOptions;
use super::listing::{NO_NODE, NameSink, PlusSink};
use super::lookup::{self, Asker};
use super::prober::{self, Prober};
use super::proc;
use super::warm_call;
use crate::background::Tasks;
use crate::rpc::auth::Credential;
use crate::telemetry::{FuseOp, Metrics};
use crate::vfs::Vfs;
use crate::vfs::types::{
    self, Entry, LockRange, Lookup, Opened, SetAttr, VfsResult, Waiting, WriteFlags,
};

/// The file system as fuser calls it.
pub struct Adapter {
    vfs: Arc<Vfs>,
    identity: IdentityCache,
    reopens: Arc<EstaleRetries>,
    intents: Arc<Intents>,
    dispatch: Dispatcher,
    gate: Arc<Gate>,
    watcher: Arc<InterruptWatcher>,
    options: KernelOptions,
    prober: Prober,
    tasks: Arc<Tasks>,
}

/// A name that outlives the buffer of the reader thread.
fn owned(name: &OsStr) -> Box<[u8]> {
    name.as_bytes().into()
}

/// What a lookup has found.
fn found_ino(found: &Lookup) -> Option<types::Ino> {
    match found {
        Lookup::Found(entry) => Some(entry.ino),
        Lookup::Missing { .. } => None,
    }
}

impl RequestLog for Vfs {
    fn answered(&self, unique: u64) {
        self.request_answered(unique);
    }

    fn given_up(&self, unique: u64) {
        self.request_given_up(unique);
    }
}

impl Adapter {
    /// Requests that no cache answers run as tasks of `runtime`; their callers wait
    /// as long as it takes, or as `soft` says.
    ///
    /// # Errors
    /// The thread that watches for signals could not be made.
    pub fn new(
        vfs: Arc<Vfs>,
        reopens: Arc<EstaleRetries>,
        runtime: Handle,
        metrics: Arc<Metrics>,
        options: KernelOptions,
        soft: Option<Soft>,
    ) -> io::Result<Self> {
        if !proc::is_ours() {
            tracing::warn!(
                "/proc is not that of this process's pid namespace: callers are without their \
                 supplementary groups, and no signal ends their waiting for the server; \
                 mount it there before efs-fuse is started"
            );
        }
        let watcher = InterruptWatcher::start(Arc::clone(&metrics), soft)?;
        let gate = Arc::<Gate>::default();
        let log = Arc::clone(&vfs) as Arc<dyn RequestLog>;
        let log = vfs.survives().then_some(log);
        Ok(Self {
            tasks: Arc::clone(&metrics.tasks),
            identity: IdentityCache::new(),
            reopens,
            intents: Arc::default(),
            dispatch: Dispatcher::new(
                runtime,
                Arc::clone(&watcher),
                Arc::clone(&gate),
                Arc::clone(vfs.abandoned()),
                metrics,
                log,
            ),
            gate,
            vfs,
            watcher,
            options,
            prober: Prober::default(),
        })
    }

    pub(super) fn tasks(&self) -> Arc<Tasks> {
        Arc::clone(&self.tasks)
    }

    pub(super) fn prober(&self) -> Prober {
        self.prober.clone()
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    pub(super) fn watcher(&self) -> Arc<InterruptWatcher> {
        Arc::clone(&self.watcher)
    }

    /// Agrees with the kernel, and says on what.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) -> InitFlags {
        self.options.negotiate(config)
    }

    /// Whether this is the request by which this process sees that it serves.
    pub(super) fn is_probe(&self, req: &Request) -> bool {
        self.prober.is(req.pid())
    }

    fn vfs(&self) -> Arc<Vfs> {
        Arc::clone(&self.vfs)
    }

    fn who(&self, req: &Request) -> Arc<Credential> {
        self.identity.of(req.pid(), req.uid(), req.gid())
    }

    /// What a call by path comes to, if it was not by a descriptor: after ESTALE its
    /// thread walks again, and every name is asked for (see `estale_retry`).
    fn by_path<T>(
        &self,
        tid: u32,
        work: impl Future<Output = VfsResult<T>> + Send + 'static,
    ) -> impl Future<Output = VfsResult<T>> + Send + 'static {
        let reopens = Arc::clone(&self.reopens);
        let work = self.on_the_way(tid, work);
        async move {
            let result = work.await;
            if !matches!(&result, Err(error) if error.is(libc::ESTALE)) {
                reopens.ended(tid);
            }
            result
        }
    }

    /// The same of what may as well be asked while the path is walked: permissions, links.
    fn on_the_way<T>(
        &self,
        tid: u32,
        work: impl Future<Output = VfsResult<T>> + Send + 'static,
    ) -> impl Future<Output = VfsResult<T>> + Send + 'static {
        let reopens = Arc::clone(&self.reopens);
        let is_second = reopens.asks(tid);
        async move {
            let result = work.await;
            match &result {
                Err(error) if error.is(libc::ESTALE) => reopens.refused(tid, None),
                _ if is_second => reopens.goes_on(tid),
                _ => {}
            }
            result
        }
    }

    /// The same result, when the kernel has dropped what its attributes make old: those of the
    /// inode that `of` finds in it. The undoing is that of `work`.
    fn settled<T: Send + 'static>(
        &self,
        of: impl Fn(&T) -> Option<types::Ino> + Send + 'static,
        work: impl Future<Output = VfsResult<T>> + Send + 'static,
    ) -> impl Future<Output = VfsResult<T>> + Send + 'static {
        let vfs = self.vfs();
        async move {
            let result = work.await?;
            if let Some(ino) = of(&result) {
                vfs.pages_go_first(ino).await;
            }
            Ok(result)
        }
    }

    /// An operation by path that makes one name; it counts as a lookup. `tell` hears what
    /// that leads to.
    fn entry(
        &self,
        call: FuseRequest,
        reply: ReplyEntry,
        tell: impl Fn(types::Ino, Duration) + Send + 'static,
        work: impl Future<Output = VfsResult<Entry>> + Send + 'static,
    ) {
        let vfs = self.vfs();
        let undo = move |entry: Entry| {
            vfs.forget(entry.ino, 1);
            keep(())
        };
        let answer = move |reply, entry: Entry| {
            tell(entry.ino, entry.entry_ttl);
            answer::entry(reply, entry);
        };
        let work = self.settled(|made: &Entry| Some(made.ino), self.by_path(call.tid, work));
        self.dispatch.run(call, reply, work, answer, undo);
    }

    /// An operation that only succeeds or fails.
    fn done(
        &self,
        call: FuseRequest,
        reply: ReplyEmpty,
        work: impl Future<Output = VfsResult<()>> + Send + 'static,
    ) {
        self.dispatch.run(call, reply, work, answer::done, keep);
    }

    /// The same by path.
    fn done_by_path(
        &self,
        call: FuseRequest,
        reply: ReplyEmpty,
        work: impl Future<Output = VfsResult<()>> + Send + 'static,
    ) {
        let work = self.by_path(call.tid, work);
        self.done(call, reply, work);
    }

    /// Keeps what the kernel is about to be told of a name (see [`Vfs::tells`]).
    fn tell(
        &self,
        parent: types::Ino,
        name: &[u8],
    ) -> impl Fn(types::Ino, Duration) + Send + use<> {
        let (vfs, name) = (self.vfs(), Box::<[u8]>::from(name));
        move |ino, ttl| vfs.tells(parent, &name, ino, ttl)
    }

    /// A lookup of what a handle names, or of the directory above it. The kernel keeps no
    /// name of it.
    fn by_number(
        &self,
        call: FuseRequest,
        ino: types::Ino,
        above: bool,
        cred: Arc<Credential>,
        reply: ReplyEntry,
    ) {
        let vfs = self.vfs();
        let work = async move {
            match above {
                true => vfs.lookup_parent(&cred, ino).await,
                false => vfs.lookup_itself(&cred, ino).await,
            }
        };
        let (work, undo) = (self.settled(found_ino, work), self.forgets());
        self.dispatch.run(call, reply, work, answer::lookup, undo);
    }

    /// What may end the wait for a WRITE.
    pub(super) fn write_mode(flags: fuser::WriteFlags) -> WaitMode {
        // An error for write-back drops the pages: a killed process must not
        // cost others what they mapped.
        if flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE) {
            WaitMode::Uninterruptible
        } else {
            WaitMode::Killable
        }
    }

    /// Whether a request for a lock waits until it is there.
    pub(super) fn waits_for_lock(range: LockRange, sleep: bool) -> bool {
        sleep && range.typ != libc::F_UNLCK
    }

    /// What may end the wait for a lock.
    pub(super) fn lock_mode(range: LockRange, sleep: bool) -> WaitMode {
        // Only F_SETLKW is documented to end with EINTR.
        if Self::waits_for_lock(range, sleep) {
            WaitMode::Interruptible
        } else {
            WaitMode::Killable
        }
    }

    /// SETLK. `again` parks the same request, should it have to be withdrawn while it waits:
    /// nothing is locked in its name then.
    pub(super) fn setlk(
        &self,
        req: &Request,
        (ino, fh, owner): (INodeNo, FileHandle, LockOwner),
        (range, sleep): (LockRange, bool),
        reply: ReplyEmpty,
        again: Option<Again<ReplyEmpty>>,
    ) {
        let wait_mode = Self::lock_mode(range, sleep);
        let call = FuseRequest::new(FuseOp::SetLk, req, ino.0).wait_mode(wait_mode);
        let tid = req.pid();
        let waiting = Arc::new(Waiting::by(Arc::new(move || proc::lock_call(tid))));
        let (vfs, caller) = (self.vfs(), Arc::clone(&waiting));
        let work = async move { vfs.setlk(fh.0, owner.0, range, sleep, &caller).await };
        self.dispatch
            .run_waiting(call, reply, (waiting, again), work, answer::done);
    }

    /// Gives back what was looked up for nobody.
    fn forgets(&self) -> impl FnOnce(Lookup) -> std::future::Ready<()> + Send + 'static {
        let vfs = self.vfs();
        move |found| {
            if let Lookup::Found(entry) = found {
                vfs.forget(entry.ino, 1);
            }
            keep(())
        }
    }
}

/// What passes the gate ([`Gated`](super::gated::Gated), which fuser calls).
impl Filesystem for Adapter {
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = FuseRequest::new(FuseOp::Lookup, req, parent.0);
        if matches!(name.as_bytes(), b"." | b"..") {
            return self.by_number(call, parent.0, name == "..", self.who(req), reply);
        }
        let at = (parent.0, name.as_bytes());
        let dentry_state = self.vfs.dentry_state(at.0, at.1);
        let cached = attempt(|| {
            let may = self.vfs.may_search(|| self.who(req), parent.0);
            may.then(|| lookup::cached(&self.vfs, &self.reopens, call.tid, at, dentry_state))?
        });
        let known = match cached {
            None => None,
            Some(Err(error)) => {
                self.dispatch.log_failure(&call, &error);
                reply.error(convert::errno(error.errno()));
                return self.dispatch.answered(&call, false);
            }
            // Pages have to go first.
            Some(Ok(Lookup::Found(entry))) if self.vfs.is_telling(entry.ino) => Some(entry),
            Some(Ok(found)) => {
                if let Lookup::Found(entry) = &found {
                    self.vfs.tells(at.0, at.1, entry.ino, entry.entry_ttl);
                }
                answer::lookup(reply, found);
                return self.dispatch.answered(&call, true);
            }
        };
        let tell = self.tell(parent.0, name.as_bytes());
        let answer = move |reply, found: Lookup| {
            if let Lookup::Found(entry) = &found {
                tell(entry.ino, entry.entry_ttl);
            }
            answer::lookup(reply, found);
        };
        let asker = Asker {
            vfs: self.vfs(),
            intents: Arc::clone(&self.intents),
            reopens: Arc::clone(&self.reopens),
            tid: call.tid,
        };
        let (cred, name) = (self.who(req), owned(name));
        let work = self.settled(found_ino, async move {
            match known {
                Some(entry) => Ok(Lookup::Found(entry)),
                None => asker.find(&cred, parent.0, &name, dentry_state).await,
            }
        });
        let undo = self.forgets();
        self.dispatch.run(call, reply, work, answer, undo);
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        if ino.0 == NO_NODE {
            return;
        }
        let call = FuseRequest::new(FuseOp::Forget, req, ino.0);
        let ok = attempt(|| {
            self.vfs.forget(ino.0, nlookup);
            Some(())
        })
        .is_some();
        self.dispatch.answered(&call, ok);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let call = FuseRequest::new(FuseOp::GetAttr, req, ino.0);
        let fh = fh.map(|fh| fh.0);
        let cached = attempt(|| self.vfs.getattr_cached(ino.0, fh));
        let telling = self.vfs.is_telling(ino.0);
        // What the kernel may believe it asks for again if the server is to be asked, but
        // also after a read or a change: who asks tells. With a handle it is the kernel
        // itself; what may not be believed nobody but this host knows yet.
        let told = fh.is_none() && cached.as_ref().is_some_and(|(_, ttl)| !ttl.is_zero());
        let listed = told && self.vfs.is_listed_since(ino.0);
        let forced = told && !listed && intent::may_force(call.tid);
        if let Some((stat, ttl)) = cached.filter(|_| !forced && !listed && !telling) {
            reply.attr(&ttl, &convert::attr_of_node(&stat));
            return self.dispatch.answered(&call, true);
        }
        let (vfs, cred) = (self.vfs(), self.who(req));
        let intents = Arc::clone(&self.intents);
        let work = async move {
            if listed {
                return vfs.getattr_listed(&cred, ino.0, call.tid).await;
            }
            if forced && intents.forces(call.tid).await {
                return vfs.getattr_asked(&cred, ino.0).await;
            }
            vfs.getattr(&cred, ino.0, fh).await
        };
        let work = self.settled(move |_| Some(ino.0), self.on_the_way(call.tid, work));
        self.dispatch.run(call, reply, work, answer::attr, keep);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let call = FuseRequest::new(FuseOp::SetAttr, req, ino.0);
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let (vfs, cred, fh) = (self.vfs(), self.who(req), fh.map(|fh| fh.0));
        let work = async move { vfs.setattr(&cred, ino.0, fh, set).await };
        let work = self.settled(move |_| Some(ino.0), self.by_path(call.tid, work));
        self.dispatch.run(call, reply, work, answer::attr, keep);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let call = FuseRequest::new(FuseOp::ReadLink, req, ino.0);
        if let Some(target) = attempt(|| self.vfs.readlink_cached(ino.0)) {
            reply.data(&target);
            return self.dispatch.answered(&call, true);
        }
        let (vfs, cred) = (self.vfs(), self.who(req));
        let work = async move { vfs.readlink(&cred, ino.0).await };
        let work = self.on_the_way(call.tid, work);
        let answer = |reply: ReplyData, target: Bytes| reply.data(&target);
        self.dispatch.run(call, reply, work, answer, keep);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32, // applied by the kernel
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let call = FuseRequest::new(FuseOp::MkNod, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        let tell = self.tell(parent.0, &name);
        self.entry(call, reply, tell, async move {
            vfs.mknod(&cred, parent.0, &name, mode, rdev).await
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let call = FuseRequest::new(FuseOp::MkDir, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        let tell = self.tell(parent.0, &name);
        self.entry(call, reply, tell, async move {
            vfs.mkdir(&cred, parent.0, &name, mode).await
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let call = FuseRequest::new(FuseOp::Symlink, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        let target = owned(target.as_os_str());
        let tell = self.tell(parent.0, &name);
        self.entry(call, reply, tell, async move {
            vfs.symlink(&cred, parent.0, &name, &target).await
        });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let call = FuseRequest::new(FuseOp::Link, req, ino.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(new_name));
        let tell = self.tell(new_parent.0, &name);
        self.entry(call, reply, tell, async move {
            vfs.link(&cred, ino.0, new_parent.0, &name).await
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = FuseRequest::new(FuseOp::Unlink, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        self.done_by_path(call, reply, async move {
            vfs.unlink(&cred, parent.0, &name).await
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = FuseRequest::new(FuseOp::RmDir, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        self.done_by_path(call, reply, async move {
            vfs.rmdir(&cred, parent.0, &name).await
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = FuseRequest::new(FuseOp::Rename, req, parent.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let (name, new_name) = (owned(name), owned(new_name));
        self.done_by_path(call, reply, async move {
            let (from, to) = ((parent.0, &*name), (new_parent.0, &*new_name));
            vfs.rename(&cred, from.0, from.1, to.0, to.1, flags.bits())
                .await
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = FuseRequest::new(FuseOp::Open, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let reopens = Arc::clone(&self.reopens);
        let found = reopens.opens(call.tid, call.unique, ino.0);
        let work = async move {
            if found {
                let opened = vfs.open_found(&cred, ino.0, flags.0, call.tid).await;
                if matches!(&opened, Err(error) if error.is(libc::ESTALE)) {
                    let (id, tid) = (call.unique, call.tid);
                    tracing::debug!(id, tid, "the open was refused on its second walk");
                }
                return opened;
            }
            let opened = vfs.open(&cred, ino.0, flags.0).await;
            if matches!(&opened, Err(error) if error.is(libc::ESTALE)) {
                let (ino, flags, unique) = (ino.0, flags.0, call.unique);
                reopens.refused(call.tid, Some(Refused { ino, flags, unique }));
            }
            opened
        };
        let vfs = self.vfs();
        let undo = move |opened: Opened| async move {
            let _ = vfs.release(opened.fh).await;
        };
        self.dispatch.run(call, reply, work, answer::opened, undo);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let call = FuseRequest::new(FuseOp::Create, req, parent.0);
        let (vfs, cred, name) = (self.vfs(), self.who(req), owned(name));
        let tell = self.tell(parent.0, &name);
        let work = async move { vfs.create(&cred, parent.0, &name, mode, flags).await };
        // After ESTALE the kernel walks once more, and is told what is there.
        let work = self.by_path(call.tid, work);
        let work = self.settled(|made: &(Entry, Opened)| Some(made.0.ino), work);
        let answer = move |reply, created: (Entry, Opened)| {
            tell(created.0.ino, convert::joint_ttl(&created.0));
            answer::created(reply, created);
        };
        let vfs = self.vfs();
        let undo = move |(entry, opened): (Entry, Opened)| async move {
            let _ = vfs.release(opened.fh).await;
            vfs.forget(entry.ino, 1);
        };
        self.dispatch.run(call, reply, work, answer, undo);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let call = FuseRequest::new(FuseOp::Read, req, ino.0);
        if let Some(data) = attempt(|| self.vfs.read_cached(fh.0, offset, size)) {
            answer::data(size)(reply, data);
            return self.dispatch.answered(&call, true);
        }
        let vfs = self.vfs();
        let work = async move { vfs.read(fh.0, offset, size, flags.0).await };
        self.dispatch
            .run(call, reply, work, answer::data(size), keep);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_cache = write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE);
        let wait_mode = Self::write_mode(write_flags);
        let call = FuseRequest::new(FuseOp::Write, req, ino.0).wait_mode(wait_mode);
        // The one copy: `data` lies in the reader thread's buffer.
        let vfs = self.vfs();
        let data = vfs.copy(data);
        let flags = WriteFlags {
            open_flags: flags.0,
            from_cache,
            kills_privileges: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let work = async move { vfs.write(fh.0, offset, data, flags).await };
        self.dispatch.run(call, reply, work, answer::written, keep);
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let call = FuseRequest::new(FuseOp::Flush, req, ino.0);
        let vfs = self.vfs();
        self.done(
            call,
            reply,
            async move { vfs.flush(fh.0, lock_owner.0).await },
        );
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let call = FuseRequest::new(FuseOp::Fsync, req, ino.0);
        let vfs = self.vfs();
        self.done(call, reply, async move { vfs.fsync(fh.0).await });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let call =
            FuseRequest::new(FuseOp::Release, req, ino.0).wait_mode(WaitMode::Uninterruptible);
        // Here, not in the task: a lock that is asked for next finds it under way.
        let work = self.vfs.release(fh.0);
        self.done(call, reply, work);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let call = FuseRequest::new(FuseOp::OpenDir, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let work = async move { vfs.opendir(&cred, ino.0, call.tid).await };
        let work = self.by_path(call.tid, work);
        let vfs = self.vfs();
        let undo = move |opened: Opened| async move {
            let _ = vfs.releasedir(opened.fh).await;
        };
        self.dispatch
            .run(call, reply, work, answer::opened_dir, undo);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let call = FuseRequest::new(FuseOp::ReadDir, req, ino.0);
        let vfs = self.vfs();
        self.dispatch.run_with(
            call,
            reply,
            |pending| {
                let mut sink = NameSink::new(pending);
                async move {
                    let listed = vfs.readdir(fh.0, offset, false, &mut sink).await;
                    // What was listed before an error is shown; the error
                    // comes when the listing goes on.
                    if sink.any() { Ok(()) } else { listed }
                }
            },
            |reply: ReplyDirectory, ()| reply.ok(),
            keep,
        );
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let call = FuseRequest::new(FuseOp::ReadDirPlus, req, ino.0);
        let vfs = self.vfs();
        self.dispatch.run_with(
            call,
            reply,
            |pending| {
                let (forgetful, telling) = (Arc::clone(&vfs), Arc::clone(&vfs));
                let forget = move |ino| forgetful.forget(ino, 1);
                let tell = move |name: &[u8], at, ttl| telling.tells(ino.0, name, at, ttl);
                let mut sink = PlusSink::new(pending, forget, tell);
                async move {
                    let listed = vfs.readdir(fh.0, offset, true, &mut sink).await;
                    if sink.any() {
                        Ok(Some(sink))
                    } else {
                        listed.map(|()| None)
                    }
                }
            },
            |reply: ReplyDirectoryPlus, sink| {
                reply.ok();
                if let Some(sink) = sink {
                    sink.delivered();
                }
            },
            // Dropping the sink forgets what it holds.
            keep,
        );
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let call =
            FuseRequest::new(FuseOp::ReleaseDir, req, ino.0).wait_mode(WaitMode::Uninterruptible);
        let vfs = self.vfs();
        self.done(call, reply, async move { vfs.releasedir(fh.0).await });
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let call = FuseRequest::new(FuseOp::FsyncDir, req, ino.0);
        let vfs = self.vfs();
        self.done(call, reply, async move { vfs.fsyncdir(ino.0).await });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        if self.is_probe(req) {
            return reply.error(Errno::from_i32(prober::ANSWER));
        }
        let call = FuseRequest::new(FuseOp::StatFs, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let work = async move { vfs.statfs(&cred, ino.0).await };
        let work = self.by_path(call.tid, work);
        self.dispatch.run(call, reply, work, answer::statfs, keep);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let call = FuseRequest::new(FuseOp::Access, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let mask = mask.bits().cast_unsigned();
        let work = async move { vfs.access(&cred, ino.0, mask).await };
        let work = self.on_the_way(call.tid, work);
        self.done(call, reply, work);
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let call = FuseRequest::new(FuseOp::GetLk, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let range = LockRange {
            start,
            end,
            typ,
            pid,
        };
        let work = async move { vfs.getlk(&cred, fh.0, lock_owner.0, range).await };
        self.dispatch.run(call, reply, work, answer::lock, keep);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let Some(from) = warm_call::asked(cmd, in_data) else {
            return reply.error(Errno::EINVAL);
        };
        let call = FuseRequest::new(FuseOp::Ioctl, req, ino.0);
        let (vfs, cred) = (self.vfs(), self.who(req));
        let work = async move { vfs.warm(&cred, ino.0, from, warm_call::ROOM).await };
        self.dispatch.run(call, reply, work, answer::warmed, keep);
    }
}
