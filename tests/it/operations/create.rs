//! open(2) and its flags.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Barrier;

use crate::fixtures::sys::{Aligned, errno};
use crate::fixtures::{World, noise};

#[test]
fn create_makes_an_empty_file_with_the_asked_mode() {
    let world = World::new();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(world.path("new"))
        .expect("create");
    let meta = file.metadata().expect("fstat");
    assert_eq!((meta.len(), meta.mode() & 0o7777), (0, 0o640));
    let behind = fs::metadata(world.behind("new")).expect("on the server");
    assert_eq!((behind.len(), behind.mode()), (0, meta.mode()));
    assert_eq!(behind.nlink(), meta.nlink());
}

#[test]
fn create_of_an_existing_file_opens_it_unchanged() {
    let world = World::new();
    fs::write(world.path("old"), b"content").expect("write");
    fs::set_permissions(
        world.path("old"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("chmod");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o777)
        .open(world.path("old"))
        .expect("open");
    let mut content = String::new();
    file.read_to_string(&mut content).expect("read");
    assert_eq!(content, "content");
    assert_eq!(file.metadata().expect("fstat").mode() & 0o7777, 0o600);
}

#[test]
fn exclusive_create_fails_if_the_name_exists_in_any_form() {
    let world = World::new();
    fs::write(world.path("file"), b"x").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    std::os::unix::fs::symlink("nowhere", world.path("dangling")).expect("symlink");
    // A name that this mount has never seen.
    fs::write(world.behind("foreign"), b"x").expect("write behind");
    for name in ["file", "dir", "dangling", "foreign"] {
        let result = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(world.path(name));
        assert_eq!(errno(result), libc::EEXIST, "{name}");
    }
    assert!(
        !world.behind("nowhere").exists(),
        "the link was not followed"
    );
}

#[test]
fn exclusive_create_has_one_winner_among_many_on_two_mounts() {
    let world = World::new();
    let other = crate::fixtures::mount::Mount::new(&world.server);
    for round in 0..10 {
        let name = format!("lock{round}");
        let barrier = Barrier::new(16);
        let winners: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|i| {
                    let path = if i % 2 == 0 {
                        world.path(&name)
                    } else {
                        other.join(&name)
                    };
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        match OpenOptions::new().write(true).create_new(true).open(path) {
                            Ok(_) => 1,
                            Err(err) => {
                                assert_eq!(err.raw_os_error(), Some(libc::EEXIST));
                                0
                            }
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("thread"))
                .sum()
        });
        assert_eq!(winners, 1, "round {round}");
    }
}

#[test]
fn exclusive_create_leaves_sane_mode_and_times() {
    // The server may keep the create verifier in the times until we set them.
    let world = World::new();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o604)
        .open(world.path("new"))
        .expect("create");
    let now = fs::metadata(world.server.export()).expect("stat").mtime();
    for meta in [
        file.metadata().expect("fstat"),
        fs::metadata(world.behind("new")).expect("stat behind"),
    ] {
        assert_eq!(meta.mode() & 0o7777, 0o604);
        assert!(
            (meta.mtime() - now).abs() < 60,
            "mtime {} at {now}",
            meta.mtime()
        );
        assert!(
            (meta.atime() - now).abs() < 60,
            "atime {} at {now}",
            meta.atime()
        );
    }
}

#[test]
fn truncating_open_empties_the_file_for_every_reader() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 10_000)).expect("write");
    let mut reader = File::open(world.path("file")).expect("open");
    let writer = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(world.path("file"))
        .expect("open");
    assert_eq!(writer.metadata().expect("fstat").len(), 0);
    assert_eq!(fs::metadata(world.behind("file")).expect("stat").len(), 0);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("read");
    assert!(rest.is_empty());
}

#[test]
fn append_writes_at_the_end_whatever_the_position() {
    let world = World::new();
    fs::write(world.path("log"), b"first\n").expect("write");
    let mut log = OpenOptions::new()
        .append(true)
        .read(true)
        .open(world.path("log"))
        .expect("open");
    log.seek(SeekFrom::Start(0)).expect("seek");
    log.write_all(b"second\n").expect("append");
    // Grown by another descriptor in between.
    let mut other = OpenOptions::new()
        .append(true)
        .open(world.path("log"))
        .expect("open");
    other.write_all(b"third\n").expect("append");
    log.write_all(b"fourth\n").expect("append");
    drop((log, other));
    assert_eq!(
        fs::read_to_string(world.behind("log")).expect("read behind"),
        "first\nsecond\nthird\nfourth\n"
    );
}

