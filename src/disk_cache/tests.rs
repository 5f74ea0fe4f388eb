//! The store on a real directory.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::dir::Dir;
use super::format::{BLOCK, FileSystemId, PAGE, SLICE, Seal, Version};
use super::inspect;
use super::store::Store;
use super::{Amount, DiskCache, DiskCacheConfig, QUEUE, UNIT};
use crate::telemetry::{DiskCounters, Metrics};

const MIB: u64 = 1 << 20;

fn fs_id(name: &[u8]) -> FileSystemId {
    FileSystemId::of(&[name])
}

fn store_of(
    path: &Path,
    fs: &[u8],
    budget: u64,
    floor: u64,
) -> io::Result<(Store, Arc<DiskCounters>)> {
    let dir = Dir::make(path).map_err(io::Error::other)?;
    let counters = Arc::<DiskCounters>::default();
    let limits = (budget, floor);
    let store = Store::new(
        dir,
        fs_id(fs),
        Seal::Checksum,
        limits,
        Arc::clone(&counters),
    );
    store.begin();
    Ok((store, counters))
}

fn at(change: u64, size: u64) -> Version {
    Version { change, size }
}

/// The bytes of a file at a version.
fn bytes_of(seed: u64, range: std::ops::Range<u64>) -> Bytes {
    range
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 7) as u8 ^ (seed as u8).wrapping_mul(31))
        .collect::<Vec<u8>>()
        .into()
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name.len() == 32) {
                found.push(path);
            }
        }
    }
    found
}

fn cache() -> io::Result<(tempfile::TempDir, PathBuf)> {
    let temp = tempfile::tempdir()?;
    let path = temp.path().join("cache");
    Ok((temp, path))
}

#[test]
fn what_was_put_there_is_read_back_at_its_version_and_at_no_other() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
    let size = 3 * BLOCK + 100;
    let version = at(7, size);
    assert_eq!(store.read(b"file", version, 0..10, 1), None);
    assert!(!store.may_have(b"file", 0));
    store.fill(b"file", version, 0, &bytes_of(1, 0..size), 1);
    assert!(store.may_have(b"file", 0));
    for range in [0..size, 5..6, BLOCK - 1..BLOCK + 1, 3 * BLOCK..size] {
        let read = store.read(b"file", version, range.clone(), 1);
        assert_eq!(read, Some(bytes_of(1, range)));
    }
    let beyond = store.read(b"file", version, size - 5..size + 50, 1);
    assert_eq!(beyond, Some(bytes_of(1, size - 5..size)), "the end");
    assert_eq!(store.read(b"file", at(8, size), 0..10, 1), None);
    assert_eq!(store.read(b"file", at(7, size + 1), 0..10, 1), None);
    assert_eq!(store.read(b"other", version, 0..10, 1), None);
    Ok(())
}

#[test]
fn only_whole_blocks_are_kept() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
    let version = at(1, 10 * BLOCK);
    store.fill(b"file", version, 100, &bytes_of(1, 100..3 * BLOCK + 7), 1);
    assert_eq!(store.read(b"file", version, 200..300, 1), None);
    assert_eq!(
        store.read(b"file", version, 3 * BLOCK..3 * BLOCK + 3, 1),
        None
    );
    let middle = BLOCK..3 * BLOCK;
    let read = store.read(b"file", version, middle.clone(), 1);
    assert_eq!(read, Some(bytes_of(1, middle)));
    Ok(())
}

#[test]
fn a_new_version_takes_the_place_of_the_old_one() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
    store.fill(b"file", at(1, 2 * BLOCK), 0, &bytes_of(1, 0..2 * BLOCK), 1);
    store.fill(b"file", at(2, 2 * BLOCK), 0, &bytes_of(2, 0..BLOCK), 1);
    assert_eq!(files_below(&path).len(), 1);
    assert_eq!(store.read(b"file", at(1, 2 * BLOCK), 0..BLOCK, 1), None);
    assert_eq!(
        store.read(b"file", at(2, 2 * BLOCK), BLOCK..2 * BLOCK, 1),
        None
    );
    let read = store.read(b"file", at(2, 2 * BLOCK), 0..BLOCK, 1);
    assert_eq!(read, Some(bytes_of(2, 0..BLOCK)));
    Ok(())
}

