//! The write-ahead log: what must be known of a mount should its daemon be killed.
//!
//! A mount with a keeper has one. It lies in a memfd that the keeper holds as well, so it is there
//! when the daemon is not. Whoever changes what another daemon must know puts a *record* before
//! anybody is told: before the kernel is answered, before the server is asked for what can
//! only be understood by whoever knows that it was asked. A record has a [`Table`], a key and
//! a value that serde encodes; putting it again replaces it, and removing it forgets it. What
//! this layer stores means nothing to it.
//!
//! A kill at any instruction leaves the records as they were before a change or after it.
//! Nothing is believed of the memory but what one atomic word says, the *end* of the log: what
//! lies behind it was never written ([`mod@log`]). Whoever takes over reads the log of
//! the daemon before it ([`Survived`]), changes nothing in it, writes one of its own, and has the
//! keeper hold that instead. If it is killed on the way, the next one begins from the same log.
//!
//! Two things are not in the log, because they change too often or are too large:
//!
//! - *Counts* ([`Count`]): one word for each, changed in its place.
//! - *Data* ([`Wal::copy`]): bytes in the memory, to which a record refers by a [`Place`].
//!
//! A [`Wal`] that is off does nothing, at the cost of one branch. A log that cannot be written any
//! more (it has outgrown its room) is *broken*: it says so to whoever would read it, and the
//! mount ends with its daemon, as one without a keeper does.
//!
//! Locks: one for the log, one for the arena, one for free counts. Each is held for one
//! operation and no other is taken inside it. The log's is taken under any lock of the layers
//! above: records have the order of the changes that they tell of.

mod arena;
mod counts;
mod log;
mod map;
mod numbers;
mod survived;

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::arena::Arena;
pub use self::counts::Count;
use self::counts::Counts;
use self::log::Log;
use self::map::Map;
pub use self::numbers::Numbers;
pub use self::survived::{Survived, Unreadable};

/// The layout of the memory and of all records. It moves with each change of either: the
/// program that takes over from a killed daemon is the one that the daemon ran.
pub const LAYOUT: u32 = 3;

/// What a record is about; the keys are its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// How the file system was mounted; one.
    Mount = 1,
    /// Who the client is to the server, and its sessions; one.
    Client = 2,
    /// An open of the client, by its open owner.
    Open = 3,
    /// A CLOSE that was not answered, by its open owner.
    Close = 4,
    /// The locks of a lock owner, by its number.
    Lock = 5,
    /// The root of the mount; one.
    Root = 6,
    /// An inode, by its number.
    Inode = 7,
    /// Where an inode was found, by its number.
    Place = 8,
    /// An open file, by its handle.
    Handle = 9,
    /// An open directory, by its handle.
    Dir = 10,
    /// A hidden name, by the inode that has it.
    Silly = 11,
    /// Write errors that were not told, by inode.
    Errors = 12,
    /// Which of the kernel's lock owners a lock owner of the client is, by the latter.
    Owner = 13,
    /// Attributes that wait to be set, by inode.
    Deferred = 14,
    /// Data that are not stable, in the order in which they were accepted.
    Write = 15,
    /// Where data were appended, by the request.
    Append = 16,
    /// The handle that an open is answered with, by the request.
    Opened = 17,
    /// Numbers that were given out: no smaller one is given out again.
    Numbers = 18,
    /// A compound that must not be executed twice, from before it is sent until the kernel's request
    /// that it is about was answered; by a number of its own.
    Sent = 19,
    /// A request of the kernel's that was answered before its operation had ended, by its number.
    GivenUp = 20,
    /// What names hash with; one.
    Hashes = 21,
    /// Parts of a directory's listing, by its handle and their order.
    Listing = 22,
    /// The second walk of a call that has ended with ESTALE, by its thread.
    Retry = 23,
    /// The file whose name this request hides, by the request.
    Victim = 24,
    /// A change of a name that was answered and that the server does not know, in their order.
    Change = 25,
    /// What a request of the kernel's was answered with ahead of the server, by the request.
    Ahead = 26,
    /// What became of an object that was promised, by its inode.
    Made = 27,
    /// What fsync of a directory is to tell, by its inode.
    Refused = 28,
}

impl Table {
    /// All of them.
    const ALL: [Self; 28] = [
        Self::Mount,
        Self::Client,
        Self::Open,
        Self::Close,
        Self::Lock,
        Self::Root,
        Self::Inode,
        Self::Place,
        Self::Handle,
        Self::Dir,
        Self::Silly,
        Self::Errors,
        Self::Owner,
        Self::Deferred,
        Self::Write,
        Self::Append,
        Self::Opened,
        Self::Numbers,
        Self::Sent,
        Self::GivenUp,
        Self::Hashes,
        Self::Listing,
        Self::Retry,
        Self::Victim,
        Self::Change,
        Self::Ahead,
        Self::Made,
        Self::Refused,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The time since the machine was started, asleep or awake: the same for all processes.
pub fn clock() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists, and the struct lives through the call.
    unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now);
    }
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// Where data lie in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    at: u64,
    len: u64,
}

