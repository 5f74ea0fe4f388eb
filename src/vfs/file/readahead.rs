//! What to read before it is asked for.
//!
//! [`Readahead`] watches the reads of one open handle and says which aligned
//! chunks to fetch; [`ChunkCache`] keeps account of the chunks that are on
//! their way or here. Both are plain bookkeeping: the read path owns them
//! under the handle's lock, does the I/O and wakes the waiters.
//!
//! The kernel cuts a large read into requests that arrive in any order, so a
//! run is recognised by its density and not by each read beginning where the
//! last one ended: a run goes on while reads fall near its end and have covered
//! at least half of what lies between its start and its end. Reads that are
//! not part of a run are fetched exactly; nothing is read ahead for them.

use std::collections::BTreeMap;
use std::ops::Range;

use smallvec::SmallVec;

/// The unit of read-ahead, in bytes, and its alignment. The largest FUSE read,
/// so that a read of the kernel lies in one chunk.
pub(in crate::vfs) const CHUNK: u64 = 1 << 20;

/// How far from the end of a run a read may fall and still belong to it.
const SLACK: u64 = CHUNK;

/// A run is worth reading ahead for once it is this long ...
const START_BYTES: u64 = 128 << 10;

/// ... or has this many reads.
const START_READS: u32 = 3;

/// Detects sequential reading on one open handle.
#[derive(Debug)]
pub(in crate::vfs) struct Readahead {
    /// The largest window, bytes; 0 switches read-ahead off.
    max_window: u64,
    /// How far to be ahead of the reader. 0 after much random reading; kept
    /// (smaller) over a seek.
    window: u64,
    /// The reader reaches this point: the window doubles.
    double_at: u64,
    /// The file from here to `end` is the run.
    start: u64,
    end: u64,
    /// How much of the run was really read, at most all of it.
    covered: u64,
    reads: u32,
    /// The run is established: chunks up to `asked` were given out.
    running: bool,
    asked: u64,
}

impl Readahead {
    /// For a handle that has not been read. `max_window` is in bytes.
    pub(in crate::vfs) fn new(max_window: u64) -> Readahead {
        Readahead {
            max_window,
            window: 0,
            double_at: 0,
            start: 0,
            end: 0,
            covered: 0,
            reads: 0,
            running: false,
            asked: 0,
        }
    }

    /// Takes note of a read, and gives the chunks that should be fetched now
    /// beside it, ascending. Each is aligned and [`CHUNK`] long; the last one
    /// may reach over the end of the file. No chunk is given that begins at or
    /// behind `file_size_hint`.
    pub(in crate::vfs) fn on_read(
        &mut self,
        offset: u64,
        len: u64,
        file_size_hint: u64,
    ) -> SmallVec<[Range<u64>; 4]> {
        if len == 0 || self.max_window < CHUNK {
            return SmallVec::new();
        }
        let end = offset.saturating_add(len);
        if !self.extend(offset, end) {
            self.restart(offset, end);
        }
        if !self.running && self.is_established() {
            self.running = true;
            self.asked = 0;
            self.window = self.window.clamp(CHUNK, self.max_window);
            self.double_at = self.end.saturating_add(self.window / 2);
        }
        if !self.running {
            return SmallVec::new();
        }
        if self.end >= self.double_at {
            self.window = (self.window * 2).min(self.max_window);
            self.double_at = self.end.saturating_add(self.window / 2);
        }
        self.advance(file_size_hint)
    }

    /// The window in bytes: how far ahead of a sequential reader it fetches.
    #[cfg(test)]
    pub(in crate::vfs) fn window(&self) -> u64 {
        self.window
    }

    /// The chunks given out so far were dropped (the file has changed): they
    /// may be asked for again.
    pub(in crate::vfs) fn forget_asked(&mut self) {
        self.asked = 0;
    }

    /// Adds a read to the run; false if it is not part of it.
    fn extend(&mut self, offset: u64, end: u64) -> bool {
        let near = end.saturating_add(SLACK) >= self.end
            && offset <= self.end.saturating_add(SLACK)
            && self.reads > 0;
        if !near {
            return false;
        }
        let start = self.start.min(offset);
        let run_end = self.end.max(end);
        let covered = (self.covered + (end - offset)).min(run_end - start);
        // The gap before a read that came too early counts as long as the run
        // is long enough for it to be filled in.
        if covered < (run_end - start) / 2 {
            return false;
        }
        self.start = start;
        self.end = run_end;
        self.covered = covered;
        self.reads = self.reads.saturating_add(1);
        true
    }

    /// Begins a new run with this read, and trusts less in the next one.
    fn restart(&mut self, offset: u64, end: u64) {
        if self.reads > 0 {
            self.window /= 2;
            if self.window < CHUNK {
                self.window = 0;
            }
        }
        self.start = offset;
        self.end = end;
        self.covered = end - offset;
        self.reads = 1;
        self.running = false;
    }

