//! What fuser calls: the adapter behind the gate, and the one place that all requests pass.
//!
//! Each method is one line: if the gate is open, the adapter's method of the same name; else
//! the call is parked with copies of what it borrows. Three kinds pass a closed gate:
//! - FORGET, which nobody waits for and the kernel never sends again. It touches nothing but
//!   the count of its inode.
//! - The prober's own request, so that a hand-over does not look like a hang to the watchdog.
//! - What is answered ENOSYS, which depends on nothing.
//!
//! ENOSYS is an answer for good: the kernel remembers it for the whole mount and does without
//! the operation. Extended attributes, SEEK_HOLE, copy, preallocation and poll get it,
//! since EFS has none of them, and so does every ioctl but one ([`warm_call`](super::warm_call)), of which it
//! remembers nothing; nothing else ever does.
//!
//! FUSE_INIT was agreed before there is anything to close; FUSE_DESTROY and FUSE_INTERRUPT are
//! fuser's.

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::Adapter;
use super::dispatch::FuseReply;
use super::gate::Gate;
use super::inherited::InitValues;
use super::interrupt::{InterruptWatcher, WaitMode};
use super::warm_call;
use crate::vfs::types::LockRange;

/// The adapter behind its gate.
pub(super) struct Gated {
    adapter: Arc<Adapter>,
    gate: Arc<Gate>,
    watcher: Arc<InterruptWatcher>,
    init: Arc<OnceLock<InitValues>>,
}

/// The header of a request, to be looked at when the reader thread's buffer holds another.
fn copy(request: &Request) -> Request {
    const { assert!(size_of::<Request>() == 40 && !mem::needs_drop::<Request>()) };
    // SAFETY: a `Request` is nothing but the `fuse_in_header` of the protocol: eight numbers,
    // which own nothing and are dropped by nobody.
    unsafe { std::ptr::read(request) }
}

/// Calls a method of the adapter, or parks the call. Behind the arguments stands what the
/// parked call has to own.
macro_rules! through {
    ($own:ident, $method:ident($req:ident, $($arg:ident),*; $reply:ident) $(, $borrowed:ident)*) => {
        through!($own, WaitMode::Killable, $method($req, $($arg),*; $reply) $(, $borrowed)*)
    };
    ($own:ident, $mode:expr, $method:ident($req:ident, $($arg:ident),*; $reply:ident)
        $(, $borrowed:ident)*) => {
        if let Some(_pass) = $own.gate.enter() {
            $own.adapter.$method($req, $($arg,)* $reply);
        } else {
            $(let $borrowed = $borrowed.to_owned();)*
            $own.park($req, $mode, $reply, move |to, req, reply| {
                $(let $borrowed = &*$borrowed;)*
                to.$method(req, $($arg,)* reply);
            });
        }
    };
}

impl Gated {
    pub(super) fn new(adapter: Adapter) -> Self {
        Self {
            gate: adapter.gate(),
            watcher: adapter.watcher(),
            adapter: Arc::new(adapter),
            init: Arc::default(),
        }
    }

    pub(super) fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What the kernel offers and what is agreed with it, once FUSE_INIT has been answered.
    pub(super) fn init_values(&self) -> Arc<OnceLock<InitValues>> {
        Arc::clone(&self.init)
    }

    #[cold]
    fn park<R: FuseReply>(
        &self,
        req: &Request,
        wait_mode: WaitMode,
        reply: R,
        work: impl FnOnce(&Adapter, &Request, R) + Send + 'static,
    ) {
        let (to, caller) = (Arc::clone(&self.adapter), (req.pid(), wait_mode));
        let req = copy(req);
        let work = move |reply| work(&to, &req, reply);
        self.gate.park(&self.watcher, caller, reply, work);
    }
}

