//! What users are promised (README, "What is promised"), one test each, of the
//! promise's own name. `docs/SEMANTICS.md` has them with the tests that go deeper.
//!
//! Each says the promise sentence by sentence, on hosts of their own
//! (`fixtures::host`), and against what the server holds.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::Hosts;
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::fixtures::sys::{self, Identity, Mapping, errno};

const SOON: Duration = Duration::from_secs(30);

fn read_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("open")
}

/// What was written before close, fsync or unlock on one host is seen by any host
/// that opens or locks afterwards.
#[test]
fn close_to_open() {
    let hosts = Hosts::new(3);
    let paths: Vec<_> = hosts.hosts.iter().map(|host| host.path("f")).collect();
    fs::write(&paths[0], noise(0, 70_000)).expect("write");
    let (mut held, mut locked) = (read_write(&paths[0]), read_write(&paths[1]));
    for round in 1..=15_u64 {
        // Every host has the pages of before.
        for path in &paths {
            assert_eq!(fs::read(path).expect("read"), noise(round - 1, 70_000));
        }
        let new = noise(round, 70_000);
        let writer = round as usize % 3;
        match round % 5 {
            0 => held.write_all_at(&new, 0).and_then(|()| held.sync_all()),
            1 => fs::write(&paths[writer], &new),
            2 => {
                let file = File::options().write(true).open(&paths[writer]);
                file.and_then(|file| file.write_all_at(&new, 0))
            }
            3 => {
                let beside = paths[writer].with_extension("new");
                let done =
                    fs::write(&beside, &new).and_then(|()| fs::rename(&beside, &paths[writer]));
                // What is open is the old file.
                held = read_write(&paths[0]);
                locked = read_write(&paths[1]);
                done
            }
            _ => {
                locked.lock().expect("lock");
                locked.write_all_at(&new, 0).expect("write");
                locked.unlock()
            }
        }
        .expect("write, close");
        for (path, host) in paths.iter().zip(&hosts.hosts) {
            let seen = fs::read(path).expect("read");
            assert!(seen == new, "round {round}, {}", host.name());
        }
        // Locked, an old descriptor shows it as well.
        locked.lock_shared().expect("lock");
        let mut seen = vec![0; new.len()];
        locked.read_exact_at(&mut seen, 0).expect("read");
        assert!(seen == new, "round {round}, through a lock");
        locked.unlock().expect("unlock");
    }
}

/// Attributes and names may be stale for at most the cache timeout, with `noac`
/// never; a host sees its own changes at once; a negative name is not served once
/// its directory is known to have moved.
#[test]
fn attributes_and_names() {
    let world = World::with(|request| request.option("actimeo=2"));
    let never = MountRequest::of(&world.server).option("noac").mount();
    let long = MountRequest::of(&world.server)
        .option("actimeo=600")
        .mount();
    let timeout = Duration::from_secs(2);
    let length = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
    fs::create_dir(world.path("dir")).expect("mkdir");
    for round in 0..3_u64 {
        let name = format!("dir/file-{round}");
        let here = world.path(&name);
        assert_eq!(length(&here), None, "a negative name is cached");
        assert_eq!(length(&long.join(&name)), None);
        for expected in [Some(3), Some(5), None] {
            match expected {
                // Another client: at the back of the mounts.
                Some(len) => fs::write(world.behind(&name), noise(1, len as usize)).expect("write"),
                None => fs::remove_file(world.behind(&name)).expect("unlink"),
            }
            let changed = Instant::now();
            assert_eq!(length(&never.join(&name)), expected, "noac");
            while length(&here) != expected {
                let stale = changed.elapsed();
                assert!(stale < timeout + Duration::from_secs(1), "{stale:?}");
                thread::sleep(Duration::from_millis(20));
            }
        }
        // One's own changes, with names and attributes that live for ten minutes.
        let own = long.join(&name);
        fs::write(&own, b"own").expect("write");
        assert_eq!(length(&own), Some(3));
        fs::rename(&own, long.join("dir/moved")).expect("rename");
        assert_eq!(
            (length(&own), length(&long.join("dir/moved"))),
            (None, Some(3))
        );
        fs::remove_file(long.join("dir/moved")).expect("unlink");
        assert_eq!(length(&long.join("dir/moved")), None);
    }
    // A name that is missing here for ten minutes; then this host learns, by a change
    // of its own, that the directory has moved by other hands.
    assert_eq!(length(&long.join("dir/theirs")), None);
    fs::write(world.behind("dir/theirs"), b"x").expect("write behind");
    fs::write(long.join("dir/ours"), b"x").expect("write");
    assert_eq!(length(&long.join("dir/theirs")), Some(1));
}

