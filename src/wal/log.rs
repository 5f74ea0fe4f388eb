//! The log: changes of records, one behind the other.
//!
//! An entry is written behind the end and counts once the end lies behind it, which is one store.
//! What was put twice, or removed, is still there: when it has come to a quarter of the rest,
//! the records are copied to the other segment, and the end is set into that, which is the same
//! one store.
//!
//! | bytes of an entry | what |
//! |---|---|
//! | 0 | twice the number of the [`Table`], and one more if it was put, not removed |
//! | 1..4 | length of the value |
//! | 4..12 | the key |
//! | 12.. | the value |
//!
//! Numbers have the lowest byte first. Where the last entry of each record is, is known by a table of
//! offsets alone, which are compared by what is there: there is a record for each inode.

use std::hash::BuildHasher;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;
use serde::Serialize;

use super::map::{MAGIC, Map, SEGMENTS, header};
use super::{LAYOUT, Table};

/// Bytes of an entry before its value.
pub(super) const HEAD: usize = 12;
/// No value is as long.
const TOO_LONG: usize = 1 << 24;
/// A segment is not tidied up for fewer bytes than this.
const MUCH: usize = 1 << 20;

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) table: Table,
    pub(super) key: u64,
    pub(super) put: bool,
    pub(super) len: usize,
}

impl Head {
    fn encode(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&((self.len as u32) << 8).to_le_bytes());
        bytes[0] = (self.table as u8) << 1 | u8::from(self.put);
        bytes[4..].copy_from_slice(&self.key.to_le_bytes());
        bytes
    }

    /// `None`: there is no entry like this.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD] = bytes.first_chunk()?;
        let [what, l0, l1, l2, key @ ..] = *bytes;
        Some(Self {
            table: Table::of(what >> 1)?,
            key: u64::from_le_bytes(key),
            put: what & 1 == 1,
            len: u32::from_le_bytes([l0, l1, l2, 0]) as usize,
        })
    }

    /// Whose it is.
    fn record(self) -> (Table, u64) {
        (self.table, self.key)
    }

    /// Bytes of the whole entry.
    pub(super) fn size(self) -> usize {
        HEAD + self.len
    }
}

#[derive(Debug)]
pub(super) struct Log {
    map: Arc<Map>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// Which of the segments is in use.
    segment: usize,
    end: usize,
    /// Where in the segment the last entry of each record is.
    records: HashTable<u32>,
    /// The sizes of all of them.
    live: usize,
    broken: bool,
}

impl Log {
    /// An empty log in a new memory.
    pub(super) fn begin(map: Arc<Map>) -> Self {
        let start = SEGMENTS[0].start;
        map.publish(header::END, start as u64);
        map.publish(header::LAYOUT, LAYOUT.into());
        map.publish(header::MAGIC, MAGIC);
        Self {
            map,
            written: Mutex::new(Written {
                segment: 0,
                end: start,
                records: HashTable::new(),
                live: 0,
                broken: false,
            }),
        }
    }

    /// Bytes that the records take.
    pub(super) fn used(&self) -> u64 {
        self.written.lock().live as u64
    }

    pub(super) fn put(&self, table: Table, key: u64, record: &impl Serialize) {
        let mut written = self.written.lock();
        if written.broken {
            return;
        }
        let at = written.end;
        let room = at + HEAD..SEGMENTS[written.segment].end;
        let mut value = Value {
            map: &self.map,
            begin: room.start,
            room,
        };
        let encoded = rmp_serde::encode::write(&mut value, record);
        let too_long = || (value.len() >= TOO_LONG).then(|| "a record is too long".to_owned());
        if let Some(why) = encoded.err().map(|why| why.to_string()).or_else(too_long) {
            drop(written);
            return self.broken(&why);
        }
        let head = Head {
            table,
            key,
            put: true,
            len: value.len(),
        };
        self.append(&mut written, head);
        written.live += head.size();
        let replaced = self.is_at(&mut written, (table, key), at);
        written.live -= replaced.map_or(0, Head::size);
        self.tidy(&mut written, MUCH);
    }

    pub(super) fn remove(&self, table: Table, key: u64) {
        let mut written = self.written.lock();
        let Some(removed) = self.is_nowhere(&mut written, (table, key)) else {
            return;
        };
        written.live -= removed.size();
        if written.broken {
            return;
        }
        let head = Head {
            table,
            key,
            put: false,
            len: 0,
        };
        if SEGMENTS[written.segment].end - written.end < head.size() {
            drop(written);
            return self.broken("its log is full");
        }
        self.append(&mut written, head);
        self.tidy(&mut written, MUCH);
    }

