//! Where appended data land: at the end that the server has when a file is opened or
//! locked, on one host atomically, between hosts as long as they take turns.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::Mount;
use crate::fixtures::sys::{append_by_flag, record_lock};

fn two() -> (World, Mount) {
    let world = World::new();
    let other = Mount::new(&world.server);
    (world, other)
}

fn appending(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o644);
    options.open(path).expect("open for appending")
}

fn append_once(path: &Path, text: &str) {
    appending(path).write_all(text.as_bytes()).expect("append");
}

/// Lines of different lengths, so that ends lie anywhere in a page.
fn line(host: char, n: usize) -> String {
    format!("{host}{n} {}\n", "-".repeat(n * 337 % 900))
}

#[test]
fn hosts_that_open_a_file_in_turn_append_each_to_what_the_other_has_written() {
    let (world, other) = two();
    let (here, there) = (world.path("log"), other.join("log"));
    let mut expected = String::new();
    for n in 0..20 {
        for (host, path) in [('a', &here), ('b', &there)] {
            append_once(path, &line(host, n));
            expected += &line(host, n);
            // Reading fills the kernel's pages, the last one only in part.
            assert_eq!(fs::read_to_string(path).unwrap(), expected, "{host}{n}");
        }
    }
    assert_eq!(fs::read_to_string(world.behind("log")).unwrap(), expected);
}

#[test]
fn descriptors_kept_open_append_at_the_end_that_their_lock_has_brought() {
    let (world, other) = two();
    let files = [appending(&world.path("log")), appending(&other.join("log"))];
    let mut expected = String::new();
    for n in 0..20 {
        for (host, mut file) in ['a', 'b'].into_iter().zip(&files) {
            record_lock(file, libc::F_WRLCK).expect("lock");
            file.write_all(line(host, n).as_bytes()).expect("append");
            expected += &line(host, n);
            let mut content = vec![0; expected.len() + 10];
            let read = file.read_at(&mut content, 0).expect("read");
            assert_eq!(String::from_utf8_lossy(&content[..read]), expected);
            record_lock(file, libc::F_UNLCK).expect("unlock");
        }
    }
}

#[test]
fn what_another_host_has_cut_is_appended_to_where_it_ends_now() {
    let (world, other) = two();
    let (here, there) = (world.path("log"), other.join("log"));
    let long = "x".repeat(10_000);
    append_once(&here, &long);
    let mut kept = appending(&here);
    let rotate = |to: &str| fs::write(&there, to).expect("cut short");
    rotate("short\n");
    append_once(&here, "opened\n");
    assert_eq!(fs::read_to_string(&there).unwrap(), "short\nopened\n");
    rotate("");
    record_lock(&kept, libc::F_WRLCK).expect("lock");
    kept.write_all(b"locked\n").expect("append");
    assert_eq!(fs::read_to_string(&here).unwrap(), "locked\n");
    record_lock(&kept, libc::F_UNLCK).expect("unlock");
    assert_eq!(fs::read_to_string(&there).unwrap(), "locked\n");
}

#[test]
fn a_descriptor_that_is_set_to_append_later_appends_as_well() {
    let (world, other) = two();
    let (here, there) = (world.path("log"), other.join("log"));
    fs::write(&here, "first\n").unwrap();
    let file = File::options().read(true).write(true).open(&here).unwrap();
    // SAFETY: a call without pointers.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) };
    assert_eq!(set, 0);
    let mut expected = "first\n".to_owned();
    for n in 0..10 {
        append_once(&there, &line('b', n));
        record_lock(&file, libc::F_WRLCK).expect("lock");
        (&file).write_all(line('a', n).as_bytes()).expect("append");
        record_lock(&file, libc::F_UNLCK).expect("unlock");
        expected += &(line('b', n) + &line('a', n));
    }
    let mut content = String::new();
    (&file).seek(SeekFrom::Start(0)).unwrap();
    (&file).read_to_string(&mut content).unwrap();
    assert_eq!(content, expected);
    assert_eq!(fs::read_to_string(&there).unwrap(), expected);
}

