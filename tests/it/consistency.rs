//! What hosts see of each other's work, checked against what they must see.
//!
//! Three mounts are three hosts. The test is the omniscient observer: it knows
//! when a write began and when its close or unlock had returned, and so, for
//! every read, the oldest and the newest version that may be seen. Every word of
//! a file is the number of the version it belongs to.
//!
//! `EFS_FUSE_CHECKER_SECONDS` makes it longer (`scripts/consistency`),
//! `EFS_FUSE_SEED` repeats its choices, not its interleaving.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fixtures::World;
use crate::fixtures::mount::{Mount, MountRequest};

const FILES: usize = 4;
const SLOTS: usize = 32;
/// Bytes of a slot; several share a page.
const SLOT: usize = 512;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    }
}

/// splitmix64
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

fn hosts() -> (World, [Mount; 2]) {
    let limit = Duration::from_secs(setting("EFS_FUSE_CHECKER_SECONDS", 6) * 2 + 120);
    let world = World::with(|request| request.time_limit(limit));
    let more = || MountRequest::of(&world.server).time_limit(limit).mount();
    let others = [more(), more()];
    (world, others)
}

/// Words in a version of a file.
fn words(version: u64) -> usize {
    200 + (version as usize * 733) % 3000
}

fn content(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(words(version))
}

/// Says what is wrong with `seen` if the versions from `oldest` to `newest` may
/// be seen: all of one, or, while a write is going on, a mixture with holes.
fn judge(seen: &[u8], oldest: u64, newest: u64) -> Result<(), String> {
    let versions = seen
        .chunks(8)
        .map(|word| word.try_into().map(u64::from_le_bytes))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("{} bytes are no whole words", seen.len()))?;
    if oldest == newest {
        if seen.len() != words(oldest) * 8 {
            let have = versions.first();
            return Err(format!(
                "{} words of {have:?}, version {oldest} has {}",
                versions.len(),
                words(oldest)
            ));
        }
        if let Some(at) = versions.iter().position(|&version| version != oldest) {
            return Err(format!("{} at word {at} of version {oldest}", versions[at]));
        }
        return Ok(());
    }
    let allowed = |version: &u64| *version == 0 || (oldest..=newest).contains(version);
    match versions.iter().position(|version| !allowed(version)) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{} at word {at}, expected {oldest} to {newest}",
            versions[at]
        )),
    }
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let mixed = [content(7), content(8)].concat();
    assert_eq!(judge(&content(7), 7, 7), Ok(()));
    assert_eq!(judge(&mixed, 7, 8), Ok(()), "while version 8 is written");
    assert_eq!(judge(&content(7)[..800], 6, 7), Ok(()), "cut and rewritten");
    for (what, seen, oldest, newest) in [
        ("a stale read", content(6), 7, 7),
        ("a stale read during a write", content(6), 7, 8),
        ("a read from the future", content(9), 7, 8),
        ("a torn file", mixed, 7, 7),
        ("a file cut short", content(7)[..800].to_vec(), 7, 7),
        ("garbage", vec![0x5a; words(7) * 8], 7, 8),
        ("half a word", content(7)[..803].to_vec(), 6, 7),
    ] {
        assert!(judge(&seen, oldest, newest).is_err(), "{what} passed");
    }
}

/// The versions of one file: the last whose close has returned, and the last
/// that was begun.
#[derive(Default)]
struct Versions {
    closed: AtomicU64,
    begun: AtomicU64,
    /// One writer at a time.
    writing: Mutex<()>,
    /// Of each version, the host and the way that it was written: for whoever looks
    /// into a failure.
    history: Mutex<HashMap<u64, (usize, usize)>>,
}