/// Asks for a lock, and keeps what is needed to ask for it again.
fn setlk(
    gated: (&Arc<Adapter>, &Arc<Gate>, &Arc<InterruptWatcher>),
    req: &Request,
    (ino, fh, owner): (INodeNo, FileHandle, LockOwner),
    (range, sleep): (LockRange, bool),
    reply: ReplyEmpty,
) {
    let (adapter, gate, watcher) = gated;
    let again = Adapter::waits_for_lock(range, sleep).then(|| {
        let (to, gate, watcher) = (Arc::clone(adapter), Arc::clone(gate), Arc::clone(watcher));
        let (req, caller) = (copy(req), (req.pid(), WaitMode::Interruptible));
        let again = move |reply: ReplyEmpty| {
            let (behind, listed) = (Arc::clone(&gate), Arc::clone(&watcher));
            let work = move |reply| {
                let gated = (&to, &behind, &listed);
                setlk(gated, &req, (ino, fh, owner), (range, sleep), reply);
            };
            gate.park(&watcher, caller, reply, work);
        };
        Box::new(again) as Box<dyn FnOnce(ReplyEmpty) + Send>
    });
    adapter.setlk(req, (ino, fh, owner), (range, sleep), reply, again);
}

impl Filesystem for Gated {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = self.adapter.negotiate(config);
        let _ = self.init.set(InitValues::of(config, agreed));
        Ok(())
    }

    fn destroy(&mut self) {
        self.watcher.stop();
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        through!(self, lookup(req, parent, name; reply), name);
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        self.adapter.forget(req, ino, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        through!(self, getattr(req, ino, fh; reply));
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
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        crtime: Option<SystemTime>,
        chgtime: Option<SystemTime>,
        bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        through!(
            self,
            setattr(
                req, ino, mode, uid, gid, size, atime, mtime, ctime, fh, crtime, chgtime, bkuptime,
                flags; reply
            )
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        through!(self, readlink(req, ino; reply));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        through!(self, mknod(req, parent, name, mode, umask, rdev; reply), name);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        through!(self, mkdir(req, parent, name, mode, umask; reply), name);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        through!(self, symlink(req, parent, name, target; reply), name, target);
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        through!(self, link(req, ino, new_parent, new_name; reply), new_name);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        through!(self, unlink(req, parent, name; reply), name);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        through!(self, rmdir(req, parent, name; reply), name);
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
        through!(
            self,
            rename(req, parent, name, new_parent, new_name, flags; reply),
            name,
            new_name
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        through!(self, open(req, ino, flags; reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        through!(self, create(req, parent, name, mode, umask, flags; reply), name);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        through!(self, read(req, ino, fh, offset, size, flags, owner; reply));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        through!(
            self,
            Adapter::write_mode(write_flags),
            write(req, ino, fh, offset, data, write_flags, flags, owner; reply),
            data
        );
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        through!(self, flush(req, ino, fh, owner; reply));
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        through!(self, fsync(req, ino, fh, datasync; reply));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        through!(
            self,
            WaitMode::Uninterruptible,
            release(req, ino, fh, flags, owner, flush; reply)
        );
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        through!(self, opendir(req, ino, flags; reply));
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        through!(self, readdir(req, ino, fh, offset; reply));
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        through!(self, readdirplus(req, ino, fh, offset; reply));
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        through!(self, WaitMode::Uninterruptible, releasedir(req, ino, fh, flags; reply));
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        through!(self, fsyncdir(req, ino, fh, datasync; reply));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        if self.adapter.is_probe(req) {
            return self.adapter.statfs(req, ino, reply);
        }
        through!(self, statfs(req, ino; reply));
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        through!(self, access(req, ino, mask; reply));
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        through!(self, getlk(req, ino, fh, owner, start, end, typ, pid; reply));
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let range = LockRange {
            start,
            end,
            typ,
            pid,
        };
        let (of, lock) = ((ino, fh, owner), (range, sleep));
        if let Some(_pass) = self.gate.enter() {
            let gated = (&self.adapter, &self.gate, &self.watcher);
            return setlk(gated, req, of, lock, reply);
        }
        let (to, gate, watcher) = (
            Arc::clone(&self.adapter),
            Arc::clone(&self.gate),
            Arc::clone(&self.watcher),
        );
        let mode = Adapter::lock_mode(range, sleep);
        self.park(req, mode, reply, move |_, req, reply| {
            setlk((&to, &gate, &watcher), req, of, lock, reply);
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _size: u32, _index: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        if !warm_call::is_asked(cmd) {
            return reply.error(Errno::ENOSYS);
        }
        through!(self, ioctl(req, ino, fh, flags, cmd, in_data, out_size; reply), in_data)
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