    /// The head of the entry there.
    fn head(&self, at: usize) -> Head {
        // SAFETY: an entry is written once, and whoever asks has the lock of all that is written.
        let bytes = unsafe { self.map.bytes(at..at + HEAD) };
        Head::decode(bytes).expect("the table knows of entries alone")
    }

    /// The record's last entry is there. The one before it, if there was one.
    fn is_at(&self, written: &mut Written, record: (Table, u64), at: usize) -> Option<Head> {
        let segment = written.segment;
        let of = |entry: &u32| self.head(place(segment, *entry));
        let found = written.records.entry(
            FxBuildHasher.hash_one(record),
            |entry| of(entry).record() == record,
            |entry| FxBuildHasher.hash_one(of(entry).record()),
        );
        match found {
            Entry::Occupied(mut found) => {
                let before = std::mem::replace(found.get_mut(), offset(segment, at));
                Some(of(&before))
            }
            Entry::Vacant(free) => {
                free.insert(offset(segment, at));
                None
            }
        }
    }

    /// The record has no entry any more. The last one, if there was one.
    fn is_nowhere(&self, written: &mut Written, record: (Table, u64)) -> Option<Head> {
        let segment = written.segment;
        let of = |entry: &u32| self.head(place(segment, *entry));
        let hash = FxBuildHasher.hash_one(record);
        let found = written
            .records
            .find_entry(hash, |entry| of(entry).record() == record);
        found.ok().map(|found| of(&found.remove().0))
    }

    /// The log is not all from here on.
    pub(super) fn broken(&self, why: &str) {
        self.map.publish(header::BROKEN, 1);
        let first = !std::mem::replace(&mut self.written.lock().broken, true);
        if first {
            tracing::error!(
                "this mount would not survive the death of its daemon any more: {why}. \
                 Unmount it and mount it again when that is possible"
            );
        }
    }

    /// The entry counts from here on; its value is there.
    fn append(&self, written: &mut Written, head: Head) {
        self.map.write(written.end, &head.encode());
        written.end += head.size();
        self.map.publish(header::END, written.end as u64);
    }

    /// Leaves less that is of no use than would be worth while when much is put.
    pub(super) fn rest(&self) {
        const SOME: usize = 64 << 10;
        let mut written = self.written.lock();
        if !written.broken {
            self.tidy(&mut written, SOME);
        }
    }

    /// Copies the records to the other segment, if a fifth of this one and `least` bytes are of no
    /// use.
    fn tidy(&self, written: &mut Written, least: usize) {
        let used = written.end - SEGMENTS[written.segment].start;
        let useless = used - written.live;
        // So that for each byte that is written no more than four are copied.
        if useless < least || useless < written.live / 4 {
            return;
        }
        let other = 1 - written.segment;
        let mut end = SEGMENTS[other].start;
        // In the order in which they were put: whoever reads them needs no other.
        let mut entries: Vec<_> = written.records.iter_mut().collect();
        entries.sort_unstable();
        for entry in entries {
            let at = place(written.segment, *entry);
            let size = self.head(at).size();
            // SAFETY: entries are written once, and the other segment is not this one.
            self.map
                .write(end, unsafe { self.map.bytes(at..at + size) });
            *entry = offset(other, end);
            end += size;
        }
        self.map.publish(header::END, end as u64);
        let former = SEGMENTS[written.segment].start..written.end;
        (written.segment, written.end) = (other, end);
        self.map.give_back(former);
    }
}

/// Where an entry of a segment is, by its offset in it.
fn place(segment: usize, entry: u32) -> usize {
    SEGMENTS[segment].start + entry as usize
}

/// The offset of a place in its segment, which is shorter than 2^32 bytes.
fn offset(segment: usize, at: usize) -> u32 {
    (at - SEGMENTS[segment].start) as u32
}

const _: () = assert!(SEGMENTS[0].end - SEGMENTS[0].start <= 1 << 32);

/// A value as it is written.
struct Value<'a> {
    map: &'a Map,
    begin: usize,
    room: Range<usize>,
}

impl Value<'_> {
    fn len(&self) -> usize {
        self.room.start - self.begin
    }
}

impl io::Write for Value<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // With room for the head of one more entry.
        if self.room.len() < bytes.len() + 2 * HEAD {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.map.write(self.room.start, bytes);
        self.room.start += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