/// The write-ahead log of a mount, or none. Clones are one log.
#[derive(Clone, Debug, Default)]
pub struct Wal(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    memory: File,
    map: Arc<Map>,
    log: Log,
    counts: Counts,
    arena: Arena,
}

impl Wal {
    /// No log: whatever it is told is forgotten.
    pub const fn off() -> Self {
        Self(None)
    }

    /// A log with nothing in it, with room for `data` bytes of data.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn create(data: usize) -> io::Result<Self> {
        // SAFETY: a static string; a new descriptor or -1 comes back.
        let memory = unsafe { libc::memfd_create(c"efs-fuse-wal".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new and belongs to nobody else.
        let memory = unsafe { File::from_raw_fd(memory) };
        let map = Arc::new(Map::of(&memory)?);
        Ok(Self(Some(Arc::new(Inner {
            log: Log::begin(Arc::clone(&map)),
            counts: Counts::new(Arc::clone(&map)),
            arena: Arena::new(Arc::clone(&map), data),
            memory,
            map,
        }))))
    }

    /// There is one.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The memory that it lies in, for the keeper.
    pub fn memory(&self) -> Option<&File> {
        self.0.as_ref().map(|inner| &inner.memory)
    }

    /// Bytes that the records take, and those of data; for people.
    pub fn used(&self) -> (u64, u64) {
        let inner = self.0.as_ref();
        inner.map_or((0, 0), |inner| (inner.log.used(), inner.arena.used()))
    }

    /// From here on the record has this value.
    pub fn put(&self, table: Table, key: u64, record: &impl Serialize) {
        if let Some(inner) = &self.0 {
            inner.log.put(table, key, record);
        }
    }

    /// From here on there is no such record.
    pub fn remove(&self, table: Table, key: u64) {
        if let Some(inner) = &self.0 {
            inner.log.remove(table, key);
        }
    }

    /// A count that is `value`. It counts by itself where there is no log.
    pub fn count(&self, value: u64) -> Count {
        match &self.0 {
            Some(inner) => match inner.counts.take(value) {
                Some(count) => count,
                None => {
                    inner.log.broken("there are too many inodes");
                    Count::alone(value)
                }
            },
            None => Count::alone(value),
        }
    }

    /// The count has this value from here on.
    pub fn set(&self, count: &mut Count, value: u64) {
        count.set(value);
        if let (Some(inner), Some(slot)) = (&self.0, count.slot()) {
            inner.counts.set(slot, value);
        }
    }

    /// The count is of nothing any more; the record that names it was removed before.
    pub fn free(&self, count: &Count) {
        if let (Some(inner), Some(slot)) = (&self.0, count.slot()) {
            inner.counts.free(slot);
        }
    }

    /// A copy of `data` that survives, for as long as somebody has a part of it: a record that names
    /// it must not outlive it. `None` if there is no room, or no log.
    pub fn copy(&self, data: &[u8]) -> Option<Bytes> {
        self.0.as_ref()?.arena.copy(data)
    }

    /// Gives back the memory that is of no use now; for a time in which little is put.
    pub fn rest(&self) {
        if let Some(inner) = &self.0 {
            inner.log.rest();
            inner.arena.rest();
        }
    }

    /// Where these bytes lie, if they are a part of a copy of [`Wal::copy`].
    pub fn place_of(&self, data: &Bytes) -> Option<Place> {
        let at = self.0.as_ref()?.map.offset_of(data)?;
        let len = data.len() as u64;
        Some(Place { at: at as u64, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on() {
        let before = clock();
        assert!(before > Duration::ZERO && clock() >= before);
    }

    #[test]
    fn each_table_has_the_number_that_it_is_found_by() {
        for table in Table::ALL {
            assert_eq!(Table::of(table as u8), Some(table));
        }
        assert_eq!((Table::of(0), Table::of(200)), (None, None));
    }

    #[test]
    fn a_log_that_is_off_keeps_nothing_and_counts_all_the_same() {
        let wal = Wal::off();
        wal.put(Table::Inode, 1, &"x");
        wal.remove(Table::Inode, 1);
        let mut count = wal.count(1);
        wal.set(&mut count, 5);
        assert_eq!(count.get(), 5);
        wal.free(&count);
        assert!(wal.copy(b"data").is_none() && wal.memory().is_none());
    }
}