/// A write goes out at once; nothing stays back past fsync, close, unlock, lock,
/// truncate or a read by another descriptor; synchronous writes, and with
/// `write_window=0` all, are on the server when they return; an error is told to
/// every open descriptor once.
#[test]
fn pipelined_write_through() {
    let world = World::new();
    let behind = |name: &str| fs::read(world.behind(name)).expect("read behind");
    let block = |round: u8| vec![round; 300_000];
    let file = read_write(&world.path("f"));
    let other = read_write(&world.path("f"));
    file.write_all_at(&block(1), 0).expect("write");
    let arrived = eventually(SOON, || (behind("f") == block(1)).then_some(()));
    assert!(arrived.is_some(), "it goes out without being asked for");
    file.write_all_at(&block(2), 0).expect("write");
    let mut seen = block(0);
    other.read_exact_at(&mut seen, 0).expect("read");
    assert!(seen == block(2), "by another descriptor");
    file.write_all_at(&block(3), 0).expect("write");
    file.sync_all().expect("fsync");
    assert!(behind("f") == block(3), "fsync");
    file.lock().expect("lock");
    file.write_all_at(&block(4), 0).expect("write");
    file.unlock().expect("unlock");
    assert!(behind("f") == block(4), "unlock");
    file.write_all_at(&block(5), 0).expect("write");
    other.lock_shared().expect("lock");
    assert!(behind("f") == block(5), "lock");
    other.unlock().expect("unlock");
    file.write_all_at(&block(6), 0).expect("write");
    file.set_len(150_000).expect("truncate");
    assert!(behind("f") == block(6)[..150_000], "truncate");
    file.write_all_at(&block(7), 0).expect("write");
    drop(file);
    assert!(behind("f") == block(7), "close");
    let synchronous = File::options()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(world.path("f"))
        .expect("open");
    for round in 8..18 {
        synchronous.write_all_at(&block(round), 0).expect("write");
        assert!(behind("f") == block(round), "O_DSYNC");
    }
    let patient = MountRequest::of(&world.server)
        .option("write_window=0")
        .mount();
    let file = read_write(&patient.join("g"));
    for round in 1..=20_u8 {
        let at = u64::from(round) * 1000;
        file.write_all_at(&[round; 1000], at).expect("write");
        let there = behind("g");
        assert_eq!(there.len() as u64, at + 1000, "write_window=0");
        assert_eq!(there[at as usize..], [round; 1000]);
    }
    // Beyond the largest offset of the server's file system.
    let (first, second) = (read_write(&world.path("e")), read_write(&world.path("e")));
    let refused = first
        .write_all_at(b"x", (1 << 62) + 1)
        .and_then(|()| first.sync_all());
    assert!(refused.is_err(), "to the one that wrote");
    assert!(second.sync_all().is_err(), "to the other");
    first.sync_all().expect("once");
    second.sync_all().expect("once");
}