#[test]
fn another_daemon_finds_what_this_one_has_left() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let version = at(1, SLICE + 2 * BLOCK);
    {
        let (store, _) = store_of(&path, b"fs", 1024 * MIB, 0)?;
        let range = SLICE - BLOCK..SLICE + BLOCK;
        store.fill(b"file", version, range.start, &bytes_of(1, range), 1);
    }
    let (store, _) = store_of(&path, b"fs", 1024 * MIB, 0)?;
    let over_the_edge = SLICE - 10..SLICE + 10;
    let read = store.read(b"file", version, over_the_edge.clone(), 1);
    assert_eq!(read, Some(bytes_of(1, over_the_edge)));
    assert_eq!(store.usage().2, 2);
    Ok(())
}

#[test]
fn file_systems_and_access_points_do_not_share() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (one, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
    let (other, _) = store_of(&path, b"another", 64 * MIB, 0)?;
    let version = at(1, BLOCK);
    one.fill(b"file", version, 0, &bytes_of(1, 0..BLOCK), 1);
    assert_eq!(other.read(b"file", version, 0..BLOCK, 1), None);
    other.fill(b"file", version, 0, &bytes_of(2, 0..BLOCK), 1);
    assert_eq!(one.read(b"file", version, 0..9, 1), Some(bytes_of(1, 0..9)));
    assert_eq!(
        other.read(b"file", version, 0..9, 1),
        Some(bytes_of(2, 0..9))
    );
    Ok(())
}

#[test]
fn two_daemons_of_one_directory_find_what_the_other_has_and_keep_one_budget() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let budget = 4 * MIB;
    let (one, _) = store_of(&path, b"fs", budget, 0)?;
    let (other, _) = store_of(&path, b"fs", budget, 0)?;
    let version = at(1, BLOCK);
    one.fill(b"file", version, 0, &bytes_of(1, 0..BLOCK), 1);
    // Nothing says so before the next look.
    other.tick();
    let read = other.read(b"file", version, 0..BLOCK, 1);
    assert_eq!(read, Some(bytes_of(1, 0..BLOCK)));
    for number in 0..100u64 {
        let name = number.to_le_bytes();
        let store = if number % 2 == 0 { &one } else { &other };
        store.fill(&name, version, 0, &bytes_of(number, 0..BLOCK), 1);
        let taken: u64 = files_below(&path)
            .iter()
            .filter_map(|file| fs::metadata(file).ok())
            .map(|about| about.blocks() * 512)
            .sum();
        assert!(taken <= budget, "{taken} after {number}");
    }
    assert!(files_below(&path).len() > 20);
    Ok(())
}

#[test]
fn sixteen_readers_who_fill_it_keep_the_budget() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let budget = 8 * MIB;
    let (store, counters) = store_of(&path, b"fs", budget, 0)?;
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let (store, path) = (&store, &path);
            scope.spawn(move || {
                for round in 0..20u64 {
                    let name = [reader as u8, round as u8];
                    let version = at(round, 4 * BLOCK);
                    store.fill(&name, version, 0, &bytes_of(round, 0..4 * BLOCK), reader);
                    if let Some(read) = store.read(&name, version, 0..4 * BLOCK, reader) {
                        assert_eq!(read, bytes_of(round, 0..4 * BLOCK));
                    }
                    let taken: u64 = files_below(path)
                        .iter()
                        .filter_map(|file| fs::metadata(file).ok())
                        .map(|about| about.blocks() * 512)
                        .sum();
                    // A file that is being removed may still be looked at.
                    assert!(taken <= budget + 16 * 5 * BLOCK, "{taken}");
                }
            });
        }
    });
    assert!(counters.evictions.get() > 0);
    store.tick();
    assert!(store.usage().1 <= budget);
    Ok(())
}

