//! Looks at, checks and empties the directory of a cache without a mount.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::dir::{Dir, Found, SliceName};
use super::format::{BLOCK, BLOCKS, DATA, ENTRY, Entry, HEADER, Header, Seal, TABLE};

/// What is in a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Cache files.
    pub slices: u64,
    /// Bytes that they take on the disk.
    pub bytes: u64,
    /// Different file systems, or mounts whose key is in memory.
    pub file_systems: usize,
    /// Bytes of its disk that are free.
    pub free: u64,
    /// Bytes of its disk in all.
    pub total: u64,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that are what they are named after.
    pub good: u64,
    /// Blocks that are not, or whose file has no good header. They are never given to anybody.
    pub damaged: u64,
    /// Blocks that only the daemon that wrote them can check.
    pub encrypted: u64,
    /// Cache files that had damaged blocks, and were removed.
    pub removed: u64,
}

fn slices(dir: &Dir) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    dir.walk(|one| {
        found.push(one);
        Ok(())
    })?;
    Ok(found)
}

/// What is in the cache at `path`.
///
/// # Errors
/// It is none, or its disk fails. In words.
pub fn contents(path: &Path) -> Result<Contents, String> {
    let dir = Dir::open(path)?;
    let look = || -> io::Result<Contents> {
        let found = slices(&dir)?;
        let mut systems = BTreeMap::new();
        for one in &found {
            *systems.entry(one.name.fs).or_insert(0u64) += 1;
        }
        let space = dir.space()?;
        Ok(Contents {
            slices: found.len() as u64,
            bytes: found.iter().map(|one| one.bytes).sum(),
            file_systems: systems.len(),
            free: space.free,
            total: space.total,
        })
    };
    look().map_err(|why| why.to_string())
}

/// Reads every block of the cache at `path`, and removes the files that have damaged ones.
///
/// # Errors
/// It is none, or its disk fails. In words.
pub fn verify(path: &Path) -> Result<Verified, String> {
    let dir = Dir::open(path)?;
    let check = || -> io::Result<Verified> {
        let mut all = Verified::default();
        for one in slices(&dir)? {
            let before = all.damaged;
            match verify_slice(&dir, &one.name, &mut all) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                done => done?,
            }
            if all.damaged > before && dir.remove_slice(&one.name).is_ok() {
                all.removed += 1;
            }
        }
        Ok(all)
    };
    check().map_err(|why| why.to_string())
}

fn verify_slice(dir: &Dir, name: &SliceName, all: &mut Verified) -> io::Result<()> {
    let file = dir.open_slice(name)?;
    let mut bytes = [0; HEADER];
    let header = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Header::decode(&bytes).filter(|header| header.fs == name.fs),
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(why) => return Err(why),
    };
    let Some(header) = header else {
        all.damaged += 1;
        return Ok(());
    };
    let mut table = vec![0; (ENTRY * BLOCKS) as usize];
    let mut length = 0;
    while length < table.len() {
        match file.read_at(&mut table[length..], TABLE + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    let entries = table.chunks(ENTRY as usize).map(Entry::decode);
    for (block, entry) in (0..).zip(entries).filter(|(_, entry)| entry.len != 0) {
        if header.sealed {
            all.encrypted += 1;
            continue;
        }
        let mut data = vec![0; header.block_len(block) as usize];
        let is_whole = u64::from(entry.len) == data.len() as u64
            && match file.read_exact_at(&mut data, DATA + block * BLOCK) {
                Ok(()) => true,
                Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(why) => return Err(why),
            };
        match is_whole && Seal::Checksum.open(&header, block, &entry, &mut data) {
            true => all.good += 1,
            false => all.damaged += 1,
        }
    }
    Ok(())
}

/// Removes every file of the cache at `path`, but not the directory. A daemon that uses it goes on.
/// Says what was there.
///
/// # Errors
/// It is no cache, or its disk fails. In words.
pub fn clear(path: &Path) -> Result<Contents, String> {
    let before = contents(path)?;
    let dir = Dir::open(path)?;
    let empty = || -> io::Result<()> {
        for one in slices(&dir)? {
            match dir.remove_slice(&one.name) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                _ => {}
            }
        }
        dir.remove_empty();
        let left = slices(&dir)?.iter().map(|one| one.bytes).sum();
        // What a daemon has made meanwhile. It finds what is gone by itself.
        dir.account(|account| {
            account.used = left;
            account.made += 1;
        })
    };
    empty().map_err(|why| why.to_string())?;
    Ok(before)
}