fn write_file(host: &Path, name: &str, version: u64, way: usize) {
    let (path, data) = (host.join(name), content(version));
    match way {
        // Over the old content.
        0 => {
            let file = File::options().write(true).open(path).expect("open");
            for (at, piece) in data.chunks(5000).enumerate() {
                file.write_all_at(piece, at as u64 * 5000).expect("write");
            }
            file.set_len(data.len() as u64).expect("truncate");
        }
        // O_TRUNC.
        1 => fs::write(path, data).expect("write"),
        // A new file under the old name.
        _ => {
            let new = host.join(format!("{name}.new"));
            fs::write(&new, data).expect("write");
            fs::rename(new, path).expect("rename");
        }
    }
}

/// What is where once nobody writes, for whoever looks into a failure.
fn evidence(hosts: &[&Path], server: &Path, name: &str) -> String {
    let summary = |content: std::io::Result<Vec<u8>>| match content {
        Ok(content) => {
            let words: Vec<_> = content.chunks(8).map(<[u8]>::to_vec).collect();
            let runs: Vec<_> = words.chunk_by(|a, b| a == b).collect();
            let runs: Vec<_> = runs
                .iter()
                .map(|run| {
                    (
                        u64::from_le_bytes(run[0][..].try_into().unwrap_or_default()),
                        run.len(),
                    )
                })
                .collect();
            format!("{runs:?}")
        }
        Err(error) => error.to_string(),
    };
    let mut text = format!("server {}", summary(fs::read(server.join(name))));
    for (number, host) in hosts.iter().enumerate() {
        text += &format!(", host {number} {}", summary(fs::read(host.join(name))));
    }
    text
}

