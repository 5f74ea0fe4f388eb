//! The vocabulary of the vfs: what callers hand in and get back. No type of
//! the FUSE library and none of the wire appears here, but inside a [`Cause`].

mod error;
mod warm;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(in crate::vfs) use self::error::ErrorRecord;
pub use self::error::{Cause, VfsError, VfsResult};
pub use self::warm::{WarmFrom, Warmed, WarmedFile};

/// An inode number as the kernel knows it; 1 is the root of the mount.
pub type Ino = u64;

/// What is found by an inode number or by the number of a handle. The server or this mount gives
/// those, and no user chooses them: a hash that is proof against chosen keys would be half of
/// what a cached answer costs.
pub(in crate::vfs) type ByNumber<V> = DashMap<u64, V, FxBuildHasher>;

/// The inode number of the mount's root (fixed by FUSE).
pub const ROOT_INO: Ino = 1;

/// An error number of the host, as `errno(3)`. Always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// The positive number, for the FUSE reply.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

/// A point in time as the server keeps it. `nsec` is below 10^9; times before
/// 1970 have a negative `sec` and count `nsec` upwards from it, as POSIX does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds since the epoch.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

impl Timestamp {
    /// The time of this host.
    pub(in crate::vfs) fn now() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            sec: now.as_secs().cast_signed(),
            nsec: now.subsec_nanos(),
        }
    }
}

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

/// What `stat(2)` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// `st_ino`. For the root this is the server's number, not [`ROOT_INO`].
    pub ino: Ino,
    /// The kind of object.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `st_mode & 0o7777`.
    pub perm: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number (glibc encoding), 0 for anything but devices.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Space used, in 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size, bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
}

/// A name that was resolved; it counts as one lookup, which the kernel gives
/// back by FORGET.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The inode number the kernel is to use.
    pub ino: Ino,
    /// Tells apart files that had the same number one after the other.
    pub generation: u64,
    /// The object's attributes.
    pub stat: Stat,
    /// How long the kernel may believe `stat`.
    pub attr_ttl: Duration,
    /// How long the kernel may believe the name.
    pub entry_ttl: Duration,
}

/// Which missing names are remembered (`lookupcache=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingNames {
    /// None: each lookup of a name that is not there asks the server.
    None,
    /// Those that the server was asked for, as long as their directory is believed.
    AskedFor,
    /// In a directory whose names are all known, all others as well: what another host has
    /// made is so missing for as long as the directory is believed (`acdirmax`).
    AllOthers,
}

/// The answer to a lookup.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The name exists.
    Found(Entry),
    /// The name does not exist, and may be believed not to for this long
    /// (zero: ask again).
    Missing {
        /// How long the kernel may answer ENOENT by itself.
        ttl: Duration,
    },
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The server's clock (`UTIME_NOW`).
    Now,
    /// This time.
    At(Timestamp),
}

/// What `setattr` is to change; `None` leaves a field alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// New permission bits (`& 0o7777`).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size, bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// This, and what is changed after it.
    pub fn join(&mut self, newer: &Self) {
        self.mode = newer.mode.or(self.mode);
        self.uid = newer.uid.or(self.uid);
        self.gid = newer.gid.or(self.gid);
        self.size = newer.size.or(self.size);
        self.atime = newer.atime.or(self.atime);
        self.mtime = newer.mtime.or(self.mtime);
    }
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Names the handle in later calls.
    pub fh: u64,
    /// The kernel's cached pages of the file are still good.
    pub keep_cache: bool,
    /// Reads and writes must bypass the page cache.
    pub direct_io: bool,
}

/// What `statvfs(3)` shows, in units of `bsize` bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Total file slots; 0 where the server does not say (as EFS).
    pub files: u64,
    /// Free file slots.
    pub ffree: u64,
    /// Block size, bytes.
    pub bsize: u32,
    /// Longest name, bytes.
    pub namelen: u32,
}

/// One name of a directory listing.
#[derive(Clone, Debug)]
pub struct DirEntry<'a> {
    /// The inode number to show as `d_ino`.
    pub ino: Ino,
    /// Where the listing goes on after this entry (`d_off`).
    pub offset: u64,
    /// The kind of object, for `d_type`.
    pub kind: FileKind,
    /// The name.
    pub name: &'a [u8],
}

