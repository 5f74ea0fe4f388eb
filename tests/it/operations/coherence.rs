//! Two mounts as two hosts: close-to-open.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::mount::Mount;
use crate::fixtures::{World, noise};

fn two() -> (World, Mount) {
    let world = World::new();
    let other = Mount::new(&world.server);
    (world, other)
}

#[test]
fn what_one_host_closed_another_host_opens() {
    let (world, other) = two();
    for round in 0..20 {
        let data = noise(round, 1000 * (round as usize + 1));
        fs::write(world.path("file"), &data).expect("write");
        assert!(
            fs::read(other.join("file")).expect("read") == data,
            "round {round}"
        );
    }
}

#[test]
fn an_overwrite_of_the_same_size_is_seen_at_the_next_open() {
    let (world, other) = two();
    let (mut writer, mut reader) = (world.mount.path().to_owned(), other.path().to_owned());
    fs::write(writer.join("file"), noise(0, 100_000)).expect("write");
    for round in 1..20 {
        // Pages of the last round are cached at the reader.
        let _ = fs::read(reader.join("file")).expect("read");
        let file = OpenOptions::new()
            .write(true)
            .open(writer.join("file"))
            .expect("open");
        file.write_all_at(&noise(round, 100_000), 0).expect("write");
        drop(file);
        assert!(
            fs::read(reader.join("file")).expect("read") == noise(round, 100_000),
            "{round}"
        );
        std::mem::swap(&mut writer, &mut reader);
    }
}

#[test]
fn fsync_is_enough_for_a_host_that_opens_afterwards() {
    let (world, other) = two();
    let mut file = File::create(world.path("log")).expect("create");
    let mut expected = String::new();
    for i in 0..10 {
        writeln!(file, "line {i}").expect("write");
        file.sync_all().expect("fsync");
        expected += &format!("line {i}\n");
        assert_eq!(
            fs::read_to_string(other.join("log")).expect("read"),
            expected
        );
    }
}