/// Locks are the server's: exclusive across hosts. Taking one shows what was written
/// before, releasing one makes it stable first. A lost lock makes its descriptor fail.
/// Waiters get theirs in turn, and a signal ends a wait.
#[test]
fn locks() {
    let lease = 6;
    let options = ServerOptions {
        lease,
        ..ServerOptions::default()
    };
    let hosts = Hosts::with(3, options, &[], Duration::from_secs(120));
    let files: Vec<_> = hosts
        .hosts
        .iter()
        .map(|host| read_write(&host.path("f")))
        .collect();
    for round in 0..6_u8 {
        let (flock, here, there) = (
            round < 3,
            &files[usize::from(round) % 3],
            &files[(usize::from(round) + 1) % 3],
        );
        let lock = |file: &File| match flock {
            true => file.lock(),
            false => sys::record_lock(file, libc::F_WRLCK),
        };
        let unlock = |file: &File| match flock {
            true => file.unlock(),
            false => sys::record_lock(file, libc::F_UNLCK),
        };
        lock(here).expect("lock");
        assert!(there.try_lock_shared().is_err(), "across hosts");
        here.write_all_at(&[round; 5000], 0).expect("write");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                lock(there).expect("lock");
                let mut seen = [0xff; 5000];
                there.read_exact_at(&mut seen, 0).expect("read");
                unlock(there).expect("unlock");
                seen
            });
            thread::sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished(), "it waits");
            unlock(here).expect("unlock");
            let stable = fs::read(hosts.behind("f")).expect("read behind");
            assert_eq!(stable, [round; 5000], "stable before it is released");
            assert_eq!(waiter.join().expect("waiter"), [round; 5000]);
        });
    }
    // A wait that a signal ends.
    files[0].lock().expect("lock");
    let mut waiter = Command::new("flock");
    waiter.args(["/volumes/f", "true"]).current_dir("/");
    let mut waiter = hosts.hosts[1].spawn(waiter).expect("flock");
    thread::sleep(Duration::from_millis(500));
    assert!(waiter.ended().is_none());
    let begun = Instant::now();
    waiter.signal(libc::SIGTERM);
    assert!(waiter.wait(SOON).is_some());
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    // A host that was away for longer than the lease, and another in its place.
    hosts.hosts[0].cut_off();
    let begun = Instant::now();
    files[1].lock().expect("lock");
    println!("lease {lease} s: freed after {:?}", begun.elapsed());
    files[1].write_all_at(&[0x77; 5000], 0).expect("write");
    files[1].unlock().expect("unlock");
    hosts.hosts[0].plug_in();
    let _ = files[0].write_all_at(b"stale", 0);
    assert_eq!(errno(files[0].sync_all()), libc::EIO);
    assert_eq!(errno(files[0].read_at(&mut [0; 10], 0)), libc::EIO);
    assert!(files[0].try_lock().is_err(), "dead until it is closed");
    assert_eq!(
        fs::read(hosts.behind("f")).expect("read behind"),
        [0x77; 5000]
    );
    let again = read_write(&hosts.hosts[0].path("f"));
    again.lock().expect("a new descriptor is a new one");
}

/// Unlinked open files stay readable and writable on the host that has them open.
#[test]
fn unlinked_open_files() {
    let hosts = Hosts::new(2);
    let [a, b] = &hosts.hosts[..] else {
        panic!("two hosts")
    };
    for (name, by) in [("unlink", a), ("rename", a), ("unlink-2", b)] {
        let path = a.path(name);
        fs::write(&path, b"old").expect("write");
        let mut file = read_write(&path);
        match name {
            "rename" => {
                fs::write(a.path("new"), b"new").expect("write");
                fs::rename(a.path("new"), &path).expect("rename");
            }
            _ => fs::remove_file(by.path(name)).expect("unlink"),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "old", "{name}");
        file.write_all(&vec![b'x'; 200_000]).expect("write");
        file.sync_all().expect("fsync");
        file.seek(SeekFrom::Start(100_000)).expect("seek");
        text.clear();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text.len(), 100_003, "{name}");
        let map = Mapping::new(&file, 4096, libc::MAP_SHARED).expect("mmap");
        assert_eq!(map.get(0, 4), b"oldx", "{name}");
        drop(map);
        file.set_len(1).expect("truncate");
        assert_eq!(file.metadata().expect("stat").len(), 1);
        match name {
            "rename" => assert_eq!(fs::read(&path).expect("read"), b"new"),
            "unlink" => assert!(!path.exists()),
            // By the other host: the name may be believed for its time.
            _ => {}
        }
    }
    let left = || fs::read_dir(hosts.behind("")).expect("readdir").count();
    let gone = eventually(SOON, || (left() == 1).then_some(()));
    assert!(gone.is_some(), "only the file \"rename\" is left");
}

