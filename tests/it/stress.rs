//! Much at once, for a while; at the end every gauge is zero again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::mount::{Mount, number};
use crate::fixtures::{World, noise, setting, sys};
use crate::operations::counters::assert_gauges_return_to_zero;

/// Seconds of mixed work: 10 in the suite, more by `scripts/stress`.
fn seconds() -> u64 {
    setting("EFS_FUSE_STRESS_SECONDS", 10)
}

#[test]
fn a_thousand_files_open_at_once() {
    const COUNT: u64 = 1000;
    sys::allow_open_files(COUNT + 500).expect("RLIMIT_NOFILE");
    let world = World::new();
    let files: Vec<_> = (0..COUNT)
        .map(|i| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(world.path(format!("file{i:04}")))
                .unwrap_or_else(|err| panic!("file {i}: {err}"))
        })
        .collect();
    assert_eq!(world.mount.stat("/gauges/open_files"), COUNT);
    for (i, file) in files.iter().enumerate() {
        file.write_all_at(&noise(i as u64, 1000), 0).expect("write");
    }
    for (i, file) in files.iter().enumerate().rev() {
        let mut bytes = [0; 1000];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes[..] == noise(i as u64, 1000), "file {i}");
    }
    drop(files);
    for i in 0..COUNT {
        let behind = fs::read(world.behind(format!("file{i:04}"))).expect("read behind");
        assert!(behind == noise(i, 1000), "file {i}");
    }
    assert_gauges_return_to_zero(&world.mount);
}

#[test]
fn sixty_four_threads_of_mixed_work_see_no_error_and_leave_nothing_behind() {
    const THREADS: u64 = 64;
    let duration = Duration::from_secs(seconds());
    let world = World::with(|request| request.time_limit(duration + Duration::from_secs(180)));
    fs::create_dir(world.path("shared")).expect("mkdir");
    let end = Instant::now() + duration;
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (root, rounds) = (world.mount.path(), &rounds);
            scope.spawn(move || {
                let mut round = 0;
                while Instant::now() < end {
                    work(root, thread, round);
                    round += 1;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let rounds = rounds.into_inner();
    println!("{rounds} rounds of {THREADS} threads in {duration:?}");
    assert!(rounds >= THREADS, "some thread did not finish one round");
    let left: Vec<_> = fs::read_dir(world.behind("shared"))
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_gauges_return_to_zero(&world.mount);
    assert_eq!(world.mount.stats()["last_error"], serde_json::Value::Null);
}

/// One round of one thread: a little tree of its own and files in the
/// directory that all share. Any surprise panics.
fn work(root: &Path, thread: u64, round: u64) {
    let seed = thread << 32 | round;
    let own = root.join(format!("own{thread}"));
    fs::create_dir(&own).expect("mkdir");
    let len = 1000 + (seed * 7919 % 200_000) as usize;
    let data = noise(seed, len);
    fs::write(own.join("file"), &data).expect("write");
    assert!(
        fs::read(own.join("file")).expect("read") == data,
        "content of {seed:x}"
    );

    // Overwrite a piece, grow, cut.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(own.join("file"))
        .expect("open");
    let at = len / 2;
    file.write_all_at(b"patched", at as u64).expect("write");
    let mut piece = [0; 7];
    file.read_exact_at(&mut piece, at as u64).expect("read");
    assert_eq!(&piece, b"patched");
    file.set_len(len as u64 + 10).expect("grow");
    file.set_len(500).expect("cut");
    assert_eq!(file.metadata().expect("fstat").len(), 500);
    if round.is_multiple_of(3) {
        file.sync_all().expect("fsync");
    }

    // Names: link, rename, symlink, unlink while open.
    fs::hard_link(own.join("file"), own.join("twin")).expect("link");
    std::os::unix::fs::symlink("twin", own.join("link")).expect("symlink");
    assert!(fs::read(own.join("link")).expect("read") == data[..500]);
    let shared = root.join("shared").join(format!("{thread}"));
    fs::rename(own.join("twin"), &shared).expect("rename");
    fs::remove_file(own.join("file")).expect("unlink");
    fs::remove_file(&shared).expect("unlink");
    file.read_exact_at(&mut piece, 0)
        .expect("read of the unlinked file");
    assert!(piece == data[..7]);
    drop(file);

    // Directories that others change at the same time.
    for i in 0..5 {
        File::create(own.join(format!("many{i}"))).expect("create");
    }
    for entry in fs::read_dir(root.join("shared")).expect("readdir") {
        entry.expect("entry");
    }
    let names = fs::read_dir(&own)
        .expect("readdir")
        .map(|entry| entry.expect("entry"));
    assert_eq!(names.count(), 6, "five files and the symlink");
    fs::remove_dir_all(&own).expect("rm -rf");
}

/// Of the daemon, in KiB.
fn resident(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    number.expect("VmRSS")
}

/// `EFS_FUSE_OPENS` times; 100,000 in `scripts/stress`.
#[test]
fn nothing_is_left_of_many_opens_and_closes() {
    let opens = setting("EFS_FUSE_OPENS", 3_000);
    let world = World::with(|request| request.time_limit(Duration::from_secs(120 + opens / 100)));
    const FILES: u64 = 100;
    for number in 0..FILES {
        fs::write(world.path(format!("{number}")), b"content").expect("write");
    }
    let work = |count: u64| {
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let world = &world;
                scope.spawn(move || {
                    for round in 0..count / 4 {
                        let path = world.path(format!("{}", (round * 7 + worker) % FILES));
                        // Readers, writers, both, and of one file at the same time.
                        let file = OpenOptions::new()
                            .read(round % 3 != 1)
                            .write(round % 3 != 0)
                            .open(path)
                            .expect("open");
                        if round % 3 == 0 {
                            let mut byte = [0; 1];
                            file.read_exact_at(&mut byte, 0).expect("read");
                        }
                        if round % 30 == 1 {
                            file.write_all_at(b"c", 0).expect("write");
                        }
                    }
                });
            }
        });
        assert_gauges_return_to_zero(&world.mount);
        resident(&world.mount)
    };
    let before = work(opens / 5);
    let after = work(opens - opens / 5);
    println!("{opens} opens: {before} KiB, then {after} KiB");
    assert!(
        after < before + (4 << 10),
        "it grows: {before} to {after} KiB"
    );
    let stats = world.mount.stats();
    let count = |op: &str| number(&stats, &format!("/nfs_ops/{op}/count"));
    let (opened, closed) = (count("OPEN"), count("CLOSE"));
    let server = world.server.pid();
    let held = fs::read_dir(format!("/proc/{server}/fd"))
        .expect("fd")
        .count();
    println!("{opened} OPENs, {closed} CLOSEs; the server has {held} descriptors");
    assert!(held < 200, "the server holds {held} descriptors");
}
