//! The store: blocks of versions of files, on the disk. Everything here blocks.
//!
//! Who owns what: `inner` has the ledger and the cache files that are open, and is held for moments,
//! never while the disk is asked. `health` has why the cache steps aside, if it does. What several
//! daemons share is the account in the directory ([`super::dir`]).
//!
//! What the ledger says may be wrong: another daemon removes and makes files, too. So it says what
//! to remove first, and that there is no use in looking; never that something is there.

mod upkeep;

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_128;

use super::dir::{Dir, SliceName};
use super::format::{
    BLOCK, BLOCKS, DATA, ENTRY, Entry, FileSystemId, HEADER, Header, MAX_HANDLE, PAGE, SLICE, Seal,
    TABLE, Version,
};
use super::health::Health;
use super::ledger::Ledger;
use crate::telemetry::DiskCounters;

/// Cache files that are kept open.
const OPEN: usize = 64;
/// A file's time of last use is written no more often than this: it only has to survive the daemon.
const TOUCH: Duration = Duration::from_secs(60);
/// Blocks that are written in one go, 256 KiB: what was just hashed is in the processor's cache still, and the
/// kernel takes pieces of memory of that size for it. With 1 MiB it took four times as long most of the
/// time (see decision 11), with 64 KiB a fifth longer.
const PIECE: usize = 4;
/// Entries of a page of the table.
const PER_PAGE: u64 = PAGE / ENTRY;

/// A cache file that is open, and whose header was verified.
#[derive(Debug)]
struct Slice {
    name: SliceName,
    header: Header,
    file: std::fs::File,
    /// Something of it did not verify, and that was said.
    said: AtomicBool,
}

#[derive(Debug)]
struct OpenSlice {
    slice: Arc<Slice>,
    used: Instant,
    /// When the time of last use was written.
    touched: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    ledger: Ledger<SliceName>,
    open: FxHashMap<SliceName, OpenSlice>,
    /// Slices that others have made, as far as they were found.
    others: u64,
    /// Those that this daemon has made.
    made: u64,
    scanned: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    dir: Dir,
    fs: FileSystemId,
    seal: Seal,
    budget: u64,
    /// Bytes of the file system that are to stay free.
    floor: u64,
    inner: Mutex<Inner>,
    /// What is not in the ledger is not on the disk either.
    knows_all: AtomicBool,
    health: Health,
    counters: Arc<DiskCounters>,
    /// The bytes of the account that all daemons have, when it was seen last.
    in_use: AtomicU64,
}