/// Each call goes out as the calling process's uid, gid and supplementary groups,
/// and the server decides: the rights of the daemon, which is root, widen nobody's.
#[test]
fn identity() {
    let world = World::new();
    sys::chmod(world.mount.path(), 0o1777).expect("chmod");
    let (owner, member, stranger) = (
        Identity::new(1001, 1001, &[]),
        Identity::new(1002, 1002, &[5005]),
        Identity::new(1003, 1003, &[]),
    );
    let path = world.path("f");
    owner.run(|| fs::write(&path, b"mine")).expect("write");
    sys::chmod(&path, 0o640).expect("chmod");
    std::os::unix::fs::chown(&path, None, Some(5005)).expect("chgrp");
    let behind = fs::metadata(world.behind("f")).expect("stat behind");
    assert_eq!((behind.uid(), behind.gid()), (1001, 5005));
    // Cached for the ones who may, closed to the one who may not.
    for _ in 0..2 {
        assert_eq!(owner.run(|| fs::read(&path)).expect("owner"), b"mine");
        assert_eq!(member.run(|| fs::read(&path)).expect("by group"), b"mine");
        let refused = [
            stranger.run(|| fs::read(&path).map(drop)),
            member.run(|| fs::write(&path, b"x")),
            stranger.run(|| fs::remove_file(&path)),
            member.run(|| sys::chmod(&path, 0o666)),
        ];
        for refusal in refused {
            let code = errno(refusal);
            assert!([libc::EACCES, libc::EPERM].contains(&code), "{code}");
        }
    }
    // A server that believes no root.
    let squashed = crate::fixtures::ganesha::Server::start(ServerOptions {
        squash: "Root_Squash",
        ..ServerOptions::default()
    });
    fs::write(squashed.export().join("private"), b"x").expect("write behind");
    sys::chmod(&squashed.export().join("private"), 0o600).expect("chmod");
    let mount = Mount::new(&squashed);
    assert_eq!(errno(fs::read(mount.join("private"))), libc::EACCES);
}

/// A hard mount: calls wait for a server that is away, a fatal signal ends the wait,
/// and they go on with exactly-once effect; no synced byte is lost, no write happens
/// twice, no stale lock is believed.
#[test]
fn failure() {
    let mut hosts = Hosts::with(2, ServerOptions::default(), &[], Duration::from_secs(240));
    let locked = read_write(&hosts.hosts[0].path("locked"));
    locked.lock().expect("lock");
    let mut log = String::new();
    for round in 0..3 {
        let mut append = Command::new("sh");
        let script = "i=0; while [ $i -lt 200 ]; do i=$((i + 1)); echo $0.$i; done >>/volumes/log";
        append
            .args(["-c", script, &round.to_string()])
            .current_dir("/");
        let mut append = hosts.hosts[0].spawn(append).expect("sh");
        for line in 1..=200 {
            log += &format!("{round}.{line}\n");
        }
        thread::sleep(Duration::from_millis(20));
        // A cable, a crash, a stall.
        match round {
            0 => hosts.hosts[0].cut_off(),
            1 => hosts.server.kill(),
            _ => {}
        }
        let stopped = (round == 2).then(|| hosts.server.stopped());
        let mut doomed = Command::new("touch");
        doomed.arg(format!("/volumes/doomed-{round}"));
        let mut doomed = hosts.hosts[0].spawn(doomed).expect("touch");
        thread::sleep(Duration::from_millis(700));
        assert!(doomed.ended().is_none(), "it waits");
        let begun = Instant::now();
        doomed.signal(libc::SIGKILL);
        assert!(doomed.wait(SOON).is_some());
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        drop(stopped);
        match round {
            0 => hosts.hosts[0].plug_in(),
            1 => hosts.server.restart(),
            _ => {}
        }
        let status = append.wait(Duration::from_secs(60)).expect("it goes on");
        assert!(status.success());
        let there = fs::read_to_string(hosts.behind("log")).expect("read behind");
        assert!(there == log, "round {round}: lost or twice");
        let other = read_write(&hosts.hosts[1].path("locked"));
        assert!(other.try_lock().is_err(), "round {round}: the lock is held");
    }
    locked.unlock().expect("unlock");
    let other = read_write(&hosts.hosts[1].path("locked"));
    other.lock().expect("lock");
}