#[test]
fn appends_of_one_host_never_meet_each_other_whatever_the_file_was_before() {
    let (world, other) = two();
    let (here, there) = (world.path("log"), other.join("log"));
    append_once(&here, "old\n");
    append_once(&there, &line('b', 3));
    let before = fs::read_to_string(&there).unwrap();
    thread::scope(|scope| {
        for writer in 0..8 {
            let here = &here;
            scope.spawn(move || {
                let mut file = OpenOptions::new();
                file.append(true);
                // Every other one past the kernel's pages.
                file.custom_flags(if writer % 2 == 0 { libc::O_DSYNC } else { 0 });
                let mut file = file.open(here).expect("open");
                for n in 0..50 {
                    let text = format!("{writer}:{n}:{}\n", "y".repeat(n * 7));
                    file.write_all(text.as_bytes()).expect("append");
                }
            });
        }
    });
    let content = fs::read_to_string(&there).unwrap();
    let rest = content.strip_prefix(&before).expect("what was there");
    let mut lines: Vec<_> = rest.lines().collect();
    assert_eq!(lines.len(), 400);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 400, "each once");
    for line in lines {
        let n: usize = line.split(':').nth(1).unwrap().parse().unwrap();
        assert_eq!(line.split(':').nth(2).unwrap().len(), n * 7, "whole");
    }
}

#[test]
fn opening_for_append_and_locking_cost_no_round_trip_more() {
    let (world, other) = two();
    let path = world.path("log");
    append_once(&path, "one\n");
    append_once(&other.join("log"), "two\n");
    let (_, trips) = world.mount.round_trips(|| append_once(&path, "three\n"));
    assert!(trips <= 3, "{trips}: OPEN, WRITE, CLOSE");
}

/// RWF_APPEND is the kernel's own: it places the data under its lock of the file.
#[test]
fn appends_by_flag_of_one_host_land_one_behind_the_other() {
    let world = World::new();
    let path = world.path("log");
    fs::write(&path, "old\n").expect("write");
    thread::scope(|scope| {
        for writer in ['a', 'b', 'c', 'd'] {
            let path = &path;
            scope.spawn(move || {
                let file = File::options().write(true).open(path).expect("open");
                for n in 0..25 {
                    append_by_flag(&file, line(writer, n).as_bytes()).expect("append");
                }
            });
        }
    });
    let content = fs::read_to_string(world.behind("log")).expect("read behind");
    let rest = content.strip_prefix("old\n").expect("what was there");
    for writer in ['a', 'b', 'c', 'd'] {
        let own = rest.split_inclusive('\n').filter(|l| l.starts_with(writer));
        let expected: Vec<_> = (0..25).map(|n| line(writer, n)).collect();
        assert_eq!(own.collect::<Vec<_>>(), expected);
    }
    assert_eq!(rest.lines().count(), 100);
}

/// What a program does between another host's append and its own.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Stat,
    Open,
    Lock,
    /// So many seconds.
    Wait(u64),
}

/// FUSE hands on an offset and no flag, so the server's end does not count but what the kernel
/// was told of it.
#[test]
fn an_append_by_flag_lands_where_the_kernel_believes_the_end_to_be_and_nowhere_else() {
    const OLD: &str = "0123456789AAbb";
    const NEW: &str = "0123456789bbbbAA";
    let cases: [(&str, &[(Between, &str)]); 3] = [
        (
            "actimeo=600",
            &[
                (Between::Nothing, OLD),
                (Between::Stat, OLD),
                (Between::Open, NEW),
                (Between::Lock, NEW),
            ],
        ),
        // Its time, a quarter of it, and what a busy machine takes.
        (
            "actimeo=1",
            &[(Between::Nothing, OLD), (Between::Wait(5), NEW)],
        ),
        // Nobody looks after what is asked for each time.
        (
            "noac",
            &[
                (Between::Nothing, OLD),
                (Between::Wait(3), OLD),
                (Between::Stat, NEW),
            ],
        ),
    ];
    for (option, cases) in cases {
        let world = World::with(|request| request.option(option));
        let other = Mount::new(&world.server);
        for (number, &(between, expected)) in cases.iter().enumerate() {
            let name = format!("log{number}");
            let path = world.path(&name);
            let mut file = File::options();
            let file = file.read(true).write(true).create(true).truncate(true);
            let file = file.open(&path).expect("open");
            file.write_all_at(b"0123456789", 0).expect("write");
            file.sync_all().expect("fsync");
            append_once(&other.join(&name), "bbbb");
            match between {
                Between::Nothing => {}
                Between::Stat => drop(file.metadata().expect("stat")),
                Between::Open => drop(File::open(&path).expect("open")),
                Between::Lock => record_lock(&file, libc::F_WRLCK).expect("lock"),
                Between::Wait(seconds) => thread::sleep(Duration::from_secs(seconds)),
            }
            append_by_flag(&file, b"AA").expect("append");
            file.sync_all().expect("fsync");
            let content = fs::read_to_string(world.behind(&name)).expect("read behind");
            assert_eq!(content, expected, "{option}, {between:?}");
        }
    }
}