#[test]
fn names_of_another_host_appear_and_vanish_within_the_cache_time() {
    let world = World::with(|request| request.option("acdirmin=1").option("acdirmax=1"));
    assert!(
        !world.path("new").exists(),
        "a negative answer is cached now"
    );
    let wait = |there: bool| {
        let start = Instant::now();
        while world.path("new").exists() != there {
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "stale for {:?}",
                start.elapsed()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    fs::write(world.behind("new"), b"x").expect("write behind");
    wait(true);
    fs::remove_file(world.behind("new")).expect("unlink behind");
    wait(false);
}

#[test]
fn with_noac_nothing_is_ever_stale() {
    let world = World::with(|request| request.option("noac"));
    let other = Mount::new(&world.server);
    for round in 0..10 {
        let name = format!("file{round}");
        assert!(!world.path(&name).exists());
        fs::write(other.join(&name), noise(round, 10 + round as usize)).expect("write");
        assert_eq!(
            fs::metadata(world.path(&name)).expect("stat").len(),
            10 + round
        );
        fs::write(other.join(&name), b"1").expect("write");
        assert_eq!(fs::metadata(world.path(&name)).expect("stat").len(), 1);
        fs::remove_file(other.join(&name)).expect("unlink");
        assert!(!world.path(&name).exists());
    }
}

/// A program that keeps a file open and reads it again and again: nothing is asked for then,
/// and what another host writes over in place changes neither size nor name.
#[test]
fn what_is_written_in_place_is_seen_by_who_has_the_file_open_within_the_cache_time() {
    // With `actimeo=0` at once; else within acregmax, a quarter of it, and the time that
    // a busy machine takes.
    for (option, limit) in [("actimeo=0", 0), ("noac", 0), ("actimeo=1", 5)] {
        let world = World::with(|request| request.option(option));
        let other = Mount::new(&world.server);
        fs::write(other.join("file"), [1; 8192]).expect("write");
        let reader = File::open(world.path("file")).expect("open");
        let read = || {
            let mut data = [0; 100];
            reader.read_exact_at(&mut data, 4000).expect("read");
            data[0]
        };
        for version in 2..5 {
            // It has pages of what was there before.
            read();
            let file = OpenOptions::new().write(true).open(other.join("file"));
            let file = file.expect("open");
            file.write_all_at(&[version; 8192], 0).expect("write");
            drop(file);
            let written = Instant::now();
            while read() != version {
                let waited = written.elapsed();
                assert!(waited < Duration::from_secs(limit), "{option}: {waited:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Linux's NFS client would ask, and wait.
#[test]
fn what_is_too_old_is_not_read_while_the_server_does_not_answer() {
    let world = World::with(|request| request.option("actimeo=1"));
    fs::write(world.path("file"), [7; 8192]).expect("write");
    let reader = File::open(world.path("file")).expect("open");
    let read = || {
        let mut data = [0; 100];
        reader.read_exact_at(&mut data, 4000).expect("read");
        data[0]
    };
    assert_eq!(read(), 7);
    std::thread::scope(|scope| {
        // Goes before the scope waits for the reader, whatever is found.
        let stopped = world.server.stopped();
        // Its time, a quarter of it, and what a GETATTR under way is waited for.
        std::thread::sleep(Duration::from_secs(4));
        let reading = scope.spawn(read);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!reading.is_finished(), "from pages that nobody vouches for");
        drop(stopped);
        assert_eq!(reading.join().expect("read"), 7);
    });
}

/// The kernel fills the last page of a file with zeros beyond its end. If it learns of a larger
/// size while it has that page, it shows them. What is left is a thread of the kernel that cuts
/// pages long after it was told of a size: seldom, and mended when they are dropped once more.
#[test]
fn a_growing_file_is_never_seen_with_bytes_that_nobody_has_written() {
    const APPENDS: usize = 100;
    for option in ["actimeo=0", "actimeo=1", "acregmin=0"] {
        let world = World::with(|request| request.option(option));
        let other = Mount::new(&world.server);
        let log = other.join("log");
        fs::write(&log, [b'x'; 16]).expect("write");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = OpenOptions::new().append(true).open(&log);
                let mut file = file.expect("open");
                for _ in 0..APPENDS {
                    file.write_all(&[b'x'; 16]).expect("append");
                    file.sync_all().expect("fsync");
                    std::thread::sleep(Duration::from_millis(5));
                }
                done.store(true, Ordering::SeqCst);
            });
            // Who asks for the size, and who opens the file meanwhile.
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    fs::metadata(world.path("log")).expect("stat");
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    drop(File::open(world.path("log")).expect("open"));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let file = File::open(world.path("log")).expect("open");
            let mut seen = vec![0; 16 * (APPENDS + 2)];
            let mut read = || {
                let length = file.read_at(&mut seen, 0).expect("read");
                seen[..length].contains(&0)
            };
            let mut late = 0;
            while !done.load(Ordering::SeqCst) {
                if read() {
                    late += 1;
                    assert!(late <= 2, "{option}: {late} times");
                    let since = Instant::now();
                    while read() {
                        assert!(
                            since.elapsed() < Duration::from_secs(5),
                            "{option}: for ever"
                        );
                    }
                }
            }
            assert!(!read(), "{option}: at the end");
        });
    }
}

/// The kernel asks for the attributes before it reads behind the size that it knows, if they
/// are too old. That very GETATTR finds the change, pages go before the size is told, and a
/// GETATTR that an invalidation overtakes is ignored: the kernel is told of the size all the same.
#[test]
fn a_read_whose_own_question_finds_the_file_grown_reads_what_has_come() {
    let world = World::with(|request| request.option("acregmin=0"));
    let other = Mount::new(&world.server);
    // The last byte is within a page, the last of one, and the first of one.
    for piece in [16, 4096, 4097, 5000] {
        fs::write(other.join("log"), vec![b'x'; 16]).expect("write");
        let reader = File::open(world.path("log")).expect("open");
        let mut data = vec![0; 8192];
        let mut end = reader.read_at(&mut data, 0).expect("read");
        assert_eq!(end, 16);
        for round in 0..20 {
            let file = OpenOptions::new().append(true).open(other.join("log"));
            let mut file = file.expect("open");
            file.write_all(&vec![b'x'; piece]).expect("append");
            drop(file);
            // One that begins where the file ended, and one that crosses that.
            let from = end - (round % 2) * 8;
            let read = reader.read_at(&mut data, from as u64).expect("read");
            end += piece;
            assert_eq!(read, end - from, "{piece} bytes, round {round}");
            assert!(data[..read].iter().all(|byte| *byte == b'x'));
        }
    }
}

/// Whoever reads past the kernel's pages sees the file as it is now; fstat(2) must not tell him
/// that it is not.
#[test]
fn a_direct_read_that_finds_another_size_is_believed_before_the_attributes() {
    let world = World::with(|request| request.option("actimeo=60"));
    let other = Mount::new(&world.server);
    for (before, after) in [(0, 4096), (4096, 0), (4096, 8192), (8192, 100)] {
        fs::write(world.path("file"), vec![1; before]).expect("write");
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(world.path("file"))
            .expect("open");
        assert_eq!(direct.metadata().expect("fstat").len(), before as u64);
        fs::write(other.join("file"), vec![2; after]).expect("write");
        let mut data = vec![0; 16384];
        let read = direct.read_at(&mut data, 0).expect("read");
        assert_eq!(read, after);
        assert_eq!(direct.metadata().expect("fstat").len(), after as u64);
        assert_eq!(
            fs::metadata(world.path("file")).expect("stat").len(),
            after as u64
        );
    }
}

/// open(2) is told which file, and not by which name it was looked up.
#[test]
fn a_name_that_was_replaced_is_not_opened_by_the_other_name_of_what_it_led_to() {
    let world = World::with(|request| request.option("actimeo=60"));
    let other = Mount::new(&world.server);
    for round in 0..20 {
        let (name, moved) = (format!("name{round}"), format!("moved{round}"));
        fs::write(other.join(&name), b"old").expect("write");
        assert_eq!(fs::read(world.path(&name)).expect("read"), b"old");
        fs::write(other.join("new"), b"new").expect("write");
        fs::rename(other.join(&name), other.join(&moved)).expect("rename");
        fs::rename(other.join("new"), other.join(&name)).expect("rename");
        assert_eq!(fs::metadata(world.path(&moved)).expect("stat").len(), 3);
        assert_eq!(fs::read(world.path(&name)).expect("read"), b"new");
    }
}

#[test]
fn a_host_sees_its_own_changes_at_once() {
    let world = World::with(|request| request.option("actimeo=3600"));
    for round in 0..20_u64 {
        let path = world.path("file");
        assert!(!path.exists());
        fs::write(&path, noise(round, 100)).expect("write");
        assert_eq!(fs::metadata(&path).expect("stat").len(), 100);
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .open(&path)
            .expect("open");
        file.write_all(b"more").expect("write");
        assert_eq!(
            fs::metadata(&path).expect("stat").len(),
            104,
            "before the close"
        );
        let mut content = Vec::new();
        file.read_to_end(&mut content).expect("read");
        assert_eq!(content.len(), 0, "append left the position at the end");
        drop(file);
        fs::rename(&path, world.path("moved")).expect("rename");
        assert!(!path.exists() && world.path("moved").exists());
        fs::remove_file(world.path("moved")).expect("unlink");
        assert!(!world.path("moved").exists());
    }
}

#[test]
fn a_mount_of_a_subdirectory_shows_that_directory() {
    let world = World::new();
    fs::create_dir_all(world.path("a/b")).expect("mkdir");
    fs::write(world.path("a/b/file"), b"deep").expect("write");
    let sub =
        crate::fixtures::mount::MountRequest::new(world.server.device("/a/b"), world.server.port())
            .mount();
    assert_eq!(fs::read(sub.join("file")).expect("read"), b"deep");
    fs::write(sub.join("other"), b"from below").expect("write");
    assert_eq!(
        fs::read(world.path("a/b/other")).expect("read"),
        b"from below"
    );
    let line = &sub.at().mounted()[0];
    assert_eq!(line.source, world.server.device("/a/b"));
}