fn name_of(fs: FileSystemId, handle: &[u8], slice: u64) -> SliceName {
    let mut key = handle.to_vec();
    key.extend_from_slice(&slice.to_le_bytes());
    SliceName {
        fs,
        hash: xxh3_128(&key).to_be_bytes(),
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

impl Store {
    /// What is in `dir`, of which nothing is known before the first [`Store::scan`].
    pub(super) fn new(
        dir: Dir,
        fs: FileSystemId,
        seal: Seal,
        (budget, floor): (u64, u64),
        counters: Arc<DiskCounters>,
    ) -> Self {
        Self {
            dir,
            fs,
            seal,
            budget,
            floor,
            inner: Mutex::new(Inner {
                ledger: Ledger::new(budget),
                open: FxHashMap::default(),
                others: 0,
                made: 0,
                scanned: None,
            }),
            knows_all: AtomicBool::new(false),
            health: Health::default(),
            counters,
            in_use: AtomicU64::new(0),
        }
    }

    /// Blocks are encrypted.
    pub(super) fn is_secret(&self) -> bool {
        self.seal.is_secret()
    }

    /// Whether it steps aside, and why.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Bytes that may be in use, and that are, by all daemons; and how many slices are known.
    pub(super) fn usage(&self) -> (u64, u64, usize) {
        let slices = self.inner.lock().ledger.len();
        (self.budget, self.in_use.load(Ordering::Relaxed), slices)
    }

    /// The disk may have something of this range of the file. Asks no disk.
    pub(super) fn may_have(&self, handle: &[u8], offset: u64) -> bool {
        if !self.health.is_well() {
            return false;
        }
        !self.knows_all.load(Ordering::Acquire)
            || self
                .inner
                .lock()
                .ledger
                .contains(name_of(self.fs, handle, offset / SLICE))
    }

    /// The bytes of a range of the file as it was at that version, if all of them are there: fewer
    /// than the range has mean the end of the file.
    pub(super) fn read(
        &self,
        handle: &[u8],
        version: Version,
        range: Range<u64>,
        reader: u64,
    ) -> Option<Bytes> {
        let end = range.end.min(version.size);
        if range.start >= end {
            return Some(Bytes::new());
        }
        let mut joined: Option<BytesMut> = None;
        let mut at = range.start;
        loop {
            let until = end.min((at / SLICE + 1) * SLICE);
            let part = self.read_slice(handle, version, at..until, reader)?;
            at = until;
            if at == end && joined.is_none() {
                return Some(part);
            }
            let joined = joined.get_or_insert_with(BytesMut::new);
            joined.extend_from_slice(&part);
            if at == end {
                return Some(joined.split().freeze());
            }
        }
    }

    /// The same of a range that lies in one slice and in the file.
    fn read_slice(
        &self,
        handle: &[u8],
        version: Version,
        range: Range<u64>,
        reader: u64,
    ) -> Option<Bytes> {
        let name = name_of(self.fs, handle, range.start / SLICE);
        let slice = match self.slice(&name) {
            Ok(slice) => slice?,
            Err(why) => return self.failed("reading", &why),
        };
        if slice.header != self.header(handle, range.start / SLICE, version) {
            return None;
        }
        let base = slice.header.slice * SLICE;
        let first = (range.start - base) / BLOCK;
        let last = (range.end - 1 - base) / BLOCK;
        let data = match self.read_blocks(&slice, first..last + 1) {
            Ok(data) => data?,
            Err(why) => return self.failed("reading", &why),
        };
        self.used(&slice, reader);
        let skip = (range.start - base - first * BLOCK) as usize;
        let length = (range.end - range.start) as usize;
        (skip + length <= data.len()).then(|| data.slice(skip..skip + length))
    }

    fn header(&self, handle: &[u8], slice: u64, version: Version) -> Header {
        Header {
            fs: self.fs,
            handle: handle.to_vec(),
            slice,
            version,
            sealed: self.seal.is_secret(),
        }
    }

    /// Blocks of a slice, verified; `None` if one is not there or is damaged.
    fn read_blocks(&self, slice: &Slice, blocks: Range<u64>) -> io::Result<Option<Bytes>> {
        let entries = read_entries(&slice.file, &blocks)?;
        let mut length = 0;
        for (entry, block) in entries.iter().zip(blocks.clone()) {
            let expected = slice.header.block_len(block);
            if expected == 0 || u64::from(entry.len) != expected {
                return Ok(None);
            }
            length += expected as usize;
        }
        let mut data = vec![0; length];
        let at = DATA + blocks.start * BLOCK;
        if let Err(why) = slice.file.read_exact_at(&mut data, at) {
            return match why.kind() {
                io::ErrorKind::UnexpectedEof => Ok(self.damaged(slice)),
                _ => Err(why),
            };
        }
        for ((entry, block), piece) in entries
            .iter()
            .zip(blocks)
            .zip(data.chunks_mut(BLOCK as usize))
        {
            if !self.seal.open(&slice.header, block, entry, piece) {
                return Ok(self.damaged(slice));
            }
        }
        Ok(Some(Bytes::from(data)))
    }

    /// Something of a slice does not verify: all of it is given up.
    fn damaged<T>(&self, slice: &Slice) -> Option<T> {
        self.counters.damaged.inc();
        if !slice.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a file of the disk cache does not verify, and is not used: {}. After a crash that is \
                 expected; if it goes on, the disk is failing (efs-fuse cache verify)",
                slice.name
            );
        }
        let removed = self.inner.lock().open.remove(&slice.name).is_some();
        if removed {
            let _ = self.remove(&slice.name);
        }
        None
    }

    /// The slice, open; `None` if there is none that is believed.
    fn slice(&self, name: &SliceName) -> io::Result<Option<Arc<Slice>>> {
        if let Some(open) = self.inner.lock().open.get_mut(name) {
            open.used = Instant::now();
            return Ok(Some(Arc::clone(&open.slice)));
        }
        let file = match self.dir.open_slice(name) {
            Ok(file) => file,
            Err(why) if is_missing(&why) => {
                self.gone(name);
                return Ok(None);
            }
            Err(why) => return Err(why),
        };
        let mut bytes = [0; HEADER];
        let header = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Header::decode(&bytes),
            // Another daemon is just making it, or it was cut.
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(why) => return Err(why),
        };
        let Some(header) = header else {
            return Ok(None);
        };
        let slice = Arc::new(Slice {
            name: *name,
            header,
            file,
            said: AtomicBool::new(false),
        });
        self.keep_open(&slice);
        Ok(Some(slice))
    }

    fn keep_open(&self, slice: &Arc<Slice>) {
        let mut inner = self.inner.lock();
        let mut closed = None;
        if inner.open.len() >= OPEN {
            let oldest = inner.open.iter().min_by_key(|(_, open)| open.used);
            let oldest = oldest.map(|(name, _)| *name);
            closed = oldest.and_then(|name| inner.open.remove(&name));
        }
        let open = OpenSlice {
            slice: Arc::clone(slice),
            used: Instant::now(),
            touched: None,
        };
        inner.open.insert(slice.name, open);
        drop(inner);
        drop(closed);
    }

    /// Somebody was given something of the slice.
    fn used(&self, slice: &Slice, reader: u64) {
        let touch = {
            let mut inner = self.inner.lock();
            inner.ledger.used(slice.name, reader);
            let now = Instant::now();
            inner.open.get_mut(&slice.name).is_some_and(|open| {
                let due = open.touched.is_none_or(|at| now - at >= TOUCH);
                if due {
                    open.touched = Some(now);
                }
                due
            })
        };
        if touch {
            // For the order after the next start. An error changes nothing but that.
            let _ = slice.file.set_modified(SystemTime::now());
        }
    }

    /// Puts what the server gave of a version on the disk: the blocks that are whole in it.
    pub(super) fn fill(
        &self,
        handle: &[u8],
        version: Version,
        offset: u64,
        data: &Bytes,
        reader: u64,
    ) {
        if handle.len() > MAX_HANDLE || !self.health.is_well() {
            return;
        }
        let end = offset + data.len() as u64;
        let mut block = offset.div_ceil(BLOCK);
        while block * BLOCK < end {
            let slice = block / BLOCKS;
            let header = self.header(handle, slice, version);
            let first = block;
            let mut until = block * BLOCK;
            while block / BLOCKS == slice {
                let length = header.block_len(block % BLOCKS);
                if length == 0 || until + length > end {
                    break;
                }
                until += length;
                block += 1;
            }
            if block == first {
                return;
            }
            let from = (first * BLOCK - offset) as usize;
            let run = data.slice(from..(until - offset) as usize);
            if let Err(why) = self.fill_slice(header, first % BLOCKS, &run, reader) {
                // Another daemon was faster, or holds the account.
                let harmless = [io::ErrorKind::AlreadyExists, io::ErrorKind::WouldBlock];
                if !harmless.contains(&why.kind()) {
                    let _: Option<()> = self.failed("writing", &why);
                }
                return;
            }
        }
    }

    /// Puts `run` there: whole blocks that lie behind each other, from `first` on.
    fn fill_slice(&self, header: Header, first: u64, run: &[u8], reader: u64) -> io::Result<()> {
        let name = name_of(self.fs, &header.handle, header.slice);
        let there = self.slice(&name)?.filter(|slice| slice.header == header);
        let blocks = first..first + (run.len() as u64).div_ceil(BLOCK);
        let entries = match &there {
            Some(slice) => read_entries(&slice.file, &blocks)?,
            None => vec![Entry::default(); (blocks.end - first) as usize],
        };
        let has = |block: u64| entries[(block - first) as usize].len != 0;
        if blocks.clone().all(has) && there.is_some() {
            return Ok(());
        }
        let new_blocks = blocks.clone().filter(|block| !has(*block));
        let data: u64 = new_blocks.map(|block| pages(header.block_len(block))).sum();
        let table = match &there {
            // A page of the table is counted with the first run that begins in it.
            Some(_) if !first.is_multiple_of(PER_PAGE) => 0,
            Some(_) => PAGE,
            None => 2 * PAGE,
        };
        let bytes = data + table;
        if !self.reserve(bytes)? {
            self.counters.dropped_bytes.add(data);
            return Ok(());
        }
        // To make room it may have been removed itself.
        let there = match there {
            Some(_) => self.slice(&name)?.filter(|slice| slice.header == header),
            None => None,
        };
        let written = self.write_slice(there, (name, header), first, run);
        match written {
            Ok(()) => {
                self.counters.filled_bytes.add(data);
                let mut inner = self.inner.lock();
                inner.ledger.grow(name, bytes, reader);
                self.show(&inner);
                Ok(())
            }
            Err(why) => {
                self.release(bytes);
                Err(why)
            }
        }
    }

    /// Writes blocks into the slice, which is made anew if it is not of that version: the data, then
    /// their entries.
    fn write_slice(
        &self,
        there: Option<Arc<Slice>>,
        (name, header): (SliceName, Header),
        first: u64,
        run: &[u8],
    ) -> io::Result<()> {
        let slice = match there {
            Some(slice) => slice,
            None => self.make_slice(name, header)?,
        };
        let mut table = Vec::new();
        for (first, piece) in (first..)
            .step_by(PIECE)
            .zip(run.chunks(PIECE * BLOCK as usize))
        {
            let mut secret = Vec::new();
            for (block, data) in (first..).zip(piece.chunks(BLOCK as usize)) {
                let sealed = self.seal.seal(&slice.header, block, data);
                let (entry, data) = sealed.ok_or_else(|| io::Error::other("the cipher refuses"))?;
                if let Cow::Owned(data) = data {
                    secret.extend_from_slice(&data);
                }
                table.extend_from_slice(&entry.encode());
            }
            let data = match self.seal.is_secret() {
                true => &secret[..],
                false => piece,
            };
            slice.file.write_all_at(data, DATA + first * BLOCK)?;
        }
        slice.file.write_all_at(&table, TABLE + first * ENTRY)
    }

    fn make_slice(&self, name: SliceName, header: Header) -> io::Result<Arc<Slice>> {
        let replaced = {
            let mut inner = self.inner.lock();
            inner.open.remove(&name);
            inner.ledger.remove(name)
        };
        if let Some(bytes) = replaced {
            self.release(bytes);
        }
        let file = self.dir.make_slice(&name)?;
        file.write_all_at(&header.encode(), 0)?;
        self.dir.account(|account| account.made += 1)?;
        let slice = Arc::new(Slice {
            name,
            header,
            file,
            said: AtomicBool::new(false),
        });
        self.inner.lock().made += 1;
        self.keep_open(&slice);
        Ok(slice)
    }

    /// A slice is not there any more.
    fn gone(&self, name: &SliceName) {
        let removed = {
            let mut inner = self.inner.lock();
            let removed = inner.ledger.remove(*name);
            self.show(&inner);
            removed
        };
        if let Some(bytes) = removed {
            self.release(bytes);
        }
    }

    fn show(&self, inner: &Inner) {
        let bytes = inner.ledger.bytes();
        self.counters.bytes.set(bytes);
    }

    fn failed<T>(&self, what: &str, why: &io::Error) -> Option<T> {
        self.counters.errors.inc();
        self.health.failed(what, why);
        None
    }
}

fn is_missing(why: &io::Error) -> bool {
    why.kind() == io::ErrorKind::NotFound
}

fn read_entries(file: &std::fs::File, blocks: &Range<u64>) -> io::Result<Vec<Entry>> {
    let count = (blocks.end - blocks.start) as usize;
    let mut bytes = vec![0; count * ENTRY as usize];
    let mut length = 0;
    while length < bytes.len() {
        let at = TABLE + blocks.start * ENTRY + length as u64;
        // A file whose table ends here has no such blocks: zeros.
        match file.read_at(&mut bytes[length..], at)? {
            0 => break,
            read => length += read,
        }
    }
    let entries = bytes.chunks(ENTRY as usize);
    Ok(entries.map(Entry::decode).collect())
}