    fn is_established(&self) -> bool {
        // A first large read from the start of a file is the kernel's own
        // read-ahead for a sequential reader.
        let begun = self.reads > 1 || self.start == 0;
        self.reads >= START_READS || begun && self.covered >= START_BYTES
    }

    /// The chunks from the one the reader is in up to the window's end.
    fn advance(&mut self, file_size_hint: u64) -> SmallVec<[Range<u64>; 4]> {
        let mut chunks = SmallVec::new();
        let stop = self.end.saturating_add(self.window).min(file_size_hint);
        let mut at = self.asked.max(self.end / CHUNK * CHUNK);
        while at < stop
            && let Some(end) = at.checked_add(CHUNK)
        {
            chunks.push(at..end);
            at = end;
            self.asked = end;
        }
        chunks
    }
}

/// Names one fetch from [`ChunkCache::want`] to the call that ends it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::vfs) struct Fetch {
    id: u64,
    start: u64,
}

impl Fetch {
    /// The range to read.
    pub(in crate::vfs) fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(CHUNK)
    }
}

/// Where the chunk of an offset is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::vfs) enum Chunk<'a, T> {
    /// Here; its data begin at the file offset `start`.
    Ready {
        /// The file offset of the first byte.
        start: u64,
        /// What [`ChunkCache::arrived`] brought.
        data: &'a T,
    },
    /// On its way: worth waiting for.
    Fetching,
    /// Neither.
    Missing,
}

/// The chunks read ahead for one handle. `T` is the data of a chunk.
///
/// At most `limit` chunks are here or on their way, and at most as many
/// fetches unfinished, those of dropped chunks included. A chunk goes when all
/// of it was handed out (the kernel caches it from then on), when its place is
/// needed and it was used least recently, or when the file changed.
#[derive(Debug)]
pub(in crate::vfs) struct ChunkCache<T> {
    limit: usize,
    slots: BTreeMap<u64, Slot<T>>,
    /// Fetches not ended yet, wanted or not.
    fetching: usize,
    /// Numbers fetches and uses.
    tick: u64,
}

#[derive(Debug)]
struct Slot<T> {
    fetch: u64,
    /// `None` while it is on its way.
    data: Option<T>,
    /// Bytes handed out.
    used: u64,
    last_use: u64,
}

impl<T> ChunkCache<T> {
    /// An empty cache of at most `limit` chunks.
    pub(in crate::vfs) fn new(limit: usize) -> ChunkCache<T> {
        ChunkCache {
            limit,
            slots: BTreeMap::new(),
            fetching: 0,
            tick: 0,
        }
    }

    /// Makes room for the chunk of `offset`. The caller has to read what it is
    /// given and end that with [`ChunkCache::arrived`] or
    /// [`ChunkCache::failed`]. `None` if the chunk is there already, or if all
    /// places are taken by fetches.
    pub(in crate::vfs) fn want(&mut self, offset: u64) -> Option<Fetch> {
        let start = offset / CHUNK * CHUNK;
        if self.slots.contains_key(&start) || self.fetching >= self.limit {
            return None;
        }
        if self.slots.len() >= self.limit && !self.evict() {
            return None;
        }
        self.tick += 1;
        self.fetching += 1;
        self.slots.insert(
            start,
            Slot {
                fetch: self.tick,
                data: None,
                used: 0,
                last_use: self.tick,
            },
        );
        Some(Fetch {
            id: self.tick,
            start,
        })
    }

    /// Ends a fetch. False if the chunk was dropped meanwhile: the data must
    /// not be used.
    pub(in crate::vfs) fn arrived(&mut self, fetch: Fetch, data: T) -> bool {
        self.fetching = self.fetching.saturating_sub(1);
        match self.slots.get_mut(&fetch.start) {
            Some(slot) if slot.fetch == fetch.id => {
                slot.data = Some(data);
                true
            }
            _ => false,
        }
    }

    /// Ends a fetch that brought nothing. Readers fetch for themselves then,
    /// and get the error themselves.
    pub(in crate::vfs) fn failed(&mut self, fetch: Fetch) {
        self.fetching = self.fetching.saturating_sub(1);
        if let Some(slot) = self.slots.get(&fetch.start)
            && slot.fetch == fetch.id
        {
            self.slots.remove(&fetch.start);
        }
    }

