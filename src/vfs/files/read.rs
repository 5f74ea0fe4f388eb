//! Reading: what is pending is settled first, then a READ as large as the
//! request; for a sequential reader more is fetched than was asked for.
//!
//! Data read ahead belong to the file as it was when they were asked for. They
//! are dropped when the file is seen to have moved by other hands or was cut
//! (`epoch`), and where this host writes, by whichever handle; and they live
//! only as long as the handle. All handles share one sum of memory
//! ([`crate::vfs::file::readahead_memory`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::nfs::state::OpenState;
use crate::vfs::Vfs;
use crate::vfs::file::inline_read::InlineData;
use crate::vfs::file::readahead::{CHUNK, Chunk, ChunkCache, Fetch, Readahead};
use crate::vfs::file::readahead_memory::{Holder, Share};
use crate::vfs::file::state::OpenHandle;
use crate::vfs::inode::Inode;
use crate::vfs::types::Errno;

/// A server that says neither data nor end of file so many times in a row has
/// lost its way.
const EMPTY_READS: usize = 3;

/// What is read ahead for one handle.
#[derive(Debug)]
pub struct Ahead {
    inner: Mutex<AheadInner>,
    arrived: Notify,
}

#[derive(Debug)]
struct AheadInner {
    detector: Readahead,
    chunks: ChunkCache<Held>,
    /// When the kernel last read.
    last_read: Instant,
    /// The file's epoch that the chunks belong to.
    epoch: u64,
    /// The file knows that this handle reads ahead.
    listed: bool,
    /// The mount does.
    enlisted: bool,
    /// What came along with the OPEN.
    beginning: Option<InlineData>,
    /// It came, and whether somebody read it.
    wanted: Option<bool>,
}

/// A chunk that is here.
#[derive(Debug)]
struct Held {
    data: Bytes,
    _share: Share,
}

impl Holder for OpenHandle {
    fn last_read(&self) -> Instant {
        self.ahead.inner.lock().last_read
    }

    fn give_up(&self) {
        let mut inner = self.ahead.inner.lock();
        inner.chunks.drop_all();
        inner.detector.forget_asked();
    }
}

impl Ahead {
    /// At most `window` bytes ahead.
    pub(in crate::vfs) fn new(window: u64, beginning: Option<InlineData>) -> Self {
        Self {
            inner: Mutex::new(AheadInner {
                detector: Readahead::new(window),
                chunks: ChunkCache::new((window / CHUNK) as usize + 2),
                last_read: Instant::now(),
                epoch: 0,
                listed: beginning.is_some(),
                enlisted: false,
                wanted: beginning.as_ref().map(InlineData::was_used),
                beginning,
            }),
            arrived: Notify::new(),
        }
    }

    /// The range was written to.
    pub fn written(&self, range: Range<u64>) {
        let mut inner = self.inner.lock();
        inner.chunks.drop_range(&range);
        inner.beginning = None;
    }

    /// Whether what came along with the OPEN was wanted; `None` if nothing came.
    pub(in crate::vfs) fn beginning_used(&self) -> Option<bool> {
        self.inner.lock().wanted
    }

    /// The bytes at `offset` from what came along with the OPEN, if the file is
    /// still at `epoch`.
    fn read_beginning(&self, epoch: u64, offset: u64, size: u64) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        let beginning = inner.beginning.as_mut()?;
        if beginning.epoch != epoch {
            inner.beginning = None;
            return None;
        }
        let (data, last) = beginning.read(offset, size)?;
        inner.wanted = Some(true);
        if last {
            inner.beginning = None;
        }
        Some(data)
    }
}

impl Vfs {
    /// Bytes that are read ahead for all handles together, here or on their way, and the
    /// most of them.
    pub fn read_ahead_bytes(&self) -> (u64, u64) {
        let (held, most) = self.read_memory.shares();
        (held as u64 * CHUNK, most as u64 * CHUNK)
    }