#[test]
fn whatever_is_flipped_on_the_disk_is_a_miss_and_never_data() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let size = 2 * BLOCK + 77;
    let version = at(9, size);
    let whole = bytes_of(3, 0..size);
    let mut number: u64 = 88_172_645_463_325_252;
    let mut random = |below: u64| {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        number % below
    };
    let mut misses = 0;
    for _ in 0..200 {
        let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
        store.fill(b"file", version, 0, &whole, 1);
        let file = files_below(&path).pop().ok_or(io::ErrorKind::NotFound)?;
        // The header, the entries that are used, and the data.
        let place = match random(4) {
            0 => random(256),
            1 => PAGE + random(96),
            _ => 9 * PAGE + random(size),
        };
        let damaged = fs::OpenOptions::new().read(true).write(true).open(&file)?;
        let mut byte = [0];
        damaged.read_exact_at(&mut byte, place)?;
        byte[0] ^= 1 << random(8);
        damaged.write_all_at(&byte, place)?;
        // By a daemon that has the file open, and by one that has not.
        let (later, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
        for store in [&store, &later] {
            match store.read(b"file", version, 0..size, 1) {
                Some(read) => assert_eq!(read, whole, "at {place}"),
                None => misses += 1,
            }
        }
    }
    assert!(misses > 300, "{misses}");
    Ok(())
}

#[test]
fn files_that_are_cut_emptied_or_strange_are_misses() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let version = at(9, 3 * BLOCK);
    let whole = bytes_of(3, 0..3 * BLOCK);
    for length in [0, 10, 255, 4096, 4100, 40_000, 9 * PAGE + BLOCK] {
        let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
        store.fill(b"file", version, 0, &whole, 1);
        let file = files_below(&path).pop().ok_or(io::ErrorKind::NotFound)?;
        fs::OpenOptions::new()
            .write(true)
            .open(&file)?
            .set_len(length)?;
        let (later, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
        for store in [&store, &later] {
            assert_eq!(
                store.read(b"file", version, 0..3 * BLOCK, 1),
                None,
                "{length}"
            );
        }
        // And it is filled again.
        later.fill(b"file", version, 0, &whole, 1);
        assert_eq!(
            later.read(b"file", version, 0..3 * BLOCK, 1),
            Some(whole.clone())
        );
        fs::remove_file(files_below(&path).pop().ok_or(io::ErrorKind::NotFound)?)?;
    }
    Ok(())
}

#[test]
fn without_free_space_it_steps_aside_and_gives_what_it_has_back() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let version = at(1, BLOCK);
    {
        let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
        store.fill(b"file", version, 0, &bytes_of(1, 0..BLOCK), 1);
        assert_eq!(files_below(&path).len(), 1);
    }
    let (store, counters) = store_of(&path, b"fs", 64 * MIB, u64::MAX / 2)?;
    store.fill(b"another", version, 0, &bytes_of(1, 0..BLOCK), 1);
    assert_eq!(files_below(&path).len(), 0, "the floor is kept");
    let why = store.health().ailment().unwrap_or_default();
    assert!(why.contains("making room for the disk cache"), "{why}");
    assert_eq!(counters.errors.get(), 1);
    assert_eq!(store.read(b"another", version, 0..BLOCK, 1), None);
    Ok(())
}

#[test]
fn a_file_larger_than_the_budget_is_kept_in_part() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (store, _) = store_of(&path, b"fs", 3 * MIB, 0)?;
    let version = at(1, 4 * SLICE);
    for slice in 0..4 {
        let range = slice * SLICE..slice * SLICE + MIB;
        store.fill(b"file", version, range.start, &bytes_of(1, range), 1);
    }
    let last = 3 * SLICE..3 * SLICE + MIB;
    let read = store.read(b"file", version, last.clone(), 1);
    assert_eq!(read, Some(bytes_of(1, last)));
    assert_eq!(store.read(b"file", version, 0..BLOCK, 1), None);
    Ok(())
}

#[test]
fn a_key_in_memory_leaves_no_plain_data_and_nothing_for_the_next_daemon() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let secret = Bytes::from(b"a very secret text ".repeat(4000));
    let version = at(1, secret.len() as u64);
    let open = || -> io::Result<Store> {
        let dir = Dir::make(&path).map_err(io::Error::other)?;
        let seal = Seal::with_new_key()?;
        let store = Store::new(dir, fs_id(b"fs"), seal, (64 * MIB, 0), Arc::default());
        store.begin();
        Ok(store)
    };
    let store = open()?;
    store.fill(b"file", version, 0, &secret, 1);
    let read = store.read(b"file", version, 0..version.size, 1);
    assert_eq!(read.as_ref(), Some(&secret));
    let file = files_below(&path).pop().ok_or(io::ErrorKind::NotFound)?;
    let text = fs::read(&file)?;
    assert!(!text.windows(11).any(|part| part == b"very secret"));
    let (other, _) = (open()?, ());
    assert_eq!(other.read(b"file", version, 0..version.size, 1), None);
    let counted = inspect::verify(&path).map_err(io::Error::other)?;
    assert!(counted.damaged == 0, "{counted:?}");
    Ok(())
}

