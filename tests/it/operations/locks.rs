//! File locks between processes and hosts (two mounts as two hosts).
//!
//! `flock` and OFD locks belong to a descriptor, so threads of the test can
//! hold them; POSIX locks belong to a process, and processes are perl, which
//! every Debian has.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::process::{Background, eventually};
use crate::fixtures::sys::{Mapping, errno};
use crate::fixtures::{World, setting};

const SOON: Duration = Duration::from_secs(20);

fn two() -> (World, Mount) {
    let world = World::new();
    let other = Mount::new(&world.server);
    (world, other)
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("open")
}

fn fcntl(file: &File, command: i32, typ: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: typ as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the struct lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// F_OFD_SETLK.
fn ofd(file: &File, typ: i32, start: i64, len: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, typ, start, len).map(|_| ())
}

#[track_caller]
fn denied(result: io::Result<()>) {
    assert_eq!(errno(result), libc::EAGAIN);
}

/// A process that locks (F_SETLKW) bytes 0 to 9 of FILE, writes "have" to MARK,
/// and waits.
fn locker(file: &Path, mark: &Path) -> Background {
    let script = r#"
        open(my $f, "+<", $ENV{FILE}) or die; my $lock = pack("s s x4 q q l x4", 1, 0, 0, 10, 0);
        fcntl($f, 7, $lock) or die "lock: $!"; open(my $m, ">", $ENV{MARK}) or die; close $m; sleep 1000;"#;
    let mut command = Command::new("perl");
    command
        .args(["-e", script])
        .current_dir("/")
        .env("FILE", file)
        .env("MARK", mark);
    Background::spawn(command).expect("perl")
}

fn appears(mark: &Path) -> bool {
    eventually(SOON, || mark.exists().then_some(())).is_some()
}

#[test]
fn flock_excludes_on_one_host_and_between_hosts() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    let a2 = open(&world.path("f"));
    a.lock().expect("exclusive");
    assert!(a2.try_lock().is_err() && b.try_lock_shared().is_err());
    a.lock_shared().expect("downgrade");
    b.lock_shared().expect("shared");
    assert!(a.try_lock().is_err(), "an upgrade against a reader");
    b.unlock().expect("unlock");
    a.try_lock().expect("upgrade");
    drop(a);
    // RELEASE comes after close(2) has returned.
    let granted = eventually(SOON, || b.try_lock().ok());
    assert!(granted.is_some(), "released with the last descriptor");
}

#[test]
fn ranges_are_split_and_merged_and_told_to_who_asks() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    ofd(&a, libc::F_WRLCK, 0, 0).expect("all");
    ofd(&a, libc::F_UNLCK, 100, 50).expect("a hole");
    ofd(&b, libc::F_WRLCK, 100, 50).expect("the hole");
    denied(ofd(&b, libc::F_RDLCK, 99, 1));
    denied(ofd(&b, libc::F_RDLCK, 150, 1));
    let found = fcntl(&b, libc::F_OFD_GETLK, libc::F_WRLCK, 150, 0).expect("getlk");
    assert_eq!(
        (i32::from(found.l_type), found.l_start, found.l_len),
        (libc::F_WRLCK, 150, 0)
    );
    ofd(&b, libc::F_UNLCK, 0, 0).expect("unlock");
    // nfs-ganesha 4.3 does not downgrade the part of a lock that reaches the end.
    ofd(&a, libc::F_UNLCK, 1000, 0).expect("unlock the rest");
    ofd(&a, libc::F_RDLCK, 0, 1000).expect("downgrade of all, the hole filled");
    ofd(&b, libc::F_RDLCK, 0, 1000).expect("readers share");
    let found = fcntl(&b, libc::F_OFD_GETLK, libc::F_WRLCK, 5, 1).expect("getlk");
    assert_eq!((found.l_start, found.l_len), (0, 1000), "one lock again");
}

#[test]
fn a_process_that_is_killed_leaves_no_lock() {
    let (world, other) = two();
    drop(open(&world.path("f")));
    let b = open(&other.join("f"));
    let marks = tempfile::tempdir().expect("temporary directory");
    let mut holder = locker(&world.path("f"), &marks.path().join("1"));
    assert!(appears(&marks.path().join("1")));
    denied(ofd(&b, libc::F_RDLCK, 9, 1));
    ofd(&b, libc::F_WRLCK, 10, 1).expect("behind it");
    let found = fcntl(
        &open(&world.path("f")),
        // With F_OFD_GETLK the kernel says -1 of any holder.
        libc::F_GETLK,
        libc::F_WRLCK,
        0,
        1,
    );
    assert_eq!(found.expect("getlk").l_pid, holder.pid());
    let found = fcntl(&b, libc::F_GETLK, libc::F_WRLCK, 0, 1).expect("getlk");
    assert_eq!(found.l_pid, 0, "a process of another host");
    holder.kill();
    let granted = eventually(SOON, || ofd(&b, libc::F_WRLCK, 0, 10).ok());
    assert!(granted.is_some());
}

#[test]
fn a_signal_ends_a_wait_for_a_lock_and_nothing_is_left_of_it() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    ofd(&a, libc::F_WRLCK, 0, 10).expect("lock");
    let marks = tempfile::tempdir().expect("temporary directory");
    let mut times = Vec::new();
    for round in 0..5 {
        let mut waiter = locker(&other.join("f"), &marks.path().join("1"));
        // At any moment between two questions to the server.
        thread::sleep(Duration::from_millis(500 + 23 * round));
        assert!(waiter.ended().is_none());
        let begun = Instant::now();
        waiter.signal(libc::SIGTERM);
        assert!(waiter.wait(SOON).is_some());
        times.push(begun.elapsed());
    }
    times.sort();
    println!("ended within {times:?}");
    assert!(times[2] < Duration::from_millis(100), "{times:?}");
    assert!(times[4] < Duration::from_millis(500), "{times:?}");
    ofd(&a, libc::F_UNLCK, 0, 10).expect("unlock");
    thread::sleep(Duration::from_millis(300));
    ofd(&a, libc::F_WRLCK, 0, 10).expect("not taken by the dead");
    drop(b);
}