    /// READ, if it can be answered at once: from what came along with the OPEN.
    pub fn read_cached(&self, fh: u64, offset: u64, size: u32) -> Option<Bytes> {
        let handle = self.used_handle(fh).ok()?;
        let mut inner = handle.inode.opened()?.inner.lock();
        if !inner.writeback.is_idle() || inner.locks.is_lost(fh) {
            return None;
        }
        let epoch = inner.epoch(&handle.inode.attr.lock());
        let data = handle.ahead.read_beginning(epoch, offset, size.into())?;
        inner.pages_read();
        Some(data)
    }

    /// READ. Fewer bytes than asked for mean the end of the file.
    pub async fn read(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        size: u32,
        open_flags: i32,
    ) -> Result<Bytes, Errno> {
        if let Some(data) = self.read_cached(fh, offset, size) {
            return Ok(data);
        }
        let handle = self.used_handle(fh)?;
        self.check_locks(&handle, fh)?;
        let file = self.file_state(&handle.inode);
        file.inner.lock().pages_read();
        loop {
            let restarts = self.restarts.load(Ordering::Relaxed);
            let data = self
                .read_settled(&handle, offset, size.into(), open_flags)
                .await;
            // A READ that was repeated after a restart of the server may have
            // been answered before what that lost was written again.
            if self.restarts.load(Ordering::Relaxed) == restarts {
                return data;
            }
        }
    }

    async fn read_settled(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        offset: u64,
        size: u64,
        open_flags: i32,
    ) -> Result<Bytes, Errno> {
        let inode = &handle.inode;
        // Before the end of the file, only what overlaps matters. Beyond what
        // the server has of it, a hole of ours may be in the making: a short
        // answer would make the kernel cut the file.
        let server_has = inode.attr.lock().server_size();
        let len = if offset + size <= server_has {
            size
        } else {
            u64::MAX - offset
        };
        self.settle(inode, offset, len).await;
        if open_flags & libc::O_DIRECT == 0
            && self.believes_data()
            && let Some(data) = self.from_ahead(handle, offset, size).await
        {
            return Ok(data);
        }
        let data = self
            .read_through(&handle.open, handle, offset, size)
            .await?;
        let is_direct = open_flags & libc::O_DIRECT != 0;
        self.doubt_size(inode, (offset, size), data.len() as u64, is_direct);
        Ok(data)
    }

    /// Data that have just been read end elsewhere than the file does by its attributes:
    /// those are older. Where the kernel fills a page it cuts the file itself at the end that
    /// it has found, and must not be disturbed in that: whom it asks next is told the
    /// truth. Of what is read past its pages it draws no conclusion, so it is told.
    fn doubt_size(&self, inode: &Arc<Inode>, asked: (u64, u64), got: u64, is_direct: bool) {
        let (offset, size) = asked;
        if Self::is_changing(inode) {
            return;
        }
        let end = offset + got;
        let mut attr = inode.attr.lock();
        let known = attr.stat().size;
        let is_older = end > known || got < size && end < known;
        if is_older && !attr.ttl(Instant::now()).is_zero() {
            attr.expire();
            drop(attr);
            if is_direct && let Some(kernel) = self.kernel.get() {
                kernel.inval_attr(inode.ino);
            }
        }
    }

    /// READs until the request is satisfied or the file ends.
    async fn read_through(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        handle: &OpenHandle,
        offset: u64,
        size: u64,
    ) -> Result<Bytes, Errno> {
        let rsize = u64::from(self.client.rsize());
        let mut joined: Option<BytesMut> = None;
        let mut at = offset;
        let mut empty = 0;
        loop {
            let want = (offset + size - at).min(rsize) as u32;
            let read = self
                .client
                .read(open, at, want)
                .await
                .map_err(|error| self.failed(&error, &handle.inode))?;
            at += read.data.len() as u64;
            let done = read.eof || at == offset + size;
            if done && joined.is_none() {
                return Ok(read.data);
            }
            empty = if read.data.is_empty() { empty + 1 } else { 0 };
            if !done && empty == EMPTY_READS {
                tracing::warn!(
                    ino = handle.inode.ino,
                    "the server answers READ with neither data nor the end of the file"
                );
                return Err(Errno(libc::EIO));
            }
            let joined = joined.get_or_insert_with(|| BytesMut::with_capacity(size as usize));
            joined.extend_from_slice(&read.data);
            if done {
                return Ok(joined.split().freeze());
            }
        }
    }