/// Takes the entries of a listing, in order, until its buffer is full.
pub trait DirSink: Send {
    /// Offers one entry; false if it did not fit and was not taken.
    fn add(&mut self, entry: &DirEntry<'_>) -> bool;

    /// Offers one entry together with its attributes (READDIRPLUS); false if
    /// it did not fit. If it was taken, it counts as a lookup of `plus`.
    fn add_plus(&mut self, entry: &DirEntry<'_>, plus: &Entry) -> bool;
}

/// Flags of one FUSE write.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    /// The open file's `O_*` flags at the time of the write.
    pub open_flags: i32,
    /// The data come from the page cache (mmap write-back), not from write(2).
    pub from_cache: bool,
    /// The caller has no CAP_FSETID, and the kernel has left it to the file system to
    /// take set-id rights from the file.
    pub kills_privileges: bool,
}

/// A byte range of a file lock, as `fcntl(2)` hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` is the end of any file.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub typ: i32,
    /// The holder's process, 0 if it is not of this host.
    pub pid: u32,
}

/// The call by which somebody waits for a lock. FUSE does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockCall {
    /// fcntl(2), F_SETLKW: for the process. It may fail with EDEADLK.
    Process,
    /// fcntl(2), F_OFD_SETLKW: for an open file description.
    Description,
    /// flock(2).
    Flock,
}

/// Finds out by which call a caller waits; `None` if that cannot be told. It may block
/// until the caller sleeps.
pub type FindCall = Arc<dyn Fn() -> Option<LockCall> + Send + Sync>;

/// A caller that waits for a lock and may give up. Giving up and getting the
/// lock exclude each other: whichever is first wins.
#[derive(Default)]
pub struct Waiting {
    outcome: AtomicU8,
    gave_up: Notify,
    call: Option<FindCall>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

const UNDECIDED: u8 = 0;
const ANSWERED: u8 = 1;
const GAVE_UP: u8 = 2;

impl Waiting {
    /// A caller whose call can be found out.
    pub fn by(call: FindCall) -> Self {
        Self {
            call: Some(call),
            ..Self::default()
        }
    }

    /// By which call the caller waits, if that can be told.
    pub(super) async fn call(&self) -> Option<LockCall> {
        let find = self.call.clone()?;
        tokio::task::spawn_blocking(move || find())
            .await
            .ok()
            .flatten()
    }

    fn decide(&self, outcome: u8) -> bool {
        self.outcome
            .compare_exchange(UNDECIDED, outcome, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The caller will get the lock; false if it has given up.
    pub fn answer(&self) -> bool {
        self.decide(ANSWERED)
    }

    /// The caller waits no more; false if it will get the lock.
    pub fn give_up(&self) -> bool {
        let first = self.decide(GAVE_UP);
        if first {
            self.gave_up.notify_waiters();
        }
        first
    }

    /// The caller waits no more.
    pub fn has_given_up(&self) -> bool {
        self.outcome.load(Ordering::Acquire) == GAVE_UP
    }

    /// Comes back when the caller waits no more.
    pub async fn gave_up(&self) {
        loop {
            let notified = self.gave_up.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.has_given_up() {
                return;
            }
            notified.await;
        }
    }
}

/// What the vfs tells the kernel about its caches. Calls return at once; the
/// kernel is told by a thread of its own, since it may wait for locks that the
/// current request holds.
pub trait KernelCache: Send + Sync {
    /// The pages and attributes of the inode are old.
    fn inval_inode(&self, ino: Ino);

    /// The same of a file that has grown to so many bytes: the kernel hears of them, too,
    /// once the pages are gone.
    fn inval_inode_grown(&self, ino: Ino, size: u64);

    /// As `inval_inode`, and the kernel has done it when this returns. It may
    /// wait for pages whose READ is in our hands, so it needs a thread that
    /// answers none: for LOCK, whose answer must not be followed by a read of
    /// an old page.
    fn inval_inode_now(&self, ino: Ino);

    /// Something is queued for the inode, or being told just now.
    fn is_telling(&self, ino: Ino) -> bool;

    /// Nothing is when this returns. It may wait as `inval_inode_now` does.
    fn settle(&self, ino: Ino);

    /// The attributes of the inode are old, its size among them. The kernel knows
    /// it when this returns, which takes no lock that a request could hold. Pages stay:
    /// for what this host itself has changed.
    fn inval_attr(&self, ino: Ino);

    /// The name may lead elsewhere now, or is to be forgotten.
    fn inval_entry(&self, parent: Ino, name: &[u8]);

    /// Names that the kernel has not been told of yet.
    fn backlog(&self) -> usize;

    /// A write past the pages (O_DIRECT) leaves the pages that the kernel has of its range as
    /// they are: before Linux 6.6.
    fn direct_writes_leave_pages(&self) -> bool {
        false
    }
}
