//! A cache of file data on a disk of this host (`-o cache=`): a store of blocks of versions of files.
//!
//! It knows no inode and no request. Who reads says which file (its handle), and at which version
//! (change attribute and size) the server has it; what is kept under that version is given, and
//! nothing else. Whether a version is known, and whether bytes belong to it, is decided above
//! (`vfs::files::disk_read`). So a change elsewhere makes blocks useless, and never wrong.
//!
//! | file | what it does |
//! |---|---|
//! | [`format`] | It says what a cache file looks like, and which block is believed. |
//! | [`ledger`] | It says which slice goes first: a plain state machine. |
//! | [`dir`] | It has the directory, by descriptors, and the account that several daemons share. |
//! | [`store`] | It reads, fills, evicts and looks through the directory. |
//! | [`health`] | It says whether the cache steps aside. |
//! | [`patience`] | It says how long readers wait for room in the queue. |
//! | [`inspect`] | It looks at, checks and empties a directory without a mount (`efs-fuse cache`). |
//!
//! Everything that asks the disk runs on tokio's blocking threads, [`READS`] reads at a time and one
//! fill. Nobody waits for a fill: what is to be put on the disk waits in a queue of [`QUEUE`] bytes.
//! For room in that a reader waits a little; then what he has read is dropped. Nothing is synced: what a
//! crash leaves half written does not verify.
//!
//! [`DiskCache`] owns the queue and the limit of reads; the store has locks of its own, which are
//! taken inside no other and in which none is taken.

mod dir;
mod format;
mod health;
pub mod inspect;
mod ledger;
mod patience;
mod store;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use self::dir::{Dir, Unfit};
use self::format::Seal;
pub use self::format::{FileSystemId, Version};
use self::patience::Patience;
use self::store::Store;
use crate::background::Tasks;
use crate::telemetry::{DiskCounters, Metrics};

/// Reads of the disk at a time. More only wait in the disk's own queue.
const READS: usize = 16;
/// Bytes that wait to be put on the disk, at most.
const QUEUE: usize = 64 << 20;
/// They are counted in these.
const UNIT: usize = 4096;
/// So often the store is looked after.
const TICK: Duration = Duration::from_secs(2);

/// How much of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of its size.
    Percent(u8),
}

impl Amount {
    fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Where a cache is, and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCacheConfig {
    /// The directory.
    pub dir: PathBuf,
    /// What it may take, of all file systems and daemons together.
    pub size: Amount,
    /// What of its file system stays free.
    pub min_free: Amount,
    /// Blocks are encrypted with a key that dies with the daemon.
    pub secret: bool,
}

/// Makes sure that there is a directory that is fit to be a cache, but for room on its disk.
///
/// # Errors
/// Why not, in words.
pub fn prepare(dir: &Path) -> Result<(), String> {
    match Dir::make(dir) {
        Ok(_) | Err(Unfit::Full(_)) => Ok(()),
        Err(Unfit::Wrong(why)) => Err(why),
    }
}

/// What waits in the queue.
#[derive(Debug)]
enum Queued {
    Fill(Fill),
    /// Somebody waits until all before it is done with.
    Mark(oneshot::Sender<()>),
}

/// What is to be put on the disk.
#[derive(Debug)]
struct Fill {
    handle: Bytes,
    version: Version,
    offset: u64,
    data: Bytes,
    reader: u64,
    /// Its room in the queue, which is free when it is done with.
    _room: OwnedSemaphorePermit,
}

/// Somebody waits for room in the queue, as long as it lives.
struct Waiting<'a>(&'a Mutex<Patience>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().end(Instant::now());
    }
}

/// The cache of one mount. See the module.
#[derive(Debug)]
pub struct DiskCache {
    store: Arc<Store>,
    fills: mpsc::UnboundedSender<Queued>,
    /// Units that `fills` has room for.
    room: Arc<Semaphore>,
    patience: Mutex<Patience>,
    reads: Semaphore,
    tasks: Arc<Tasks>,
    counters: Arc<DiskCounters>,
}