    /// Where the byte at `offset` is.
    pub(in crate::vfs) fn lookup(&mut self, offset: u64) -> Chunk<'_, T> {
        let start = offset / CHUNK * CHUNK;
        self.tick += 1;
        match self.slots.get_mut(&start) {
            Some(slot) => {
                slot.last_use = self.tick;
                match &slot.data {
                    Some(data) => Chunk::Ready { start, data },
                    None => Chunk::Fetching,
                }
            }
            None => Chunk::Missing,
        }
    }

    /// `len` bytes of the chunk of `offset` went to the reader. Gives the data
    /// back when that was all of it.
    pub(super) fn handed_out(&mut self, offset: u64, len: u64) -> Option<T> {
        let start = offset / CHUNK * CHUNK;
        let slot = self.slots.get_mut(&start)?;
        slot.used = slot.used.saturating_add(len);
        if slot.used < CHUNK || slot.data.is_none() {
            return None;
        }
        self.slots.remove(&start)?.data
    }

    /// Drops what overlaps `range`, here or on its way: it was written to.
    pub(super) fn drop_range(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = range.start / CHUNK * CHUNK;
        let starts: SmallVec<[u64; 4]> = self
            .slots
            .range(first..range.end)
            .map(|(&start, _)| start)
            .collect();
        for start in starts {
            self.slots.remove(&start);
        }
    }

    /// Drops everything, here or on its way: the file has changed.
    pub(super) fn drop_all(&mut self) {
        self.slots.clear();
    }

    /// Chunks here or on their way.
    #[cfg(test)]
    pub(in crate::vfs) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[cfg(test)]
    pub(in crate::vfs) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Drops the chunk used least recently of those that are here.
    fn evict(&mut self) -> bool {
        let here = self.slots.iter().filter(|(_, slot)| slot.data.is_some());
        let oldest = here.min_by_key(|(_, slot)| slot.last_use);
        match oldest.map(|(&start, _)| start) {
            Some(start) => self.slots.remove(&start).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 16 * CHUNK;
    const BIG: u64 = 1 << 40;
    const K: u64 = 1024;

    fn starts(chunks: &[Range<u64>]) -> Vec<u64> {
        for chunk in chunks {
            assert_eq!((chunk.start % CHUNK, chunk.end - chunk.start), (0, CHUNK));
        }
        chunks.iter().map(|chunk| chunk.start / CHUNK).collect()
    }

    /// Reads `count` pieces of `len` from `offset` on; gives all chunks asked.
    fn stream(ahead: &mut Readahead, offset: u64, len: u64, count: u64) -> Vec<u64> {
        (0..count)
            .flat_map(|i| starts(&ahead.on_read(offset + i * len, len, BIG)))
            .collect()
    }

    #[test]
    fn a_sequential_reader_is_given_each_chunk_once_and_in_order() {
        let mut ahead = Readahead::new(MAX);
        let asked = stream(&mut ahead, 0, 128 * K, 8 * 100);
        let expected: Vec<u64> = (0..asked.len() as u64).collect();
        assert_eq!(asked, expected);
        assert_eq!(asked.len(), 116);
    }

    #[test]
    fn the_window_doubles_from_one_chunk_to_the_largest() {
        let mut ahead = Readahead::new(MAX);
        let mut windows = Vec::new();
        for i in 0..400 {
            ahead.on_read(i * 128 * K, 128 * K, BIG);
            if windows.last() != Some(&(ahead.window() / CHUNK)) {
                windows.push(ahead.window() / CHUNK);
            }
        }
        assert_eq!(windows, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn requests_in_a_different_order_are_still_a_stream() {
        let mut ahead = Readahead::new(MAX);
        let mut asked = Vec::new();
        for block in 0..100 {
            for i in [1, 0, 3, 2, 6, 7, 5, 4] {
                let at = block * CHUNK + i * 128 * K;
                asked.extend(starts(&ahead.on_read(at, 128 * K, BIG)));
            }
        }
        assert_eq!(ahead.window(), MAX);
        assert!(asked.is_sorted() && asked.len() >= 110, "{asked:?}");
    }

    #[test]
    fn random_reads_are_not_read_ahead_for() {
        let mut ahead = Readahead::new(MAX);
        let mut at: u64 = 12345;
        // In a small file three pages in a row do happen by chance.
        for (size, by_chance) in [(256 * CHUNK, 0), (2 * CHUNK, 20)] {
            let mut asked = 0;
            for _ in 0..10_000 {
                at = at
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let page = (at >> 33) % (size / 4096);
                asked += ahead.on_read(page * 4096, 4096, size).len();
            }
            assert!(asked <= by_chance, "{asked} chunks for {size} bytes");
            assert!(ahead.window() <= CHUNK);
        }
    }

    #[test]
    fn a_header_read_is_not_a_stream() {
        let mut ahead = Readahead::new(MAX);
        assert!(ahead.on_read(0, 4 * K, BIG).is_empty());
        assert!(ahead.on_read(0, 4 * K, BIG).is_empty());
        assert!(ahead.on_read(50 * CHUNK, 128 * K, BIG).is_empty());
    }

    #[test]
    fn a_first_large_read_from_the_start_is_a_stream() {
        let mut ahead = Readahead::new(MAX);
        assert_eq!(starts(&ahead.on_read(0, 128 * K, BIG)), [0, 1]);
    }

    #[test]
    fn a_seek_halves_the_window_and_random_reads_close_it() {
        let mut ahead = Readahead::new(MAX);
        stream(&mut ahead, 0, 128 * K, 400);
        let asked = stream(&mut ahead, 500 * CHUNK, 128 * K, 2);
        assert_eq!(ahead.window(), MAX / 2);
        assert_eq!(asked, (500..509).collect::<Vec<_>>());
        for i in 0..5 {
            assert!(ahead.on_read(i * 1000 * CHUNK, 4 * K, BIG).is_empty());
        }
        assert_eq!(ahead.window(), 0);
    }

    #[test]
    fn nothing_is_read_ahead_behind_the_end_of_the_file() {
        let mut ahead = Readahead::new(MAX);
        let size = 3 * CHUNK + 5;
        let mut asked = Vec::new();
        for i in 0..25 {
            asked.extend(starts(&ahead.on_read(i * 128 * K, 128 * K, size)));
        }
        assert_eq!(asked, [0, 1, 2, 3]);
        assert!(ahead.on_read(u64::MAX - 5, 100, u64::MAX).is_empty());
    }

    #[test]
    fn read_ahead_can_be_switched_off() {
        let mut ahead = Readahead::new(0);
        assert!(stream(&mut ahead, 0, 128 * K, 100).is_empty());
    }

    #[test]
    fn dropped_chunks_are_asked_for_again() {
        let mut ahead = Readahead::new(MAX);
        let before = stream(&mut ahead, 0, 128 * K, 8);
        ahead.forget_asked();
        let after = stream(&mut ahead, CHUNK, 128 * K, 1);
        assert!(before.contains(&2) && after.contains(&2));
    }

    #[test]
    fn a_chunk_is_fetched_once_and_goes_when_all_of_it_was_handed_out() {
        let mut cache = ChunkCache::new(4);
        let fetch = cache.want(CHUNK + 7).unwrap();
        assert_eq!(fetch.range(), CHUNK..2 * CHUNK);
        assert_eq!(cache.want(CHUNK), None);
        assert_eq!(cache.lookup(CHUNK), Chunk::Fetching);
        assert!(cache.arrived(fetch, "data"));
        assert_eq!(
            cache.lookup(2 * CHUNK - 1),
            Chunk::Ready {
                start: CHUNK,
                data: &"data"
            }
        );
        assert_eq!(cache.handed_out(CHUNK + CHUNK / 2, CHUNK / 2), None);
        assert_eq!(cache.handed_out(CHUNK, CHUNK / 2), Some("data"));
        assert_eq!(cache.lookup(CHUNK), Chunk::Missing);
    }

    #[test]
    fn data_fetched_before_a_change_are_not_used() {
        let mut cache = ChunkCache::new(4);
        let written = cache.want(0).unwrap();
        let other = cache.want(CHUNK).unwrap();
        cache.drop_range(&(10..20));
        let newer = cache.want(0).unwrap();
        assert!(!cache.arrived(written, 1));
        assert!(cache.arrived(other, 2));
        assert!(cache.arrived(newer, 3));
        let outdated = cache.want(2 * CHUNK).unwrap();
        cache.drop_all();
        assert!(!cache.arrived(outdated, 4));
        assert!(cache.is_empty());
    }

    #[test]
    fn places_and_fetches_are_bounded() {
        let mut cache = ChunkCache::new(2);
        let a = cache.want(0).unwrap();
        let b = cache.want(CHUNK).unwrap();
        assert_eq!(cache.want(2 * CHUNK), None);
        cache.drop_all();
        assert_eq!(cache.want(2 * CHUNK), None, "two fetches still run");
        assert!(!cache.arrived(a, 1));
        cache.failed(b);
        for i in 2..10 {
            let fetch = cache.want(i * CHUNK).unwrap();
            assert!(cache.arrived(fetch, i));
            assert!(cache.len() <= 2);
        }
    }

    #[test]
    fn the_chunk_used_least_recently_gives_way() {
        let mut cache = ChunkCache::new(2);
        for i in 0..2 {
            let fetch = cache.want(i * CHUNK).unwrap();
            cache.arrived(fetch, i);
        }
        cache.lookup(0);
        let fetch = cache.want(2 * CHUNK).unwrap();
        cache.failed(fetch);
        assert!(matches!(cache.lookup(0), Chunk::Ready { .. }));
        assert_eq!(cache.lookup(CHUNK), Chunk::Missing);
        assert_eq!(cache.lookup(2 * CHUNK), Chunk::Missing);
    }
}
