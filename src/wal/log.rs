//! The log: changes of records, one behind the other.
//!
//! An entry is written behind the end and counts once the end lies behind it, which is one store.
//! What was put twice, or removed, is still there: when more than half of a segment is such,
//! the records are copied to the other segment, and the end is set into that, which is the same
//! one store.
//!
//! | bytes of an entry | what |
//! |---|---|
//! | 0..4 | length of the value |
//! | 4 | [`Table`] |
//! | 5 | 1: put; 0: removed |
//! | 6..8 | 0 |
//! | 8..16 | the key |
//! | 16.. | the value, filled up to a multiple of eight |
//!
//! Numbers are in the order of the machine: only this machine reads them.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::map::{MAGIC, Map, SEGMENTS, header};
use super::{LAYOUT, Table};

/// Bytes of an entry before its value.
pub(super) const HEAD: usize = 16;
/// A segment is not tidied up before it has so many bytes.
const MUCH: usize = 4 << 20;

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
        bytes[..4].copy_from_slice(&u32::try_from(self.len).unwrap_or(0).to_ne_bytes());
        bytes[4] = self.table as u8;
        bytes[5] = self.put.into();
        bytes[8..].copy_from_slice(&self.key.to_ne_bytes());
        bytes
    }

    /// `None`: there is no entry like this.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD] = bytes.first_chunk()?;
        let [l0, l1, l2, l3, table, put, _, _, key @ ..] = *bytes;
        Some(Self {
            table: Table::of(table)?,
            key: u64::from_ne_bytes(key),
            put: match put {
                0 => false,
                1 => true,
                _ => return None,
            },
            len: u32::from_ne_bytes([l0, l1, l2, l3]) as usize,
        })
    }

    /// Bytes of the whole entry.
    pub(super) fn size(self) -> usize {
        (HEAD + self.len).next_multiple_of(8)
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
    /// Where the last entry of each record is, and its size.
    records: HashMap<(Table, u64), (usize, usize)>,
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
                records: HashMap::new(),
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
        if let Err(why) = rmp_serde::encode::write(&mut value, record) {
            drop(written);
            return self.broken(&why.to_string());
        }
        let head = Head {
            table,
            key,
            put: true,
            len: value.len(),
        };
        self.append(&mut written, head);
        if let Some((_, size)) = written.records.insert((table, key), (at, head.size())) {
            written.live -= size;
        }
        written.live += head.size();
        self.tidy(&mut written);
    }

    pub(super) fn remove(&self, table: Table, key: u64) {
        let mut written = self.written.lock();
        let Some((_, size)) = written.records.remove(&(table, key)) else {
            return;
        };
        written.live -= size;
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
        self.tidy(&mut written);
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

    /// Copies the records to the other segment, if most of this one is of no use.
    fn tidy(&self, written: &mut Written) {
        let used = written.end - SEGMENTS[written.segment].start;
        if used < MUCH || used < 2 * written.live {
            return;
        }
        let other = 1 - written.segment;
        let mut end = SEGMENTS[other].start;
        // In the order in which they were put: whoever reads them needs no other.
        let mut entries: Vec<_> = written.records.values_mut().collect();
        entries.sort_unstable();
        for (at, size) in entries {
            // SAFETY: entries are written once, and the other segment is not this one.
            let entry = unsafe { self.map.bytes(*at..*at + *size) };
            self.map.write(end, entry);
            *at = end;
            end += *size;
        }
        self.map.publish(header::END, end as u64);
        let former = SEGMENTS[written.segment].start..written.end;
        (written.segment, written.end) = (other, end);
        self.map.give_back(former);
    }
}

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