#[test]
fn who_opens_after_a_close_sees_what_was_closed_and_nothing_older() {
    let (world, others) = hosts();
    let hosts = [world.mount.path(), others[0].path(), others[1].path()];
    let seed = setting("EFS_FUSE_SEED", 20_261_124);
    let until = Instant::now() + Duration::from_secs(setting("EFS_FUSE_CHECKER_SECONDS", 6));
    let versions: Vec<Versions> = (0..FILES).map(|_| Versions::default()).collect();
    for (number, file) in versions.iter().enumerate() {
        fs::write(hosts[0].join(format!("f{number}")), content(1)).expect("write");
        file.begun.store(1, Ordering::SeqCst);
        file.closed.store(1, Ordering::SeqCst);
    }
    let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
    let refused = AtomicU64::new(0);
    let server = world.server.export();
    thread::scope(|scope| {
        for worker in 0..9usize {
            let (hosts, server) = (&hosts, server.as_path());
            let (versions, reads, writes) = (&versions, &reads, &writes);
            let refused = &refused;
            let host = hosts[worker % 3];
            scope.spawn(move || {
                let mut dice = Dice(seed + worker as u64);
                while Instant::now() < until {
                    let number = dice.roll(FILES);
                    let (name, file) = (format!("f{number}"), &versions[number]);
                    if dice.roll(4) == 0 {
                        let _one = file.writing.lock();
                        let version = file.begun.fetch_add(1, Ordering::SeqCst) + 1;
                        let way = dice.roll(3);
                        file.history.lock().insert(version, (worker % 3, way));
                        write_file(host, &name, version, way);
                        file.closed.store(version, Ordering::SeqCst);
                        writes.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let oldest = file.closed.load(Ordering::SeqCst);
                        let mut seen = Vec::new();
                        // A known gap in the face of RENAMEs onto the name by other
                        // hosts: one that is replaced again while it is looked up a
                        // second time is ESTALE.
                        let mut opened = match File::open(host.join(&name)) {
                            Ok(opened) => opened,
                            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                continue;
                            }
                            Err(error) => panic!("open: {error}"),
                        };
                        if let Err(error) = opened.read_to_end(&mut seen) {
                            // Replaced by rename while it was read, on a server
                            // that keeps no removed file.
                            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
                            continue;
                        }
                        let newest = file.begun.load(Ordering::SeqCst);
                        if let Err(wrong) = judge(&seen, oldest, newest) {
                            let number = |meta: std::io::Result<fs::Metadata>| {
                                meta.map(|meta| (meta.ino(), meta.nlink(), meta.len()))
                            };
                            let opened = number(opened.metadata());
                            let named = number(fs::metadata(host.join(&name)));
                            let true_one = number(fs::metadata(server.join(&name)));
                            let _quiet = file.writing.lock();
                            let history = file.history.lock();
                            panic!(
                                "seed {seed}, host {}, {name}: {wrong}\n(host, way) of {:?}; \
                                 (number, links, size) of what was opened {opened:?}, named \
                                 {named:?}, at the server {true_one:?}\nafterwards {}",
                                worker % 3,
                                (oldest.saturating_sub(3)..=newest)
                                    .map(|version| (version, history.get(&version)))
                                    .collect::<Vec<_>>(),
                                evidence(hosts, server, &name)
                            );
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("seed {seed}: {reads:?} reads, {refused:?} refused, {writes:?} writes");
    let (reads, refused) = (reads.into_inner(), refused.into_inner());
    assert!(refused * 10 < reads, "{refused} opens refused of {reads}");
    assert!(writes.into_inner() > 20 && reads > 100);
}

fn lock(file: &File, typ: i32, slot: usize) {
    let lock = libc::flock {
        l_type: typ as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: (slot * SLOT) as i64,
        l_len: SLOT as i64,
        l_pid: 0,
    };
    // SAFETY: the struct lives through the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const lock) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn who_has_the_lock_sees_exactly_what_the_last_holder_left() {
    let (world, others) = hosts();
    let hosts = [world.mount.path(), others[0].path(), others[1].path()];
    let seed = setting("EFS_FUSE_SEED", 20_261_124);
    let until = Instant::now() + Duration::from_secs(setting("EFS_FUSE_CHECKER_SECONDS", 6));
    fs::write(hosts[0].join("slots"), vec![0; SLOTS * SLOT]).expect("write");
    let left: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
    let (shared, exclusive) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..9usize {
            let (left, shared, exclusive) = (&left, &shared, &exclusive);
            let path = hosts[worker % 3].join("slots");
            scope.spawn(move || {
                let mut dice = Dice(seed + worker as u64);
                let open = || {
                    let file = OpenOptions::new().read(true).write(true).open(&path);
                    file.expect("open")
                };
                let mut file = open();
                while Instant::now() < until {
                    if dice.roll(50) == 0 {
                        file = open();
                    }
                    // Few enough to meet often.
                    let slot = dice.roll(SLOTS) / (1 + dice.roll(8));
                    let writes = dice.roll(2) == 0;
                    let typ = if writes { libc::F_WRLCK } else { libc::F_RDLCK };
                    lock(&file, typ, slot);
                    let expected = left[slot].load(Ordering::SeqCst);
                    let mut seen = [0; SLOT];
                    let at = (slot * SLOT) as u64;
                    file.read_exact_at(&mut seen, at).expect("read");
                    let wrong = seen
                        .chunks(8)
                        .position(|word| word != expected.to_le_bytes());
                    if let Some(word) = wrong {
                        panic!(
                            "seed {seed}, host {}, slot {slot}, word {word}: {:?}, expected {expected}",
                            worker % 3,
                            &seen[word * 8..][..8]
                        );
                    }
                    if writes {
                        let next = expected + 1;
                        let data = next.to_le_bytes().repeat(SLOT / 8);
                        file.write_all_at(&data, at).expect("write");
                        left[slot].store(next, Ordering::SeqCst);
                        exclusive.fetch_add(1, Ordering::Relaxed);
                    } else {
                        shared.fetch_add(1, Ordering::Relaxed);
                    }
                    if dice.roll(20) > 0 {
                        lock(&file, libc::F_UNLCK, slot);
                    } else {
                        // Closing unlocks as well.
                        file.flush().expect("flush");
                        file = open();
                    }
                }
            });
        }
    });
    println!("seed {seed}: {shared:?} shared, {exclusive:?} exclusive locks");
    assert!(shared.into_inner() > 100 && exclusive.into_inner() > 100);
}