#[test]
fn a_check_finds_what_is_damaged_and_clear_leaves_nothing_of_ours() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let (store, _) = store_of(&path, b"fs", 64 * MIB, 0)?;
    for name in [b"one", b"two"] {
        store.fill(name, at(1, 2 * BLOCK), 0, &bytes_of(1, 0..2 * BLOCK), 1);
    }
    let verified = inspect::verify(&path).map_err(io::Error::other)?;
    assert_eq!((verified.good, verified.damaged), (4, 0));
    let file = files_below(&path).pop().ok_or(io::ErrorKind::NotFound)?;
    let damaged = fs::OpenOptions::new().write(true).open(file)?;
    damaged.write_all_at(b"another text", 9 * PAGE + 5000)?;
    let verified = inspect::verify(&path).map_err(io::Error::other)?;
    assert_eq!((verified.damaged, verified.removed), (1, 1), "{verified:?}");
    fs::write(path.join("a letter"), "to be kept")?;
    let before = inspect::clear(&path).map_err(io::Error::other)?;
    assert_eq!(before.slices, 1);
    assert!(files_below(&path).is_empty() && path.join("a letter").exists());
    store.tick();
    store.fill(b"one", at(1, 2 * BLOCK), 0, &bytes_of(1, 0..2 * BLOCK), 1);
    let read = store.read(b"one", at(1, 2 * BLOCK), 0..BLOCK, 1);
    assert_eq!(read, Some(bytes_of(1, 0..BLOCK)), "a daemon goes on");
    let none = inspect::clear(_temp.path()).err().unwrap_or_default();
    assert!(
        none.contains("no cache") || none.contains("others"),
        "{none}"
    );
    Ok(())
}

fn opened(dir: PathBuf) -> io::Result<Arc<DiskCache>> {
    let config = DiskCacheConfig {
        dir,
        size: Amount::Bytes(256 * MIB),
        min_free: Amount::Bytes(0),
        secret: false,
    };
    DiskCache::open(&config, fs_id(b"fs"), &Metrics::new()).map_err(io::Error::other)
}

/// Half as much again as the queue holds, as fast as it can be said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_faster_than_the_disk_takes_it_waits_for_room_and_is_kept() -> io::Result<()> {
    let (_temp, path) = cache()?;
    let cache = opened(path)?;
    let (size, piece) = (96 * MIB, bytes_of(1, 0..MIB));
    let version = at(1, size);
    for offset in (0..size).step_by(MIB as usize) {
        cache.fill(b"file", version, offset, &piece, 1).await;
    }
    cache.caught_up().await;
    assert_eq!(cache.counters.dropped_bytes.get(), 0);
    assert_eq!(cache.counters.filled_bytes.get(), size);
    let last = size - MIB..size;
    assert_eq!(cache.read(b"file", version, last, 1).await, Some(piece));
    Ok(())
}

/// The disk takes nothing: what waits in the queue stays there.
#[tokio::test]
async fn who_has_waited_in_vain_for_long_enough_is_not_kept_and_nor_are_those_behind_him()
-> io::Result<()> {
    let (_temp, path) = cache()?;
    let cache = opened(path)?;
    let units = u32::try_from(QUEUE / UNIT).map_err(io::Error::other)?;
    let all = Arc::clone(&cache.room).acquire_many_owned(units).await;
    let piece = bytes_of(1, 0..MIB);
    let begun = Instant::now();
    for number in 1..=10_u64 {
        cache.fill(b"file", at(1, MIB), 0, &piece, 1).await;
        assert_eq!(cache.counters.dropped_bytes.get(), number * MIB);
    }
    let waited = begun.elapsed();
    let once = Duration::from_millis(500)..Duration::from_millis(1500);
    assert!(once.contains(&waited), "{waited:?}");
    drop(all);
    cache.fill(b"file", at(1, MIB), 0, &piece, 1).await;
    cache.caught_up().await;
    assert_eq!(cache.counters.filled_bytes.get(), MIB);
    Ok(())
}