#[test]
fn a_lock_shows_what_was_written_before_the_last_unlock() {
    let (world, other) = two();
    let a = open(&world.path("f"));
    a.write_all_at(&[0; 8192], 0).expect("write");
    a.sync_all().expect("fsync");
    let b = open(&other.join("f"));
    let map = Mapping::new(&b, 8192, libc::MAP_SHARED).expect("mmap");
    for round in 1..50u8 {
        // Cached at the other host, by read and by mapping.
        let mut seen = [0; 8192];
        b.read_exact_at(&mut seen, 0).expect("read");
        assert_eq!(map.get(4096, 1), [round - 1]);
        a.lock().expect("lock");
        a.write_all_at(&[round; 8192], 0).expect("write");
        a.unlock().expect("unlock");
        assert_eq!(
            fs::read(world.behind("f")).expect("read behind"),
            [round; 8192],
            "stable before the lock goes"
        );
        b.lock_shared().expect("lock");
        b.read_exact_at(&mut seen, 0).expect("read");
        assert_eq!(seen, [round; 8192]);
        assert_eq!(map.get(0, 8192), [round; 8192]);
        b.unlock().expect("unlock");
    }
}

#[test]
fn a_waiter_on_the_same_host_is_woken_at_once_and_in_line() {
    let world = World::new();
    let file = open(&world.path("f"));
    file.lock().expect("lock");
    let (tell, hear) = mpsc::channel();
    let waiters: Vec<_> = (0..5)
        .map(|number| {
            let (tell, file) = (tell.clone(), open(&world.path("f")));
            let waiter = thread::spawn(move || {
                file.lock().expect("lock");
                tell.send((number, Instant::now())).expect("send");
                file.unlock().expect("unlock");
            });
            thread::sleep(Duration::from_millis(60));
            waiter
        })
        .collect();
    let polls = world.mount.stat("/nfs_ops/LOCK/count");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(
        world.mount.stat("/nfs_ops/LOCK/count"),
        polls,
        "a lock of this host is known here"
    );
    let released = Instant::now();
    file.unlock().expect("unlock");
    let order: Vec<_> = (0..5)
        .map(|_| hear.recv_timeout(SOON).expect("grant"))
        .collect();
    for waiter in waiters {
        waiter.join().expect("waiter");
    }
    let numbers: Vec<_> = order.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    let took = order[0].1.duration_since(released);
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[test]
fn a_flock_needs_no_descriptor_that_may_write_but_a_user_who_may() {
    let world = World::new();
    drop(open(&world.path("f")));
    let reader = File::open(world.path("f")).expect("open");
    reader.lock().expect("exclusive, through a reader");
    assert!(open(&world.path("f")).try_lock().is_err());
    drop(reader);
    let writer = OpenOptions::new()
        .append(true)
        .open(world.path("f"))
        .expect("open");
    eventually(SOON, || writer.try_lock_shared().ok()).expect("shared, through a writer");
}

#[test]
fn nothing_is_left_of_many_opens_and_locks() {
    let world = World::new();
    let held = open(&world.path("f"));
    let rounds = setting("EFS_FUSE_LOCK_ROUNDS", 500);
    for _ in 0..rounds {
        let file = open(&world.path("f"));
        ofd(&file, libc::F_WRLCK, 0, 1)
            .or_else(|_| {
                // The RELEASE of the round before is still at work.
                fcntl(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 1).map(|_| ())
            })
            .expect("lock");
    }
    held.lock().expect("nobody has it");
    drop(held);
    let gone = eventually(SOON, || {
        (world.mount.stat("/gauges/open_files") == 0).then_some(())
    });
    assert!(gone.is_some());
    assert!(world.mount.stat("/nfs_ops/LOCK/count") >= rounds);
    // Nobody waits for these; and the CLOSE of an open frees what was locked by it too.
    let freed = || world.mount.stat("/nfs_ops/FREE_STATEID/count");
    let most = eventually(SOON, || (freed() >= rounds * 9 / 10).then_some(()));
    assert!(most.is_some(), "{} of {rounds}", freed());
}

#[test]
fn nolock_keeps_locks_to_the_host() {
    let world = World::with(|request| request.option("nolock"));
    let other = MountRequest::of(&world.server)
        .option("local_lock=flock")
        .mount();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    a.lock().expect("lock");
    assert!(
        open(&world.path("f")).try_lock().is_err(),
        "the kernel's own"
    );
    b.try_lock().expect("another host does not know");
    ofd(&b, libc::F_WRLCK, 0, 0).expect("fcntl goes to the server");
    let asked = (world.mount.stats(), other.stats());
    assert_eq!(asked.0["nfs_ops"]["LOCK"]["count"].as_u64().unwrap_or(0), 0);
    assert_eq!(asked.1["nfs_ops"]["LOCK"]["count"].as_u64(), Some(1));
}

#[test]
fn locks_survive_a_reboot_of_the_server_and_nobody_comes_between() {
    let (mut world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    a.lock().expect("lock");
    a.write_all_at(b"before", 0).expect("write");
    world.server.kill();
    world.server.restart();
    assert!(b.try_lock_shared().is_err(), "still locked after the grace");
    a.write_all_at(b"after!", 0).expect("write");
    a.unlock().expect("unlock");
    b.lock_shared().expect("lock");
    let mut seen = [0; 6];
    b.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"after!");
}
