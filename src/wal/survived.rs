//! What a daemon that was killed has left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::de::DeserializeOwned;

use super::counts;
use super::log::{HEAD, Head};
use super::map::{MAGIC, SEGMENTS, header};
use super::{LAYOUT, Place, Table};

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The memory cannot be read.
    #[error("the log of the daemon before cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no log.
    #[error("what the daemon before has left is no log: {0}")]
    Damaged(&'static str),
    /// By a program that writes another layout.
    #[error("the log of the daemon before has layout {0}, and this program reads {LAYOUT}")]
    Layout(u64),
    /// The daemon could not write all of it.
    #[error("the log of the daemon before is not complete: it had outgrown its room")]
    Broken,
    /// It does not mean what it should.
    #[error("a record of the daemon before cannot be understood: {0}")]
    Meaning(#[from] rmp_serde::decode::Error),
}

/// The records of a daemon that has ended. Reading changes nothing: another process may read
/// them again.
#[derive(Debug)]
pub struct Survived {
    memory: File,
    segment: Vec<u8>,
    records: BTreeMap<(Table, u64), Range<usize>>,
}

impl Survived {
    /// Whether the memory is a log at all.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_log(memory: &File) -> io::Result<bool> {
        let mut magic = [0; 8];
        match memory.read_exact_at(&mut magic, header::MAGIC as u64) {
            Ok(()) => Ok(u64::from_ne_bytes(magic) == MAGIC),
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Reads the log of a process that has ended.
    ///
    /// # Errors
    /// It is none, or not all of one.
    pub fn read(memory: File) -> Result<Self, Unreadable> {
        let word = |at: usize| -> io::Result<u64> {
            let mut word = [0; 8];
            memory.read_exact_at(&mut word, at as u64)?;
            Ok(u64::from_ne_bytes(word))
        };
        if word(header::MAGIC)? != MAGIC {
            return Err(Unreadable::Damaged("it does not begin as one"));
        }
        match word(header::LAYOUT)? {
            layout if layout == u64::from(LAYOUT) => {}
            other => return Err(Unreadable::Layout(other)),
        }
        if word(header::BROKEN)? != 0 {
            return Err(Unreadable::Broken);
        }
        let end = usize::try_from(word(header::END)?).unwrap_or(usize::MAX);
        let segment = SEGMENTS
            .iter()
            .find(|all| (all.start..=all.end).contains(&end));
        let start = segment.ok_or(Unreadable::Damaged("it ends nowhere"))?.start;
        let mut segment = vec![0; end - start];
        memory.read_exact_at(&mut segment, start as u64)?;
        let records = records(&segment)?;
        Ok(Self {
            memory,
            segment,
            records,
        })
    }

    /// The records of a table, by their keys, in the order of those.
    ///
    /// # Errors
    /// One is not what it should be.
    pub fn table<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(u64, T)>, Unreadable> {
        let records = self.records.range((table, 0)..=(table, u64::MAX));
        let decode = |range: &Range<usize>| rmp_serde::from_slice(&self.segment[range.clone()]);
        records
            .map(|((_, key), range)| Ok((*key, decode(range)?)))
            .collect()
    }

    /// The record of a table that has one.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub fn only<T: DeserializeOwned>(&self, table: Table) -> Result<T, Unreadable> {
        let only = self.table(table)?.pop();
        only.map(|(_, record)| record)
            .ok_or(Unreadable::Damaged("the daemon had not mounted yet"))
    }

    /// The count that a record names; of one that did not survive, 1.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn count(&self, slot: Option<u32>) -> Result<u64, Unreadable> {
        let Some(at) = slot.and_then(counts::place) else {
            return Ok(1);
        };
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, at as u64)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// The data that a record names.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn data(&self, place: Place) -> Result<Vec<u8>, Unreadable> {
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        if len > super::map::ALL {
            return Err(Unreadable::Damaged("data are longer than the memory"));
        }
        let mut data = vec![0; len];
        self.memory.read_exact_at(&mut data, place.at)?;
        Ok(data)
    }
}