#[test]
fn appends_of_parallel_threads_never_overlap() {
    let world = World::new();
    const THREADS: usize = 8;
    const LINES: usize = 50;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let path = world.path("log");
            scope.spawn(move || {
                let mut log = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .expect("open");
                for line in 0..LINES {
                    log.write_all(format!("{thread:03} {line:03}\n").as_bytes())
                        .expect("append");
                }
            });
        }
    });
    let content = fs::read_to_string(world.behind("log")).expect("read behind");
    let mut lines: Vec<_> = content.lines().collect();
    assert_eq!(lines.len(), THREADS * LINES);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), THREADS * LINES, "a line was overwritten");
}

#[test]
fn direct_io_reads_and_writes_past_the_page_cache() {
    let world = World::new();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(world.path("direct"))
        .expect("open");
    let mut block = Box::new(Aligned([0; 8192]));
    block.0.copy_from_slice(&noise(7, 8192));
    file.write_all_at(&block.0, 4096).expect("write");
    file.sync_all().expect("fsync");
    let behind = fs::read(world.behind("direct")).expect("read behind");
    assert!(behind[..4096] == [0; 4096] && behind[4096..] == block.0);
    // Changed behind our back: a direct read sees it at once.
    block.0.fill(b'n');
    fs::write(world.behind("direct"), block.0).expect("write behind");
    block.0.fill(0);
    file.read_exact_at(&mut block.0, 0).expect("read");
    assert!(block.0 == [b'n'; 8192], "a stale page was read");
}

#[test]
fn synchronous_writes_are_on_the_server_when_write_returns() {
    let world = World::new();
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flag)
            .open(world.path(name))
            .expect("open");
        for round in 0..8 {
            file.write_all_at(&noise(round, 5000), round * 5000)
                .expect("write");
            let behind = fs::read(world.behind(name)).expect("read behind");
            assert_eq!(behind.len() as u64, (round + 1) * 5000, "{name}");
            assert!(
                behind[round as usize * 5000..] == noise(round, 5000),
                "{name}"
            );
        }
    }
}

#[test]
fn open_of_wrong_kinds_gives_the_errors_of_posix() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::write(world.path("file"), b"x").expect("write");
    std::os::unix::fs::symlink("file", world.path("link")).expect("symlink");
    std::os::unix::fs::symlink("loop", world.path("loop")).expect("symlink");
    let open = |name: &str, flags: i32| {
        OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(world.path(name))
    };
    let write = |name: &str| OpenOptions::new().write(true).open(world.path(name));
    assert_eq!(errno(open("none", 0)), libc::ENOENT);
    assert_eq!(errno(open("file/below", 0)), libc::ENOTDIR);
    assert_eq!(errno(open("file", libc::O_DIRECTORY)), libc::ENOTDIR);
    assert_eq!(errno(open("link", libc::O_NOFOLLOW)), libc::ELOOP);
    assert_eq!(errno(open("loop", 0)), libc::ELOOP);
    assert_eq!(errno(write("dir")), libc::EISDIR);
    assert_eq!(errno(open(&"n".repeat(256), 0)), libc::ENAMETOOLONG);
    open("link", 0).expect("a link is followed");
}

#[test]
fn many_opens_of_one_file_share_it() {
    let world = World::new();
    fs::write(world.path("shared"), b"0").expect("write");
    let files: Vec<_> = (0..50)
        .map(|_| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(world.path("shared"))
                .expect("open")
        })
        .collect();
    for (i, file) in files.iter().enumerate() {
        file.write_all_at(&[i as u8], 0).expect("write");
        let next = &files[(i + 1) % files.len()];
        let mut byte = [0];
        next.read_exact_at(&mut byte, 0).expect("read");
        assert_eq!(
            byte[0], i as u8,
            "a write is seen by every descriptor at once"
        );
    }
}
