//! How a result of the vfs is put into its reply object.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    FileAttr, FileHandle, FileType, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite,
};

use super::convert;
use super::warm_call;
use crate::vfs::types::{Entry, LockRange, Lookup, Opened, Stat, StatFs, Warmed};

/// A name that exists now.
pub(super) fn entry(reply: ReplyEntry, entry: Entry) {
    reply.entry_with_ttls(
        &entry.attr_ttl,
        &entry.entry_ttl,
        &convert::attr(entry.ino, &entry.stat),
        Generation(entry.generation),
    );
}

/// A lookup. A missing name that may be believed is an entry with node id 0,
/// which the kernel keeps; ENOENT it would ask again each time.
pub(super) fn lookup(reply: ReplyEntry, found: Lookup) {
    match found {
        Lookup::Found(found) => entry(reply, found),
        Lookup::Missing { ttl } if ttl.is_zero() => reply.error(fuser::Errno::ENOENT),
        Lookup::Missing { ttl } => {
            reply.entry_with_ttls(&Duration::ZERO, &ttl, &NO_ATTR, Generation(0));
        }
    }
}

/// The attributes of a negative entry; the kernel looks only at the node id.
const NO_ATTR: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// The attributes of node `ino`, to be believed for a while.
pub(super) fn attr(reply: ReplyAttr, (stat, ttl): (Stat, Duration)) {
    reply.attr(&ttl, &convert::attr_of_node(&stat));
}

/// At most `size` bytes of data; the kernel refuses more than it asked for.
pub(super) fn data(size: u32) -> impl FnOnce(ReplyData, Bytes) + Send + 'static {
    move |reply, data| reply.data(&data[..data.len().min(size as usize)])
}

/// Success and nothing else.
pub(super) fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// An open file.
pub(super) fn opened(reply: ReplyOpen, opened: Opened) {
    reply.opened(FileHandle(opened.fh), convert::open_flags(opened));
}

/// An open directory.
pub(super) fn opened_dir(reply: ReplyOpen, opened: Opened) {
    reply.opened(FileHandle(opened.fh), convert::opendir_flags(opened));
}

/// A file created and open.
pub(super) fn created(reply: ReplyCreate, (entry, opened): (Entry, Opened)) {
    reply.created(
        &convert::joint_ttl(&entry),
        &convert::attr(entry.ino, &entry.stat),
        Generation(entry.generation),
        FileHandle(opened.fh),
        convert::open_flags(opened),
    );
}

/// The number of bytes written.
pub(super) fn written(reply: ReplyWrite, bytes: u32) {
    reply.written(bytes);
}

/// The space of the file system.
pub(super) fn statfs(reply: ReplyStatfs, fs: StatFs) {
    reply.statfs(
        fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, fs.namelen, fs.bsize,
    );
}

/// The lock that is in the way, or none (`F_UNLCK`).
pub(super) fn lock(reply: ReplyLock, found: LockRange) {
    reply.locked(found.start, found.end, found.typ, found.pid);
}

/// What was put on the disk.
pub(super) fn warmed(reply: ReplyIoctl, warmed: Warmed) {
    reply.ioctl(0, &warm_call::answer(&warmed));
}