/// Where the value of each record is.
fn records(segment: &[u8]) -> Result<BTreeMap<(Table, u64), Range<usize>>, Unreadable> {
    let mut records = BTreeMap::new();
    let mut at = 0;
    while at < segment.len() {
        let head = Head::decode(&segment[at..]).ok_or(Unreadable::Damaged("an entry is none"))?;
        let value = at + HEAD..at + HEAD + head.len;
        if at + head.size() > segment.len() {
            return Err(Unreadable::Damaged("an entry is longer than the log"));
        }
        match head.put {
            true => records.insert((head.table, head.key), value),
            false => records.remove(&(head.table, head.key)),
        };
        at += head.size();
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::Wal;
    use super::*;

    fn read(wal: &Wal) -> Result<Survived, Unreadable> {
        let memory = wal.memory().expect("it is on").try_clone()?;
        Survived::read(memory)
    }

    #[derive(Clone, Debug)]
    enum Change {
        Put(u64, Vec<u8>),
        Remove(u64),
        Rest,
    }

    fn change() -> impl Strategy<Value = Change> {
        let value = proptest::collection::vec(any::<u8>(), 0..70);
        prop_oneof![
            3 => (0..20u64, value).prop_map(|(key, value)| Change::Put(key, value)),
            1 => (0..20u64).prop_map(Change::Remove),
            1 => Just(Change::Rest),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_read_is_what_was_put_last(changes in proptest::collection::vec(change(), 0..80)) {
            let wal = Wal::create(0)?;
            let mut model = BTreeMap::new();
            for change in changes {
                match change {
                    Change::Put(key, value) => {
                        wal.put(Table::Inode, key, &value);
                        model.insert(key, value);
                    }
                    Change::Remove(key) => {
                        wal.remove(Table::Inode, key);
                        model.remove(&key);
                    }
                    Change::Rest => wal.rest(),
                }
            }
            let read: Vec<(u64, Vec<u8>)> = read(&wal)?.table(Table::Inode)?;
            prop_assert_eq!(read, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_lies_behind_the_end_was_never_written() -> Result<(), Unreadable> {
        let wal = Wal::create(0)?;
        wal.put(Table::Inode, 1, &"before");
        let memory = wal.memory().expect("it is on");
        let end = |memory: &File| -> io::Result<u64> {
            let mut word = [0; 8];
            memory.read_exact_at(&mut word, header::END as u64)?;
            Ok(u64::from_ne_bytes(word))
        };
        let before = end(memory)?;
        wal.put(Table::Inode, 1, &"after");
        wal.remove(Table::Inode, 1);
        let after = end(memory)?;
        // As it is at a kill after any number of the stores of the two: all but the end.
        for at in before..after {
            memory.write_all_at(&before.to_ne_bytes(), header::END as u64)?;
            memory.write_all_at(&[0xff], at)?;
            assert_eq!(read(&wal)?.table(Table::Inode)?, [(1, "before".to_owned())]);
        }
        Ok(())
    }

    #[test]
    fn a_log_that_is_rewritten_for_ever_stays_small() -> Result<(), Unreadable> {
        let wal = Wal::create(0)?;
        for key in 0..100u64 {
            wal.put(Table::Place, key, &format!("name {key}"));
        }
        for turn in 0..200_000u64 {
            wal.put(Table::Inode, turn % 7, &vec![7u8; 100]);
        }
        let memory = wal.memory().expect("it is on");
        use std::os::unix::fs::MetadataExt;
        let taken = memory.metadata()?.blocks() * 512;
        assert!(taken < 16 << 20, "{taken}");
        let survived = read(&wal)?;
        assert_eq!(survived.table::<String>(Table::Place)?.len(), 100);
        assert_eq!(survived.table::<Vec<u8>>(Table::Inode)?.len(), 7);
        Ok(())
    }

    #[test]
    fn a_log_that_rests_keeps_its_records_and_gives_the_rest_back() -> Result<(), Unreadable> {
        let wal = Wal::create(0)?;
        for turn in 0..5_000u64 {
            wal.put(Table::Inode, turn % 7, &vec![7u8; 100]);
        }
        let memory = wal.memory().expect("it is on");
        use std::os::unix::fs::MetadataExt;
        let before = memory.metadata()?.blocks() * 512;
        wal.rest();
        let after = memory.metadata()?.blocks() * 512;
        assert!(before > 400 << 10 && after < 200 << 10, "{before} {after}");
        assert_eq!(read(&wal)?.table::<Vec<u8>>(Table::Inode)?.len(), 7);
        wal.put(Table::Inode, 9, &b"behind".to_vec());
        assert_eq!(read(&wal)?.table::<Vec<u8>>(Table::Inode)?.len(), 8);
        Ok(())
    }

    #[test]
    fn counts_and_data_are_found_by_the_records_that_name_them() -> Result<(), Unreadable> {
        let wal = Wal::create(1 << 20)?;
        let mut counts: Vec<_> = (0..5).map(|n| wal.count(n)).collect();
        wal.set(&mut counts[3], 77);
        let data = wal.copy(&[9; 1000]).expect("there is room");
        let part = data.slice(10..20);
        wal.put(Table::Inode, 3, &&counts[3]);
        wal.put(Table::Write, 1, &wal.place_of(&part));
        let survived = read(&wal)?;
        let slot: Option<u32> = survived.only(Table::Inode)?;
        assert_eq!(survived.count(slot)?, 77);
        let place: Option<Place> = survived.only(Table::Write)?;
        assert_eq!(survived.data(place.expect("it was copied"))?, [9; 10]);
        Ok(())
    }

    #[test]
    fn another_memory_is_refused() -> Result<(), Unreadable> {
        let wal = Wal::create(0)?;
        let memory = wal.memory().expect("it is on");
        assert!(Survived::is_log(memory)?);
        memory.write_all_at(&7u64.to_ne_bytes(), header::LAYOUT as u64)?;
        assert!(matches!(read(&wal), Err(Unreadable::Layout(7))));
        memory.write_all_at(b"EFSFHAND", header::MAGIC as u64)?;
        assert!(matches!(read(&wal), Err(Unreadable::Damaged(_))));
        assert!(!Survived::is_log(memory)?);
        let empty = Wal::create(0)?;
        let memory = empty.memory().expect("it is on");
        memory.set_len(0)?;
        assert!(!Survived::is_log(memory)?);
        Ok(())
    }
}