    /// Answers from what was read ahead, and reads on ahead.
    async fn from_ahead(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        offset: u64,
        size: u64,
    ) -> Option<Bytes> {
        let file_size = handle.inode.attr.lock().stat().size;
        let now = Instant::now();
        let (listed, enlisted) = {
            let mut inner = handle.ahead.inner.lock();
            inner.last_read = now;
            let inner = &mut *inner;
            let was = |flag: &mut bool| std::mem::replace(flag, true);
            (was(&mut inner.listed), was(&mut inner.enlisted))
        };
        if !enlisted {
            self.read_memory.enlist(handle);
        }
        let epoch = {
            let mut file = self.file_state(&handle.inode).inner.lock();
            if !listed {
                file.reads_ahead(handle);
            }
            file.epoch(&handle.inode.attr.lock())
        };
        let ranges: SmallVec<[Range<u64>; 4]> = {
            let mut inner = handle.ahead.inner.lock();
            if inner.epoch != epoch {
                inner.epoch = epoch;
                inner.chunks.drop_all();
                inner.detector.forget_asked();
            }
            let ranges = inner.detector.on_read(offset, size, file_size);
            ranges
                .into_iter()
                // The chunk of this very request is fetched too, unless the
                // request is the whole of it.
                .filter(|range| !(range.start == offset && size >= CHUNK))
                .collect()
        };
        for range in ranges {
            let Some(share) = self.read_memory.share(now) else {
                // Asked for again when there is room.
                handle.ahead.inner.lock().detector.forget_asked();
                break;
            };
            let Some(fetch) = handle.ahead.inner.lock().chunks.want(range.start) else {
                continue;
            };
            let (vfs, handle) = (Arc::clone(self), Arc::clone(handle));
            tokio::spawn(async move { vfs.fetch(&handle, fetch, share).await });
        }
        loop {
            let arrived = handle.ahead.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut inner = handle.ahead.inner.lock();
                match inner.chunks.lookup(offset) {
                    Chunk::Missing => return None,
                    Chunk::Ready { start, data } => {
                        let data = &data.data;
                        let from = (offset - start) as usize;
                        let wanted = size.min(start + CHUNK - offset);
                        let whole = data.len() as u64 == CHUNK;
                        if wanted < size && whole {
                            // Over the edge of the chunk: not worth joining.
                            return None;
                        }
                        let to = (from + size as usize).min(data.len());
                        let slice = data.slice(from.min(to)..to);
                        inner.chunks.handed_out(offset, slice.len() as u64);
                        // A chunk that is not whole ends with the file, but
                        // the file may have grown since.
                        if (slice.len() as u64) < size {
                            inner.chunks.drop_range(&(offset..offset + size));
                            return None;
                        }
                        return Some(slice);
                    }
                    Chunk::Fetching => {}
                }
            }
            arrived.await;
        }
    }

    async fn fetch(self: &Arc<Self>, handle: &Arc<OpenHandle>, fetch: Fetch, share: Share) {
        let range = fetch.range();
        let len = range.end - range.start;
        let tasks = &self.metrics.tasks;
        let read = tasks.watched("fetch", async {
            tasks.point("fetch");
            self.settle(&handle.inode, range.start, len).await;
            self.read_through(&handle.open, handle, range.start, len)
                .await
        });
        let read = read.await;
        let mut inner = handle.ahead.inner.lock();
        match read {
            Ok(Ok(data)) => {
                let held = Held {
                    data,
                    _share: share,
                };
                inner.chunks.arrived(fetch, held);
            }
            Ok(Err(_)) | Err(_) => inner.chunks.failed(fetch),
        }
        drop(inner);
        handle.ahead.arrived.notify_waiters();
    }
}
