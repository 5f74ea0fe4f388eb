//! What is read ahead for one handle: which chunks are wanted, on their way or here
//! ([`readahead`](super::readahead)), and what came along with the OPEN
//! ([`inline_read`](super::inline_read)).
//!
//! Owned by one lock of its own, with which no other is taken. The read path does the I/O and
//! says under which epoch of the file it reads: what belongs to another is dropped.

use std::ops::Range;

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::inline_read::InlineData;
use super::readahead::{CHUNK, Chunk, ChunkCache, Fetch, Readahead};
use super::readahead_memory::{Holder, Share};

/// What is read ahead for one handle.
#[derive(Debug)]
pub(in crate::vfs) struct Ahead {
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

impl Holder for Ahead {
    fn last_read(&self) -> Instant {
        self.inner.lock().last_read
    }

    fn give_up(&self) {
        let mut inner = self.inner.lock();
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

    /// The range was written to, or newer bytes of it are known.
    pub(in crate::vfs) fn outdated(&self, range: Range<u64>) {
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
    pub(in crate::vfs) fn read_beginning(
        &self,
        epoch: u64,
        offset: u64,
        size: u64,
    ) -> Option<Bytes> {
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

    /// The handle reads now. Says what is left to be done before it reads ahead for the first
    /// time: the file is to know of it, and so is the mount.
    pub(in crate::vfs) fn begin_reading(&self, now: Instant) -> FirstReads {
        let mut inner = self.inner.lock();
        inner.last_read = now;
        let first = |flag: &mut bool| !std::mem::replace(flag, true);
        FirstReads {
            for_the_file: first(&mut inner.listed),
            for_the_mount: first(&mut inner.enlisted),
        }
    }

    /// Takes note of a read of a file that is at `epoch`, and says what should be fetched
    /// now beside it.
    pub(in crate::vfs) fn on_read(
        &self,
        epoch: u64,
        (offset, size): (u64, u64),
        file_size: u64,
    ) -> SmallVec<[Range<u64>; 4]> {
        let mut inner = self.inner.lock();
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
    }

    /// There was no room for what should be fetched: it is asked for again when there is.
    pub(in crate::vfs) fn forget_asked(&self) {
        self.inner.lock().detector.forget_asked();
    }

    /// Makes room for the chunk that begins there; see [`ChunkCache::want`].
    pub(in crate::vfs) fn want(&self, start: u64) -> Option<Fetch> {
        self.inner.lock().chunks.want(start)
    }

    /// A fetch has ended, with data or without.
    pub(in crate::vfs) fn fetched(&self, fetch: Fetch, data: Option<Bytes>, share: Share) {
        let mut inner = self.inner.lock();
        match data {
            Some(data) => {
                let held = Held {
                    data,
                    _share: share,
                };
                inner.chunks.arrived(fetch, held);
            }
            None => inner.chunks.failed(fetch),
        }
        drop(inner);
        self.arrived.notify_waiters();
    }

    /// The bytes at `offset`, as soon as they are here; `None` if they are not on their way.
    pub(in crate::vfs) async fn read(&self, offset: u64, size: u64) -> Option<Bytes> {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            match self.inner.lock().take(offset, size) {
                Taken::Data(data) => return Some(data),
                Taken::Missing => return None,
                Taken::Fetching => {}
            }
            arrived.await;
        }
    }
}

impl AheadInner {
    /// The bytes at `offset`, if the chunk that they lie in is here.
    fn take(&mut self, offset: u64, size: u64) -> Taken {
        let slice = match self.chunks.lookup(offset) {
            Chunk::Missing => return Taken::Missing,
            Chunk::Fetching => return Taken::Fetching,
            Chunk::Ready { start, data } => {
                let data = &data.data;
                let from = (offset - start) as usize;
                let wanted = size.min(start + CHUNK - offset);
                let whole = data.len() as u64 == CHUNK;
                if wanted < size && whole {
                    // Over the edge of the chunk: not worth joining.
                    return Taken::Missing;
                }
                let to = (from + size as usize).min(data.len());
                data.slice(from.min(to)..to)
            }
        };
        self.chunks.handed_out(offset, slice.len() as u64);
        // A chunk that is not whole ends with the file, but
        // the file may have grown since.
        if (slice.len() as u64) < size {
            self.chunks.drop_range(&(offset..offset + size));
            return Taken::Missing;
        }
        Taken::Data(slice)
    }
}

/// What a read finds of what was read ahead.
enum Taken {
    Data(Bytes),
    Fetching,
    Missing,
}

/// For whom a handle reads for the first time.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct FirstReads {
    /// The file does not know yet that the handle reads ahead.
    pub(in crate::vfs) for_the_file: bool,
    /// The mount does not.
    pub(in crate::vfs) for_the_mount: bool,
}