impl DiskCache {
    /// A cache for that file system. Begins to look through the directory. To be called in a
    /// runtime.
    ///
    /// # Errors
    /// The directory is not fit for it, or its disk fails. In words.
    pub fn open(
        config: &DiskCacheConfig,
        fs: FileSystemId,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, String> {
        let dir = Dir::make(&config.dir).map_err(|why| why.to_string())?;
        let total = dir.space().map_err(|why| why.to_string())?.total;
        let limits = (config.size.of(total), config.min_free.of(total));
        let counters = Arc::clone(metrics.disk_cache.get_or_init(Arc::default));
        let (fs, seal) = match config.secret {
            false => (fs, Seal::Checksum),
            true => {
                let mut life = [0; 16];
                let random = getrandom::fill(&mut life).map_err(|why| why.to_string());
                random?;
                let seal = Seal::with_new_key().map_err(|why| why.to_string())?;
                // Nobody else can read it, so nobody else is to find it.
                (FileSystemId::of(&[&fs.0, &life]), seal)
            }
        };
        let store = Arc::new(Store::new(dir, fs, seal, limits, Arc::clone(&counters)));
        let (fills, queue) = mpsc::unbounded_channel();
        let cache = Arc::new(Self {
            fills,
            room: Arc::new(Semaphore::new(QUEUE / UNIT)),
            patience: Mutex::new(Patience::new(Instant::now())),
            reads: Semaphore::new(READS),
            tasks: Arc::clone(&metrics.tasks),
            counters,
            store,
        });
        cache.start(queue);
        Ok(cache)
    }

    fn start(&self, queue: mpsc::UnboundedReceiver<Queued>) {
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let (store, tasks) = (Arc::clone(&self.store), Arc::clone(&self.tasks));
        self.tasks.restarted("disk_fill", move || {
            let (queue, store) = (Arc::clone(&queue), Arc::clone(&store));
            let tasks = Arc::clone(&tasks);
            async move {
                let mut queue = queue.lock().await;
                while let Some(next) = queue.recv().await {
                    let fill = match next {
                        Queued::Fill(fill) => fill,
                        Queued::Mark(waiter) => {
                            // Nobody need wait any more.
                            let _ = waiter.send(());
                            continue;
                        }
                    };
                    tasks.point("disk_fill");
                    let store = Arc::clone(&store);
                    blocking(&tasks, "disk_fill", move || {
                        let Fill {
                            handle,
                            version,
                            offset,
                            data,
                            reader,
                            _room,
                        } = fill;
                        store.fill(&handle, version, offset, &data, reader);
                    })
                    .await;
                }
            }
        });
        let (store, tasks) = (Arc::downgrade(&self.store), Arc::clone(&self.tasks));
        self.tasks.restarted("disk_look_after", move || {
            let (store, tasks) = (store.clone(), Arc::clone(&tasks));
            async move {
                let mut scanned = false;
                while let Some(store) = store.upgrade() {
                    tasks.point("disk_look_after");
                    let first = !scanned;
                    scanned = true;
                    blocking(&tasks, "disk_look_after", move || match first {
                        true => store.begin(),
                        false => store.tick(),
                    })
                    .await;
                    tokio::time::sleep(TICK).await;
                }
            }
        });
    }

    /// The disk may have something of the file there; if not, there is no use in asking.
    pub fn may_have(&self, handle: &[u8], offset: u64) -> bool {
        self.store.may_have(handle, offset)
    }

    /// The bytes of the range of a file as it was at that version, if all of them are on the disk:
    /// fewer mean the end of the file. `reader` tells readers apart.
    pub async fn read(
        &self,
        handle: &[u8],
        version: Version,
        range: Range<u64>,
        reader: u64,
    ) -> Option<Bytes> {
        if !self.may_have(handle, range.start) {
            return None;
        }
        let _one = self.reads.acquire().await.ok()?;
        let (store, handle) = (Arc::clone(&self.store), handle.to_vec());
        let read = blocking(&self.tasks, "disk_read", move || {
            store.read(&handle, version, range, reader)
        });
        read.await.flatten()
    }

    /// So many bytes were given to a reader from the disk, or had to be asked of the server.
    pub fn count(&self, bytes: u64, hit: bool) {
        match hit {
            true => self.counters.hit_bytes.add(bytes),
            false => self.counters.miss_bytes.add(bytes),
        }
    }

    /// Puts what the server gave of a file, at that version, on the disk, some time later or never.
    /// Waits for room in the queue for as long as [`patience`] allows.
    pub async fn fill(
        &self,
        handle: &[u8],
        version: Version,
        offset: u64,
        data: &Bytes,
        reader: u64,
    ) {
        if data.is_empty() || !self.store.health().is_well() {
            return;
        }
        let Some(room) = self.room_for(data.len()).await else {
            self.counters.dropped_bytes.add(data.len() as u64);
            return;
        };
        let fill = Fill {
            handle: Bytes::copy_from_slice(handle),
            version,
            offset,
            data: data.clone(),
            reader,
            _room: room,
        };
        if self.fills.send(Queued::Fill(fill)).is_err() {
            self.counters.dropped_bytes.add(data.len() as u64);
        }
    }

    async fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.min(QUEUE).div_ceil(UNIT)).ok()?;
        let room = Arc::clone(&self.room);
        match Arc::clone(&room).try_acquire_many_owned(units) {
            Ok(room) => return Some(room),
            Err(TryAcquireError::Closed) => return None,
            Err(TryAcquireError::NoPermits) => {}
        }
        let until = self.patience.lock().begin(Instant::now())?;
        let _waiting = Waiting(&self.patience);
        let acquired = tokio::time::timeout_at(until.into(), room.acquire_many_owned(units));
        acquired.await.ok()?.ok()
    }

    /// Waits until what was to be put on the disk up to now is there, or was dropped.
    pub async fn caught_up(&self) {
        let (waiter, done) = oneshot::channel();
        if self.fills.send(Queued::Mark(waiter)).is_ok() {
            // An error is the death of what fills it, which drops what it had.
            let _ = done.await;
        }
    }

    /// How it stands, for `status`.
    pub fn status(&self) -> Value {
        let (budget, in_use, slices) = self.store.usage();
        json!({
            "budget": budget,
            "in_use": in_use,
            "slices": slices,
            "encrypted": self.store.is_secret(),
            "off": self.store.health().ailment(),
        })
    }

    /// The mount has ended: what nobody can read any more is removed. Blocks.
    pub fn end(&self) {
        self.store.forget_secrets();
    }
}

/// Runs what asks the disk on a thread for that; `None` if it has died.
async fn blocking<T: Send + 'static>(
    tasks: &Arc<Tasks>,
    task: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let tasks = Arc::clone(tasks);
    let done = tokio::task::spawn_blocking(move || tasks.round(task, work).ok());
    done.await.ok().flatten()
}

#[cfg(test)]
mod tests;
